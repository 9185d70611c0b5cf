"""What padding to the longest row of a batch costs, by the ways in which transformers makes batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

# transformers, trainer_pt_utils.get_length_grouped_indices: rows are sorted within so many batches.
_SORTED_BATCHES = 50
_SAMPLED_ROWS = 200_000
_MOST_DRAWS = 20


def expected_longest(lengths: npt.NDArray[Any], batch_size: int) -> float:
    """The mean, over all batches of `batch_size` different rows, of the longest row in the batch.

    Exact: with c rows of n no longer than x, a batch has none longer with the chance (c over B) / (n over B), and the
    mean is the sum of x times the chance that x is the longest.
    """
    rows = len(lengths)
    sizes, counts = np.unique(lengths, return_counts=True)
    upto = np.cumsum(counts).astype(np.float64)
    chance = np.ones(len(sizes))
    for drawn in range(batch_size):
        chance *= np.maximum(upto - drawn, 0.0) / (rows - drawn)
    return float(np.dot(sizes.astype(np.float64), np.diff(chance, prepend=0.0)))


def padded_by_random(lengths: npt.NDArray[Any], batch_size: int) -> float:
    """Expected tokens of one epoch, padding counted, when rows are shuffled: transformers' default. Exact.

    The last batch holds what is left (dataloader_drop_last is off).
    """
    batches, rest = divmod(len(lengths), batch_size)
    total = batches * batch_size * expected_longest(lengths, batch_size) if batches else 0.0
    return total + (rest * expected_longest(lengths, rest) if rest else 0.0)


def padded_by_length(lengths: npt.NDArray[Any], batch_size: int, grad_accum: int) -> tuple[float, int]:
    """Tokens of one epoch, padding counted, with transformers' group_by_length, and the draws that it is the mean of.

    Sampled with fixed seeds, as transformers/trainer_pt_utils.py shuffles: a random order, cut into at most 50
    optimizer steps' worth of rows, each sorted from long to short, with the longest of all in the first place.
    """
    rows, step = len(lengths), batch_size * grad_accum
    group = max(1, min(rows // (step * 4), _SORTED_BATCHES)) * step
    draws = int(np.clip(-(-_SAMPLED_ROWS // rows), 1, _MOST_DRAWS))
    total = sum(_grouped(lengths, batch_size, group, np.random.default_rng(seed)) for seed in range(draws))
    return total / draws, draws


def _grouped(lengths: npt.NDArray[Any], batch_size: int, group: int, random: np.random.Generator) -> int:
    """Padded tokens of one epoch in one random order."""
    order = random.permutation(lengths).astype(np.int64)
    for start in range(0, len(order), group):
        order[start : start + group] = -np.sort(-order[start : start + group])
    firsts = order[::group]
    longest = int(np.argmax(firsts)) * group
    order[0], order[longest] = order[longest], order[0]
    maxima = np.maximum.reduceat(order, np.arange(0, len(order), batch_size))
    rest = len(order) % batch_size
    padded = int(maxima.sum()) * batch_size
    return padded - int(maxima[-1]) * (batch_size - rest) if rest else padded
