"""Plans of runs with images: every answer is of a run that has them, traced, and nothing else is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("bitsandbytes")
pytest.importorskip("trl")

from qlora_planner import Session
from qlora_planner.errors import InputError, MissingError
from qlora_planner.evidence.calibration import TRACED
from qlora_planner.memory.budget import Budget
from qlora_planner.memory.estimate import estimate
from qlora_planner.memory.options.resolve import resolve
from qlora_planner.memory.records import MemoryEstimate
from qlora_planner.planner.knobs import knobs_of
from qlora_planner.planner.plan import plan
from qlora_planner.planner.planner import Request
from qlora_planner.planner.survey.images import row_with_images
from qlora_planner.profiling.tapes import trace_run
from qlora_planner.session import packages
from qlora_planner.spec.run import RunConfig
from qlora_planner.spec.trace import Tape
from tests.tracing.test_images import H200, QWEN25, source_of, whole

ASKED = RunConfig(image_size="140x112", seq_len=96, trainer="trl-sft")


def test_a_plan_with_images_is_of_the_very_run_with_them() -> None:
    profile = whole(QWEN25)
    traced: list[RunConfig] = []

    def tape_of(run: RunConfig) -> Tape | None:
        traced.append(run)
        return trace_run(source_of(QWEN25), resolve(profile, run, H200), H200)

    answer = plan(profile, Request(budget=Budget.of(H200), run=ASKED), tape_of=tape_of)
    assert (answer.run.images, answer.run.image_size, answer.run.image_tokens) == (1, "140x112", 20)
    assert answer.run.batch_size * answer.run.grad_accum == 16
    assert answer.estimate.method == TRACED and answer.estimate.verdict == "fits"
    alone = estimate(profile, answer.run, H200, tape=tape_of(answer.run))
    assert answer.estimate.peak == alone.peak
    assert all(run.shows_images for run in traced)
    # Ranks are of text, and no speed counts a tower.
    assert answer.alternatives == ()
    assert answer.estimate.speed.tokens_per_s is None


def test_a_price_with_images_is_the_difference_of_two_estimates_of_their_own() -> None:
    profile = whole(QWEN25)

    def tape_of(run: RunConfig) -> Tape | None:
        return trace_run(source_of(QWEN25), resolve(profile, run, H200), H200)

    def alone(run: RunConfig) -> int:
        return estimate(profile, run, H200, tape=tape_of(run)).floor_bytes

    answer = plan(profile, Request(budget=Budget.of(H200), run=ASKED.with_(batch_size=2)), tape_of=tape_of)
    here = alone(answer.run)
    priced = {name: row for row in answer.prices for name in row.change if row.refused is None}
    turned = {"image_size", "images", "batch_size", "seq_len", "rank", "gradient_checkpointing", "optimizer"}
    assert turned <= priced.keys() and "quant" not in priced
    assert all(row.speed is None for row in answer.prices)
    for row in answer.prices:
        if row.knob not in ("image_size", "images", "rank", "gradient_checkpointing"):
            continue
        other = answer.run.with_(**{"image_tokens": None, "padding": None, "alpha": None, **row.change})
        assert row.bytes == alone(other) - here, row.change
    # Twice the pixels of 140x112 are two rows of 20 tokens and more: 200x160 is 7 x 6 patches of 28.
    assert priced["image_size"].change["image_size"] in ("200x160", "96x80")
    assert {row.change["images"] for row in answer.prices if row.knob == "images"} == {2}


def test_a_frontier_and_a_ladder_with_images_are_of_runs_that_fit_by_their_own_traces() -> None:
    profile = whole(QWEN25)
    budget = Budget.of(H200, cap_bytes=160 << 20)

    def tape_of(run: RunConfig) -> Tape | None:
        return trace_run(source_of(QWEN25), resolve(profile, run, H200), H200)

    def alone(run: RunConfig) -> MemoryEstimate:
        return estimate(profile, run, H200, cap_bytes=160 << 20, tape=tape_of(run))

    answer = plan(profile, Request(budget=budget, run=ASKED.with_(batch_size=2)), tape_of=tape_of)
    longest = {point.batch_size: point.seq_len or 0 for point in answer.frontier}
    assert longest[1] > 2 * 96 and longest[2] >= 96
    at = {"batch_size": 1, "padding": None}
    assert alone(answer.run.with_(**at, seq_len=longest[1])).verdict == "fits"
    assert alone(answer.run.with_(**at, seq_len=2 * longest[1])).verdict != "fits"
    rung = answer.ladder[0]
    assert rung.change["batch_size"] == 1
    assert rung.bytes == alone(answer.run.with_(**rung.change)).floor_bytes - alone(answer.run).floor_bytes
    # None is said by closed forms.
    assert all(rung.bytes is not None and rung.speed is None for rung in answer.ladder)


def test_images_that_fill_the_sequence_bring_a_longer_one_so_that_the_text_stays() -> None:
    profile = whole(QWEN25)
    run = resolve(profile, ASKED.with_(images=3), H200).run
    change = next(filter(None, (knob.turn(run) for knob in knobs_of(run, profile) if knob.name == "images")))
    # 20 tokens an image, and one that begins and one that ends it: six take 132 of a sequence of 96, three took 66.
    assert change == {"images": 6, "seq_len": 96 + 132 - 66}
    text = resolve(profile, RunConfig(), H200).run
    assert not {knob.name for knob in knobs_of(text, profile)} & {"images", "image_size"}


def test_prices_are_of_traces_that_are_kept_where_none_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The explorer makes none: what was traced before answers there, with the same figures."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = tmp_path / "config.json"
    config.write_text(json.dumps(QWEN25))
    tracing, stored = (Session(stored_only=only).open(str(config), "24GB") for only in (False, True))
    monkeypatch.setenv(packages.TRACE_VARIABLE, "auto")
    tracing.profile_for(ASKED)  # keeps the model with its tower
    with pytest.raises(InputError, match="`qlora-plan plan` with these options records this run"):
        stored.prices(ASKED)
    assert stored.estimate(ASKED).verdict == "cannot-say"
    made, again = tracing.estimate(ASKED), Session(stored_only=True).open(str(config), "24GB")
    assert made.verdict == "fits" and again.estimate(ASKED).peak == made.peak
    figures = {row.knob: row.bytes for row in again.prices(ASKED)}
    assert figures["rank"] is None and figures["optimizer"] is not None


@pytest.mark.parametrize(
    ("card", "request_of", "says"),
    [
        ("2xrtx-4090", {}, "planned on one card"),
        ("24GB", {"compare": "t4"}, "--compare: not with images yet; plan by --seq-len"),
    ],
)
def test_what_no_plan_with_images_takes_is_one_line(card: str, request_of: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        Session().on(card).plan("qwen2.5-vl-3b", ASKED, **request_of)


def test_without_a_trace_no_verdict_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ASKED.with_(seq_len=2048)
    monkeypatch.setenv(packages.TRACE_VARIABLE, "never")
    answer = Session().on("24GB").plan("qwen2.5-vl-3b", asked)
    assert answer.verdict == "cannot-say" and answer.run.images == 1
    monkeypatch.delenv(packages.TRACE_VARIABLE)
    monkeypatch.setattr(packages, "missing_packages", lambda *_: ["torch"])
    with pytest.raises(MissingError, match="is not among the traces that ship"):
        Session().on("24GB").plan("qwen2.5-vl-3b", asked)


def test_the_survey_is_of_models_that_read_images_and_says_nothing_of_untraced_towers() -> None:
    rows = {row.model_id: row for row in Session().on("24GB").survey(ASKED.with_(seq_len=4096)).rows}
    assert "Qwen/Qwen2.5-VL-3B-Instruct" in rows and "Qwen/Qwen2.5-3B" not in rows
    # Every image is as many patches to LLaVA and Gemma 3, whose tapes ship; none ships of an image of 20 tokens.
    fitting = {"llava-hf/llava-1.5-7b-hf", "google/gemma-3-4b", "google/gemma-3-12b"}
    assert {name for name, row in rows.items() if row.verdict == "fits"} == fitting
    assert "`estimate` traces it" in (rows["Qwen/Qwen2.5-VL-3B-Instruct"].note or "")
    large = rows["Qwen/Qwen3-VL-30B-A3B-Instruct"]
    assert large.verdict == "does-not-fit" and large.run.image_tokens
    assert all(row.recommended is None and row.longest_seq_len is None for row in rows.values())


def test_a_row_with_images_whose_trace_is_at_hand_is_the_estimate() -> None:
    profile = whole(QWEN25)
    tape = trace_run(source_of(QWEN25), resolve(profile, ASKED, H200), H200)
    row = row_with_images(profile, ASKED, Budget.of(H200), tape)
    answer = estimate(profile, ASKED, H200, tape=tape)
    assert (row.verdict, row.peak_bytes, row.run.image_tokens) == ("fits", answer.floor_bytes, 20)
    assert row.params == profile.params and row.traced


def test_another_card_is_asked_about_the_model_with_its_tower() -> None:
    """The smallest card that would do is looked for by traces that ship, and none does with images."""
    bench = Session().open("qwen2.5-vl-3b", "24GB")
    assert bench.shipped(ASKED.with_(seq_len=2048), H200) is None
