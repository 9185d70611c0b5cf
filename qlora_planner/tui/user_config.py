"""The user's own keys and theme, out of tui.toml in the folder of configurations; what cannot be used is said."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from pathlib import Path

from textual.binding import Binding, BindingType

from qlora_planner.record import record
from qlora_planner.text import plain, quoted, short

_LARGEST_BYTES = 64 << 10


@record
class UserConfig:
    """`keys` maps the name of an action, as `train.verify`, to keys in textual's words, as `w` or `ctrl+v,f5`."""

    keys: Mapping[str, str] = field(default_factory=dict)
    theme: str | None = None


def config_path() -> Path:
    """The file in the user's folder of configurations (XDG_CONFIG_HOME on Linux)."""
    import platformdirs

    return Path(platformdirs.user_config_dir("qlora-planner", appauthor=False)) / "tui.toml"


def tour_path() -> Path:
    """An empty file beside it, there once the tour was seen."""
    return config_path().with_name("tour-seen")


def read_config(path: Path) -> tuple[UserConfig, str | None]:
    """What is written there, and why it is not used (None: it is, or there is none)."""
    if not path.is_file():
        return UserConfig(), None
    import tomllib

    from qlora_planner.bounded import Unreadable, read_bytes

    try:
        document = tomllib.loads(read_bytes(path, _LARGEST_BYTES, "file of keys").decode())
        unknown = sorted(set(document) - {"keys", "theme"})
        if unknown:
            raise ValueError(f"{quoted(unknown[0])} is not known; keys and theme are")
        keys, theme = document.get("keys", {}), document.get("theme")
        if not isinstance(keys, dict) or not all(isinstance(key, str) and key.strip() for key in keys.values()):
            raise ValueError('[keys] maps names to keys, as "train.verify" = "w"')
        if theme is not None and not isinstance(theme, str):
            raise ValueError("theme is a name")
    except (OSError, ValueError, Unreadable) as error:
        return UserConfig(), f"{path} is not used: {short(' '.join(str(error).split()), 160)}"
    return UserConfig(keys={name: key.replace(" ", "") for name, key in keys.items()}, theme=theme), None


def named(bindings: Sequence[BindingType], prefix: str = "") -> list[BindingType]:
    """The bindings with names, by which the user's keys know them: `train.verify`, `go.fit`, `help`."""
    return [
        replace(each, id=".".join([*([prefix] if prefix else []), *re.findall(r"\w+", each.action)]))
        if isinstance(each, Binding) and each.id is None
        else each
        for each in bindings
    ]


def listed(config: UserConfig) -> str:
    """A line an action: its name, its keys now, and what it does; names of the user's that are of no action last.

    Every place is loaded for it.
    """
    from qlora_planner.tui.app import Explorer
    from qlora_planner.tui.screens.base import PLACES, screen_of

    bindings = [*Explorer.BINDINGS, *(each for key, _ in PLACES for each in type(screen_of(key)).BINDINGS)]
    lines, left = [], dict(config.keys)
    for each in bindings:
        if isinstance(each, Binding) and each.id is not None:
            keys = left.pop(each.id, each.key)
            lines.append(f"{each.id:<22} {keys:<18} {each.tooltip or each.description}")
    return "\n".join([*lines, *(f"{plain(name)}: no action of the explorer" for name in sorted(left))])
