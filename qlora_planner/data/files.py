"""Which files a dataset is made of, and what each of them is."""

from __future__ import annotations

import glob
import os
import threading
from pathlib import Path

from qlora_planner.bounded import open_regular
from qlora_planner.errors import InputError
from qlora_planner.record import record
from qlora_planner.spec.faults import refuse
from qlora_planner.text import plain

FORMATS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip", ".lz4")
# The first bytes tell a compressed file that is not called so, and text that is not UTF-8.
_MAGIC = {
    b"\x1f\x8b": "is compressed with gzip",
    b"BZh": "is compressed with bzip2",
    b"\xfd7zXZ": "is compressed with xz",
    b"\x28\xb5\x2f\xfd": "is compressed with zstd",
    b"PK\x03\x04": "is a zip archive",
    b"\xff\xfe": "is UTF-16 text",
    b"\xfe\xff": "is UTF-16 text",
}
MOST_FILES, WALK_S = 10_000, 4.0
_KNOWN = ".jsonl, .json, .csv, .tsv and .parquet"


@record
class DataFile:
    """One file. `format` is jsonl (one object per line), json (one array of objects), csv or parquet."""

    path: Path
    format: str
    size_bytes: int


def find_files(text: str | os.PathLike[str]) -> tuple[DataFile, ...]:
    """The files that `text` names: one file, the data files of a folder, or those that a pattern (`*.jsonl`) matches.

    Raises InputError, one line that names the path, for what is missing, empty, compressed, no text in UTF-8, or of no
    kind that is understood.
    """
    name = os.fspath(text)
    try:
        path = Path(name).expanduser()
        if path.is_dir():
            return _of_folder(path)
        if not path.exists() and glob.has_magic(name):
            return _of_pattern(str(path))
        return (_checked(path),)
    except (OSError, RuntimeError, ValueError) as error:  # no permission, an unknown ~user, a null character
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        refuse([f"cannot be read: {reason}"], name)


def _of_folder(folder: Path) -> tuple[DataFile, ...]:
    inside = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    data_files = [path for path in inside if path.suffix.lower() in FORMATS]
    if not data_files:
        shown = ", ".join(path.name for path in inside[:5]) or "nothing"
        more = f" and {len(inside) - 5} more" if len(inside) > 5 else ""
        packed = any(path.suffix.lower() in _COMPRESSED for path in inside)
        fix = "; unpack them first" if packed else ""
        refuse([f"a folder without data files ({_KNOWN}); it holds {shown}{more}{fix}"], str(folder))
    return tuple(map(_checked, data_files))


def _of_pattern(pattern: str) -> tuple[DataFile, ...]:
    matches = sorted(map(Path, _matches(pattern)))
    if not matches:
        refuse(["no file matches this pattern"], pattern)
    return tuple(map(_checked, matches))


def _matches(pattern: str) -> list[str]:
    """The files that a pattern matches; waiting ends where it walks through a whole disk, or through /proc."""
    matches: list[str] = []
    ended = threading.Event()

    def walk() -> None:
        for name in glob.iglob(pattern, recursive=True):
            if ended.is_set() or len(matches) > MOST_FILES:
                break
            if os.path.isfile(name):
                matches.append(name)
        ended.set()

    # A thread, because what matches nothing never comes back from the walk; left behind, it ends with the process.
    threading.Thread(target=walk, daemon=True, name="glob").start()
    if not ended.wait(WALK_S):
        ended.set()
        refuse([f"no end of folders after {WALK_S:.0f} s; name the folder that holds the files"], pattern)
    if len(matches) > MOST_FILES:
        refuse([f"matches more than {MOST_FILES:,} files; name fewer"], pattern)
    return matches


def _checked(path: Path) -> DataFile:
    name = str(path)
    if not path.exists():
        refuse(["no such file or folder"], name)
    if not path.is_file():
        refuse(["is no regular file; its length must be known, and it is read more than once"], name)
    suffix = path.suffix.lower()
    if suffix in _COMPRESSED:
        raise InputError(f"{plain(name)}: compressed data is not read; unpack it first")
    if suffix not in FORMATS:
        refuse([f"{path.suffix or 'no suffix'} is no kind of data that is understood; {_KNOWN} are"], name)
    size = path.stat().st_size
    if not size:  # also what the kernel makes up on demand, reading which can wait for ever
        refuse(["is empty"], name)
    with open_regular(path) as file:
        head = file.read(4096)
    if not head.strip():
        refuse(["is empty"], name)
    for magic, words in _MAGIC.items():
        if head.startswith(magic):
            fix = "save it as UTF-8" if "UTF-16" in words else "unpack it first"
            refuse([f"{words}; {fix}"], name)
    return DataFile(path=path, format=_format(suffix, head), size_bytes=size)


def _format(suffix: str, head: bytes) -> str:
    """Many files called .json hold one object per line: an array begins with a bracket."""
    if suffix == ".json" and not head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
        return "jsonl"
    return FORMATS[suffix]
