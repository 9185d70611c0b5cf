"""The widths of a dataset's micro-batches on the way to its widest: what is met before leaves marks in the cache."""

from __future__ import annotations

import numpy as np

from qlora_planner.planner.dataset import DataSummary
from qlora_planner.planner.packing import packed_bfd

# A record about each time that the batches seen double: after 1, 2, 4, 8 and 16. What is above the last of these, the
# widest 4 % of all batches, differs little from the widest.
_DOUBLINGS = 5


def widths_before(data: DataSummary, batch_size: int, seq_len: int, packing: bool) -> tuple[int, ...]:
    """Tokens of the micro-batches that set records before the widest does, narrow to wide, without the widest itself.

    A micro-batch is as wide as the longest of its rows, all cut at `seq_len`; packed rows are best-fit packing's.
    """
    lengths = packed_bfd(data.lengths, seq_len) if packing else data.lengths.clip(max=seq_len)
    lengths = lengths[lengths < lengths.max(initial=0)]  # the widest may come late, however many there are of it
    if not len(lengths):
        return ()
    # All of n batches of B rows are no wider than x with the chance that one row is, to the power of n B: a half at the
    # median of the widest.
    chances = [0.5 ** (1 / (2**doubling * batch_size)) for doubling in range(_DOUBLINGS)]
    found = np.quantile(lengths, chances, method="higher").astype(np.int64).tolist()
    return tuple(sorted({width for width in found if 0 < width < seq_len}))
