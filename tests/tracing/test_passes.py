"""A trainer of pairs that compares with a reference: its row alone says which passes a step has, and their width."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("bitsandbytes")

from qlora_planner.catalog.trainers import trainer_named  # noqa: E402
from qlora_planner.memory.budget import Budget  # noqa: E402
from qlora_planner.memory.options.resolve import Resolution, resolve  # noqa: E402
from qlora_planner.memory.replay.estimate import traced_breakdown  # noqa: E402
from qlora_planner.profiling.tracing import engine, layers  # noqa: E402
from qlora_planner.profiling.tracing.spec import TraceSpec  # noqa: E402
from qlora_planner.profiling.tracing.trainers import TRACERS, hf  # noqa: E402
from qlora_planner.spec.run import RunConfig  # noqa: E402
from qlora_planner.spec.trace import Tape  # noqa: E402
from tests.profiles import toy_profile  # noqa: E402
from tests.tracing.test_engine import played, toy  # noqa: E402
from tools.compiling import NotPolynomialError  # noqa: E402
from tools.ranges import compile_run  # noqa: E402

PAIRS = replace(trainer_named("hf-trainer"), name="pairs", passes=("policy", "reference"), sequences_per_row=2)


def _loss(forward: Any, model: Any, inputs: Any, spec: Any, training: bool = True) -> tuple[Any, Any]:
    """Preferred and other in turns, against the same model without adapters, as direct preference optimisation has."""
    logits = forward(**inputs)["logits"].log_softmax(-1).amax(-1).sum(-1)
    with torch.no_grad(), model.disable_adapter():
        reference = forward(**inputs)["logits"].log_softmax(-1).amax(-1).sum(-1)
    better, worse = (logits - reference).chunk(2)
    return -torch.nn.functional.logsigmoid(better - worse).mean(), None


@pytest.fixture(autouse=True)
def traced_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    tracer = SimpleNamespace(**{name: getattr(hf, name) for name in ("patches", "prepare", "inputs", "evaluated")})
    tracer.loss = _loss
    monkeypatch.setitem(TRACERS, "pairs", (((0, 0), tracer),))  # type: ignore[arg-type]


def pairs(depth: int = 4, **options: Any) -> tuple[Any, Resolution]:
    profile = toy_profile(toy(depth))
    usual: dict[str, Any] = {"seq_len": 64, "rank": 8, "trainer": "hf-trainer"}
    resolution = resolve(profile, RunConfig(**(usual | options)))
    return profile, replace(resolution, trainer=PAIRS)


def test_each_pass_is_a_stage_of_the_tape() -> None:
    _, resolution = pairs()
    tape = engine.trace(toy(4), TraceSpec(resolution=resolution))
    stages = list(dict.fromkeys((segment.stage, segment.name) for segment in tape.segments))
    assert stages[1:7] == [
        (stage, name) for stage in ("forward", "reference") for name in ("embedding", "layer", "head")
    ]
    assert stages[7] == ("backward", "head")


@pytest.mark.parametrize("checkpointing", [True, False])
def test_a_cut_model_is_played_with_its_reference_as_the_whole_one(
    checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, resolution = pairs(gradient_checkpointing=checkpointing)
    spec = TraceSpec(resolution=resolution)
    cut = engine.trace(toy(7), spec)
    monkeypatch.setattr(layers, "choose", layers.choose_all)
    whole = engine.trace(toy(7), spec)
    assert len(cut.kept) < len(whole.kept) == 7
    assert played(whole, checkpointing) == played(cut, checkpointing)


def test_a_batch_of_pairs_has_two_sequences_a_row() -> None:
    def ids(tape: Tape) -> int:
        first = next(segment for segment in tape.segments if segment.stage == "forward")
        return next(size for _, size in tape.events[first.start : first.stop])

    _, resolution = pairs(batch_size=3)
    assert ids(engine.trace(toy(4), TraceSpec(resolution=resolution))) == 3 * 2 * 64 * 8  # int64


def test_an_estimate_has_a_phase_for_the_reference_that_keeps_nothing_for_backward() -> None:
    profile, resolution = pairs()
    tape = engine.trace(toy(4), TraceSpec(resolution=resolution))
    answer = traced_breakdown(profile, resolution, tape, Budget.of(None).for_run(resolution.run))
    phases = {phase.name: phase.allocated_bytes or 0 for phase in answer.phases}
    assert list(phases)[3:7] == ["forward", "loss", "reference", "backward"]
    assert phases["backward"] >= phases["reference"] > 0


def test_pairs_are_traced_run_by_run() -> None:
    _, resolution = pairs()
    source: Any = SimpleNamespace(config=toy(4), id="toy", sha256="")
    with pytest.raises(NotPolynomialError, match="pairs is traced run by run"):
        compile_run(source, resolution, None, SimpleNamespace(low=0, high=512, batched=False))  # type: ignore[arg-type]
