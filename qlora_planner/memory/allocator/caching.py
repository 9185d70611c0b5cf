"""The CUDA caching allocator of torch 2.x, simulated block by block.

Source of every rule: c10/core/AllocatorConfig.h and c10/cuda/CUDACachingAllocator.cpp, torch 2.11 and 2.13.
"""

from __future__ import annotations

from bisect import bisect_left, insort

from qlora_planner.memory.allocator.addresses import AddressSpace

MIN_BLOCK_BYTES = 512
_ROUND_UP = MIN_BLOCK_BYTES - 1  # a power of two less one: its bits are what rounding clears
SMALL_LIMIT_BYTES = 1 << 20
SMALL_SEGMENT_BYTES = 2 << 20
LARGE_SEGMENT_BYTES = 20 << 20
LARGE_LIMIT_BYTES = 10 << 20
ROUND_LARGE_BYTES = 2 << 20
STREAMS = 4  # the main one, and as many more as any run allocates on


class OutOfMemory(Exception):
    """The simulated run asked for more than its limit; `requested_bytes` is the allocation that failed."""

    def __init__(self, requested_bytes: int, allocated_bytes: int, reserved_bytes: int) -> None:
        super().__init__(f"asked for {requested_bytes} with {allocated_bytes} allocated and {reserved_bytes} reserved")
        self.requested_bytes = requested_bytes
        self.allocated_bytes = allocated_bytes
        self.reserved_bytes = reserved_bytes


def block_bytes(size_bytes: int) -> int:
    """The size rounded as the allocator rounds it; an empty tensor has none."""
    return -(-size_bytes // MIN_BLOCK_BYTES) * MIN_BLOCK_BYTES


def segment_bytes(size_bytes: int) -> int:
    """Bytes reserved from the driver when no cached block serves an allocation of this size."""
    rounded = block_bytes(size_bytes)
    if rounded <= SMALL_LIMIT_BYTES:
        return SMALL_SEGMENT_BYTES
    if rounded < LARGE_LIMIT_BYTES:
        return LARGE_SEGMENT_BYTES
    return -(-rounded // ROUND_LARGE_BYTES) * ROUND_LARGE_BYTES


class Segment:
    """Memory got from the driver in one piece; `live` blocks are in use in it."""

    __slots__ = ("live", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.live = 0


class Block:
    """A piece of a segment, of the pool numbered `small`. Neighbours merge when both are free."""

    __slots__ = ("address", "free", "next", "previous", "segment", "size", "small")

    def __init__(self, address: int, size: int, small: int, segment: Segment) -> None:
        self.address = address
        self.size = size
        self.small = small
        self.segment = segment
        self.free = False
        self.previous: Block | None = None
        self.next: Block | None = None


FreeList = list[tuple[int, int, Block]]


class CachingAllocator:
    """Best fit over two pools, splitting, merging, segments, cache release and a per-process limit.

    `limit_bytes` is torch's `set_per_process_memory_fraction` in bytes. `non_releasable_bytes` are those of segments
    that hold anything: what giving the whole cache back would leave reserved.
    """

    # A large block keeps a remainder of up to this size unsplit; a small one splits off every 512 bytes.
    large_remainder = SMALL_LIMIT_BYTES
    # Blocks belong to the stream that allocated them: every further stream has two pools of its own behind the first.
    side_pools = 2
    # Whether a free block counts in best fit as large as it could grow. A flag: `malloc` runs 60,000 times a plan.
    expands = False

    def __init__(self, *, limit_bytes: int | None = None) -> None:
        self.limit_bytes = limit_bytes
        self.allocated = self.peak_allocated = 0
        self.reserved = self.peak_reserved = 0
        self.non_releasable_bytes = self.peak_non_releasable_bytes = 0
        self._free: tuple[FreeList, ...] = tuple([] for _ in range(2 * STREAMS))
        self._addresses = AddressSpace()

    def malloc(self, size_bytes: int, side_stream: int = 0) -> Block | None:
        """Allocate, on the main stream or on another one by its number; None for an empty tensor.

        Raises OutOfMemory past the limit once the cache is given back.
        """
        if size_bytes <= 0:
            return None
        size = (size_bytes + _ROUND_UP) & ~_ROUND_UP
        small = size <= SMALL_LIMIT_BYTES
        index = small + self.side_pools * side_stream
        pool = self._free[index]
        at = bisect_left(pool, (size,))
        if self.expands:
            at = self._by_room(pool, at)
        block = pool.pop(at)[2] if at < len(pool) else self._grow(size, index)
        segment = block.segment
        remaining = block.size - size
        if remaining and (small or remaining > self.large_remainder):
            rest = Block(block.address + size, remaining, block.small, segment)
            rest.free = True
            block.size = size
            rest.previous, rest.next = block, block.next
            if block.next is not None:
                block.next.previous = rest
            block.next = rest
            insort(pool, (remaining, rest.address, rest))
        block.free = False
        if not segment.live:
            self.non_releasable_bytes += segment.size
            if self.non_releasable_bytes > self.peak_non_releasable_bytes:
                self.peak_non_releasable_bytes = self.non_releasable_bytes
        segment.live += 1
        self.allocated = allocated = self.allocated + block.size
        if allocated > self.peak_allocated:
            self.peak_allocated = allocated
        return block

    def free(self, block: Block | None) -> None:
        """Give a block back to the cache; it merges with free neighbours."""
        if block is None:
            return
        self.allocated -= block.size
        segment = block.segment
        segment.live -= 1
        if not segment.live:
            self.non_releasable_bytes -= segment.size
        self._release(block)

    def _release(self, block: Block) -> None:
        """Put a block among the free ones, merged with its free neighbours."""
        previous, following, pool = block.previous, block.next, self._free[block.small]
        if previous is not None and previous.free:
            del pool[bisect_left(pool, (previous.size, previous.address))]
            previous.size += block.size
            previous.next = following
            if following is not None:
                following.previous = previous
            block = previous
        if following is not None and following.free:
            del pool[bisect_left(pool, (following.size, following.address))]
            block.size += following.size
            block.next = following.next
            if following.next is not None:
                following.next.previous = block
        block.free = True
        insort(pool, (block.size, block.address, block))

    def empty_cache(self) -> None:
        """Return every wholly free segment to the driver (`torch.cuda.empty_cache`)."""
        for pool in self._free:
            kept = [entry for entry in pool if entry[2].segment.live]
            for size, address, block in pool:
                if not block.segment.live:
                    self.reserved -= size
                    self._addresses.give(address, size)
            pool[:] = kept

    def reset_peaks(self) -> None:
        """`torch.cuda.reset_peak_memory_stats`."""
        self.peak_allocated, self.peak_reserved, self.peak_non_releasable_bytes = (
            self.allocated,
            self.reserved,
            self.non_releasable_bytes,
        )

    def _by_room(self, pool: FreeList, at: int) -> int:
        """Where in `pool` the best fit is, from the smallest block that suffices."""
        return at

    def _grow(self, size: int, small: int) -> Block:
        wanted = segment_bytes(size)
        self._reserve(wanted, size)
        return Block(self._addresses.take(wanted), wanted, small, Segment(wanted))

    def _reserve(self, wanted: int, size: int) -> None:
        if self.limit_bytes is not None and self.reserved + wanted > self.limit_bytes:
            self.empty_cache()
            if self.reserved + wanted > self.limit_bytes:
                raise OutOfMemory(size, self.allocated, self.reserved)
        self.reserved += wanted
        if self.reserved > self.peak_reserved:
            self.peak_reserved = self.reserved

    def _forget(self, block: Block) -> None:
        pool = self._free[block.small]
        del pool[bisect_left(pool, (block.size, block.address))]
