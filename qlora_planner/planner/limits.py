"""How far one knob can be turned before a card is full: bisection, because memory never falls as a knob rises."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from qlora_planner.catalog.cuda import context_row
from qlora_planner.hardware import GpuSpec
from qlora_planner.memory.estimate import floor_of, phases_of
from qlora_planner.memory.groundwork import Groundwork, assemble
from qlora_planner.memory.verdict import FITS_AT_MOST, probability_over, room, spread, verdict_of
from qlora_planner.run import RunConfig

SEQ_STEP = 64
MAX_SEQ_LEN = 1 << 20
MAX_BATCH = 1 << 12


def usable_on(gpu: GpuSpec, reserve_bytes: int, cap_bytes: int | None) -> int:
    """Device bytes that a process may reach on this card."""
    return room(gpu, reserve_bytes, cap_bytes, context_row(gpu.name, gpu.form))[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """One model on one card with everything fixed but batch and sequence."""

    ground: Groundwork
    run: RunConfig
    stack: Mapping[str, str]
    gpu: GpuSpec
    usable_bytes: int
    auto_padding: bool  # padding follows the batch: none where a row holds one sequence

    def look(self, seq_len: int, batch_size: int) -> tuple[float, int, int, str]:
        """Chance of running out, device bytes of the peak, floor bytes, and the peak's phase."""
        padding = batch_size > 1 and not self.run.packing if self.auto_padding else self.run.padding
        run = self.run.with_(seq_len=seq_len, batch_size=batch_size, padding=padding)
        parts = assemble(self.ground, run, self.stack, self.gpu)
        phases, peak = phases_of(run, parts)
        floor = floor_of(phases, parts.context)
        chance = probability_over(floor, self.usable_bytes, spread(floor, parts.basis, parts.context))
        return chance, peak.device_bytes or 0, floor, peak.name

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
