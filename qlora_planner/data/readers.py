"""Rows of each kind of file, in order, with the line that each stands on. A broken row is told and not raised."""

from __future__ import annotations

import codecs
import csv
import json
import sys
from collections.abc import Callable, Iterator
from io import TextIOWrapper
from typing import Any, NamedTuple, TextIO

from qlora_planner.data.files import DataFile
from qlora_planner.errors import MissingError
from qlora_planner.installing import install_line
from qlora_planner.spec.faults import refuse
from qlora_planner.text import plain, quoted

# One row that is longer is no row: it would not leave the memory for a batch of them.
LONGEST_ROW_BYTES = 64 << 20
_CHUNK = 1 << 20
_ROWS_AT_A_TIME, _ROWS_AT_LEAST = 1000, 16
# Text packs to a third or a tenth; what shrinks to less than this was made to.
_MOST_PACKED, _ALWAYS_UNPACKED_BYTES = 200, 1 << 30

Moved = Callable[[int], None]


class RawRow(NamedTuple):
    """One row: its line (or row of a parquet file) from 1, and its columns, or else what is wrong with it."""

    line: int
    columns: dict[str, Any] | None
    fault: str | None = None


def read_rows(file: DataFile, moved: Moved | None = None) -> Iterator[RawRow]:
    """Every row of one file, in order and a few at a time in memory.

    `moved` is told from time to time how many bytes of the file have been read. Raises InputError for a file that
    cannot be read on at all, MissingError where a package is missing.
    """
    reader = {"jsonl": _json_lines, "json": _json_array, "csv": _csv, "parquet": _parquet}[file.format]
    try:
        yield from reader(file, moved or (lambda _position: None))
    except OSError as error:
        refuse([f"cannot be read: {error.strerror or error}"], str(file.path))


def _json_lines(file: DataFile, moved: Moved) -> Iterator[RawRow]:
    position = number = 0
    with file.path.open("rb", buffering=_CHUNK) as stream:
        while line := stream.readline(LONGEST_ROW_BYTES):
            if len(line) == LONGEST_ROW_BYTES and not line.endswith(b"\n"):
                refuse([f"line {number + 1} is longer than {LONGEST_ROW_BYTES >> 20} MiB"], str(file.path))
            number += 1
            position += len(line)
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if not line.isspace():
                yield _of_json(number, line)
            if not number % _ROWS_AT_A_TIME:
                moved(position)


def _of_json(number: int, line: bytes) -> RawRow:
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError as error:
        return RawRow(number, None, f"is not UTF-8 text (byte {error.start + 1} of the line)")
    except RecursionError:
        return RawRow(number, None, "is nested too deeply")
    except ValueError as error:  # also an integer too long to be one
        return RawRow(number, None, f"is not JSON ({_short(error)})")
    return _object(number, row)


def _object(number: int, row: Any) -> RawRow:
    if isinstance(row, dict):
        return RawRow(number, row)
    return RawRow(number, None, f"is not a JSON object but {quoted(row)}")


def _short(error: ValueError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg.removesuffix(' at')} at column {error.colno}"
    return plain(str(error).partition(";")[0])


def _json_array(file: DataFile, moved: Moved) -> Iterator[RawRow]:
    """One array, element by element: a file of a gigabyte is never whole in memory."""
    path = str(file.path)
    decoder, text = json.JSONDecoder(), codecs.getincrementaldecoder("utf-8-sig")()
    buffer, at, line, counted, ended = "", 0, 1, 0, False
    wanted = _CHUNK

    with file.path.open("rb") as stream:

        def more() -> None:
            """Drop what was read and read on."""
            nonlocal buffer, at, counted, line, ended
            line += buffer.count("\n", counted, at)
            chunk = stream.read(wanted)
            ended = not chunk
            try:
                buffer = buffer[at:] + text.decode(chunk, ended)
            except UnicodeDecodeError:
                refuse([f"is not UTF-8 text (near line {line + buffer.count(chr(10), at)})"], path)
            at = counted = 0
            moved(stream.tell())

        def skip() -> str:
            """The next character that is no space, or nothing at the end."""
            nonlocal at
            while True:
                while at < len(buffer) and buffer[at] in " \t\r\n":
                    at += 1
                if at < len(buffer) or ended:
                    return buffer[at : at + 1]
                more()

        more()
        if skip() != "[":
            refuse(["must hold one array of objects"], path)
        at += 1
        if skip() == "]":
            return
        while True:
            skip()
            try:
                row, end = decoder.raw_decode(buffer, at)
            except (ValueError, RecursionError) as error:
                # An element that is cut off reads as a broken one until the rest of it is there.
                if not ended and not isinstance(error, RecursionError) and len(buffer) - at < LONGEST_ROW_BYTES:
                    wanted = max(_CHUNK, len(buffer) - at)
                    more()
                    continue
                line += buffer.count("\n", counted, at)
                reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
                refuse([f"the element at line {line} is not JSON ({plain(reason)})"], path)
            wanted = _CHUNK
            line += buffer.count("\n", counted, at)
            counted = at
            yield _object(line, row)
            at = end
            follows = skip()
            if follows == "]":
                return
            if follows != ",":
                line += buffer.count("\n", counted, at)
                what = f"{quoted(follows)} stands" if follows else "the file ends"
                refuse([f"{what} at line {line} where a comma or the end of the array is due"], path)
            at += 1


def _csv(file: DataFile, moved: Moved) -> Iterator[RawRow]:
    csv.field_size_limit(min(LONGEST_ROW_BYTES, sys.maxsize))
    delimiter = "\t" if file.path.suffix.lower() == ".tsv" else ","
    # Lines end at a line feed and nowhere else: other characters that break lines stand inside texts.
    with file.path.open("rb", buffering=_CHUNK) as binary:
        stream = TextIOWrapper(binary, encoding="utf-8-sig", errors="surrogateescape", newline="\n")
        rows = csv.reader(_lines(stream, file), delimiter=delimiter, strict=True)
        try:
            heads = next(rows, [])
        except csv.Error as error:
            refuse([f"line 1: is not CSV ({error})"], str(file.path))
        if len(set(heads)) != len(heads):
            refuse(["its first line names a column twice"], str(file.path))
        while True:
            number = rows.line_num + 1
            try:
                fields = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                yield RawRow(number, None, f"is not CSV ({error})")
                continue
            if fields:
                yield _csv_row(number, heads, fields)
            if not number % _ROWS_AT_A_TIME:
                moved(min(file.size_bytes, binary.tell()))


def _lines(stream: TextIO, file: DataFile) -> Iterator[str]:
    number = 0
    while line := stream.readline(LONGEST_ROW_BYTES):
        number += 1
        if len(line) == LONGEST_ROW_BYTES and not line.endswith("\n"):
            refuse([f"line {number} is longer than {LONGEST_ROW_BYTES >> 20} MiB"], str(file.path))
        yield line


def _csv_row(number: int, heads: list[str], fields: list[str]) -> RawRow:
    if len(fields) != len(heads):
        return RawRow(number, None, f"has {len(fields)} fields where the first line names {len(heads)} columns")
    if any("\udc80" <= letter <= "\udcff" for field in fields if not field.isascii() for letter in field):
        return RawRow(number, None, "is not UTF-8 text")
    return RawRow(number, {head: _cell(field) for head, field in zip(heads, fields, strict=True)})


def _cell(field: str) -> Any:
    """A list in a CSV field (messages, token ids) is written as JSON; everything else is text."""
    if field[:1] == "[" and field[-1:] == "]":
        try:
            return json.loads(field)
        except (ValueError, RecursionError):
            return field
    return field


def _parquet(file: DataFile, moved: Moved) -> Iterator[RawRow]:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise MissingError(
            f"{plain(file.path)}: parquet files need pyarrow; install it with {install_line('data')}"
        ) from None
    number = unpacked_bytes = 0
    try:
        with parquet.ParquetFile(file.path) as opened:
            total = max(1, opened.metadata.num_rows)
            for batch in opened.iter_batches(batch_size=_rows_at_once(opened.metadata, file)):
                rows = batch.to_pylist()
                # Where the file says that a column is a dictionary, the batch has its values once.
                texts = sum(len(text) for row in rows for text in row.values() if isinstance(text, str))
                unpacked_bytes += max(batch.nbytes, texts)
                if unpacked_bytes > max(_ALWAYS_UNPACKED_BYTES, _MOST_PACKED * file.size_bytes):
                    refuse([f"unpacks to {unpacked_bytes >> 20:,} MiB and more, so it is no dataset"], str(file.path))
                for row in rows:
                    number += 1
                    yield RawRow(number, _without_nulls(row))
                moved(file.size_bytes * number // total)
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        reason = (str(error).splitlines() or ["it is damaged"])[0]
        refuse([f"is no parquet file that can be read ({plain(reason)[:120]})"], str(file.path))


def _rows_at_once(metadata: Any, file: DataFile) -> int:
    """How many rows can be unpacked together. A column may store one value of many MiB for every row, in a few bytes.

    Columns are not asked: on a damaged file pyarrow ends the process there. Raises InputError for a file that unpacks
    to far more than it has bytes.
    """
    sizes: list[int] = [metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups)]
    if sum(sizes) > max(LONGEST_ROW_BYTES, _MOST_PACKED * file.size_bytes):
        refuse([f"unpacks to {sum(sizes) >> 20:,} MiB, more than {_MOST_PACKED} times its size"], str(file.path))
    return max(_ROWS_AT_LEAST, min(_ROWS_AT_A_TIME, LONGEST_ROW_BYTES // max(1, *sizes, 1)))


def _without_nulls(row: dict[str, Any]) -> dict[str, Any]:
    """Parquet has one set of fields for all rows: what a row does not have is null there and absent in JSON."""
    return {name: _cleaned(value) for name, value in row.items()}


def _cleaned(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _cleaned(item) for name, item in value.items() if item is not None}
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [_cleaned(item) for item in value]
    return value
