"""Runs that are planned and cannot be executed are refused in a line before anything is loaded."""

from __future__ import annotations

from typing import Any

import pytest

from qlora_planner import RunConfig
from qlora_planner.errors import InputError, MissingError
from qlora_planner.session.measuring.this_card import check_packages
from qlora_planner.session.packages import check_executable, missing_for


@pytest.mark.parametrize(
    ("options", "device", "says"),
    [
        ({"expert_quant": "nf4"}, "cuda", "axolotl"),
        ({"checkpoint_offload": True}, "cpu", "pinned memory"),
        ({"loss_kernel": "cut-cross-entropy"}, "cpu", "Triton"),
        ({"trainer": "trl-grpo", "vllm": "server"}, "cpu", "leave --vllm server out"),
        ({"trainer": "trl-rloo", "vllm": "colocate"}, "cpu", "leave --vllm colocate out"),
    ],
)
def test_a_run_that_nothing_here_can_execute_says_why(options: dict[str, Any], device: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        check_executable(RunConfig(**options), device)


@pytest.mark.parametrize("mode", ["server", "colocate"])
def test_a_run_that_vllm_generates_for_needs_it(mode: str) -> None:
    run = RunConfig(trainer="trl-grpo", vllm=mode)
    check_executable(run, "cuda")
    assert "vllm" in missing_for(run) and "vllm" not in missing_for(run.with_(vllm="none"))
    with pytest.raises(MissingError, match=r"missing here: .*vllm; .*pip install 'trl\[vllm\]'"):
        check_packages(run)


def test_the_same_options_run_where_they_can() -> None:
    run = RunConfig(checkpoint_every=2, checkpoint_offload=True, loss_kernel="liger-fused", expert_quant="none")
    check_executable(run, "cuda")
    check_executable(RunConfig(checkpoint_every=2, loss_kernel="full"), "cpu")
