"""Play a traced training run through the allocator, at the whole model's depth and on top of what loading left.

A tape holds births and deaths of storages for a model cut down to a few layers of each kind. Here every layer of the
whole model takes the part of the traced layer that stands for it; trainers' casts and optimizer steps, which go over
all adapters at once, are played from the adapters' own shapes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from qlora_planner.catalog import OptimizerRow, TrainerRow
from qlora_planner.memory.allocator.caching import Block, CachingAllocator
from qlora_planner.memory.allocator.caching import Segment as Cached
from qlora_planner.memory.records import Component
from qlora_planner.memory.replay.events import (
    BIRTH,
    BIRTH_ON_HOST,
    BIRTH_STREAMED,
    DEATH,
    DEATH_ELSEWHERE,
    HOST,
    Act,
    Origin,
    PreparedTrace,
)
from qlora_planner.memory.replay.tokens import acts_at, growth_of, later_tokens
from qlora_planner.memory.replay.walking import accumulated, frees_cache, left_out, origin_layers, phase_of, walk
from qlora_planner.memory.weights.loading import PhasePeak
from qlora_planner.memory.weights.trainable import Trainable, training_dtype
from qlora_planner.record import record, replaced
from qlora_planner.spec.run import RunConfig
from qlora_planner.spec.trace import TOKENS, Segment

COMPONENTS = tuple(Component)
_ADAPTERS = COMPONENTS.index(Component.ADAPTERS)
GRADIENTS = COMPONENTS.index(Component.GRADIENTS)
_STATES = COMPONENTS.index(Component.OPTIMIZER_STATES)
_WORKSPACE = COMPONENTS.index(Component.WORKSPACE)

# Blocks left alive by one segment: by traced storage, and by size and rank among the survivors of that size.
Survivors = dict[int, tuple[Block | None, int]]


@record
class Adapter:
    """One trainable tensor with its block on the device."""

    tensor: Trainable
    block: Block | None


@record
class ReplayedPhase:
    """A phase's peaks, and the bytes by component (in the order of COMPONENTS) when most was allocated."""

    peak: PhasePeak
    components: tuple[int, ...]


class TraceReplayer:
    """One playing: `play` notes every phase's peaks; `lost` counts deaths whose block could not be found."""

    def __init__(self, memory: CachingAllocator, script: PreparedTrace, components: Sequence[int]) -> None:
        self.memory = memory
        self.script = script
        self.phases: dict[str, ReplayedPhase] = {}
        self.lost = 0
        self.non_releasable_bytes = 0
        self.host_peak = self._host = 0  # bytes moved to the host's memory
        self._bytes = list(components)  # live bytes by component
        self._at_peak = tuple(components)
        self._alive: dict[tuple[str, int, int, int], Survivors] = {}

    def play(
        self,
        adapters: Sequence[Adapter],
        run: RunConfig,
        trainer: TrainerRow,
        optimizer: OptimizerRow,
        before: Sequence[PreparedTrace] = (),
    ) -> None:
        """Play everything from the trainer's casts to the end of the last traced step.

        `before` are scripts of the same run at other widths, each a step that comes before those of the run's own.
        """
        self._begin()
        trained = self._cast(adapters, run, trainer)
        self._note("adapters")
        self._before_training()
        if trainer.frees_cache_first:
            self.memory.empty_cache()
        self._wrap()
        # States are born at the end of the first step, so a second one is played: as traced, or the first again.
        steps = {segment.step for segment in self.script.tape.segments}
        started = False
        own = self.script
        for self.script in before:
            self._round(walk(self.script.tape), trained, run, trainer, optimizer, first=not started, evaluates=False)
            started = True
        self.script = own
        rounds = 2 if len(steps) == 1 else 1
        # A tape of steps without accumulation: a second micro-batch meets the first one's gradients, as any later one.
        again = run.grad_accum > 1 and not any(segment.micro_step for segment in self.script.tape.segments)
        for done in range(1, rounds + 1):
            order = accumulated(self.script.tape) if again else walk(self.script.tape)
            self._round(order, trained, run, trainer, optimizer, first=not started, evaluates=done == rounds)
            started = True

    def _wrap(self) -> None:
        """What wraps the model for several cards before the first step; nothing on one."""

    def _before_training(self) -> None:
        """What the trainer puts through its reference while it is made, before it frees the cache."""
        for segment, layer in walk(self.script.tape):
            if segment.stage == "precompute":
                self._begin()
                self._segment(segment, layer)
                self._note(phase_of(segment))

    def _round(
        self,
        walk: Iterable[tuple[Segment, int]],
        trained: Sequence[Trainable],
        run: RunConfig,
        trainer: TrainerRow,
        optimizer: OptimizerRow,
        *,
        first: bool,
        evaluates: bool,
    ) -> None:
        """Everything that was traced, once; the first optimizer step makes the states, so evaluation comes last."""
        token: list[tuple[Segment, int]] = []
        for segment, layer in walk:
            if left_out(segment, evaluates=evaluates):
                continue
            if token and segment.stage != TOKENS[-1]:
                self._later_tokens(token)
                token = []
            elif segment.stage == TOKENS[-1]:
                token.append((segment, layer))
            self._begin()
            if frees_cache(segment, run, trainer, first=first):
                self.memory.empty_cache()
            if segment.stage == "optimizer":
                self._optimizer(trained, trainer, optimizer, first=first)
                first = False
            if segment.stage != "prepare":
                self._segment(segment, layer)
            self._note(phase_of(segment))

    def _later_tokens(self, token: Sequence[tuple[Segment, int]]) -> None:
        """The tokens that follow the traced ones: each is the last of these, grown."""
        growth = growth_of(self.script.tape)
        step, micro_step = token[0][0].step, token[0][0].micro_step
        traced = self.script
        self._begin()
        for number in later_tokens(traced.tape):
            for layer in {layer for _, layer in token}:
                ages = [self._alive.setdefault((stage, step, micro_step, layer), {}) for stage in TOKENS]
                self.lost += len(ages[0])
                for older, newer in pairwise(ages):
                    older.clear()
                    older.update({growth.before[storage]: kept for storage, kept in newer.items()})
                ages[-1].clear()
            self.script = replaced(traced, acts=acts_at(traced, growth, number))
            for segment, layer in token:
                self._segment(segment, layer)
        self.script = traced
        self._note(phase_of(token[0][0]))

    def _begin(self) -> None:
        self.memory.reset_peaks()
        self._at_peak = tuple(self._bytes)

    def _note(self, phase: str) -> None:
        memory = self.memory
        self.note(
            phase, memory.allocated, memory.peak_allocated, memory.peak_reserved, memory.peak_non_releasable_bytes,
            self._components_at_peak(),
        )  # fmt: skip

    def note(
        self, phase: str, live: int, allocated: int, reserved: int, non_releasable: int, components: tuple[int, ...]
    ) -> None:
        """Keep what a stretch of a phase came to: what is live now, and its peaks."""
        old = self.phases.get(phase)
        self.non_releasable_bytes = max(self.non_releasable_bytes, non_releasable)
        if old is not None and allocated <= old.peak.allocated:
            allocated, components = old.peak.allocated, old.components
        reserved = max(reserved, old.peak.reserved if old else 0)
        self.phases[phase] = ReplayedPhase(
            peak=PhasePeak(live=live, allocated=allocated, reserved=reserved), components=components
        )

    def _components_at_peak(self) -> tuple[int, ...]:
        return self._at_peak

    def _cast(self, adapters: Sequence[Adapter], run: RunConfig, trainer: TrainerRow) -> list[Trainable]:
        kinds = {id(adapter.tensor): adapter.tensor for adapter in adapters}  # a tensor stands for all of its kind
        casts = {
            kind: replaced(tensor, dtype=training_dtype(tensor.dtype, run, trainer, tensor.shape))
            for kind, tensor in kinds.items()
        }
        sizes = {kind: cast.size_bytes for kind, cast in casts.items() if cast.dtype != kinds[kind].dtype}
        changed = [adapter for adapter in adapters if id(adapter.tensor) in sizes]
        self._recast(
            [sizes[id(adapter.tensor)] for adapter in changed], [adapter.block for adapter in changed], _ADAPTERS
        )
        return [casts[id(adapter.tensor)] for adapter in adapters]

    def _recast(self, sizes: Sequence[int], blocks: list[Block | None], component: int) -> None:
        """Allocate each size, then free the block in whose place it comes."""
        for size, block in zip(sizes, blocks, strict=True):
            self._malloc(size, component)
            self._free(block, component)

    def _malloc(self, size: int, component: int, stream: int = 0) -> Block | None:
        block = self.memory.malloc(size, stream)
        if block is not None:
            self._bytes[component] += block.size
            if self.memory.allocated == self.memory.peak_allocated:
                self._at_peak = tuple(self._bytes)
        return block

    def _free(self, block: Block | None, component: int) -> None:
        if block is not None and component == HOST:
            self._host -= block.size
        elif block is not None:
            self._bytes[component] -= block.size
            self.memory.free(block)

    def _segment(self, segment: Segment, layer: int) -> None:
        memory, totals = self.memory, self._bytes
        malloc, free = memory.malloc, memory.free
        here: dict[int, tuple[Block | None, int]] = {}
        # What an earlier step left for good, such as a library's workspace, is not made twice.
        kept = self._alive.setdefault((segment.stage, segment.step, segment.micro_step, layer), {})
        at_peak = list(self._at_peak)
        for kind, storage, size, component in self.script.acts[segment]:
            if kind in (BIRTH, BIRTH_STREAMED):
                if storage in kept:
                    if component == GRADIENTS:  # added to the gradient that is there, and gone
                        block = malloc(size, kind == BIRTH_STREAMED)
                        if block is not None and memory.allocated == memory.peak_allocated:
                            at_peak = totals.copy()
                            at_peak[component] += block.size
                        free(block)
                    continue
                block = malloc(size, kind == BIRTH_STREAMED)
                here[storage] = (block, component)
                if block is not None:
                    totals[component] += block.size
                    if memory.allocated == memory.peak_allocated:
                        at_peak = totals.copy()
            elif kind == DEATH:
                block, component = here.pop(storage)
                if component == HOST:
                    self._free(block, component)
                elif block is not None:
                    totals[component] -= block.size
                    free(block)
            elif kind == DEATH_ELSEWHERE:
                self._elsewhere(storage, segment, layer)
            elif kind == BIRTH_ON_HOST:
                here[storage] = (Block(0, size, 0, Cached(size)), HOST)
                self._host += size
                self.host_peak = max(self.host_peak, self._host)
        self._at_peak = tuple(at_peak)
        kept.update(here)

    def _elsewhere(self, storage: int, segment: Segment, layer: int) -> None:
        """Free a storage that an earlier segment left alive."""
        origin = self.script.origins[storage]
        for whole in origin_layers(self.script.tape, origin, segment, layer):
            self._drop(origin, storage, whole)

    def _drop(self, origin: Origin, storage: int, layer: int) -> None:
        born = origin.segment
        living = self._alive.get((born.stage, born.step, born.micro_step, layer), {})
        if storage not in living:
            # Another traced layer played this part: its survivor of the same size and rank is meant.
            twin = next((o for o in living if self.script.origins[o].same_part(origin)), None)
            if twin is None:
                self.lost += 1
                return
            storage = twin
        self._free(*living.pop(storage))

    def _optimizer(
        self, trained: Sequence[Trainable], trainer: TrainerRow, optimizer: OptimizerRow, first: bool
    ) -> None:
        if trainer.clips_gradients:
            # clip_grad_norm_: one norm per gradient, then their stack.
            self._pass([*(4 for _ in trained), 4 * len(trained)], _WORKSPACE)
        kinds = {id(tensor): tensor for tensor in trained}
        if first:
            eight_bit = any(
                optimizer.in_8_bits(tensor.shape, tensor.forced_32bit(trainer)) for tensor in kinds.values()
            )
            self._hold(optimizer.shared_bytes(eight_bit), _STATES)
            states = {kind: _states(tensor, trainer, optimizer) for kind, tensor in kinds.items()}
            self._hold([size for tensor in trained for size in states[id(tensor)]], _STATES)
        if optimizer.step_temporaries:
            bytes_of = {kind: tensor.size_bytes for kind, tensor in kinds.items()}
            sizes = [bytes_of[id(tensor)] for tensor in trained]
            self._pass(sizes * optimizer.step_temporaries, _WORKSPACE)

    def _hold(self, sizes: Sequence[int], component: int) -> None:
        """Allocate each of these for good."""
        for size in sizes:
            self._malloc(size, component)

    def _pass(self, sizes: Sequence[int], component: int) -> None:
        """Allocate each of these, then free them in the same order."""
        for block in [self._malloc(size, component) for size in sizes]:
            self._free(block, component)


def _states(tensor: Trainable, trainer: TrainerRow, optimizer: OptimizerRow) -> list[int]:
    """Bytes of each state that an optimizer keeps on the card for a tensor."""
    states = optimizer.states(tensor.shape, tensor.dtype, tensor.forced_32bit(trainer))
    return [state.size_bytes for state in states if not state.paged]


__all__ = ["COMPONENTS", "Act", "Adapter", "ReplayedPhase", "TraceReplayer"]
