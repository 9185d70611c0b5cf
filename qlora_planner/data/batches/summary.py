"""A dataset as a plan sees it: the length of every row in tokens, and nothing of what the rows say."""

from __future__ import annotations

from dataclasses import field
from typing import Any

import numpy as np
import numpy.typing as npt

from qlora_planner.memory.records import Unmodelled
from qlora_planner.record import document, record

Lengths = npt.NDArray[np.int32]

PERCENTILES = (50.0, 75.0, 90.0, 95.0, 99.0, 99.9, 100.0)
SEQ_UNIT = 64
OUTLIER_RATIO = 4
MOST_OUTLIERS = 5


@record
class RowRef:
    """One row by its place: the line of a text file, the row of a parquet file, both counted from 1."""

    path: str
    line: int
    tokens: int


@record
class BadRow:
    """A row that was left out, and why."""

    path: str
    line: int
    why: str


@record
class DataSummary:
    """What was read of a dataset.

    `lengths` [rows] are tokens per row in the order of the files, before any truncation, with everything that trl
    adds (special tokens, chat template, end of sequence). `masked` [rows] are the tokens at the start of each row that
    carry no loss, 0 where all do; None where no row has any. `basis` is counted with a tokenizer (or of rows that are
    tokenised already) and assumed from `chars_per_token`.
    """

    paths: tuple[str, ...]
    format: str  # jsonl, json, csv, parquet, or several joined by +
    shape: str  # text, messages, prompt-completion, alpaca, input_ids
    size_bytes: int
    basis: str
    tokenizer: str | None  # None: a guess, or rows that need none
    chars_per_token: float | None
    longest: RowRef
    outliers: tuple[RowRef, ...]  # the longest first, at most MOST_OUTLIERS of them
    outlier_rows: int  # rows above OUTLIER_RATIO x the 99th percentile
    bad_rows: int
    first_bad: tuple[BadRow, ...]
    lengths: Lengths = field(repr=False, compare=False)
    masked: Lengths | None = field(default=None, repr=False, compare=False)
    image_rows: int = 0  # that hold images, video or sound, none of which is in their lengths
    labels: int | None = None  # of rows that a classifier learns from

    @property
    def unmodelled(self) -> tuple[Unmodelled, ...]:
        """What the lengths leave out, for `memory.unmodelled.qualified.qualified`."""
        if not self.image_rows:
            return ()
        rows = f"{self.image_rows:,} of {self.rows:,} rows"
        what = f"{rows} hold images, video or sound, each of hundreds to thousands of tokens that no length counts"
        return (Unmodelled(key="images in the data", what=what, direction="up"),)

    @property
    def rows(self) -> int:
        """Rows that can be trained on."""
        return len(self.lengths)

    @property
    def tokens(self) -> int:
        """Tokens of all rows, nothing truncated."""
        return int(self.lengths.sum(dtype=np.int64))

    @property
    def guessed(self) -> bool:
        """Whether the lengths are a guess from characters."""
        return self.basis == "assumed"

    @property
    def row_word(self) -> str:
        """What a place in these files is called."""
        return "row" if self.format == "parquet" else "line"

    def percentile(self, percent: float) -> int:
        """The length that at least `percent` of the rows do not exceed: always that of a real row."""
        return int(np.percentile(self.lengths, percent, method="inverted_cdf"))

    def percentiles(self) -> dict[str, int]:
        """Length by percentile, as `99.9` -> 1873."""
        lengths = np.percentile(self.lengths, PERCENTILES, method="inverted_cdf")
        return {f"{percent:g}": int(length) for percent, length in zip(PERCENTILES, lengths, strict=True)}

    def histogram(self) -> tuple[list[int], list[int]]:
        """Edges 1, 2, 4, ... past the longest row, and the rows in each bin; a bin has its left edge, not its right."""
        last = int(self.lengths.max()).bit_length()
        first = max(0, int(self.lengths.min()).bit_length() - 1)
        edges = [1 << power for power in range(first, last + 1)]
        counts, _ = np.histogram(self.lengths, bins=np.array([*edges[:-1], edges[-1]], dtype=np.int64))
        return edges, [int(count) for count in counts]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, without the lengths themselves."""
        edges, counts = self.histogram()
        return {
            "paths": list(self.paths),
            "format": self.format,
            "shape": self.shape,
            "size_bytes": self.size_bytes,
            "basis": self.basis,
            "tokenizer": self.tokenizer,
            "chars_per_token": self.chars_per_token,
            "rows": self.rows,
            "tokens": self.tokens,
            "length_percentiles": self.percentiles(),
            "histogram": {"edges": edges, "rows": counts},
            "longest": document(self.longest),
            "outliers": {"rows": self.outlier_rows, "longest": document(self.outliers)},
            "image_rows": self.image_rows,
            "bad_rows": {"rows": self.bad_rows, "first": document(self.first_bad)},
            **({} if self.labels is None else {"labels": self.labels}),
        }


def rounded(length: int, limit: int | None = None) -> int:
    """`length` up to the next multiple of SEQ_UNIT, and at most `limit`."""
    up = -(-length // SEQ_UNIT) * SEQ_UNIT
    return up if limit is None else min(up, limit)


def seq_len_for(summary: DataSummary, limit: int | None = None) -> int:
    """The sequence length that cuts no row: the longest row rounded up, capped by what the model takes.

    Whatever is shuffled how, some batch holds the longest row, and its whole batch is padded to it. So the peak of a
    plan at this length is the peak of the run.
    """
    return rounded(summary.longest.tokens, limit)


def outliers_of(lengths: Lengths) -> npt.NDArray[np.int64]:
    """Indices of rows above OUTLIER_RATIO times the 99th percentile, the longest first."""
    bound = OUTLIER_RATIO * int(np.percentile(lengths, 99, method="inverted_cdf"))
    indices = np.flatnonzero(lengths > bound)
    return indices[np.argsort(-lengths[indices], kind="stable")]
