"""Knobs, the table of models and the state file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from qlora_planner.errors import InputError
from qlora_planner.session import load_model
from qlora_planner.spec.run import RunConfig
from qlora_planner.tui.knobs import KNOBS, turned
from qlora_planner.tui.saved_state import Pin, SavedState, read_state, write_state
from qlora_planner.tui.widgets.listing import SORTS, cells, chosen, guessed, tally
from qlora_planner.tui.widgets.rows import ModelRow
from tests.tui.conftest import surveyed

BY_NAME = {knob.name: knob for knob in KNOBS}
PROFILE = load_model("llama-3.1-8b")


@pytest.mark.parametrize("knob", KNOBS, ids=lambda knob: knob.name)
def test_every_value_is_reached_both_ways(knob: object) -> None:
    one = BY_NAME[knob.name]  # type: ignore[attr-defined]
    run = RunConfig()
    while (back := turned(one, PROFILE, run, -1)) is not None:
        run = back
    seen = [one.show(run)]
    while (on := turned(one, PROFILE, run, 1)) is not None:
        run = on
        seen.append(one.show(run))
    assert len(seen) == len(set(seen)) == len(one.choices(PROFILE))
    returned = [one.show(run)]
    while (back := turned(one, PROFILE, run, -1)) is not None:
        run = back
        returned.append(one.show(run))
    assert returned == seen[::-1]


def test_a_value_between_goes_to_its_neighbours() -> None:
    run = RunConfig(seq_len=3000)
    up, down = turned(BY_NAME["seq_len"], PROFILE, run, 1), turned(BY_NAME["seq_len"], PROFILE, run, -1)
    assert up is not None
    assert down is not None
    assert (down.seq_len, up.seq_len) == (2048, 3072)


def test_lengths_end_at_what_the_model_was_trained_for() -> None:
    limit = PROFILE.dims["max_position_embeddings"]
    assert turned(BY_NAME["seq_len"], PROFILE, RunConfig(seq_len=limit), 1) is None  # type: ignore[arg-type]


def _row(name: str, family: str, params: int, verdict: str) -> ModelRow:
    return ModelRow(model_id=name, family=family, params=params, verdict=verdict)


ROWS = [
    _row("a/one-8b", "llama", 8 * 10**9, "fits"),
    _row("b/two-70b", "llama", 70 * 10**9, "does-not-fit"),
    _row("c/three-1b", "qwen2", 10**9, "fits"),
]


def test_filter_sort_group() -> None:
    def ids(text: str, sort: str = "size", group: str = "none") -> list[str]:
        return [row.model_id for _, row in chosen(ROWS, text, sort, group)]

    assert ids("") == ["b/two-70b", "a/one-8b", "c/three-1b"]
    assert ids("LLAMA fits") == ["a/one-8b"]
    assert ids("llama 8b") == ["a/one-8b"]
    assert ids("nothing") == []
    assert ids("", "name") == ["a/one-8b", "b/two-70b", "c/three-1b"]
    assert ids("", "verdict")[-1] == "b/two-70b"
    by_name = chosen(ROWS, "one: 8b", "size", "none", named=lambda model_id: model_id == "a/one-8b")
    assert [row.model_id for _, row in by_name] == ["a/one-8b"]
    grouped = chosen(ROWS, "", "size", "family")
    assert [heading for heading, _ in grouped] == ["llama", "llama", "qwen2"]
    assert [row.model_id for _, row in chosen(ROWS, "", "size", "size")] == ids("")
    found = tally(ROWS)
    assert {verdict: number for verdict, number in found.items() if number} == {"fits": 2, "does-not-fit": 1}
    for sort in SORTS:
        assert len(ids("", sort)) == 3


def test_state_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "tui.json"
    run = RunConfig(seq_len=4096, stack={"trl": "1.13"}).to_dict()
    state = SavedState(
        theme="textual-light", sort="name", group="family", card="rtx-4090", model="a/b", run=run,
        pins=(Pin(model="a/b", card="24GB", run=run),),
    )  # fmt: skip
    write_state(path, state)
    assert read_state(path) == (state, None)
    assert [one.name for one in path.parent.iterdir()] == ["tui.json"]


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"schema": "other"}', "\x00", '{"schema": "qlora-plan/tui-state/1"}', "[" * 100_000],
    ids=["empty", "cut", "list", "null", "schema", "nul", "keys", "deep"],
)
def test_a_broken_state_is_passed_over_with_a_word(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tui.json"
    path.write_text(text)
    state, why = read_state(path)
    assert state == SavedState()
    assert why is not None
    assert str(path) in why


def test_a_state_with_a_bad_run(tmp_path: Path) -> None:
    path = tmp_path / "tui.json"
    write_state(path, SavedState(model="a/b", run=RunConfig().to_dict()))
    raw = json.loads(path.read_text())
    raw["run"]["rank"] = -3
    path.write_text(json.dumps(raw))
    state, why = read_state(path)
    assert state == SavedState()
    assert why is not None
    assert "--rank" in why


def test_a_state_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be made"):
        write_state(tmp_path / "file" / "tui.json", SavedState())


@pytest.mark.parametrize(
    ("traced", "verdict", "memory"),
    [(True, "fits", "7.0"), (False, "cannot-say", ">7.0"), (False, "will-not-run", "7.0")],
)
def test_what_closed_forms_answered_is_marked(traced: bool, verdict: str, memory: str) -> None:
    row = replace(_row("a/one-8b", "llama", 8 * 10**9, verdict), peak_bytes=7 << 30, traced=traced)
    assert cells(row, "x")[3] == memory
    assert guessed(row) == (memory[0] == ">")


def test_a_row_says_itself_whether_it_was_traced() -> None:
    (traced,) = {row.traced for row in surveyed("24GB") if row.model_id == "meta-llama/Llama-3.1-8B"}
    assert traced
    assert any(guessed(row) for row in surveyed("24GB"))
