"""Towers that attend window by window (Qwen2.5-VL): a step makes and frees the same for each window of an image, and a
window at its edge is smaller. A tape is traced with some whole windows and played with those that an image has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate

from qlora_planner.record import record
from qlora_planner.spec.scans import ScanLoop, longer, place_after, rescanned
from qlora_planner.spec.trace import CompiledTape

# The letters of a window's patches, of an image's windows, and of those that its grid is filled up to: always by one
# more row and column of it (transformers 5.17, modeling_qwen2_5_vl.py, get_window_index).
WINDOW, WINDOWS, FILLED = "image_window", "image_windows", "image_filled_windows"


@record
class WindowLoop:
    """A loop over all windows, from the first to the last, or `backward`."""

    loop: ScanLoop
    backward: bool

    @property
    def words(self) -> tuple[int, int, int, int]:
        """How a file says it."""
        return *self.loop.words, int(self.backward)

    @classmethod
    def of(cls, start: int, length: int, count: int, backward: int) -> WindowLoop:
        """The loop that these words of a file say."""
        return cls(loop=ScanLoop.of(start, length, count), backward=bool(backward))


def window_lengths(rows: int, columns: int, side: int) -> tuple[int, ...]:
    """Patches of each window of a grid, row by row."""
    heights, widths = ([min(side, whole - at) for at in range(0, whole, side)] for whole in (rows, columns))
    return tuple(height * width for height in heights for width in widths)


def window_letters(rows: int, columns: int, side: int) -> dict[str, int]:
    """The letters of a grid that is taken in windows."""
    return {
        WINDOWS: len(window_lengths(rows, columns, side)), FILLED: (rows // side + 1) * (columns // side + 1),
    }  # fmt: skip


def windowed(tapes: Mapping[int, CompiledTape], loops: Sequence[WindowLoop], lengths: Sequence[int]) -> CompiledTape:
    """The tape of an image with windows of these `lengths`; `tapes` has the traced one with the sizes that it has for
    windows of each length."""
    scans = [each.loop for each in loops]
    more = len(lengths) - scans[0].count
    traced = next(iter(tapes.values()))
    events = list(rescanned(traced.events, scans, more))
    firsts = dict(zip(tapes, accumulate((len(tape.sizes) for tape in tapes.values()), initial=0), strict=False))
    for each, loop in zip(loops, longer(scans, more), strict=True):
        for turn, length in enumerate(reversed(lengths) if each.backward else lengths):
            first, start = firsts[length], loop.start + turn * loop.length
            for at in range(start, start + loop.length):
                events[at] += first if events[at] > 0 else 0
    return replace(
        traced, events=tuple(events), sizes=tuple(size for tape in tapes.values() for size in tape.sizes),
        segments=tuple(
            part.at(place_after(part.start, scans, more), place_after(part.stop, scans, more))
            for part in traced.segments
        ),
    )  # fmt: skip
