"""Laws that every traced estimate must keep, on tapes of the catalogue's own models."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlora_planner.catalog.gpus import GpuCatalogue, parse_gpu
from qlora_planner.memory import PHASES, Component, MemoryEstimate
from qlora_planner.memory.allocator.caching import LARGE_SEGMENT_BYTES, OutOfMemory, block_bytes
from qlora_planner.memory.estimate import estimate
from qlora_planner.memory.options.resolve import resolve
from qlora_planner.memory.replay.player import COMPONENTS
from qlora_planner.memory.replay.simulate import SimulatedRun, simulate_run
from qlora_planner.memory.weights.placement import Placement
from qlora_planner.memory.weights.static import static_memory
from qlora_planner.sources.catalogue import ModelCatalogue
from qlora_planner.sources.tapes import StoredTape, stored_tape
from qlora_planner.spec.run import RunConfig

ROOT = Path(__file__).parents[2] / "profiles"
CATALOGUE = ModelCatalogue([ROOT / "models"])
# Grouped heads and a large vocabulary, sliding beside full attention, an untied head, parallel residuals, Conv1D.
NAMES = (
    "Qwen/Qwen2.5-0.5B",
    "google/gemma-2-2b",
    "meta-llama/Llama-3.2-1B",
    "EleutherAI/pythia-1.4b",
    "openai-community/gpt2",
)
H200 = parse_gpu("h200", GpuCatalogue([ROOT / "gpus"]))
WORKSPACE = 32 << 20
TRAINING = ("forward", "loss", "backward", "optimizer")
EXPANDABLE = "expandable_segments:True"


@cache
def stored(name: str) -> StoredTape:
    profile = CATALOGUE.load(name)
    found = stored_tape(profile, [ROOT / "tapes"], 1, min(2048, int(profile.dims.get("position_rows") or 2048)))
    assert found is not None, f"no tape of {name} is shipped, or it is of another config"
    return found


@cache
def played(name: str, seq_len: int, rank: int, limit_bytes: int | None = None, **options: Any) -> SimulatedRun:
    profile = CATALOGUE.load(name)
    run = RunConfig(seq_len=seq_len, rank=rank, **options)
    tape = stored(name).tape.at(1, seq_len, rank, WORKSPACE)
    return simulate_run(profile, resolve(profile, run, H200), tape, WORKSPACE, limit_bytes)


def estimated(name: str, run: RunConfig) -> MemoryEstimate:
    tape = stored(name).tape.at(run.batch_size, run.seq_len, run.rank, WORKSPACE)
    return estimate(CATALOGUE.load(name), run, H200, tape=tape)


def training_peak(found: SimulatedRun) -> int:
    return max(found.training[phase].peak.allocated for phase in TRAINING)


@st.composite
def cases(draw: st.DrawFn) -> tuple[str, int, int]:
    """A model, a length within its tape's region, and a rank."""
    name = draw(st.sampled_from(NAMES))
    region = stored(name).region
    seq_len = draw(st.integers(region.low // 64 + 1, min(region.high, 4096) // 64)) * 64
    return name, seq_len, draw(st.integers(1, 64))


@given(cases(), st.integers(1, 32), st.integers(1, 64))
@settings(max_examples=30, deadline=None)
def test_more_tokens_or_rank_never_lower_the_peak(case: tuple[str, int, int], steps: int, ranks: int) -> None:
    name, seq_len, rank = case
    longer = min(seq_len + 64 * steps, stored(name).region.high, 8192)
    # A larger rank makes 8-bit states out of 32-bit ones, and moves states of 100,000 elements to managed memory: with
    # bitsandbytes' optimizers it may free bytes on the card. States of torch's AdamW grow with the rank.
    options = {"optimizer": "adamw_torch"}
    base = training_peak(played(name, seq_len, rank, **options))
    assert training_peak(played(name, longer, rank, **options)) >= base
    assert training_peak(played(name, seq_len, rank + ranks, **options)) >= base
    assert training_peak(played(name, longer, rank)) >= training_peak(played(name, seq_len, rank))


@given(cases(), st.sampled_from([None, EXPANDABLE]))
@settings(max_examples=25, deadline=None)
def test_an_estimate_is_whole(case: tuple[str, int, int], alloc_conf: str | None) -> None:
    name, seq_len, rank = case
    answer = estimated(name, RunConfig(seq_len=seq_len, rank=rank, alloc_conf=alloc_conf))
    assert sum(answer.components.values()) == answer.peak.device_bytes
    assert set(answer.components) == {part.value for part in Component} - {"communication"}  # of several cards
    assert all(size >= 0 for size in answer.components.values()), answer.components
    assert answer.peak.low_bytes <= answer.peak.device_bytes <= answer.peak.high_bytes
    assert tuple(phase.name for phase in answer.phases) == PHASES
    known = [phase for phase in answer.phases if phase.device_bytes is not None]
    assert answer.peak.device_bytes == max(phase.device_bytes or 0 for phase in known)
    for phase in known:
        assert 0 < (phase.allocated_bytes or 0) <= (phase.reserved_bytes or 0) < (phase.device_bytes or 0)
    assert answer.floor_bytes <= answer.peak.device_bytes


@given(cases())
@settings(max_examples=20, deadline=None)
def test_every_death_finds_its_block_and_a_step_leaves_nothing(case: tuple[str, int, int]) -> None:
    found = played(*case)
    assert found.lost == 0
    optimizer = dict(zip(COMPONENTS, found.training["optimizer"].components, strict=True))
    # Beside weights, gradients and states a step leaves the batch and the libraries' buffers alone.
    assert optimizer[Component.CHECKPOINTS] + optimizer[Component.LOGITS_AND_LOSS] <= 1 << 20
    assert optimizer[Component.ACTIVATIONS] <= 1 << 20


@given(cases())
@settings(max_examples=20, deadline=None)
def test_only_adapters_have_gradients(case: tuple[str, int, int]) -> None:
    name, seq_len, rank = case
    # Without expandable segments a large block may keep up to 1 MiB beyond its tensor.
    found = played(*case, alloc_conf=EXPANDABLE)
    run = resolve(CATALOGUE.load(name), RunConfig(seq_len=seq_len, rank=rank), H200).run
    trainable = static_memory(Placement(CATALOGUE.load(name), run)).trainable
    # trl-sft keeps the adapters of a quantised base, and so their gradients, in two bytes.
    every = sum(tensor.count * block_bytes(2 * tensor.numel) for tensor in trainable)
    optimizer = dict(zip(COMPONENTS, found.training["optimizer"].components, strict=True))
    assert optimizer[Component.GRADIENTS] == every


@pytest.mark.parametrize("name", NAMES)
def test_nested_constants_are_smaller_than_flat_ones(name: str) -> None:
    profile = CATALOGUE.load(name)
    nested, flat = (
        static_memory(Placement(profile, resolve(profile, RunConfig(double_quant=double), H200).run))
        for double in (True, False)
    )
    assert nested.constants < flat.constants
    assert nested.packed_weights == flat.packed_weights


def fits(case: tuple[str, int, int], limit: int) -> bool:
    try:
        played(*case, limit_bytes=limit)
    except OutOfMemory:
        return False
    return True


@given(cases())
@settings(max_examples=20, deadline=None)
def test_limits_bracket_the_run(case: tuple[str, int, int]) -> None:
    found = played(*case)
    assert fits(case, found.reserved)
    assert not fits(case, found.allocated - 512)
    capped = played(*case, limit_bytes=found.reserved)
    assert training_peak(capped) == training_peak(found), "a limit that is not reached changes nothing"


@given(cases())
@settings(max_examples=15, deadline=None)
def test_expandable_segments_never_allocate_more(case: tuple[str, int, int]) -> None:
    usual, expandable = played(*case), played(*case, alloc_conf=EXPANDABLE)
    assert expandable.allocated <= usual.allocated, "no remainder stays unsplit"
    assert expandable.allocated <= expandable.reserved
    # Against a limit torch counts a whole segment where it would map a unit.
    limit = expandable.reserved + LARGE_SEGMENT_BYTES
    capped = played(*case, limit_bytes=limit, alloc_conf=EXPANDABLE)
    assert capped.allocated == expandable.allocated
    assert capped.reserved <= limit


@pytest.mark.parametrize(
    "options",
    [
        {"trainer": "trl-sft", "upcast": False},
        {"trainer": "hf-trainer", "upcast": True},
        {"trainer": "loop", "upcast": True, "lora_dropout": 0.0},
        {"trainer": "trl-sft", "upcast": False, "quant": "none", "method": "lora"},
    ],
)
def test_checkpointing_never_raises_what_is_kept(options: dict[str, Any]) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("bitsandbytes")
    from qlora_planner.profiling.tracing import engine
    from tests.tracing.specs import spec_of

    config = {
        "model_type": "llama", "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512, "max_position_embeddings": 512,
    }  # fmt: skip

    def kept(checkpointing: bool) -> int:
        tape = engine.trace(config, spec_of(seq_len=96, gradient_checkpointing=checkpointing, **options))
        loss = next(s for s in tape.segments if s.stage == "forward" and s.name == "head")
        alive: dict[int, int] = {}
        for storage, size in tape.events[: loss.start]:
            alive[storage] = size
        return sum(alive.values())

    assert 0 < kept(True) < kept(False)


@pytest.mark.parametrize(("name", "grows"), [("Qwen/Qwen2.5-0.5B", True), ("meta-llama/Llama-3.2-1B", False)])
def test_narrower_batches_before_change_what_is_reserved_and_not_what_is_allocated(name: str, grows: bool) -> None:
    compiled, profile = stored(name).tape, CATALOGUE.load(name)
    run = RunConfig(seq_len=4096)
    tape, *before = (compiled.at(1, width, run.rank, WORKSPACE) for width in (4096, 3600, 3900, 4000))
    alone = simulate_run(profile, resolve(profile, run, H200), tape, WORKSPACE)
    after = simulate_run(profile, resolve(profile, run, H200), tape, WORKSPACE, before=before)
    assert after.lost == 0
    for phase in TRAINING:
        # But for remainders of up to 1 MiB that the allocator leaves unsplit.
        assert after.training[phase].peak.allocated == pytest.approx(alone.training[phase].peak.allocated, rel=2e-3)
    assert after.reserved > 1.01 * alone.reserved if grows else after.reserved >= alone.reserved
    # Steps of the widest come last, so that none before them is left in a phase's peak.
    same = simulate_run(profile, resolve(profile, run, H200), tape, WORKSPACE, before=[tape])
    assert same.reserved == alone.reserved


def test_traces_of_other_pieces_are_told_apart() -> None:
    first, second = (stored(name).tape.at(1, 1024, 16, WORKSPACE) for name in NAMES[:2])
    assert first.alike(stored(NAMES[0]).tape.at(1, 700, 16, WORKSPACE))
    assert not first.alike(second)


# Tokens of each batch of 8 rows up to and including the first of the widest, and bytes that torch reserved over 168
# steps, of a training run of Llama-3.2-1B's size on an H200 (torch 2.11).
WIDTHS, MEASURED_RESERVED_BYTES = (854, 704, 1290, 1550, 1284, 1111, 2001), 6_373_244_928


def test_the_widths_of_a_measured_run_give_what_it_reserved() -> None:
    name = "meta-llama/Llama-3.2-1B"
    profile, run = CATALOGUE.load(name), RunConfig(batch_size=8, seq_len=WIDTHS[-1])
    kept = stored_tape(profile, [ROOT / "tapes"], 8, WIDTHS[-1])
    assert kept is not None
    *before, tape = (kept.tape.at(8, width, run.rank, WORKSPACE) for width in WIDTHS)
    after = simulate_run(profile, resolve(profile, run, H200), tape, WORKSPACE, before=before)
    assert after.reserved == pytest.approx(MEASURED_RESERVED_BYTES, rel=0.03)
    alone = simulate_run(profile, resolve(profile, run, H200), tape, WORKSPACE)
    assert alone.reserved < 0.9 * MEASURED_RESERVED_BYTES


@pytest.mark.parametrize("name", NAMES[:3])
def test_components_of_every_phase_add_up_to_it(name: str) -> None:
    answer = estimated(name, RunConfig(seq_len=1024))
    known = [phase for phase in answer.phases if phase.device_bytes is not None]
    assert len(known) >= 7
    for phase in known:
        assert phase.components is not None
        assert sum(phase.components.values()) == phase.device_bytes and min(phase.components.values()) >= 0
        if phase.name == answer.peak.phase:
            assert {part.value: size for part, size in phase.components.items() if size} == {
                part: size for part, size in answer.components.items() if size
            }
    assert "components" not in answer.to_dict()["phases"][0]


def test_what_was_played_a_moment_ago_is_not_played_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan asks for one run under several roles; accumulating four times or sixteen is the same playing."""
    from qlora_planner.memory.replay import simulate

    monkeypatch.setattr(simulate, "_remembered", {})
    played_anew: list[int] = []
    plays = simulate.simulate_run

    def counted(*given: Any) -> SimulatedRun:
        played_anew.append(1)
        return plays(*given)

    monkeypatch.setattr(simulate, "simulate_run", counted)

    def remembered(**options: Any) -> SimulatedRun:
        run = resolve(CATALOGUE.load(NAMES[2]), RunConfig(**options), H200)
        tape = stored(NAMES[2]).tape.at(run.run.batch_size, run.run.seq_len, run.run.rank, WORKSPACE)
        return simulate.remembered_run(CATALOGUE.load(NAMES[2]), run, tape, WORKSPACE)

    sixteen = remembered(grad_accum=16)
    assert remembered(grad_accum=4) is not sixteen  # another profile object may be another model
    profile = CATALOGUE.load(NAMES[2])
    monkeypatch.setattr(CATALOGUE, "load", lambda _name: profile)
    assert remembered(grad_accum=16) is remembered(grad_accum=4)
    assert len(played_anew) == 3
    for changed in ({"grad_accum": 1}, {"rank": 32, "grad_accum": 4}, {"optimizer": "adamw_torch", "grad_accum": 4}):
        assert remembered(**changed).reserved
    assert len(played_anew) == 6
    assert played(NAMES[2], 2048, 16, grad_accum=16).reserved == sixteen.reserved
