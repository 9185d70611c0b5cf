"""The cards' files of a folder, parsed beforehand: parsing TOML takes tens of milliseconds, and a bare size needs all.

`gpus.index.json` lies beside the folder `gpus`. It holds each file's parsed document with a digest of the file, and
stands in for a file only while that has not changed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zlib import crc32

from qlora_planner.bounded import small_json

SCHEMA = "qlora-plan/gpus-index/1"


def index_path(folder: Path) -> Path:
    """Where the index of `folder` lies."""
    return folder.with_name(f"{folder.name}.index.json")


def build_card_index(folder: Path) -> str:
    """The index of all cards' files in `folder`, as text. Raises OSError or ValueError for a file that is no TOML."""
    import tomllib  # late: whoever reads an index parses no TOML

    rows = []
    for path in sorted(folder.glob("*.toml")):
        content = path.read_bytes()
        row = [path.stem, _digest(content), tomllib.loads(content.decode("utf-8"))]
        rows.append(json.dumps(row, separators=(",", ":")))
    return f'{{"schema":"{SCHEMA}","cards":[\n' + ",\n".join(rows) + "\n]}\n"


def read_card_index(folder: Path) -> Mapping[str, tuple[str, Mapping[str, Any]]]:
    """By card, the digest of its file and the document; empty where there is no index that can be used."""
    try:
        raw = small_json(index_path(folder))
        if raw["schema"] != SCHEMA:
            return {}
        rows = {name: (digest, document) for name, digest, document in raw["cards"]}
    except (OSError, ValueError, TypeError, LookupError):
        return {}  # the files themselves are there, and are parsed
    return rows if all(isinstance(document, dict) for _, document in rows.values()) else {}


def parsed(content: bytes, row: tuple[str, Mapping[str, Any]] | None) -> Mapping[str, Any] | None:
    """The document of a file with this content by its row of the index; None where the file is another by now."""
    return row[1] if row is not None and row[0] == _digest(content) else None


def _digest(content: bytes) -> str:
    # To notice a change, not to resist forgery: hashlib alone takes as long to import as all cards to read.
    return f"{len(content)}-{crc32(content):08x}"
