"""Generation on a tape: tokens that are not traced, layers that are not kept, passes that score."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("bitsandbytes")
pytest.importorskip("trl")

from qlora_planner import load_gpu  # noqa: E402
from qlora_planner.catalog import OPTIMIZERS  # noqa: E402
from qlora_planner.catalog.trainers import trainer_named  # noqa: E402
from qlora_planner.memory.allocator.caching import CachingAllocator  # noqa: E402
from qlora_planner.memory.allocator.native import native_memory  # noqa: E402
from qlora_planner.memory.estimate import estimate  # noqa: E402
from qlora_planner.memory.options.resolve import resolve  # noqa: E402
from qlora_planner.memory.replay import tokens, walking  # noqa: E402
from qlora_planner.memory.replay.compiled import NativeReplayer  # noqa: E402
from qlora_planner.memory.replay.events import prepare_trace  # noqa: E402
from qlora_planner.memory.replay.player import COMPONENTS, TraceReplayer  # noqa: E402
from qlora_planner.profiling.tracing import engine, layers, segments  # noqa: E402
from qlora_planner.profiling.tracing.spec import TraceSpec  # noqa: E402
from qlora_planner.profiling.tracing.trainers import rollouts  # noqa: E402
from qlora_planner.spec.run import RunConfig  # noqa: E402
from qlora_planner.spec.trace import PREFILL, TOKENS, CompiledTape, Tape  # noqa: E402
from tests.profiles import toy_profile  # noqa: E402
from tests.tracing.test_engine import toy  # noqa: E402
from tests.wide import some  # noqa: E402

USUAL: dict[str, Any] = {
    "trainer": "trl-grpo", "prompt_len": 40, "completion_len": 24, "batch_size": 4, "num_generations": 4, "rank": 8,
    "padding": False,
}  # fmt: skip


def traced(depth: int = 2, config: dict[str, Any] | None = None, **options: Any) -> tuple[Tape, RunConfig]:
    raw = {**toy(depth), **(config or {})}
    resolution = resolve(toy_profile(raw), RunConfig(**(USUAL | options)))
    return engine.trace(raw, TraceSpec(resolution=resolution)), resolution.run


def played(tape: Tape, run: RunConfig) -> dict[str, tuple[int, int]]:
    """Allocated and reserved peaks by phase, of the tape alone."""
    script, nothing = prepare_trace(tape, run.gradient_checkpointing), [0] * len(COMPONENTS)
    replayers = [TraceReplayer(CachingAllocator(), script, nothing)]
    if (memory := native_memory(None)) is not None:
        replayers.append(NativeReplayer(memory, script, nothing))
    for replayer in replayers:
        replayer.play([], run, trainer_named(run.trainer), OPTIMIZERS["sgd"])
        assert replayer.lost == 0
        assert replayer.phases == replayers[0].phases
    return {name: (phase.peak.allocated, phase.peak.reserved) for name, phase in replayers[0].phases.items()}


def every_token(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """All tokens are traced, each a stage of its own, and none stands for others."""
    stages = tuple(f"token-{number}" for number in range(1, count + 1))
    monkeypatch.setattr(rollouts, "TOKENS", stages)
    monkeypatch.setattr(segments, "_OTHER_FORWARDS", (*segments._OTHER_FORWARDS, *stages))
    monkeypatch.setattr(walking, "_PHASES", {**walking._PHASES, **dict.fromkeys(stages, PREFILL)})
    monkeypatch.setattr(engine, "with_last_token", lambda tape, *_: tape)


@pytest.mark.parametrize("options", some([{}, {"padding": True}, {"attention": "eager"}], 3), ids=str)
def test_tokens_that_are_not_traced_are_played_as_if_they_were(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "WHOLE", 1)
    few, run = traced(completion_len=12, **options)
    assert few.tokens == 11 and few.last_sizes
    every_token(monkeypatch, 11)
    every, _ = traced(completion_len=12, **options)
    assert len(every.segments) > len(few.segments)
    assert played(every, run) == played(few, run)


def test_tokens_played_in_outline_peak_where_whole_ones_do(monkeypatch: pytest.MonkeyPatch) -> None:
    tape, run = traced(completion_len=300, batch_size=8)
    outlined = played(tape, run)
    monkeypatch.setattr(tokens, "WHOLE", 1)
    whole = played(tape, run)
    # Which free block a temporary takes differs, and with it the remainders that are counted with it.
    assert whole[PREFILL][0] == pytest.approx(outlined[PREFILL][0], rel=0.01)
    assert {name: peaks for name, peaks in whole.items() if name != PREFILL} == {
        name: peaks for name, peaks in outlined.items() if name != PREFILL
    }


def test_a_long_completion_is_played_with_fewer_tokens_that_end_where_all_of_them_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tape, run = traced(completion_len=300, batch_size=8)
    each = played(tape, run)
    monkeypatch.setattr(tokens, "EACH", 100)
    monkeypatch.setattr(tokens, "_MOST_PLAYED", 80)
    some_alone = list(tokens.later_tokens(tape))
    assert (len(some_alone), some_alone[0], some_alone[-1]) == (75, 4, 299)
    fewer = played(tape, run)
    assert fewer[PREFILL][0] == pytest.approx(each[PREFILL][0], rel=0.01)
    assert {**fewer, PREFILL: None} == {**each, PREFILL: None}


@pytest.mark.parametrize("trainer", some(["trl-grpo", "trl-rloo"], 2))
def test_a_cut_model_generates_as_the_whole_one(trainer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cut, run = traced(7, trainer=trainer)
    monkeypatch.setattr(layers, "choose", layers.choose_all)
    whole, _ = traced(7, trainer=trainer)
    assert len(cut.kept) < len(whole.kept) == 7
    assert played(whole, run) == played(cut, run)


def cache_bytes(tape: Tape, token: str) -> int:
    """What a token leaves alive in the layers: their keys and values."""
    born: dict[int, int] = {}
    for segment in tape.segments:
        if segment.stage == token and segment.name == "layer":
            for storage, size in tape.events[segment.start : segment.stop]:
                born = {**born, storage: size} if size else {key: kept for key, kept in born.items() if key != storage}
    growing = dict(tape.last_sizes)
    return sum(growing[storage] for storage in born if storage in growing)


def test_the_cache_at_the_last_token_is_keys_and_values_of_the_whole_sequence() -> None:
    tape, _ = traced()
    # The last token is sampled and not read: 40 + 23 tokens, 2 heads of 64, 16 bits, keys and values of 2 layers.
    assert cache_bytes(tape, TOKENS[-1]) == 4 * (40 + 23) * (2 * 64) * 2 * 2 * 2


def stages(tape: Tape) -> list[str]:
    return list(dict.fromkeys(segment.stage for segment in tape.segments if segment.name == "layer"))


@pytest.mark.parametrize(
    ("options", "scored"),
    [
        ({}, False),
        ({"beta": 0.04}, True),
        ({"grad_accum": 2, "steps_per_generation": 4}, True),  # the policy moves before all are trained on
        ({"grad_accum": 4, "steps_per_generation": 2}, False),
        ({"num_iterations": 2}, True),
        ({"trainer": "trl-rloo", "beta": 0.0}, True),
    ],
)
def test_completions_are_scored_where_trl_needs_their_log_probabilities(options: dict[str, Any], scored: bool) -> None:
    tape, _ = traced(**options)
    assert stages(tape) == [PREFILL, *TOKENS, *(["score"] if scored else []), "forward", "backward"]


def test_completions_of_several_micro_batches_are_generated_together() -> None:
    def ids(tape: Tape) -> int:
        first = next(segment for segment in tape.segments if segment.stage == PREFILL)
        return next(size for _, size in tape.events[first.start : first.stop])

    assert ids(traced(grad_accum=3)[0]) == 3 * ids(traced()[0]) == 3 * 4 * 40 * 8


def test_generation_within_a_step_is_traced_beside_the_gradients_of_its_first_micro_batch() -> None:
    tape, _ = traced(grad_accum=4, steps_per_generation=1)
    assert {segment.micro_step for segment in tape.segments if segment.stage == PREFILL} == {0, 1}


def test_a_kept_tape_is_read_back_as_it_was() -> None:
    tape, run = traced()
    kept = CompiledTape.from_dict(CompiledTape.of(tape, "x").to_dict()).at(4, 64, 8)
    assert kept.tokens == tape.tokens
    assert played(kept, run) == played(tape, run)


@pytest.mark.parametrize("kind", some(["gemma3_text", "qwen3", "olmo2"], 3))
def test_other_classes_generate_with_nothing_lost(kind: str) -> None:
    sliding = {"sliding_window": 16, "head_dim": 64} if kind == "gemma3_text" else {"head_dim": 64}
    tape, run = traced(4, {"model_type": kind, **sliding})
    assert played(tape, run)[PREFILL][0] > 0


def test_vllm_leaves_no_generation_but_merged_adapters_and_scores_every_completion() -> None:
    tape, _ = traced(vllm="server")
    assert not tape.tokens
    assert stages(tape) == ["score", "forward", "backward"]
    merging = max(size for segment in tape.segments[:2] for _, size in tape.events[segment.start : segment.stop])
    assert merging == 256 * 704 * 2  # the widest weight in 16 bits


def test_vllm_asleep_counts_when_it_wakes_and_not_in_training() -> None:
    raw = toy(2)
    profile = toy_profile(raw)
    share = {"vllm": "colocate", "vllm_gpu_memory_utilization": 0.5}
    answers = {}
    for sleeps in (False, True):
        run = RunConfig(**(USUAL | share | {"vllm_enable_sleep_mode": sleeps}))
        tape = engine.trace(raw, TraceSpec(resolution=resolve(profile, run)))
        answers[sleeps] = estimate(profile, run, load_gpu("24GB"), tape=tape)
    awake, asleep = answers[False].fit, answers[True].fit
    assert awake is not None and asleep is not None
    half = asleep.usable_bytes // 2
    assert asleep.usable_bytes - awake.usable_bytes == half
    assert answers[True].peak.phase == PREFILL and answers[True].peak.device_bytes > half
    assert sum(answers[True].components.values()) == answers[True].peak.device_bytes
    assert answers[False].peak.device_bytes < half


def test_a_cache_goes_on_growing_where_a_window_begins_to_slide_on_the_way() -> None:
    model = {"model_type": "gemma3_text", "head_dim": 64}
    crossed, _ = traced(2, {**model, "sliding_window": 16}, prompt_len=10)
    never, _ = traced(2, {**model, "sliding_window": 500}, prompt_len=10)
    # From above: keys and values of layers that slide are taken to grow as those of all others.
    assert cache_bytes(crossed, TOKENS[-1]) == cache_bytes(never, TOKENS[-1]) > 0
