"""One epoch over a dataset: the worst batch, padding against packing, what truncation cuts, steps and hours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from qlora_planner.data.batches.packing import packed_bfd, packed_wrapped
from qlora_planner.data.batches.padding import padded_by_length, padded_by_random
from qlora_planner.data.batches.summary import DataSummary, rounded
from qlora_planner.data.batches.widths import widths_before
from qlora_planner.record import document, record

TRUNCATED_AT = (90.0, 95.0, 99.0, 99.9, 100.0)
RANDOM, GROUPED, BFD, WRAPPED = "random", "group_by_length", "packing-bfd", "packing-wrapped"


@record
class Truncation:
    """What a sequence length cuts off. `peak_bytes` is the device bytes of a run at it; None where not asked for."""

    percentile: float
    seq_len: int
    rows_cut: int
    rows_dropped: int  # of those cut, what trl leaves out: nothing that carries loss is left
    tokens_lost: int
    rows_cut_share: float
    tokens_lost_share: float
    peak_bytes: int | None = None


@record
class Epoch:
    """One way of making batches, over one epoch.

    `tokens` are real ones after truncation; `padded_tokens` are what is computed on, padding with them (a mean over
    orders); `waste` is the share of them that is padding. `fill` is how much of rows x seq_len is real. `worst_tokens`
    is the largest batch that can come: [batch, longest] where rows are padded, one flat row under best-fit packing.
    """

    name: str
    rows: int
    steps: int
    tokens: int
    tokens_lost: int
    padded_tokens: int
    waste: float
    fill: float
    worst_tokens: int
    method: str  # exact, or sampled (N orders)
    hours: float | None


@record
class DataPlan:
    """A dataset under one run. `epochs` are by name: random, group_by_length, packing-bfd, packing-wrapped."""

    summary: DataSummary
    seq_len: int
    batch_size: int
    grad_accum: int
    packing: bool
    tokens_per_s: float | None
    truncations: tuple[Truncation, ...]
    cut: Truncation  # by the run's own seq_len
    epochs: Mapping[str, Epoch]

    @property
    def epoch(self) -> Epoch:
        """The way in which the run itself makes batches."""
        return self.epochs[BFD if self.packing else RANDOM]

    def to_dict(self) -> dict[str, Any]:
        """The `data` of a plan document: the summary, and under `run` what this run makes of it."""
        epoch = self.epoch
        return {
            **self.summary.to_dict(),
            "run": {
                "basis": self.summary.basis,
                "seq_len": self.seq_len,
                "batch_size": self.batch_size,
                "grad_accum": self.grad_accum,
                "packing": self.packing,
                "widths_before": [
                    list(order) for order in widths_before(self.summary, self.batch_size, self.seq_len, self.packing)
                ],
                "worst_batch": {"rows": min(self.batch_size, epoch.rows), "tokens": epoch.worst_tokens},
                "cut": document(self.cut),
                "steps_per_epoch": epoch.steps,
                "tokens_per_epoch": epoch.tokens,
                "padded_tokens_per_epoch": epoch.padded_tokens,
                "hours_per_epoch": epoch.hours,
                "tokens_per_s": self.tokens_per_s,
            },
            "truncations": document(self.truncations),
            "batching": document([*self.epochs.values()]),
        }


def plan_data(
    summary: DataSummary,
    *,
    seq_len: int,
    batch_size: int,
    grad_accum: int = 1,
    packing: bool = False,
    tokens_per_s: float | None = None,
    limit: int | None = None,
    peak_bytes: Callable[[int], int | None] | None = None,
) -> DataPlan:
    """Everything that a dataset means for a run; lengths above `seq_len` are cut as trl cuts them.

    `tokens_per_s` is the speed in tokens computed on, padding with them. `limit` is the longest sequence that the
    model takes. `peak_bytes` gives the device bytes of the run's peak at a sequence length, for what truncation saves.
    """
    kept = _kept(summary, seq_len)
    cut_lengths = np.minimum(kept, seq_len)
    epochs: dict[str, Epoch] = {}
    if len(kept):
        lost = summary.tokens - int(cut_lengths.sum(dtype=np.int64))
        random = padded_by_random(cut_lengths, min(batch_size, len(kept)))
        grouped, draws = padded_by_length(cut_lengths, batch_size, grad_accum)
        many = f"sampled ({draws} order{'s' if draws > 1 else ''})"
        worst = min(batch_size, len(kept)) * int(cut_lengths.max())
        sizes = (batch_size, grad_accum, seq_len, tokens_per_s)
        epochs[RANDOM] = _epoch(RANDOM, cut_lengths, lost, random, worst, "exact", sizes)
        epochs[GROUPED] = _epoch(GROUPED, cut_lengths, lost, grouped, worst, many, sizes)
    else:
        epochs[RANDOM] = _nothing(summary)
    epochs |= _packed(summary, seq_len, batch_size, grad_accum, tokens_per_s)
    return DataPlan(
        summary=summary,
        seq_len=seq_len,
        batch_size=batch_size,
        grad_accum=grad_accum,
        packing=packing,
        tokens_per_s=tokens_per_s,
        truncations=truncations(summary, limit, peak_bytes, packing=packing),
        cut=truncation(summary, seq_len, packing=packing),
        epochs=epochs,
    )


def truncations(
    summary: DataSummary,
    limit: int | None = None,
    peak_bytes: Callable[[int], int | None] | None = None,
    *,
    packing: bool = False,
) -> tuple[Truncation, ...]:
    """What is lost at the length of each percentile, rounded up to 64; lengths that come out equal are one row."""
    by_length: dict[int, Truncation] = {}
    for percent in TRUNCATED_AT:
        seq_len = rounded(summary.percentile(percent), limit)
        if seq_len in by_length:  # one row for a length, under the highest percentile that it reaches
            by_length[seq_len] = replace(by_length[seq_len], percentile=percent)
        else:
            peak = None if peak_bytes is None else peak_bytes(seq_len)
            by_length[seq_len] = truncation(summary, seq_len, percent, peak, packing=packing)
    return tuple(by_length.values())


def truncation(
    summary: DataSummary, seq_len: int, percent: float = 100.0, peak_bytes: int | None = None, *, packing: bool = False
) -> Truncation:
    """What is lost at one length; best-fit packing cuts alike and drops nothing."""
    lengths = summary.lengths
    cut = int(np.count_nonzero(lengths > seq_len))
    kept = np.minimum(lengths if packing else _kept(summary, seq_len), seq_len)
    lost = summary.tokens - int(kept.sum(dtype=np.int64))
    return Truncation(
        percentile=percent,
        seq_len=seq_len,
        rows_cut=cut,
        rows_dropped=len(lengths) - len(kept),
        tokens_lost=lost,
        rows_cut_share=cut / len(lengths),
        tokens_lost_share=lost / summary.tokens,
        peak_bytes=peak_bytes,
    )


def _kept(summary: DataSummary, seq_len: int) -> npt.NDArray[np.int32]:
    """Rows that trl trains on without packing: it drops those of which truncation leaves nothing that carries loss."""
    if summary.masked is None:
        return summary.lengths
    return summary.lengths[summary.masked < np.minimum(summary.lengths, seq_len)]


def _packed(
    summary: DataSummary, seq_len: int, batch_size: int, grad_accum: int, tokens_per_s: float | None
) -> dict[str, Epoch]:
    sizes = (batch_size, grad_accum, seq_len, tokens_per_s)
    bfd = packed_bfd(summary.lengths, seq_len)
    # trl's best-fit packing is padding-free: a batch is one flat row of what its rows hold.
    flat = int(np.sort(bfd)[-batch_size:].sum())
    lost = summary.tokens - int(bfd.sum())
    epochs = {BFD: _epoch(BFD, bfd, lost, float(bfd.sum()), flat, "exact", sizes)}
    wrapped = packed_wrapped(summary.lengths, seq_len)
    rows = min(batch_size, len(wrapped))
    padded = padded_by_random(wrapped, rows)
    epochs[WRAPPED] = _epoch(WRAPPED, wrapped, 0, padded, rows * int(wrapped.max()), "exact", sizes)
    return epochs


def _epoch(
    name: str,
    lengths: npt.NDArray[Any],
    lost: int,
    padded: float,
    worst: int,
    method: str,
    sizes: tuple[int, int, int, float | None],
) -> Epoch:
    batch_size, grad_accum, seq_len, tokens_per_s = sizes
    tokens = int(lengths.sum(dtype=np.int64))
    return Epoch(
        name=name,
        rows=len(lengths),
        steps=steps_per_epoch(len(lengths), batch_size, grad_accum),
        tokens=tokens,
        tokens_lost=lost,
        padded_tokens=round(padded),
        waste=max(0.0, 1 - tokens / padded),
        fill=tokens / (len(lengths) * seq_len),
        worst_tokens=worst,
        method=method,
        hours=padded / tokens_per_s / 3600 if tokens_per_s else None,
    )


def _nothing(summary: DataSummary) -> Epoch:
    """Every row was dropped: a run of no steps."""
    return Epoch(
        name=RANDOM, rows=0, steps=0, tokens=0, tokens_lost=summary.tokens, padded_tokens=0, waste=0.0, fill=0.0,
        worst_tokens=0, method="exact", hours=None,
    )  # fmt: skip


def steps_per_epoch(rows: int, batch_size: int, grad_accum: int) -> int:
    """Optimizer steps of one epoch, as transformers' Trainer counts them: incomplete batches and steps count."""
    batches = -(-rows // batch_size)
    return -(-batches // grad_accum)
