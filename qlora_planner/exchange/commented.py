"""YAML with comments above it and above its keys, and names as configs list them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qlora_planner.errors import InputError
from qlora_planner.profile.faults import plain


def document(options: Mapping[str, Any], heading: Sequence[str], above: Mapping[str, str] | None = None) -> str:
    """`options` in their order, `heading` as comments before them and `above[key]` before that key."""
    import yaml

    lines = [f"# {plain(line)}" for line in heading]
    for name, value in options.items():
        if above and name in above:
            lines += ["", f"# {plain(above[name])}"]
        lines.append(yaml.safe_dump({name: value}, sort_keys=False, width=1 << 20, allow_unicode=True).rstrip("\n"))
    return "\n".join(lines) + "\n"


def target_names(targets: str, attention_modules: Sequence[str]) -> list[str]:
    """The names of target modules. Raises InputError for `attention` where nobody said what it stands for."""
    if targets != "attention":
        return [name.strip() for name in targets.split(",") if name.strip()]
    if not attention_modules:
        raise InputError("--target-modules attention: this config needs their names, as q_proj,k_proj,v_proj,o_proj")
    return list(attention_modules)
