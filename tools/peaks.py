"""From a tape to the moments of a step that can be the highest: see `qlora_planner.memory.sweep.polynomials`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from math import comb
from typing import TYPE_CHECKING, Any

from qlora_planner.catalog import OptimizerRow, TrainerRow, find_optimizer, trainer_named
from qlora_planner.errors import InputError
from qlora_planner.memory.allocator.caching import MIN_BLOCK_BYTES, Block, CachingAllocator, Segment
from qlora_planner.memory.replay.events import prepare_trace
from qlora_planner.memory.replay.player import COMPONENTS, TraceReplayer
from qlora_planner.memory.sweep.polynomials import (
    NORMS,
    PHASES,
    SCRATCH,
    STATES,
    PeakPolynomials,
    handles_of,
    rounded_bytes,
)
from qlora_planner.memory.sweep.validity import ValidityRange
from qlora_planner.spec.run import RunConfig
from qlora_planner.spec.trace import CompiledTape, Term

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_ANYWHERE = ValidityRange(batched=True, low=0, high=1 << 24)


def peak_polynomials_of(
    tape: CompiledTape, run: RunConfig, region: ValidityRange = _ANYWHERE, peaks_only: bool = False
) -> PeakPolynomials:
    """Play two steps of the whole model, counting blocks, and keep the moments that can be a phase's highest.

    They hold for every batch, sequence and rank in `region`. With `peaks_only`, moments that another phase's always
    reach go too: the highest of all phases stays what it is. Raises InputError for DoRA, whose workspaces depend on
    the order of products before training.
    """
    if run.dora:
        raise InputError("a DoRA run is not swept from a tape: estimate it on its own")
    # Every size stands in for itself by its number: equal numbers are equal polynomials, whatever the run.
    numbered = replace(tape, sizes=tuple(((index + 1, 1, (0, 0, 0)),) for index in range(len(tape.sizes))))
    counter = _Counter(len(tape.sizes))
    player = _Counting(counter, prepare_trace(numbered.at(1, 1, 1), run.gradient_checkpointing), [0] * len(COMPONENTS))
    optimizer = find_optimizer(run.optimizer)
    assert optimizer is not None
    player.play([], run, trainer_named(run.trainer), optimizer)
    handles = handles_of(tape)
    pruning = _Pruning(tape.sizes, handles, region)
    moments = {phase: pruning.leaders(player.found[phase]) for phase in PHASES if phase in player.found}
    if peaks_only:
        moments = _across(moments, pruning)
    return _packed(tape, moments, handles)


def _packed(tape: CompiledTape, moments: dict[str, NDArray[np.int64]], handles: set[int]) -> PeakPolynomials:
    """Without the sizes that no moment left over has any of."""
    width = len(tape.sizes)
    rows = {
        phase: tuple(
            tuple((int(c) if c < width else int(c) - width - 3, int(row[c])) for c in row.nonzero()[0]) for row in kept
        )
        for phase, kept in moments.items()
    }
    whole = PeakPolynomials(sizes=tape.sizes, rows=rows, workspaces=tuple(sorted(handles)))
    return whole.only({phase: range(len(kept)) for phase, kept in rows.items()})


def _across(moments: dict[str, NDArray[np.int64]], pruning: _Pruning) -> dict[str, NDArray[np.int64]]:
    """Of each phase's moments those that lead over all phases."""
    phase_of = {tuple(row.tolist()): phase for phase, kept in moments.items() for row in kept}
    kept: dict[str, list[tuple[int, ...]]] = {}
    for row in pruning.leaders(set(phase_of)).tolist():
        kept.setdefault(phase_of[tuple(row)], []).append(tuple(row))
    import numpy as np

    return {phase: np.array(kept[phase], dtype=np.int64) for phase in moments if phase in kept}


class _Counter(CachingAllocator):
    """An allocator that counts live blocks by size number."""

    def __init__(self, sizes: int) -> None:
        super().__init__()
        self.counts = [0] * (sizes + 3)
        self.seen: set[tuple[int, ...]] = set()
        self._segment = Segment(0)
        self._rising = True

    def malloc(self, size_bytes: int, side_stream: int = 0) -> Block | None:
        self.counts[size_bytes - 1] += 1
        self._rising = True
        return Block(0, size_bytes, side_stream, self._segment)

    def free(self, block: Block | None) -> None:
        if block is not None:
            self.keep()
            self.counts[block.size - 1] -= 1

    def keep(self) -> None:
        """Note the moment, if nothing was freed since the last birth."""
        if self._rising:
            self.seen.add(tuple(self.counts))
            self._rising = False

    def reset_peaks(self) -> None:
        self._rising = True

    def empty_cache(self) -> None:
        """Nothing is cached."""


class _Counting(TraceReplayer):
    """A player that sums over all adapters at once and collects moments by phase."""

    memory: _Counter

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.found: dict[str, set[tuple[int, ...]]] = {}

    def _note(self, phase: str) -> None:
        self.memory.keep()
        self.found.setdefault(phase, set()).update(self.memory.seen)
        self.memory.seen = set()

    def _optimizer(self, trained: Sequence[Any], trainer: TrainerRow, optimizer: OptimizerRow, first: bool) -> None:
        memory = self.memory
        for column in (NORMS, STATES, SCRATCH):
            memory.counts[column] += 1 if column != STATES or first else 0
            memory.seen.add(tuple(memory.counts))
            memory.counts[column] -= 1 if column != STATES else 0


class _Pruning:
    """What moments are compared by: bounds of each rounded size as polynomials about the region's lowest corner.

    Written in powers of (batch - its least), (sequence - its least) and (rank - 1), a difference of two moments is
    nowhere negative in the region when no coefficient is. The optimizer's sums and cuBLAS handles are columns of their
    own powers: they compare with nothing but themselves.
    """

    def __init__(self, sizes: Sequence[tuple[Term, ...]], handles: set[int], region: ValidityRange) -> None:
        import numpy as np

        self.corner = (2 if region.batched else 1, region.low + 1, 1)
        top = [max((m[axis] for terms in sizes for _, _, m in terms), default=0) for axis in range(3)]
        top[0] *= region.batched  # at batch 1 there is one batch
        powers = list(product(*(range(most + 1) for most in top)))
        opaque = [*sorted(handles), *(len(sizes) + offset for offset in range(3))]
        lower = np.zeros((len(sizes) + 3, len(powers) + len(opaque)))
        for index, terms in enumerate(sizes):
            for n, d, m in terms:
                for at, power in enumerate(powers):
                    lower[index, at] += n / d * self._shifted(m, power)
        upper = lower.copy()
        for index, terms in enumerate(sizes):
            if all(m == (0, 0, 0) for _, _, m in terms):
                lower[index, 0] = upper[index, 0] = rounded_bytes(terms, 1, 1, 1)
            elif any(n % (d * MIN_BLOCK_BYTES) for n, d, _ in terms):
                upper[index, 0] += MIN_BLOCK_BYTES - 1
        for offset, column in enumerate(opaque):
            lower[column] = upper[column] = 0
            lower[column, len(powers) + offset] = upper[column, len(powers) + offset] = 1
        self.lower, self.upper = lower, upper
        seq_len = min(max(2048, region.low + 1), region.high)
        self.typical = [rounded_bytes(terms, self.corner[0], seq_len, 16) for terms in sizes] + [0, 0, 0]

    def _shifted(self, power: tuple[int, ...], wanted: tuple[int, ...]) -> int:
        value = 1
        for most, part, least in zip(power, wanted, self.corner, strict=True):
            value *= comb(most, part) * int(least ** (most - part)) if part <= most else 0
        return value

    def leaders(self, moments: set[tuple[int, ...]]) -> NDArray[np.int64]:
        """Those that no other one reaches in every run, shape (moments, sizes + 3).

        Moment k reaches moment m when what only k holds is, unrounded, at least what only m holds rounded up (at most
        511 bytes more per block whose size is not constant). Both sums of rounded sizes are multiples of 512, so a
        lack of up to 511 bytes is none.
        """
        import numpy as np

        ordered = np.array(sorted(moments, key=sum, reverse=True), dtype=np.int64)
        ordered = ordered[np.argsort(-(ordered @ np.array(self.typical)), kind="stable")]  # the likeliest come first
        kept = np.empty((0, ordered.shape[1]), dtype=np.int64)
        for row in ordered:
            more = kept - row
            surplus = np.maximum(more, 0) @ self.lower - np.maximum(-more, 0) @ self.upper
            surplus[:, 0] += MIN_BLOCK_BYTES - 1
            if not (surplus >= 0).all(axis=1).any():
                kept = np.vstack([kept, row])
        return _corners(kept)


def _corners(moments: NDArray[np.int64]) -> NDArray[np.int64]:
    """Without those midway between two others: bytes are linear in counts, so that one of the two is no lower.

    Layer after layer, checkpoints fall and gradients rise by the same counts: of such a row the ends remain.
    """
    import numpy as np

    rows = {row.tobytes() for row in moments}
    inside = []
    for at, row in enumerate(moments):
        mirrored = 2 * row - moments
        inside.append(any(other.tobytes() in rows for i, other in enumerate(mirrored) if i != at))
    corners: NDArray[np.int64] = moments[~np.array(inside)]
    return corners
