"""How many rows packing leaves: trl's own two ways, played on lengths alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

# trl packs inside `datasets.map(batched=True)`: rows of one such batch share bins, rows of two do not.
PACKED_TOGETHER = 1000


def packed_bfd(lengths: npt.NDArray[Any], seq_len: int) -> npt.NDArray[np.int64]:
    """Tokens in each packed row by best-fit decreasing, trl's default since 0.18; order within a batch is not kept.

    As trl/data_utils.py, `_pack_bfd`: empty rows fall out, longer ones are cut at `seq_len`, and within each 1,000
    rows the longest is placed first, into the fullest bin that still takes it. `lengths` [rows] are in file order.
    Rows of one length are placed together, so 10^6 rows take about a second.
    """
    starts = range(0, len(lengths), PACKED_TOGETHER)
    filled = [_bins(np.minimum(lengths[start : start + PACKED_TOGETHER], seq_len), seq_len) for start in starts]
    return np.concatenate(filled) if filled else np.empty(0, dtype=np.int64)


def _bins(lengths: npt.NDArray[Any], seq_len: int) -> npt.NDArray[np.int64]:
    """Fill of every bin of one batch. Only how much space bins have decides, so bins of equal space are one number."""
    sizes, counts = np.unique(lengths[lengths > 0], return_counts=True)
    spaces: dict[int, int] = {}  # space left -> bins with it
    mask = 0  # bit s: there are bins with space s
    for size, count in zip(sizes[::-1].tolist(), counts[::-1].tolist(), strict=True):
        while count:
            usable = mask >> size
            if usable:
                space = (usable & -usable).bit_length() - 1 + size
                bins = spaces[space]
            else:  # no bin takes it: new ones
                space, bins = seq_len, count
            # The bin that was just used has less space left, so it stays the best fit until it is too small.
            each = space // size
            full = min(bins, count // each)
            changes = [(full, space - each * size)]
            count -= full * each
            if count and full < bins:
                changes.append((1, space - count * size))
                count = 0
            used = sum(bins_changed for bins_changed, _ in changes)
            if usable:
                spaces[space] -= used
                if not spaces[space]:
                    del spaces[space]
                    mask &= ~(1 << space)
            for bins_changed, left in changes:
                if bins_changed:
                    spaces[left] = spaces.get(left, 0) + bins_changed
                    mask |= 1 << left
    left_over = np.fromiter(spaces.keys(), dtype=np.int64, count=len(spaces))
    return seq_len - np.repeat(left_over, np.fromiter(spaces.values(), dtype=np.int64, count=len(spaces)))


def packed_wrapped(lengths: npt.NDArray[Any], seq_len: int) -> npt.NDArray[np.int64]:
    """Tokens in each packed row when rows are strung together and cut every `seq_len` tokens.

    As trl/data_utils.py, `_pack_wrapped`: again within each 1,000 rows, whose last packed row is what is left.
    """
    starts = np.arange(0, len(lengths), PACKED_TOGETHER)
    if not len(starts):
        return np.empty(0, dtype=np.int64)
    sums = np.add.reduceat(lengths.astype(np.int64), starts)
    whole, rest = np.divmod(sums, seq_len)
    return np.concatenate([np.full(int(whole.sum()), seq_len, dtype=np.int64), rest[rest > 0]])
