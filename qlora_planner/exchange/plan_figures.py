"""What a plan file does not hold itself: its figures, in a JSON file beside it that nobody has to read or change."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qlora_planner.exchange.files import read_yaml
from qlora_planner.spec.faults import refuse

SCHEMA = "qlora-plan/plan-figures/1"
KEY = "figures"  # of a plan file, naming the file beside it
# What one may change stays in the plan file; everything else is worked out again from it.
IN_PLAN = ("schema", "model", "gpu", "run")


def figures_path(plan: Path) -> Path:
    """Where the figures of this plan file lie: plan.figures.json beside plan.yaml."""
    return plan.with_name(f"{plan.stem}.figures.json")


def split(document: Mapping[str, Any], plan: Path) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The document as its plan file and its file of figures hold it; None where there are no figures."""
    figures = {name: value for name, value in document.items() if name not in IN_PLAN}
    if not figures:
        return dict(document), None
    mine = {name: document[name] for name in IN_PLAN if name in document} | {KEY: figures_path(plan).name}
    return mine, {"schema": SCHEMA, "of": _subject(document), **figures}


def render(figures: Mapping[str, Any]) -> str:
    """The text of a file of figures."""
    return json.dumps(figures, indent=1) + "\n"


def joined(raw: Mapping[str, Any], location: str) -> dict[str, Any]:
    """A plan file's document with its figures, where the file beside it is there and of the same model and card.

    What the plan file says itself wins. Raises InputError naming a file of figures that is there and cannot be used.
    """
    name = raw.get(KEY)
    own = {key: value for key, value in raw.items() if key != KEY}
    if name is None:
        return dict(raw)
    if not isinstance(name, str) or Path(name).name != name:
        refuse([f"{KEY} must be the name of a file beside it"], location)
    path = Path(location).with_name(name)
    if not path.is_file():
        return own
    figures = read_yaml(path)
    if figures.pop("schema", None) != SCHEMA:
        refuse([f"is no file of figures ({SCHEMA}); without it they are worked out again"], str(path))
    return {**figures, **own} if figures.pop("of", None) == _subject(raw) else own


def _subject(document: Mapping[str, Any]) -> dict[str, Any]:
    model, gpu = document.get("model"), document.get("gpu")
    return {
        "model": model.get("id") if isinstance(model, Mapping) else None,
        "gpu": gpu.get("name") if isinstance(gpu, Mapping) else None,
    }
