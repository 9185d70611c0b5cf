"""YAML that anybody may have written, read safely; text files written whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from qlora_planner.bounded import DEEPEST, Unreadable, check_depth, check_json, read_bytes
from qlora_planner.errors import InputError
from qlora_planner.spec.faults import refuse
from qlora_planner.text import plain, quoted

# A training config is a few KiB: what is larger is something else.
LARGEST_BYTES = 1 << 20
MOST_TOKENS = 50_000
# What PyYAML raises where a tag does not suit its value, as KeyError for `!!bool maybe`.
_UNSUITED = (LookupError, TypeError, AttributeError)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which builds plain data alone, within bounds; remembers keys that are given twice."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.twice: list[str] = []

    def fetch_more_tokens(self) -> None:
        """Read on, unless there was enough: PyYAML takes a second for twenty thousand tokens of a hostile file."""
        if self.tokens_taken > MOST_TOKENS:
            raise yaml.YAMLError(f"it has more than {MOST_TOKENS:,} tokens")
        super().fetch_more_tokens()

    def get_single_node(self) -> yaml.Node | None:
        """The document, once it is known how large it is with every alias written out."""
        node: yaml.Node | None = super().get_single_node()
        if node is not None and _written_out(node, 0, {}) > MOST_TOKENS:
            raise yaml.YAMLError(f"its aliases multiply to more than {MOST_TOKENS:,} values")
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<")
        self.twice += [key for key, times in keys.items() if times > 1]
        return super().construct_mapping(node, deep=deep)


def _written_out(node: yaml.Node, depth: int, sizes: dict[int, int | None]) -> int:
    """How many nodes there are, an alias counted as all that it stands for. Raises YAMLError for depth and circles."""
    if depth > DEEPEST:
        raise yaml.YAMLError(f"it is nested too deeply (more than {DEEPEST} levels)")
    if id(node) not in sizes:
        sizes[id(node)] = None  # until it is known
        inside = node.value if isinstance(node, yaml.SequenceNode | yaml.MappingNode) else ()
        parts = [part for item in inside for part in (item if isinstance(item, tuple) else (item,))]
        sizes[id(node)] = 1 + sum(_written_out(part, depth + 1, sizes) for part in parts)
    size = sizes[id(node)]
    if size is None:
        raise yaml.YAMLError("an alias stands for what it is part of")
    return size


def read_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The mapping that a YAML or JSON file holds; tags that would build objects are refused.

    Raises InputError naming `path` for what cannot be read, is no mapping of names, or gives a key twice.
    """
    location = str(path)
    document, twice = _parsed(_text(Path(path)), location)
    if document is None:
        refuse(["is empty"], location)
    if not isinstance(document, dict):
        refuse([f"must hold names with values, not {_kind(document)}"], location)
    faults = [f"{quoted(key)} is given twice" for key in twice]
    faults += [f"{quoted(key)} is no name of an option" for key in document if not isinstance(key, str)]
    if faults:
        refuse(faults, location)
    return document


def _parsed(text: str, location: str) -> tuple[Any, list[str]]:
    """The data, and the keys that are given twice."""
    if text.lstrip().startswith("{"):
        twice: list[str] = []

        def merged(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
            twice.extend(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
            return dict(pairs)

        shallow = check_json(text.encode(), location)
        # JSON is YAML but for tabs, which YAML refuses; what is no JSON either is told in YAML's words.
        with suppress(ValueError, RecursionError):
            raw = json.loads(text, object_pairs_hook=merged)
            if not shallow:
                check_depth(raw, location)
            return raw, twice
    loader = None
    try:
        loader = _Loader(text)
        return loader.get_single_data(), loader.twice
    except (yaml.YAMLError, ValueError, *_UNSUITED, ArithmeticError, RecursionError) as error:
        refuse([f"is no YAML that can be read: {_why(error)}"], location)
    finally:
        if loader is not None:
            loader.dispose()


def _text(path: Path) -> str:
    try:
        return read_bytes(path, LARGEST_BYTES, "training config").decode("utf-8-sig")
    except UnicodeDecodeError:
        refuse(["cannot be read: it is no UTF-8 text"], str(path))
    except Unreadable as error:
        refuse([error.reason + ("; name the file in it" if error.reason == "is a folder" else "")], str(path))


def _why(error: Exception) -> str:
    """The parser's own words and where, in one line."""
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        line = "" if mark is None else f" (line {mark.line + 1})"
        return plain(" ".join(f"{error.problem or error.context or 'not understood'}{line}".split()))
    if isinstance(error, RecursionError):
        return f"it is nested too deeply (more than {DEEPEST} levels)"
    if isinstance(error, _UNSUITED):
        value = f" ({quoted(error.args[0])})" if isinstance(error, KeyError) else ""
        return f"a value{value} does not suit the tag before it"
    return plain(" ".join(str(error).split()))


def _kind(value: object) -> str:
    return "a list" if isinstance(value, list) else f"the bare value {quoted(value)}"


def write_text(path: str | os.PathLike[str], text: str, *, force: bool = False) -> None:
    """Write `text` as UTF-8: see `write_bytes`."""
    write_bytes(path, text.encode(), force=force)


def write_bytes(path: str | os.PathLike[str], data: bytes, *, force: bool = False) -> None:
    """Write `data` under a name of its own beside `path`, then rename it: a reader sees all of it or nothing.

    Raises InputError naming `path` where something is there already (unless `force`), or it cannot be written.
    """
    target = Path(path)
    check_new(target, force=force)
    temporary = ""
    try:
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
    except OSError as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        raise InputError(f"{plain(target)}: cannot be written: {error.strerror or error}") from error


def check_new(target: Path, *, force: bool = False) -> None:
    """Raises InputError for a folder, and for a file that is there already (unless `force`)."""
    if target.is_dir():
        raise InputError(f"{plain(target)}: is a folder; name a file in it")
    if target.exists() and not force:
        raise InputError(f"{plain(target)}: is there already; --force writes over it")


def _umask() -> int:
    """The process's mask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
