"""What starts the ranks of a run: every one gets its part of the cores."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qlora_planner.exchange.scripts.accelerate import launch_config
from qlora_planner.measure.launcher import read_config, share_cores
from qlora_planner.spec.run import RunConfig

RUN = RunConfig(parallel="fsdp2", trainer="trl-sft", compute_dtype="bfloat16")


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system does not say which cores are ours")
@pytest.mark.parametrize(("cores", "ranks", "threads"), [(32, 2, "16"), (7, 2, "3"), (1, 4, "1")])
def test_each_rank_computes_on_its_part_of_the_cores(
    cores: int, ranks: int, threads: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: set(range(cores)))
    (tmp_path / "accelerate.yaml").write_text(launch_config(RUN, ranks, "cuda"))
    share_cores(read_config(tmp_path / "accelerate.yaml")["num_processes"])
    assert os.environ["OMP_NUM_THREADS"] == threads


def test_a_number_of_threads_that_was_set_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    share_cores(2)
    assert os.environ["OMP_NUM_THREADS"] == "5"
