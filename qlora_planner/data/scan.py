"""One pass over a dataset: every row to its length, a batch at a time, and what cannot be used told by its line."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from qlora_planner.data.batches.summary import MOST_OUTLIERS, BadRow, DataSummary, Lengths, RowRef, outliers_of
from qlora_planner.data.counting import Counted, Counter
from qlora_planner.data.files import DataFile
from qlora_planner.data.images import holds_images
from qlora_planner.data.labels import LabelsSeen
from qlora_planner.data.readers import read_rows
from qlora_planner.data.shapes import LABELLED, Example, RowFaultError, detect_shape, example_of, parts_of
from qlora_planner.errors import InputError
from qlora_planner.text import plain

Warn = Callable[[str], None]
BAD_ROWS = ("refuse", "skip")

_BATCH_ROWS = 1000
_BATCH_CHARS = 1 << 20
_MOST_BAD = 5


class Moved(Protocol):
    """Told how far a pass has come."""

    def __call__(self, done_bytes: int, size_bytes: int, rows: int) -> None:
        """Bytes and rows that were read, and the bytes of all files."""


@dataclass(slots=True)
class LocatedExample:
    """An example, where it stands, and whether its row holds more than text."""

    file: int
    line: int
    example: Example
    images: bool = False
    columns: Mapping[str, Any] = field(default_factory=dict)


class Faults:
    """Rows that cannot be used: how many, and the first of them."""

    def __init__(self, files: Sequence[DataFile]) -> None:
        self.files, self.count, self.first = files, 0, list[BadRow]()

    def add(self, file: int, line: int, why: str) -> None:
        """One more."""
        self.count += 1
        if len(self.first) < _MOST_BAD:
            self.first.append(BadRow(path=str(self.files[file].path), line=line, why=why))

    def words(self, rows: int) -> str:
        """All of them in one line; `rows` are the good ones."""
        first, word = self.first[0], "row" if self.files[0].format == "parquet" else "line"
        others = [f"{row.line}" if row.path == first.path else f"{row.path}:{row.line}" for row in self.first[1:]]
        rest = self.count - len(self.first)
        more = f", and {word}{'s' if self.count > 2 else ''} {', '.join(others)}" if others else ""
        more += f" and {rest:,} more" if rest > 0 else ""
        name = plain(first.path)
        return (
            f"{name}: {self.count:,} of {self.count + rows:,} rows cannot be used: "
            f"{word} {first.line} {plain(first.why)}{more}"
        )


def shape_of(files: Sequence[DataFile], task: str | None = None) -> str:
    """The shape of the first row that is one, for a run of `task`.

    Raises InputError where there is none, or its columns say nothing.
    """
    broken: list[str] = []
    for file in files:
        for raw in read_rows(file):
            if raw.columns is not None:
                return detect_shape(raw.columns, str(file.path), task)
            if len(broken) < _MOST_BAD:
                broken.append(f"line {raw.line} {raw.fault}")
    path = str(files[0].path)
    raise InputError(f"{plain(path)}: holds no row that can be read" + (f"; {plain(broken[0])}" if broken else ""))


def examples(
    files: Sequence[DataFile], shape: str, faults: Faults, moved: Moved | None = None
) -> Iterator[LocatedExample]:
    """Every row that can be used as an example, in order; the others go to `faults`."""
    way = _Way(sum(file.size_bytes for file in files), moved)
    for index, file in enumerate(files):
        for raw in read_rows(file, way.at):
            way.rows += 1
            if raw.columns is None:
                faults.add(index, raw.line, raw.fault or "cannot be read")
                continue
            try:
                yield LocatedExample(
                    index, raw.line, example_of(raw.columns, shape), holds_images(raw.columns), raw.columns
                )
            except RowFaultError as fault:
                faults.add(index, raw.line, str(fault))
        way.before += file.size_bytes
        way.at(0)


class _Way:
    """How far a pass over several files has come."""

    def __init__(self, size_bytes: int, moved: Moved | None) -> None:
        self.before = self.rows = 0
        self._size_bytes, self._moved = size_bytes, moved

    def at(self, position: int) -> None:
        """Tell of `position` bytes in the file that is read."""
        if self._moved is not None:
            self._moved(self.before + position, self._size_bytes, self.rows)


def scan(
    files: Sequence[DataFile], shape: str, counter: Counter, *, bad_rows: str, warn: Warn, moved: Moved | None
) -> DataSummary:
    """Count every row. Raises InputError for rows that cannot be used, unless `bad_rows` is skip, and for no rows."""
    faults = Faults(files)
    tally, word = _Tally(), "row" if files[0].format == "parquet" else "line"
    seen = LabelsSeen(lambda file, line: f"{files[file].path}: {word} {line}")
    batch: list[LocatedExample] = []
    chars = 0
    for located in examples(files, shape, faults, moved):
        if bad_rows == "refuse" and faults.count:
            # The answer is no: what is left is only how many there are.
            tally.passed += 1
            continue
        if shape == LABELLED:
            seen.add(located.file, located.line, located.example["label"])
        batch.append(located)
        chars += _chars(located.example)
        if len(batch) >= _BATCH_ROWS or chars >= _BATCH_CHARS:
            _flush(batch, counter, tally, faults)
            chars = 0
    _flush(batch, counter, tally, faults)
    if faults.count:
        words = faults.words(tally.passed + len(tally.lengths))
        if bad_rows == "refuse":
            raise InputError(f"{words}; mend them, or leave them out with --bad-rows skip")
        warn(f"{words}; they are left out")
    if not tally.lengths:
        raise InputError(f"{plain(files[0].path)}: holds no row that can be used")
    labels = seen.settle(None).count if shape == LABELLED else None
    return replace(_summary(files, shape, counter, tally, faults), labels=labels)


class _Tally:
    """Compact columns of what was counted: 16 bytes a row."""

    def __init__(self) -> None:
        self.lengths, self.masked, self.lines, self.files = array("i"), array("i"), array("i"), array("i")
        self.passed = self.images = 0


def _flush(batch: list[LocatedExample], counter: Counter, tally: _Tally, faults: Faults) -> None:
    parts = [parts_of(located.example) for located in batch]
    counts = iter(counter.count([part for each in parts for part in each]) if batch else [])
    for located, each in zip(batch, parts, strict=True):
        result = _longer([next(counts) for _ in each])
        if isinstance(result, str):
            faults.add(located.file, located.line, result)
        elif not result[0]:
            faults.add(located.file, located.line, "has no tokens")
        else:
            tally.images += located.images
            tally.lengths.append(result[0])
            tally.masked.append(result[1])
            tally.lines.append(located.line)
            tally.files.append(located.file)
    batch.clear()


def _longer(counted: list[Counted]) -> Counted:
    """Of two completions of one prompt the longer one; why the row cannot be used, if either cannot."""
    return next((fault for fault in counted if isinstance(fault, str)), None) or max(counted)


def _chars(example: Example) -> int:
    """About how much there is to tokenise; a batch is bounded by it."""
    if "text" in example:
        return len(example["text"])
    if "input_ids" in example:
        return len(example["input_ids"])
    total = 0
    for name in ("messages", "prompt", "completion", "chosen", "rejected"):
        value = example.get(name)
        if isinstance(value, str):
            total += len(value)
        elif value:
            total += sum(len(message.get("content") or "") + 16 for message in value)
    return total


def _summary(files: Sequence[DataFile], shape: str, counter: Counter, tally: _Tally, faults: Faults) -> DataSummary:
    lengths: Lengths = np.array(tally.lengths, dtype=np.int32)
    masked: Lengths = np.array(tally.masked, dtype=np.int32)

    def place(index: int) -> RowRef:
        path = str(files[tally.files[index]].path)
        return RowRef(path=path, line=tally.lines[index], tokens=int(lengths[index]))

    outliers = outliers_of(lengths)
    return DataSummary(
        paths=tuple(str(file.path) for file in files),
        format="+".join(dict.fromkeys(file.format for file in files)),
        shape="messages" if shape == "conversations" else shape,
        size_bytes=sum(file.size_bytes for file in files),
        basis=counter.basis,
        tokenizer=counter.name,
        chars_per_token=counter.chars_per_token,
        longest=place(int(np.argmax(lengths))),
        outliers=tuple(place(int(index)) for index in outliers[:MOST_OUTLIERS]),
        outlier_rows=len(outliers),
        bad_rows=faults.count,
        first_bad=tuple(faults.first),
        image_rows=tally.images,
        lengths=lengths,
        masked=masked if masked.any() else None,
    )
