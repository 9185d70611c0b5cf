"""A run measured on several ranks: accelerate starts them, and each one's figures stand beside its prediction."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qlora_planner.evidence import CardReading, Measurement, NvmlReading, PhaseReading
from qlora_planner.exchange.scripts.accelerate import launch_config
from qlora_planner.measure import verify as parent
from qlora_planner.measure.spec import ChildSpec
from qlora_planner.report.parts.theme import Theme
from qlora_planner.report.verify import render_verification
from qlora_planner.session.measuring.verify import Verification, _deciding
from qlora_planner.spec.run import RunConfig

RUN = RunConfig(parallel="ddp", trainer="trl-sft", compute_dtype="bfloat16")
MIB = 1 << 20
# The second rank runs out of memory and says so; the first would wait for it without end.
RANK = """
import json, os, sys, time
from pathlib import Path
spec, out, rank = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]), int(os.environ["RANK"])
def tell(**fields): print(json.dumps({**fields, "rank": rank}), flush=True)
tell(event="rank", pid=os.getpid())
assert sys.argv[-1] == "--rank" and os.environ["WORLD_SIZE"] == "2"
if rank == 0:
    tell(event="step", step=1, of=3)
    time.sleep(600)
measured = {"schema": "SCHEMA", "created": "2026-11-30", "model": "m", "config_sha256": None, "run": spec["run"],
            "outcome": "out-of-memory", "phases": {"load": {"allocated_bytes": 5}}}
out.with_name(f"{out.stem}-{rank}{out.suffix}").write_text(json.dumps(measured))
tell(event="result", outcome="out-of-memory", phase="backward")
"""


def test_a_rank_out_of_memory_ends_the_others_and_is_the_one_that_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("accelerate")
    from qlora_planner.evidence import SCHEMA

    (tmp_path / "rank_of_a_test.py").write_text(RANK.replace("SCHEMA", SCHEMA))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(parent, "CHILD", (sys.executable, "-m", "rank_of_a_test"))
    heard: list[str] = []
    spec = ChildSpec(
        run=RUN, config={"model_type": "llama"}, device="cpu", ranks=2, launch=launch_config(RUN, 2, "cpu")
    )
    ranks = parent.verify_ranks(spec, tell=lambda progress: heard.append(progress.event))
    assert [rank.outcome for rank in ranks] == ["error", "out-of-memory"] and "step" in heard
    assert _deciding(ranks) is ranks[1]


def measured(allocated_mib: int, process_mib: int) -> Measurement:
    """A rank's readings beside a prediction of 100 and 400 MiB."""
    phases = [
        {"name": "backward", "allocated_bytes": 100 * MIB, "reserved_bytes": 200 * MIB, "device_bytes": 400 * MIB}
    ]
    predicted: dict[str, Any] = {"phases": phases, "peak": {"device_bytes": 400 * MIB}, "components": {}}
    return Measurement(
        created="2026-11-30", model="m", config_sha256=None, run=RUN, outcome="ok", predicted=predicted,
        gpu=CardReading(name="NVIDIA H200", capacity_bytes=143771 * MIB, compute_capability="9.0"),
        phases={"training": PhaseReading(allocated_bytes=allocated_mib * MIB, reserved_bytes=200 * MIB)},
        nvml=NvmlReading(process_peak_bytes=process_mib * MIB),
    )  # fmt: skip


def test_every_rank_stands_beside_what_was_predicted_of_it() -> None:
    ranks = (measured(100, 400), measured(101, 404))
    verification = Verification(measurement=_deciding(ranks), ranks=ranks)
    assert verification.measurement is ranks[1]  # the one that held most
    rows = verification.to_dict()["ranks"]
    assert [row["rank"] for row in rows] == [0, 1]
    process = [next(figure for figure in row["comparison"]["process"] if figure["name"] == "process") for row in rows]
    assert [figure["measured_bytes"] for figure in process] == [400 * MIB, 404 * MIB]
    shown = render_verification(ranks[1], Theme(color=False, unicode=False), ranks=ranks)
    lines = [line.split() for line in shown.splitlines()]
    assert ["0", "allocated", "100", "100", "+0.00", "%"] in lines
    assert ["1", "this", "process", "400", "404", "+1.00", "%"] in lines
    lost = replace(ranks[0], outcome="error", error="it was ended with the others", phases={}, nvml=NvmlReading())
    assert "error" in render_verification(ranks[1], Theme(color=False, unicode=False), ranks=(lost, ranks[1]))
