"""Where the explorer was left, kept as one JSON file; a file that cannot be used is passed over with a word."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, field
from pathlib import Path
from typing import Any

from qlora_planner.bounded import small_json
from qlora_planner.errors import InputError
from qlora_planner.record import record
from qlora_planner.spec.run import RunConfig

SCHEMA = "qlora-plan/tui-state/1"
_LARGEST_BYTES = 1 << 20
MOST_PINS = 24
_DATA = ("path", "tokenizer", "chars_per_token", "bad_rows")


@record
class Pin:
    """A run kept for comparison."""

    model: str
    card: str
    run: Mapping[str, Any]


@record
class SavedState:
    """What is restored at the next start."""

    theme: str = "textual-dark"
    sort: str = "verdict"
    group: str = "none"
    card: str | None = None
    model: str | None = None
    run: Mapping[str, Any] | None = None
    pins: tuple[Pin, ...] = field(default=())
    data: Mapping[str, Any] | None = None  # the fields of `session.data.DataSource`


def state_path() -> Path:
    """The file in the user's state folder."""
    import platformdirs

    return Path(platformdirs.user_state_dir("qlora-planner", appauthor=False)) / "tui.json"


def read_state(path: Path) -> tuple[SavedState, str | None]:
    """The state, and why a file that is there is not used (None: it is, or there is none)."""
    try:
        if not path.exists():
            return SavedState(), None
        if path.stat().st_size > _LARGEST_BYTES:
            raise ValueError("it is too large")
        raw = small_json(path)
        if not isinstance(raw, dict) or raw.pop("schema", None) != SCHEMA:
            raise ValueError(f"its schema is not {SCHEMA}")
        return _state(raw), None
    except (OSError, ValueError, TypeError, KeyError, RecursionError, InputError) as error:
        return SavedState(), f"{path} is not used: {' '.join(str(error).split())[:120]}"


def write_state(path: Path, state: SavedState) -> None:
    """Write the whole file or nothing. Raises InputError where that is not possible."""
    from qlora_planner.exchange.files import write_text  # yaml, which the first paint does not wait for

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path.parent}: cannot be made: {error.strerror or error}") from error
    write_text(path, json.dumps({"schema": SCHEMA, **asdict(state)}, indent=1) + "\n", force=True)


def _state(raw: dict[str, Any]) -> SavedState:
    pins = tuple(Pin(model=str(pin["model"]), card=str(pin["card"]), run=_run(pin["run"])) for pin in raw["pins"])
    run, data = raw["run"], raw.get("data")
    return SavedState(
        theme=str(raw["theme"]), sort=str(raw["sort"]), group=str(raw["group"]), card=_text(raw["card"]),
        model=_text(raw["model"]), run=None if run is None else _run(run), pins=pins[:MOST_PINS],
        data=None if data is None else {name: data[name] for name in _DATA},
    )  # fmt: skip


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _run(raw: Any) -> dict[str, Any]:
    """A run's options, looked at as those of a plan file are."""
    return RunConfig.from_dict(raw, "run").to_dict()
