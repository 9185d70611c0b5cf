"""Rewards that are written on one line, looked at without running what they name."""

from __future__ import annotations

import ast
import shlex
from collections.abc import Iterator
from pathlib import Path

from qlora_planner.errors import InputError
from qlora_planner.text import listed, quoted
from qlora_planner.train.rewarding.rewards import named


def rewards_of(line: str) -> list[str]:
    """Each reward of a line, separated by spaces, in quotes where its path has some. Raises InputError for a quote that
    is not closed."""
    try:
        return shlex.split(line)
    except ValueError:
        raise InputError(f"{quoted(line)}: a quote is not closed") from None


def check_rewards(line: str) -> None:
    """Raises InputError for a line without a reward, and for one whose file is not there, is no Python or defines no
    function of that name, as far as its text tells."""
    rewards = rewards_of(line)
    if not rewards:
        raise InputError("name what rewards completions, as rewards.py:length")
    for text in rewards:
        reward = named(text)
        if reward.file is None:
            continue
        path = Path(reward.file)
        if not path.is_file():
            raise InputError(f"{quoted(text)}: there is no such file")
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError) as error:
            raise InputError(f"{path.name} is no Python: {error}") from None
        except OSError as error:
            raise InputError(f"{path.name} cannot be read: {error.strerror or error}") from None
        defined = list(_defined(tree))
        if reward.name not in defined and "*" not in defined:
            raise InputError(f"{path.name} has no {reward.name}; it has {listed(defined) if defined else 'none'}")


def _defined(tree: ast.Module) -> Iterator[str]:
    """Names that a module's own statements bind, `*` where it imports whatever another has."""
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from (alias.asname or alias.name for alias in node.names)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (target.id for target in targets if isinstance(target, ast.Name))
        elif isinstance(node, (ast.If, ast.Try, ast.For, ast.While, ast.With)):
            yield "*"  # what is bound inside may be anything


__all__ = ("check_rewards", "rewards_of")
