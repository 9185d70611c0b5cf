"""What a survey says of a run is what `estimate` says of it, with any options and on any card."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.one_figure import rows_of
from qlora_planner.errors import MissingError
from qlora_planner.planner.survey.survey import survey_rows
from qlora_planner.session import packages
from qlora_planner.session.session import Session
from qlora_planner.spec.run import RunConfig
from tests.wide import some

MODELS = ("meta-llama/Llama-3.1-8B", "google/gemma-3-4b", "Qwen/Qwen2.5-14B", "mistralai/Mistral-7B-v0.3")
SCANS = ("ibm-granite/granite-4.0-h-tiny", "ai21labs/AI21-Jamba-Mini-1.5")
RUNS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("24GB", {}), ("24GB", {"batch_size": 2}), ("rtx-3060-12gb", {"trainer": "hf-trainer"}), ("t4", {}),
    ("rtx-4090", {"method": "lora", "quant": "none"}), ("16GB", {"seq_len": 4096, "rank": 64}),
)  # fmt: skip


@pytest.fixture(autouse=True)
def base_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "missing_packages", lambda *_: ["torch"])
    monkeypatch.delenv(packages.TRACE_VARIABLE, raising=False)


@pytest.mark.parametrize(("card", "options"), some(RUNS, 4))
def test_a_row_is_what_estimate_says(card: str, options: dict[str, Any]) -> None:
    rows = rows_of(Session(), card, options, MODELS)
    assert len(rows) == len(MODELS)
    for row in rows:
        said = Session().on(card).estimate(row.model_id, RunConfig(**options)).estimate
        assert row.verdict == said.verdict, row.model_id
        if row.traced:
            assert row.peak_bytes == pytest.approx(said.floor_bytes, rel=0.08), row.model_id
        else:  # its weights alone are too large
            assert row.usable_bytes < row.peak_bytes < said.floor_bytes, row.model_id


def test_of_a_class_without_traces_nothing_is_said_but_that_it_is_too_large() -> None:
    rows = {row.model_id: row for row in rows_of(Session(), "24GB", {}, SCANS)}
    row = rows[SCANS[0]]
    assert (row.verdict, row.longest_seq_len, row.largest_batch) == ("cannot-say", None, None)
    assert "no training step of this class is recorded here" in str(row.note)
    with pytest.raises(MissingError, match="not among the traces that ship"):
        Session().on("24GB").estimate(SCANS[0])
    assert rows[SCANS[1]].verdict == "does-not-fit"  # 50 billion parameters: its weights alone


def test_rows_come_one_by_one() -> None:
    bench = Session().on("24GB")
    profiles = iter([bench.session.model(MODELS[0])])

    def twice() -> Any:
        yield next(profiles)
        raise AssertionError("nobody asked for the second yet")

    rows = survey_rows(
        twice(), bench.budget, RunConfig(), lambda _: None, lambda _: (), lambda _: None, lambda *_: None
    )
    assert next(rows).verdict == "cannot-say"
