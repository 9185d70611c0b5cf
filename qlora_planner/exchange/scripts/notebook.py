"""A plan as a notebook: nbformat 4.5 for Jupyter, Colab and Kaggle, or the same cells as `# %%` text for editors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from qlora_planner.exchange.scripts.training import Section, packages, sections
from qlora_planner.spec.run import RunConfig

INSTALL = "Install"


def notebook(run: RunConfig, model_id: str, data: str, heading: list[str], rewards: Sequence[str] = ()) -> str:
    """The script of a resolved run as an .ipynb document; `heading` are printable lines about the plan."""
    cells = [_cell("plan", "markdown", _markdown(heading))]
    cells += [_cell(part.title.lower(), "code", part.code) for part in _sections(run, model_id, data, rewards)]
    document = {
        "cells": cells,
        "metadata": {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def percent(run: RunConfig, model_id: str, data: str, heading: list[str], rewards: Sequence[str] = ()) -> str:
    """The same cells as a Python file that editors and jupytext open as a notebook; it runs as a script, too."""
    head = "\n".join(["# %% [markdown]", *(f"# {line}".rstrip() for line in heading)])
    parts = [f"# %% {part.title}\n{_without_magic(part)}" for part in _sections(run, model_id, data, rewards)]
    return "\n\n".join([head, *parts]) + "\n"


def _sections(run: RunConfig, model_id: str, data: str, rewards: Sequence[str]) -> list[Section]:
    install = Section(title=INSTALL, code=f"%pip install -q {' '.join(packages(run))}")
    return [install, *sections(run, model_id, data, notebook=True, rewards=rewards)]


def _without_magic(part: Section) -> str:
    return f"# {part.code}" if part.title == INSTALL else part.code


def _markdown(heading: list[str]) -> str:
    """Each line a paragraph of its own, in which nothing of a name becomes markup."""
    return "\n\n".join("".join(f"\\{c}" if c in "\\`*_[]<>#|$" else c for c in line) for line in heading)


def _cell(name: str, kind: str, text: str) -> dict[str, Any]:
    lines = text.split("\n")
    source = [*(f"{line}\n" for line in lines[:-1]), lines[-1]]
    cell: dict[str, Any] = {"cell_type": kind, "id": name, "metadata": {}, "source": source}
    return cell if kind == "markdown" else {**cell, "execution_count": None, "outputs": []}
