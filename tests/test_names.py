"""Names that say nothing of the value they hold are counted, and their counts may only fall."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "qlora_planner"
# Functions that bind such a name, as an argument or a variable. A place where it fits keeps it: `where` of a reader's
# signature says where an error lies. Lower a figure when there are fewer; never raise one.
CEILINGS = {"asked": 0, "facts": 0, "found": 2, "known": 7, "one": 8, "place": 0, "told": 1, "where": 0}


def bindings(function: ast.AST) -> set[str]:
    """The names of CEILINGS that a function binds, those of the functions inside it with it."""
    names = (node.id for node in ast.walk(function) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))
    arguments = (node.arg for node in ast.walk(function) if isinstance(node, ast.arg))
    return {name for name in (*names, *arguments) if name in CEILINGS}


def counts() -> Counter[str]:
    """By name, the functions of the package that bind it."""
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py"))
    nodes = (node for tree in trees for node in ast.walk(tree))
    return Counter(
        name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) for name in bindings(node)
    )


def test_names_that_say_nothing_of_their_value_only_become_fewer() -> None:
    more = {name: number for name, number in counts().items() if number > CEILINGS[name]}
    assert not more, f"more functions than before bind {more}: say what the value is"


def test_a_name_is_counted_where_a_function_binds_it() -> None:
    function = ast.parse(
        "def f(where):\n    for one in where:\n        found = one\n    return [known for known in found]"
    )
    assert bindings(function) == {"where", "one", "found", "known"}
    assert bindings(ast.parse("def f(x):\n    return x.found(where=1)")) == set()
