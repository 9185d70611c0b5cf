"""How far one knob can be turned before a card is full: bisection, because memory never falls as a knob rises."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from qlora_planner.catalog.cuda import context_row
from qlora_planner.hardware import GpuSpec
from qlora_planner.memory.closed_view import floor_of, phases_of
from qlora_planner.memory.frontier import Frontier
from qlora_planner.memory.groundwork import Groundwork, assemble
from qlora_planner.memory.variant import variant_key
from qlora_planner.memory.verdict import FITS_AT_MOST, TRACED, probability_over, room, spread, verdict_of
from qlora_planner.run import RunConfig

SEQ_STEP = 64
MAX_SEQ_LEN = 1 << 20
MAX_BATCH = 1 << 12


def usable_on(gpu: GpuSpec, reserve_bytes: int, cap_bytes: int | None) -> int:
    """Device bytes that a process may reach on this card."""
    return room(gpu, reserve_bytes, cap_bytes, context_row(gpu.name, gpu.form))[0]


# What segments in use came to over what was allocated, at its highest: 1.00 to 1.18 with a median of 1.05 over 75
# played runs of 25 models. A sweep takes the median, and the run that it chooses is played itself.
PINNED_OVER_ALLOCATED = 1.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """The traced moments of one model that can be the highest, and the variant of run they hold for."""

    variant: str
    frontier: Frontier


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

    def look(self, seq_len: int, batch_size: int) -> tuple[float, int, int, str]:
        """Chance of running out, device bytes of the peak, floor bytes, and the peak's phase."""
        padding = batch_size > 1 and not self.run.packing if self.auto_padding else self.run.padding
        run = self.run.with_(seq_len=seq_len, batch_size=batch_size, padding=padding)
        if self.sweep is not None and variant_key(run, self.stack, self.gpu) == self.sweep.variant:
            return self._traced(self.sweep.frontier, run)
        parts = assemble(self.ground, run, self.stack, self.gpu)
        phases, peak = phases_of(run, parts)
        floor = floor_of(phases, parts.context)
        chance = probability_over(floor, self.usable_bytes, spread(floor, parts.deviation, parts.context))
        return chance, peak.device_bytes or 0, floor, peak.name

    def _traced(self, frontier: Frontier, run: RunConfig) -> tuple[float, int, int, str]:
        ground, context = self.ground, context_row(self.gpu.name, self.gpu.form)
        beside = context.first_tensor_bytes + context.kernels_bytes
        trained = 0 if run.method == "full" else ground.state.weights - ground.static.adapters
        base = ground.adapters.live + trained + ground.state.optimizer
        step = base + frontier.at(run.batch_size, run.seq_len, run.rank)
        before = {"load": ground.load, "adapters": ground.adapters}
        if ground.prepare is not None:
            before["prepare"] = ground.prepare
        phase, highest = max(
            [("backward", int(step * PINNED_OVER_ALLOCATED)), *((n, p.allocated) for n, p in before.items())],
            key=lambda item: item[1],
        )
        floor = highest + beside
        chance = probability_over(floor, self.usable_bytes, spread(floor, TRACED, context))
        return chance, floor, floor, phase

    def verdict(self, seq_len: int, batch_size: int) -> str:
        """fits, tight or does-not-fit."""
        return verdict_of(self.look(seq_len, batch_size)[0])

    def fits(self, seq_len: int, batch_size: int) -> bool:
        """Whether the chance of running out is at most one percent."""
        return self.look(seq_len, batch_size)[0] <= FITS_AT_MOST


def largest(fits: Callable[[int], bool], step: int, limit: int) -> int | None:
    """The largest multiple of `step` up to `limit` that fits, or None when not even one step does."""
    top = limit // step
    if top < 1 or not fits(step):
        return None
    low, high = 1, 2
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
    return largest(lambda seq_len: bench.fits(seq_len, batch_size), SEQ_STEP, limit)


def largest_batch(bench: Bench, seq_len: int) -> int | None:
    """Sequences per device and step."""
    return largest(lambda batch_size: bench.fits(seq_len, batch_size), 1, MAX_BATCH)
