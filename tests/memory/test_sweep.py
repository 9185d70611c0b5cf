"""The sweep against the player: same tape, same run, same bytes."""

from pathlib import Path

import numpy as np
import pytest

from qlora_planner.catalog import find_optimizer, trainer_row
from qlora_planner.errors import InputError
from qlora_planner.memory.allocator.caching import Block, CachingAllocator, Segment, block_bytes
from qlora_planner.memory.options.resolve import resolve
from qlora_planner.memory.replay.events import prepare_trace
from qlora_planner.memory.replay.player import COMPONENTS, Adapter, TraceReplayer
from qlora_planner.memory.sweep.polynomials import FixedBytes, PeakPolynomials
from qlora_planner.memory.sweep.validity import ValidityRange
from qlora_planner.memory.weights import loading
from qlora_planner.memory.weights.placement import Placement
from qlora_planner.memory.weights.static import static_memory
from qlora_planner.memory.weights.trainable import Trainable, training_state
from qlora_planner.sources.catalogue import ModelCatalogue
from qlora_planner.sources.tapes import stored_sweep, stored_tape
from qlora_planner.spec.run import RunConfig
from qlora_planner.spec.trace import CompiledTape
from tools.peaks import peak_polynomials_of

PROFILES = Path(__file__).parents[2] / "profiles"
CATALOGUE = ModelCatalogue([PROFILES / "models"])
MODELS = ("meta-llama/Llama-3.1-8B", "openai/gpt-oss-20b", "tiiuae/falcon-7b")
WORKSPACE = 32 << 20


class RoundingOnly(CachingAllocator):
    """Every block is exactly what was asked for, rounded up."""

    def malloc(self, size_bytes: int, side_stream: int = 0) -> Block | None:
        if size_bytes <= 0:
            return None
        size = block_bytes(size_bytes)
        self.allocated += size
        self.peak_allocated = max(self.peak_allocated, self.allocated)
        return Block(0, size, side_stream, Segment(0))

    def free(self, block: Block | None) -> None:
        if block is not None:
            self.allocated -= block.size

    def reset_peaks(self) -> None:
        self.peak_allocated = self.allocated


def compiled(model: str) -> tuple[CompiledTape, PeakPolynomials]:
    profile = CATALOGUE.load(model)
    stored = stored_tape(profile, [PROFILES / "tapes"])
    assert stored is not None
    return stored.tape, peak_polynomials_of(stored.tape, resolve(profile, RunConfig()).run, stored.region).on(WORKSPACE)


def parts(model: str, rank: int, **options: str) -> tuple[FixedBytes, list[Trainable], RunConfig, int]:
    profile = CATALOGUE.load(model)
    resolution = resolve(profile, RunConfig(rank=rank, alpha=32, **options))  # type: ignore[arg-type]
    run = resolution.run
    trainer, _ = trainer_row(run.trainer or "", resolution.stack)
    optimizer = find_optimizer(run.optimizer)
    assert optimizer is not None
    placement = Placement(profile, run)
    static = static_memory(placement)
    state = training_state(static.trainable, run, trainer, optimizer)
    shapes = [added.tensor for added in loading.in_model_order(placement)]
    return FixedBytes.of(static.after_prepare, state, len(shapes), run), shapes, run, static.after_prepare


def played(model: str, tape: CompiledTape, seq_len: int, rank: int, **options: str) -> dict[str, int]:
    _, shapes, run, weights = parts(model, rank, **options)
    trainer, _ = trainer_row(run.trainer or "", resolve(CATALOGUE.load(model), run).stack)
    optimizer = find_optimizer(run.optimizer)
    assert optimizer is not None
    memory = RoundingOnly()
    memory.malloc(weights)
    adapters = [Adapter(tensor=each, block=memory.malloc(4 * each.numel)) for each in shapes]
    script = prepare_trace(tape.at(1, seq_len, rank, WORKSPACE), run.gradient_checkpointing)
    player = TraceReplayer(memory, script, [0] * len(COMPONENTS))
    player.play(adapters, run, trainer, optimizer)
    return {phase: player.phases[phase].peak.allocated for phase in ("forward", "loss", "backward", "optimizer")}


@pytest.mark.parametrize("model", MODELS)
def test_one_run_has_the_players_bytes_in_every_phase(model: str) -> None:
    tape, moments = compiled(model)
    for seq_len, rank in ((640, 4), (1999, 16), (3333, 200)):
        fixed = parts(model, rank)[0]
        assert moments.allocated_phases(1, seq_len, rank, fixed) == played(model, tape, seq_len, rank)


def test_an_optimizer_with_states_and_scratch_on_the_device() -> None:
    profile = CATALOGUE.load(MODELS[0])
    stored = stored_tape(profile, [PROFILES / "tapes"])
    assert stored is not None
    fixed, _, run, _ = parts(MODELS[0], 256, optimizer="adamw_torch")
    got = peak_polynomials_of(stored.tape, run, stored.region).on(WORKSPACE).allocated_phases(1, 600, 256, fixed)
    assert got == played(MODELS[0], stored.tape, 600, 256, optimizer="adamw_torch")
    assert got["optimizer"] > got["forward"] - fixed.states  # what an 8-bit optimizer would not show


def test_a_sweep_equals_single_runs_to_the_byte() -> None:
    _, moments = compiled(MODELS[1])
    random = np.random.default_rng(7)
    seqs, ranks = random.integers(513, 4097, 400), random.choice([4, 16, 57, 256], 400)
    fixed = {int(r): parts(MODELS[1], int(r))[0] for r in set(ranks.tolist())}
    for rank in fixed:
        lengths = seqs[ranks == rank]
        swept = moments.highest(np.ones_like(lengths), lengths, rank, fixed[rank], False, 0)
        single = [moments.allocated_phases(1, seq, rank, fixed[rank]) for seq in lengths.tolist()]
        assert swept.tolist() == [max(phases.values()) for phases in single]


@pytest.mark.parametrize("model", MODELS)
def test_the_few_moments_that_ship_have_the_highest_of_all(model: str) -> None:
    profile = CATALOGUE.load(model)
    sweep = stored_sweep(profile, [PROFILES / "tapes"])
    assert sweep is not None
    run = resolve(profile, RunConfig()).run
    random = np.random.default_rng(3)
    for part in [part for part in sweep.parts if not part.region.batched]:
        region = part.region
        assert isinstance(region, ValidityRange)
        stored = stored_tape(profile, [PROFILES / "tapes"], 1, region.high)
        assert stored is not None
        whole = peak_polynomials_of(stored.tape, run)
        for workspace in (WORKSPACE, 8519680):
            for _ in range(12):
                seq_len = int(random.integers(region.low + 1, min(region.high, 40000) + 1))
                rank = int(random.choice([1, 16, 256]))
                fixed = parts(model, rank)[0]
                few = part.moments.on(workspace).allocated_phases(1, seq_len, rank, fixed)
                every = whole.on(workspace).allocated_phases(1, seq_len, rank, fixed)
                assert max(few.values()) == max(every.values())


def test_sizes_round_to_blocks_and_not_their_sum() -> None:
    terms = ((1, 3, (0, 1, 0)),)  # a third of a byte per token
    moments = PeakPolynomials(sizes=(terms,), rows={"forward": (((0, 5), (-1, 1)),)})
    fixed = FixedBytes(held=1024, states=2048, scratch=0, norms=0)
    assert moments.allocated_phases(1, 1537, 1, fixed) == {"forward": 1024 + 2048 + 5 * 1024}
    assert moments.allocated_phases(1, 1536, 1, fixed) == {"forward": 1024 + 2048 + 5 * 512}
    assert moments.highest(np.ones(2), np.array([1536, 1537]), 1, fixed, False, 0).tolist() == [5632, 8192]


def test_what_cannot_be_swept_says_so() -> None:
    tape, moments = compiled(MODELS[2])
    with pytest.raises(InputError, match="too large"):
        moments.highest(np.ones(1), np.array([1 << 60]), 8, parts(MODELS[2], 8)[0], False, 0)
    with pytest.raises(InputError, match="DoRA"):
        peak_polynomials_of(tape, RunConfig(dora=True))
