"""Evidence on disk: verifications as JSON lines, and the calibrations made of them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from qlora_planner import bounded
from qlora_planner.errors import InputError, RunError
from qlora_planner.evidence import Measurement
from qlora_planner.evidence.calibration import Calibration, card_slug, pooled
from qlora_planner.evidence.calibration_file import calibration_from_dict
from qlora_planner.sources.json_files import parse_object, read_object

# A line holds one run with its model's config and its prediction; what is longer is something else.
LONGEST_LINE_BYTES = 4 << 20
LARGEST_BYTES = 64 << 20  # a measurement has two kB


def append(path: Path, measurement: Measurement) -> None:
    """Add one line in one write, so that two verifications that end together do not mix.

    Raises RunError when the folder or the file cannot be written.
    """
    line = json.dumps(measurement.to_dict(), separators=(",", ":"), allow_nan=False) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            if _ends_amid_a_line(path):
                line = "\n" + line
            content = line.encode()
            if os.write(handle, content) != len(content):
                raise RunError(f"{path}: the disk took only a part of the line; remove its last line")
        finally:
            os.close(handle)
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror or error}") from error


def read_all(path: Path) -> list[Measurement]:
    """Every measurement of one file, in its order; empty for a file that does not exist.

    Raises InputError naming the file, the line and all that is wrong with it, for the first bad line.
    """
    return list(measurements_in([path])) if path.exists() else []


def measurements_in(paths: Iterable[Path]) -> Iterable[Measurement]:
    """Every measurement of several files, in order; raises InputError as `read_all` does."""
    for path in paths:
        try:
            content = bounded.read_bytes(path, LARGEST_BYTES, "file of measurements")
        except bounded.Unreadable as error:
            raise InputError(str(error)) from error
        for number, line in enumerate(content.split(b"\n"), 1):
            if not line.strip():
                continue
            location = f"{path}:{number}"
            if len(line) > LONGEST_LINE_BYTES:
                raise InputError(f"{location}: is {len(line) >> 20:,} MiB long, so it is no measurement")
            yield Measurement.from_dict(parse_object(line, location), location)


def shared_path(root: Path, measurement: Measurement) -> Path:
    """Where `--save` puts a measurement under a profiles folder: one file for each card."""
    card = card_slug(measurement.gpu.name) if measurement.gpu else "cpu"
    return root / "measurements" / f"{re.sub(r'[^a-z0-9-]+', '-', card)}-verified.jsonl"


def read_calibration(dirs: Sequence[Path]) -> Calibration | None:
    """All calibrations of these folders as one, earlier folders first; None where there is none.

    Raises InputError naming a file that is not one.
    """
    by_name: dict[str, Path] = {}
    for folder in dirs:
        for path in sorted(folder.glob("*.json")):
            by_name.setdefault(path.name, path)
    return pooled([calibration_from_dict(read_object(path), str(path)) for path in by_name.values()])


def write_calibration(path: Path, calibration: Calibration) -> None:
    """Put a calibration in place of the last one, whole or not at all.

    Raises RunError when it cannot be written.
    """
    try:
        bounded.write_whole(path, (json.dumps(calibration.to_dict(), indent=1) + "\n").encode())
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror or error}") from error


def _ends_amid_a_line(path: Path) -> bool:
    """Whether the last write was cut short, so that the next line would be glued to it."""
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"
