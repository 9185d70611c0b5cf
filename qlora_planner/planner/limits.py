"""How far one knob can be turned before a card is full: bisection, because memory never falls as a knob rises."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from qlora_planner.catalog.cuda import ContextRow
from qlora_planner.evidence.calibration import TRACED, Calibration
from qlora_planner.hardware import GpuSpec
from qlora_planner.memory.closed_view import floor_of, phases_of
from qlora_planner.memory.groundwork import Groundwork, assemble
from qlora_planner.memory.sweep import Fixed, Moments
from qlora_planner.memory.variant import Region, variant_key
from qlora_planner.memory.verdict import (
    FITS_AT_MOST,
    context_of,
    probability_over,
    room,
    spread,
    verdict_of,
    with_libraries,
)
from qlora_planner.run import RunConfig

SEQ_STEP = 64
MAX_SEQ_LEN = 1 << 20
MAX_BATCH = 1 << 12
_BEFORE = ("load", "prepare", "adapters")  # phases before the first step


def usable_on(gpu: GpuSpec, reserve_bytes: int, cap_bytes: int | None, calibration: Calibration | None = None) -> int:
    """Device bytes that a process may reach on this card."""
    return room(gpu, reserve_bytes, cap_bytes, context_of(gpu, calibration))[0]


# What segments in use came to over what was allocated, at its highest: 1.00 to 1.18 with a median of 1.05 over 75
# played runs of 25 models. It ranks runs; an answer is played itself.
PINNED_OVER_ALLOCATED = 1.05


@dataclass(frozen=True, slots=True, kw_only=True)
class SweptRegion:
    """The traced moments of one model that can be the highest, and the variant and sizes they hold for."""

    variant: str
    region: Region
    moments: Moments


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """What is traced of one model, region by region."""

    parts: tuple[SweptRegion, ...]

    def find(self, variant: str, batch_size: int, seq_len: int) -> Moments | None:
        """The moments for a run of this variant and these sizes; None where they lie outside every region."""
        for part in self.parts:
            if part.variant == variant and part.region.holds(batch_size, seq_len):
                return part.moments
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """One model on one card with everything fixed but batch and sequence."""

    ground: Groundwork
    run: RunConfig
    stack: Mapping[str, str]
    gpu: GpuSpec
    usable_bytes: int
    auto_padding: bool  # padding follows the batch: none where a row holds one sequence
    sweep: Sweep | None = None  # without it, or for other runs than it holds for, closed forms are used
    fixed: Fixed | None = None  # what `sweep` is evaluated with: see `fixed_of`
    calibration: Calibration | None = None
    over_allocated: float = PINNED_OVER_ALLOCATED

    def look(self, seq_len: int, batch_size: int) -> tuple[float, int, int, str]:
        """Chance of running out, device bytes of the peak, floor bytes, and the peak's phase."""
        run = self._sized(seq_len, batch_size)
        moments = self._moments(run)
        if moments is not None:
            return self._traced(moments, run)
        parts = replace(assemble(self.ground, run, self.stack, self.gpu), context=self._context(run))
        phases, peak = phases_of(run, parts)
        floor = floor_of(phases, parts.context)
        chance = probability_over(self.usable_bytes, spread(floor, parts.footing, parts.context, self.calibration))
        return chance, peak.device_bytes or 0, floor, peak.name

    def ratio_of(self, floor_bytes: int, seq_len: int, batch_size: int) -> float | None:
        """Played bytes of a run, without the context, over its allocated bytes.

        None where no tape holds, and where no training step leads.
        """
        run = self._sized(seq_len, batch_size)
        moments = self._moments(run)
        if moments is None or self.fixed is None or self.look(seq_len, batch_size)[3] in _BEFORE:
            return None
        training = moments.allocated_phases(batch_size, seq_len, run.rank, self.fixed)
        return floor_bytes / max(training.values())

    def fits_at(self, floor_bytes: int, run: RunConfig) -> bool:
        """Whether a run that torch needs this much for runs out in at most one percent."""
        context = self._context(run)
        around = spread(floor_bytes + self.beside(run), TRACED, context, self.calibration)
        return probability_over(self.usable_bytes, around) <= FITS_AT_MOST

    def beside(self, run: RunConfig) -> int:
        """Bytes of the CUDA context while training."""
        context = self._context(run)
        return context.first_tensor_bytes + context.kernels_bytes

    def _sized(self, seq_len: int, batch_size: int) -> RunConfig:
        padding = batch_size > 1 and not self.run.packing if self.auto_padding else self.run.padding
        return self.run.with_(seq_len=seq_len, batch_size=batch_size, padding=padding)

    def _context(self, run: RunConfig) -> ContextRow:
        return with_libraries(context_of(self.gpu, self.calibration), run)

    def _moments(self, run: RunConfig) -> Moments | None:
        if self.sweep is None or self.fixed is None:
            return None
        found = self.sweep.find(variant_key(run, self.stack, self.gpu), run.batch_size, run.seq_len)
        return None if found is None else found.on(self.ground.workspace)

    def _traced(self, moments: Moments, run: RunConfig) -> tuple[float, int, int, str]:
        assert self.fixed is not None
        ground, context = self.ground, self._context(run)
        beside = context.first_tensor_bytes + context.kernels_bytes
        training = moments.allocated_phases(run.batch_size, run.seq_len, run.rank, self.fixed)
        before = {"load": ground.load, "adapters": ground.adapters}
        if ground.prepare is not None:
            before["prepare"] = ground.prepare
        levels = {name: peak.allocated for name, peak in before.items()}
        levels |= {name: int(level * self.over_allocated) for name, level in training.items()}
        phase = max(levels, key=levels.__getitem__)
        floor = levels[phase] + beside
        chance = probability_over(self.usable_bytes, spread(floor, TRACED, context, self.calibration))
        return chance, floor, floor, phase

    def verdict(self, seq_len: int, batch_size: int) -> str:
        """fits, tight or does-not-fit."""
        return verdict_of(self.look(seq_len, batch_size)[0])

    def fits(self, seq_len: int, batch_size: int) -> bool:
        """Whether the chance of running out is at most one percent."""
        return self.look(seq_len, batch_size)[0] <= FITS_AT_MOST


def fixed_of(ground: Groundwork, run: RunConfig) -> Fixed:
    """What a run holds whatever its batch and sequence, for a sweep; `ground` must name what is trained."""
    weights = ground.static.buffers if run.method == "full" else ground.static.after_prepare
    return Fixed.of(weights, ground.state, sum(tensor.count for tensor in ground.static.trainable), run)


def largest(fits: Callable[[int], bool], step: int, limit: int, known: int = 0) -> int | None:
    """The largest multiple of `step` up to `limit` that fits, or None when neither one step nor `known` does.

    Where short sequences are not traced, closed forms may refuse one step although `known` fits by its trace.
    """
    top = limit // step
    if top < 1:
        return None
    if fits(step):
        low = 1
    elif 1 < known // step <= top and fits(known // step * step):
        low = known // step
    else:
        return None
    high = 2 * low
    while high <= top and fits(high * step):
        low, high = high, high * 2
    high = min(high, top + 1)
    while high - low > 1:
        middle = (low + high) // 2
        if fits(middle * step):
            low = middle
        else:
            high = middle
    return low * step


def longest_seq_len(bench: Bench, batch_size: int, model_limit: int | None) -> int | None:
    """Tokens per sequence, a multiple of 64, at most what the model was trained for."""
    limit = min(model_limit or MAX_SEQ_LEN, MAX_SEQ_LEN)
    return largest(lambda seq_len: bench.fits(seq_len, batch_size), SEQ_STEP, limit, bench.run.seq_len)


def largest_batch(bench: Bench, seq_len: int) -> int | None:
    """Sequences per device and step."""
    return largest(lambda batch_size: bench.fits(seq_len, batch_size), 1, MAX_BATCH)
