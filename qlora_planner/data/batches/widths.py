"""The widths of a dataset's batches before its widest: what they leave in the allocator's cache is cut for them."""

from __future__ import annotations

import numpy as np

from qlora_planner.data.batches.summary import DataSummary

# How much is left in the cache depends on the order, which nobody knows before: the worst of a few stands for it.
_ORDERS, _BATCHES = 3, 6


def widths_before(data: DataSummary, batch_size: int, seq_len: int, packing: bool) -> tuple[tuple[int, ...], ...]:
    """Tokens of the micro-batches that come before the widest, in a few random orders (of fixed seeds).

    A micro-batch is as wide as the longest of its rows, all cut at `seq_len`. Empty where all are of one width, and for
    packed rows: nearly all are full, to the rounding of a segment, so the first one cuts the cache for all others. Only
    where an underfull one, a hundredth of them, comes first does more stay reserved (docs/training-runs.md).
    """
    if packing:
        return ()
    lengths = data.lengths.clip(max=seq_len)
    lengths = lengths[lengths < lengths.max(initial=0)]  # the widest may come late, however many there are of it
    if not len(lengths):
        return ()
    orders = (np.random.default_rng(seed).choice(lengths, (_BATCHES, batch_size)) for seed in range(_ORDERS))
    widths = (tuple(int(width) for width in order.max(axis=1) if width) for order in orders)
    return tuple(order for order in widths if order)
