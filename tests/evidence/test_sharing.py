"""Evidence that people share: nothing personal in a row, nothing impossible, and what a card learns from rows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qlora_planner.errors import InputError
from qlora_planner.evidence import CardReading, Measurement, NvmlReading, PhaseReading
from qlora_planner.evidence.calibration import TRACED, Prediction
from qlora_planner.evidence.records import RANDOM_WEIGHTS
from qlora_planner.evidence.sharing import row_path, row_text, shareable, sharing_faults
from qlora_planner.sources.evidence import read_calibration
from qlora_planner.spec.run import RunConfig
from tools.readme import timed_cards
from tools.shared_rows import checked, fold, main

GIB = 1 << 30


def measured(**changes: Any) -> Measurement:
    fields: dict[str, Any] = {
        "created": "2026-11-30", "model": "org/model", "config_sha256": "ab" * 32, "run": RunConfig(seq_len=512),
        "outcome": "ok", "stack": {"torch": "2.11.0"},
        "gpu": CardReading(name="NVIDIA GeForce RTX 3090", capacity_bytes=24 * GIB, compute_capability="8.6"),
        "phases": {"training": PhaseReading(allocated_bytes=8 * GIB, reserved_bytes=9 * GIB, live_bytes=6 * GIB)},
        "nvml": NvmlReading(process_peak_bytes=10 * GIB, others_bytes=0), "notes": (RANDOM_WEIGHTS,), **changes,
    }  # fmt: skip
    return Measurement(**fields)


def predicted(allocated_bytes: int) -> Any:
    one = Prediction(
        method=TRACED, allocated_bytes=allocated_bytes, reserved_bytes=9 * GIB, device_bytes=10 * GIB
    )  # fmt: skip
    return lambda row, tell: [one]


def written(root: Path, row: Measurement) -> Path:
    path = root / row_path(row)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(row_text(row), encoding="utf-8")
    return path


def test_what_says_who_or_where_is_left_out() -> None:
    config = {"model_type": "llama", "_name_or_path": "/home/ann/llama", "auto_map": {"x": "y"}, "hidden_size": 64}
    row = shareable(
        measured(
            model="/home/ann/llama", config=config, predicted={"model": "/home/ann"}, role="holdout",
            notes=(RANDOM_WEIGHTS, "on ann's desktop"),
        ),
        shipped=False,
    )  # fmt: skip
    assert (row.model, row.config) == ("unnamed/llama", {"model_type": "llama", "hidden_size": 64})
    assert (row.predicted, row.role, row.notes) == (None, None, (RANDOM_WEIGHTS,))
    assert "ann" not in row_text(row)
    assert sharing_faults(row) == []
    assert shareable(measured(config=config), shipped=True).config is None


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"outcome": "out-of-memory"}, "ended well"),
        ({"cap_bytes": GIB}, "without a limit"),
        ({"gpu": None}, "the card and its memory"),
        ({"notes": ("hello",)}, "notes may hold"),
        ({"predicted": {"peak": 1}}, "predicted must be left out"),
        ({"config": {"model_type": "llama", "tokenizer": "/home/ann/t"}}, "config.tokenizer looks personal"),
        ({"stack": {"torch": "by ann@example.org"}}, "looks personal"),
        ({"created": "yesterday"}, "created must be a date"),
        ({"nvml": NvmlReading(process_peak_bytes=GIB)}, "below what torch reserved"),
        ({"nvml": NvmlReading(process_peak_bytes=30 * GIB)}, "more was held than the card has"),
        ({"phases": {}}, "phases.training must have"),
        ({"phases": {"training": PhaseReading(allocated_bytes=9 * GIB, reserved_bytes=8 * GIB)}}, "what is reserved"),
    ],
)
def test_a_row_that_cannot_be_taken_says_why(changes: dict[str, Any], says: str) -> None:
    assert any(says in fault for fault in sharing_faults(measured(**changes)))


def test_a_file_of_a_pull_request_is_looked_at(tmp_path: Path) -> None:
    path = written(tmp_path, measured())
    assert checked(path, predicted(8 * GIB)) == []
    assert "from what is predicted" in checked(path, predicted(12 * GIB))[0]
    wrong = path.with_name("other.jsonl")
    wrong.write_text(path.read_text())
    assert "its name must be rtx-3090/" in checked(wrong, predicted(8 * GIB))[0]
    path.write_text(path.read_text() * 2)
    assert "holds 2 rows" in checked(path, predicted(8 * GIB))[0]
    path.write_text("{}")
    assert "schema must be" in checked(path, predicted(8 * GIB))[0]
    assert main(["check", str(path)]) == 1
    assert main(["check"]) == 0


def test_shared_rows_become_the_calibration_of_their_card(tmp_path: Path) -> None:
    shared = tmp_path / "measurements" / "shared"
    written(shared, measured())
    written(shared, measured(run=RunConfig(seq_len=1024)))
    other = CardReading(name="NVIDIA L4", capacity_bytes=24 * GIB)
    written(shared, measured(gpu=other))
    made = fold(tmp_path, predicted(8 * GIB))
    assert [path.name for path in made] == ["shared-l4.json", "shared-rtx-3090.json"]
    learnt = read_calibration([tmp_path / "calibrations"])
    assert learnt is not None
    assert learnt.residuals[TRACED]["allocated"] == (0.0, 0.0, 0.0)


def test_the_list_of_timed_cards_grows_with_calibrations(tmp_path: Path) -> None:
    folder = tmp_path / "calibrations"
    folder.mkdir()
    assert timed_cards(tmp_path).startswith("Timed by somebody so far: none;")
    shipped = json.loads((Path(__file__).parents[2] / "profiles" / "calibrations" / "h200.json").read_text())
    (folder / "h200.json").write_text(json.dumps(shipped))
    traits = next(iter(shipped["speed"].values()))
    more = shipped | {"speed": {"rtx-3090": traits | {"count": 3}}, "contexts": {}, "residuals": {}}
    (folder / "shared-rtx-3090.json").write_text(json.dumps(more))
    assert f"h200 ({traits['count']} runs), rtx-3090 (3 runs);" in timed_cards(tmp_path)


def test_a_row_of_a_run_that_failed_is_refused_and_nothing_written(tmp_path: Path) -> None:
    from qlora_planner.session import Session
    from qlora_planner.session.measuring.sharing import shared_row, write_row

    session = Session(tell=lambda _: None)
    with pytest.raises(InputError, match="ended well"):
        shared_row(session, measured(outcome="error"))
    row = shared_row(session, replace(measured(), model="/home/ann/llama", config={"model_type": "llama"}))
    assert write_row(tmp_path, row) == tmp_path / row_path(row)
    assert [path.name for path in tmp_path.rglob("*.jsonl")] == [Path(row_path(row)).name]
