"""The caching allocator with `expandable_segments:True`: one address range per pool, mapped and unmapped in pieces.

Source: c10/cuda/CUDACachingAllocator.cpp, get_free_block (a block counts as what it can expand to),
find_expandable_block, try_allocate_expandable_block, alloc_block (the limit) and unmap_block.
"""

from __future__ import annotations

from bisect import bisect_left, insort

from qlora_planner.memory.allocator.caching import (
    LARGE_SEGMENT_BYTES,
    SMALL_SEGMENT_BYTES,
    Block,
    CachingAllocator,
    FreeList,
    OutOfMemory,
    Segment,
    segment_bytes,
)

_RANGE_BYTES = 1 << 50


class ExpandableAllocator(CachingAllocator):
    """As CachingAllocator, but memory is mapped in units of 2 or 20 MiB wherever the range has room.

    Units that hold nothing can be given back even between blocks in use, so that `non_releasable_bytes` is what is
    mapped and holds something: it is counted when the cache is given back.
    """

    large_remainder = 0
    expands = True

    def __init__(self, *, limit_bytes: int | None = None, apart: bool = False) -> None:
        super().__init__(limit_bytes=limit_bytes)
        # Without `apart` the ranges of other streams are taken as part of the main one's.
        self.side_pools = 2 if apart else 0
        self._unmapped: tuple[list[tuple[int, Block]], ...] = tuple([] for _ in self._free)
        for pool, holes in enumerate(self._unmapped):
            # The whole range counts as one segment of no size: what is not releasable in it is counted by units.
            whole = Block(pool * _RANGE_BYTES, _RANGE_BYTES, pool, Segment(0))
            holes.append((whole.address, whole))

    def _by_room(self, pool: FreeList, at: int) -> int:
        """Past blocks that could grow beyond what a larger one could: what ends at unmapped memory comes last."""
        last = len(pool) - 1
        while at < last and self._room(pool[at + 1][2]) < self._room(pool[at][2]):
            at += 1
        return at

    def _room(self, block: Block) -> int:
        following = block.next
        return block.size + (following.size if following is not None and self._is_unmapped(following) else 0)

    def empty_cache(self) -> None:
        """Unmap every unit that lies wholly in a free block."""
        for pool, blocks in enumerate(self._free):
            unit = _unit(pool)
            for _, _, block in list(blocks):
                start = -(-block.address // unit) * unit
                stop = (block.address + block.size) // unit * unit
                if start < stop:
                    self._unmap(block, start, stop)

    def _unmap(self, block: Block, start: int, stop: int) -> None:
        self._forget(block)
        hole = self._cut(block, start) if start > block.address else block
        if stop < hole.address + hole.size:
            tail = self._cut(hole, stop)
            insort(self._free[tail.small], (tail.size, tail.address, tail))
        if hole is not block:
            insort(self._free[block.small], (block.size, block.address, block))
        self.reserved -= hole.size
        hole.free = False
        insort(self._unmapped[hole.small], (hole.address, hole))

    @staticmethod
    def _cut(block: Block, address: int) -> Block:
        """Split a block at `address` and return the upper part; both stay as free as the block was."""
        rest = Block(address, block.address + block.size - address, block.small, block.segment)
        rest.free = block.free
        block.size = address - block.address
        rest.previous, rest.next = block, block.next
        if block.next is not None:
            block.next.previous = rest
        block.next = rest
        return rest

    def _is_unmapped(self, block: Block) -> bool:
        holes = self._unmapped[block.small]
        at = bisect_left(holes, (block.address,))
        return at < len(holes) and holes[at][1] is block

    def _grow(self, size: int, small: int) -> Block:
        start = self._room_for(size, small)
        # alloc_block counts a segment of its own against the limit, however little has to be mapped.
        wanted = segment_bytes(size)
        if self.limit_bytes is not None and self.reserved + wanted > self.limit_bytes:
            self.empty_cache()
            start = self._room_for(size, small)
            if self.reserved + wanted > self.limit_bytes:
                raise OutOfMemory(size, self.allocated, self.reserved)
        while True:
            if self._is_unmapped(start):
                start = self._map(start, size)
            if start.size >= size:
                self._forget(start)
                return start
            following = start.next
            assert following is not None
            start = self._map(following, size - start.size) if self._is_unmapped(following) else following

    def _room_for(self, size: int, small: int) -> Block:
        """The first place, in address order, where free and unmapped blocks side by side give `size` bytes."""
        for _, hole in self._unmapped[small]:
            start = hole.previous if hole.previous is not None and hole.previous.free else hole
            room, block = 0, start
            while room < size and block is not None and (block.free or self._is_unmapped(block)):
                room += block.size
                block = block.next  # type: ignore[assignment]
            if room >= size:
                return start
        raise AssertionError("the address range is never full")

    def _map(self, hole: Block, size: int) -> Block:
        """Map the start of an unmapped block for at least `size` bytes; it merges with free neighbours."""
        unit = _unit(hole.small)
        mapped = min(hole.size, -(-size // unit) * unit)
        self.reserved += mapped
        self.peak_reserved = max(self.peak_reserved, self.reserved)
        holes = self._unmapped[hole.small]
        del holes[bisect_left(holes, (hole.address,))]
        if mapped < hole.size:
            rest = self._cut(hole, hole.address + mapped)
            insort(holes, (rest.address, rest))
        before = hole.previous if hole.previous is not None and hole.previous.free else None
        self._release(hole)
        return before or hole


def _unit(small: int) -> int:
    return SMALL_SEGMENT_BYTES if small & 1 else LARGE_SEGMENT_BYTES


def is_expandable(alloc_conf: str | None) -> bool:
    """Whether a PYTORCH_CUDA_ALLOC_CONF value turns expandable segments on."""
    return "expandable_segments:true" in (alloc_conf or "").replace(" ", "").lower()


def make_allocator(alloc_conf: str | None, limit_bytes: int | None = None, apart: bool = False) -> CachingAllocator:
    """The allocator that a PYTORCH_CUDA_ALLOC_CONF value selects; `apart`: see ExpandableAllocator."""
    if is_expandable(alloc_conf):
        return ExpandableAllocator(limit_bytes=limit_bytes, apart=apart)
    return CachingAllocator(limit_bytes=limit_bytes)
