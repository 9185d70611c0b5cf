"""docs/faults.md, written from the tests that hold it.

    python -m tests.faults docs/faults.md

A test says what it holds with `@pytest.mark.fault(FAULT, said=..., does=..., exit=..., part=...)`: what goes wrong, the
words that are said (which must stand in the test), what happens then, the exit code, and the part of the page. In
`FAULTS` of tests/launch/test_faults.py every case is a row by itself. Files are parsed, not imported: without torch.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "faults.md"
TABLE = "launch/test_faults", "FAULTS"  # (fault, change, arguments, exit code, words)

PARTS = {
    "before": "Before a process is started",
    "begun": "When the child has begun",
    "resumed": "When a run is gone on with, or begun anew",
    "after": "When a run is merged or tried",
    "outside": "What comes from outside",
}
HEAD = """# What can go wrong with `train`, and around it

Every fault is one line on stderr that names the thing and the fix, or the first line of the answer where the run had
begun. What is refused before it begins leaves nothing behind. Written by `make faults` from the tests that hold it: a
row is changed where its test is.
"""


@dataclass(frozen=True)
class Row:
    """One fault and the test that holds it."""

    part: str
    fault: str
    said: str | None
    does: str | None
    exit: str
    test: str

    def words(self) -> str:
        """What is said and what happens, as a cell."""
        quote = "``" if "`" in (self.said or "") else "`"
        said = None if self.said is None else f"{quote}{self.said.strip()}{quote}"
        return "; ".join(text for text in (said, self.does) if text).replace("|", "\\|")


def rows() -> list[Row]:
    """Every row of the page, by part, then in the order of files and lines. Raises ValueError for a bad mark."""
    found = [row for path in sorted(TESTS.rglob("test_*.py")) for row in _rows_of(path)]
    return sorted(found, key=lambda row: list(PARTS).index(row.part))


def page() -> str:
    """The whole page."""
    lines, found = [HEAD], rows()
    for part, title in PARTS.items():
        chosen = [row for row in found if row.part == part]
        if chosen:
            lines += [
                f"## {title}",
                "",
                "| fault | what is said, and what happens | exit | test |",
                "|---|---|---|---|",
            ]
            lines += [f"| {row.fault} | {row.words()} | {row.exit} | `{row.test}` |" for row in chosen] + [""]
    return "\n".join(lines)


def _rows_of(path: Path) -> Iterator[Row]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    marks = [call for call in ast.walk(tree) if _is_mark(call)]
    own = {id(part) for call in marks for part in ast.walk(call)}
    spoken = [
        node.value.replace("\\", "")
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in own
    ]
    where = str(path.relative_to(TESTS).with_suffix(""))
    for node in tree.body:
        if where == TABLE[0] and isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == TABLE[1]:
            yield from _cases(node.value, where)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for call in (call for decorator in node.decorator_list for call in ast.walk(decorator) if _is_mark(call)):
                assert isinstance(call, ast.Call)
                row = _row(call, where)
                lost = [part for part in (row.said or "").split(" ... ") if not any(part in text for text in spoken)]
                if lost:
                    raise ValueError(f"{where}, {node.name}: nothing there says {lost[0]!r}")
                yield row


def _is_mark(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.fault"


def _row(call: ast.Call, where: str) -> Row:
    given = {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
    if set(given) - {"said", "does", "exit", "part"} or not {"exit", "part"} <= set(given):
        raise ValueError(f"{where}, line {call.lineno}: a fault has exit and part, and said, does or both")
    if given["part"] not in PARTS or not (given.get("said") or given.get("does")):
        raise ValueError(f"{where}, line {call.lineno}: part is one of {', '.join(PARTS)}; said or does must be there")
    return Row(
        part=given["part"], fault=str(ast.literal_eval(call.args[0])), said=given.get("said"), does=given.get("does"),
        exit=str(given["exit"]), test=where,
    )  # fmt: skip


def _cases(value: ast.expr | None, where: str) -> Iterator[Row]:
    """The rows of a table of cases; what is worked out from another table (`*(...)`) stands for one kind, left out."""
    assert isinstance(value, ast.List)
    for case in value.elts:
        if isinstance(case, ast.Tuple):
            fault, _, arguments, code, words = case.elts
            typed = ast.unparse(arguments)
            part = "resumed" if "--resume" in typed or "--force" in typed else "before"
            yield Row(part, ast.literal_eval(fault), ast.literal_eval(words), None, str(ast.literal_eval(code)), where)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")
