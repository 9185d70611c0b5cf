"""Which releases of transformers have a causal language model of a class, by `profiles/laws/classes.json`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qlora_planner.bounded import small_json
from qlora_planner.text import quoted

CLASSES = "classes.json"
# How the reason ends where no install would help.
OF_NO_RELEASE = (
    "code that a repository brings along is not run: give a config.json of a class in docs/classes.md with these sizes"
)


def why_unknown(kind: Any, laws: Sequence[Path]) -> str:
    """Why a model type has no law, in words that end a sentence, by the first of the folders `laws` with a table."""
    releases: dict[str, list[str]] = {}
    path = next((path for folder in laws if (path := folder / CLASSES).is_file()), None)
    try:
        releases = {} if path is None else dict(small_json(path))
        having = [release for release, names in releases.items() if kind in names]
    except (OSError, ValueError, TypeError, AttributeError):
        having = list(releases)
    shown = f"model_type {quoted(kind)}"
    if len(having) == len(releases):
        return f"{shown} is no class that is known without torch"
    if having:
        return f"{shown} is a class of transformers from {having[0]} on, and none that is known without torch"
    return f"{shown} is no language model of transformers {' or '.join(releases)}, and {OF_NO_RELEASE}"
