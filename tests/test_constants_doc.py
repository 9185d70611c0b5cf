"""docs/constants.md lists every number that stands at the head of a module of the memory model, and no other."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "qlora_planner"
FOLDERS = (
    "memory", "catalog", "planner", "speed", "data/batches", "evidence", "diagnose/oom", "spec", "profiling/tracing",
)  # fmt: skip
ROW = re.compile(
    r"^\| `(?P<file>[\w/.]+)` \| `(?P<name>\w+)` \| (?P<value>[^|]+) \| (?P<source>[^|]+) \|$", re.MULTILINE
)
NAME = re.compile(r"_?[A-Z][A-Z0-9_]*")


def is_number(node: ast.expr) -> bool:
    """A number, arithmetic of numbers, or a tuple, dict or call of nothing but numbers."""
    if isinstance(node, ast.Constant):
        return isinstance(node.value, (int, float)) and not isinstance(node.value, bool)
    if isinstance(node, ast.UnaryOp):
        return is_number(node.operand)
    if isinstance(node, ast.BinOp):
        return is_number(node.left) and is_number(node.right)
    if isinstance(node, (ast.Tuple, ast.List)):
        return bool(node.elts) and all(map(is_number, node.elts))
    if isinstance(node, ast.Dict):
        return bool(node.values) and all(map(is_number, node.values))
    if isinstance(node, ast.Call):
        given = [*node.args, *(keyword.value for keyword in node.keywords)]
        return bool(given) and all(map(is_number, given))
    return False


def numbers_in(source: str) -> Iterator[str]:
    """Names in capitals that a module binds to numbers at its top."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign):
            targets: list[ast.expr] = node.targets
        elif isinstance(node, ast.AnnAssign):
            targets = [node.target]
        else:
            continue
        if node.value is not None and is_number(node.value):
            single = [inner for target in targets for inner in getattr(target, "elts", [target])]
            yield from (t.id for t in single if isinstance(t, ast.Name) and NAME.fullmatch(t.id))


def in_code() -> set[tuple[str, str]]:
    return {
        (path.relative_to(PACKAGE).as_posix(), name)
        for folder in FOLDERS
        for path in sorted((PACKAGE / folder).rglob("*.py"))
        for name in numbers_in(path.read_text(encoding="utf-8"))
    }


def documented() -> dict[tuple[str, str], re.Match[str]]:
    text = (ROOT / "docs" / "constants.md").read_text(encoding="utf-8")
    return {(match["file"], match["name"]): match for match in ROW.finditer(text)}


def test_every_constant_is_documented() -> None:
    missing = {key for key in in_code() if key not in documented()}
    assert not missing, f"add a row with value and source to docs/constants.md for {sorted(missing)}"


def test_nothing_documented_is_gone() -> None:
    gone = set(documented()) - in_code()
    assert not gone, f"rows of docs/constants.md name what is not in the code: {sorted(gone)}"


def test_every_row_has_a_source() -> None:
    assert documented()
    for match in documented().values():
        assert len(match["source"].strip()) > 15, match[0]


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("LIMIT = 1 << 20", ["LIMIT"]),
        ("_ROWS, _WIDTH = 128, 32", ["_ROWS", "_WIDTH"]),
        ("_PAIRS: tuple[int, ...] = (1, -2)", ["_PAIRS"]),
        ("TABLE = {'a': Stated(below=0.1, above=0.2)}", ["TABLE"]),
        ("NAMES = ('a', 'b')\nFLAG = True\nlower = 3\nPATTERN = re.compile('1')", []),
    ],
)
def test_what_counts_as_a_number(source: str, found: list[str]) -> None:
    assert list(numbers_in(source)) == found
