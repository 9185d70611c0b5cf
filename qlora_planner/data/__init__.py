"""Datasets: their lengths in tokens for a plan, and their rows as examples for a run."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlora_planner.errors import InputError, MissingError
from qlora_planner.text import quoted

if TYPE_CHECKING:
    from qlora_planner.data.batches.summary import DataSummary
    from qlora_planner.data.labels import Labels
    from qlora_planner.data.scan import Moved

Warn = Callable[[str], None]


def _silent(_text: str) -> None:
    """Say nothing."""


def summarise(
    path: str | os.PathLike[str],
    *,
    tokenizer: str | None = None,
    chars_per_token: float | None = None,
    bad_rows: str = "refuse",
    cache: Path | None = None,
    warn: Warn = _silent,
    moved: Moved | None = None,
    task: str | None = None,
) -> DataSummary:
    """The lengths of a dataset: a file, a folder of files or a pattern, as jsonl, json, csv, tsv or parquet.

    `tokenizer` is a folder or a Hub id, usually the model's own; rows that are tokenised already need none.
    `chars_per_token` guesses instead, and the summary's basis is then assumed. `bad_rows` is refuse or skip. `cache`
    is a folder for tokenizers that transformers built. `warn` gets one line for what is odd and does not stop the
    answer; `moved(done_bytes, size_bytes, rows)` is called every thousand rows. Files of any size are read in bounded
    memory. `task` is that of the run: a classifier learns from text and label.
    Raises InputError for data that cannot be used, MissingError for a tokenizer or a package that is not there.
    """
    from qlora_planner.data.counting import Counter, Guess, TokenisedRows
    from qlora_planner.data.files import find_files
    from qlora_planner.data.scan import scan, shape_of
    from qlora_planner.data.shapes import LABELLED

    _check(bad_rows, chars_per_token)
    files = find_files(path)
    shape = shape_of(files, task)
    counter: Counter
    if shape == "input_ids":
        counter = TokenisedRows()
    elif chars_per_token is not None:
        counter = Guess(chars_per_token)
    elif tokenizer is None:
        raise MissingError(
            "counting tokens needs a tokenizer: give a folder or a Hub id with --tokenizer, or guess with "
            "--chars-per-token 4"
        )
    else:
        from qlora_planner.data.tokenizers import load_tokenizer

        counter = load_tokenizer(tokenizer, chats=shape not in ("text", "alpaca", LABELLED), cache=cache, warn=warn)
    return scan(files, shape, counter, bad_rows=bad_rows, warn=warn, moved=moved)


def rows(
    path: str | os.PathLike[str],
    *,
    bad_rows: str = "refuse",
    warn: Warn = _silent,
    moved: Moved | None = None,
    task: str | None = None,
    pictures: bool = False,
) -> Iterator[dict[str, Any]]:
    """Every row in the format that trl trains on: `text`, `messages`, `prompt` and `completion`, or `input_ids`; for a
    classifier `text` and `label`.

    The same rows in the same order as `summarise` counts, but for those that a tokenizer's chat template refuses.
    Chats keep their `tools` and `chat_template_kwargs`. With `bad_rows` refuse the first row that cannot be used ends
    it. `pictures` adds the images beside each. `moved` as for `summarise`. Raises InputError as `summarise` does, while
    it is iterated over.
    """
    from qlora_planner.data.files import find_files
    from qlora_planner.data.images import PICTURES, pictures_of
    from qlora_planner.data.scan import Faults, examples, shape_of
    from qlora_planner.data.shapes import RowFaultError

    _check(bad_rows, None)
    files = find_files(path)
    faults, good_rows = Faults(files), 0
    for located in examples(files, shape_of(files, task), faults, moved):
        if bad_rows == "refuse" and faults.count:
            break
        example = located.example
        if pictures:
            try:
                example = {**example, PICTURES: pictures_of(located.columns, files[located.file].path.parent)}
            except RowFaultError as fault:
                faults.add(located.file, located.line, str(fault))
                continue
        good_rows += 1
        yield example
    if faults.count:
        if bad_rows == "refuse":
            raise InputError(f"{faults.words(good_rows)}; mend it, or leave it out with --bad-rows skip")
        warn(f"{faults.words(good_rows)}; they are left out")
    if not good_rows:
        raise InputError(f"{files[0].path}: holds no row that can be used")


def labels_in(path: str | os.PathLike[str], wanted: int | None, *, bad_rows: str = "refuse") -> Labels:
    """The labels of a dataset for a classifier of `wanted` labels (None: as many as there are).

    Raises InputError as `rows` does, and naming the place of a label that is none.
    """
    from qlora_planner.data.files import find_files
    from qlora_planner.data.labels import LabelsSeen
    from qlora_planner.data.scan import Faults, examples, shape_of

    _check(bad_rows, None)
    files = find_files(path)
    word = "row" if files[0].format == "parquet" else "line"
    seen = LabelsSeen(lambda file, line: f"{files[file].path}: {word} {line}")
    faults, good_rows = Faults(files), 0
    for located in examples(files, shape_of(files, "classification"), faults):
        seen.add(located.file, located.line, located.example["label"])
        good_rows += 1
    if faults.count and bad_rows == "refuse":
        raise InputError(f"{faults.words(good_rows)}; mend it, or leave it out with --bad-rows skip")
    if not good_rows:
        raise InputError(f"{files[0].path}: holds no row that can be used")
    return seen.settle(wanted)


def check_rows(path: str | os.PathLike[str], wanted: Collection[str], trainer: str) -> None:
    """Raises InputError for rows of a shape that `trainer` does not train on; `wanted` as for `check_trained_on`."""
    from qlora_planner.data.files import find_files
    from qlora_planner.data.scan import shape_of
    from qlora_planner.data.shapes import check_trained_on

    check_trained_on(shape_of(find_files(path)), wanted, trainer, os.fspath(path))


def _check(bad_rows: str, chars_per_token: float | None) -> None:
    from qlora_planner.data.scan import BAD_ROWS

    if bad_rows not in BAD_ROWS:
        raise InputError(f"--bad-rows must be {' or '.join(BAD_ROWS)}, not {quoted(bad_rows)}")
    # NaN fails both comparisons.
    if chars_per_token is not None and not 0.1 <= chars_per_token <= 100:
        raise InputError(f"--chars-per-token must be from 0.1 to 100, not {quoted(chars_per_token)}")
