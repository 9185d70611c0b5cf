"""Where the CUDA driver puts segments: equal free blocks are taken in the order of their addresses.

Seen in allocator histories of an H200 (driver 580): new address ranges are multiples of 32 MiB, each below the last,
and smaller segments fill the smallest gap that rounding or freed segments leave. With it three recorded histories of
85,000 to 111,000 events give torch's reserved bytes exactly; with ascending addresses two were 3 and 6 % short.
"""

from __future__ import annotations

RANGE_BYTES = 32 << 20
_TOP = 1 << 46


class AddressSpace:
    """Gives out and takes back address ranges."""

    __slots__ = ("_gaps", "_low")

    def __init__(self) -> None:
        self._low = _TOP
        self._gaps: list[tuple[int, int]] = []  # size, address

    def take(self, size_bytes: int) -> int:
        """The address of a new segment."""
        fitting = [gap for gap in self._gaps if gap[0] >= size_bytes]
        if fitting:
            size, address = gap = min(fitting)
            self._gaps.remove(gap)
        else:
            size = -(-size_bytes // RANGE_BYTES) * RANGE_BYTES
            address = self._low = self._low - size
        if size > size_bytes:
            self._gaps.append((size - size_bytes, address + size_bytes))
        return address

    def give(self, address: int, size_bytes: int) -> None:
        """Take back a segment; it merges with neighbouring gaps."""
        kept = []
        for size, start in self._gaps:
            if start + size == address:
                address, size_bytes = start, size_bytes + size
            elif address + size_bytes == start:
                size_bytes += size
            else:
                kept.append((size, start))
        kept.append((size_bytes, address))
        self._gaps = kept
