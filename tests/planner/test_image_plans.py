"""Plans of runs with images: every answer is of a run that has them, traced, and nothing else is said."""

from __future__ import annotations

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
from qlora_planner.planner.plan import plan
from qlora_planner.planner.planner import Request
from qlora_planner.planner.survey.images import row_with_images
from qlora_planner.profiling.tapes import trace_run
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
    assert {run.image_size for run in traced} == {"140x112"}
    # Ranks are of text: they price nothing here, and no speed counts a tower.
    assert (answer.prices, answer.frontier, answer.ladder, answer.alternatives) == ((), (), (), ())
    assert answer.estimate.speed.tokens_per_s is None


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
    from qlora_planner.session import packages

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
    assert {row.verdict for row in rows.values()} <= {"cannot-say", "does-not-fit"}
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
    assert bench._shipped(ASKED.with_(seq_len=2048), H200) is None
