"""A config on the cards that are given: what they share, by which key, and what the figures then leave out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from qlora_planner.catalog.parallel import DDP, STRATEGY_ROWS
from qlora_planner.errors import InputError
from qlora_planner.exchange.parsed_config import Reading
from qlora_planner.exchange.several_cards.accelerate import read_file
from qlora_planner.exchange.several_cards.sharing import Sharing
from qlora_planner.exchange.several_cards.tools import of_launch
from qlora_planner.memory.records import Unmodelled

# Who starts a process for each card where a config has no key for it, from the tools' own launchers.
_LAUNCHED = {
    "axolotl": "axolotl train starts a process for each card",
    "llama-factory": "llamafactory-cli train starts a process for each card that it sees, as FORCE_TORCHRUN=1 does",
    "trl": "trl starts a process for each card through accelerate launch",
}
_TOOLS = {"axolotl": "axolotl", "llama-factory": "LLaMA-Factory", "trl": "trl"}


def on_cards(reading: Reading, world: int) -> Reading:
    """The reading on so many cards: with the strategy that the file names, else with each card holding all of it.

    On one card what the file shares stays left out of its figures; a plan names its own strategy.
    """
    if world == 1 or reading.format not in _LAUNCHED:
        return reading
    sharing = reading.sharing
    if sharing is None:
        note = f"no key shares the run: {_LAUNCHED[reading.format]}, and each holds all of it (DDP)"
        return replace(reading, run=reading.run.with_(parallel=DDP), notes=(*reading.notes, note))
    if sharing.strategy is None:
        return replace(reading, unmodelled=_why(reading, sharing))
    keys = set(sharing.keys)
    return replace(
        reading,
        run=reading.run.with_(**sharing.options),
        used=(*reading.used, *(key for key in sharing.keys if key not in reading.used)),
        not_modelled={key: why for key, why in reading.not_modelled.items() if key not in keys},
        unmodelled=tuple(thing for thing in reading.unmodelled if thing.what != sharing.on_one_card),
        notes=(*reading.notes, *sharing.notes, *_said(sharing, world)),
        stand_in=_stand_in(reading, sharing),
    )


def launched(reading: Reading, path: str) -> Reading:
    """The reading as accelerate launches it by its own config, in the file `path`.

    Raises InputError for a file that is none, and where the config shares the run by keys of its own.
    """
    if reading.format not in _LAUNCHED:
        raise InputError(f"--accelerate-config: {reading.format} files say themselves how cards share the run")
    if reading.sharing is not None and reading.sharing.strategy != DDP:
        keys = ", ".join(reading.sharing.keys)
        raise InputError(f"--accelerate-config: the file shares the run itself ({keys}); leave one of the two out")
    run = reading.run.to_dict()
    draft = read_file(path, run)
    if draft is None:
        return replace(reading, notes=(*reading.notes, f"{Path(path).name} starts one process"))
    tool = _TOOLS[reading.format]
    sharing = of_launch(draft, run, tool, reading.stored)
    left = Unmodelled(key="--accelerate-config", what=sharing.on_one_card)
    unmodelled = reading.unmodelled if sharing.strategy == DDP else (*reading.unmodelled, left)
    return replace(reading, sharing=sharing, unmodelled=unmodelled)


def _why(reading: Reading, sharing: Sharing) -> tuple[Any, ...]:
    """What is left out, with the reason in place of how many cards there are."""
    return tuple(
        replace(thing, what=sharing.why) if thing.what == sharing.on_one_card else thing for thing in reading.unmodelled
    )


def _stand_in(reading: Reading, sharing: Sharing) -> Any:
    """Another run that stands in, without what the strategy decides itself."""
    if reading.stand_in is None:
        return None
    kept = {name: value for name, value in reading.stand_in.changes.items() if name not in sharing.options}
    return replace(reading.stand_in, changes=kept) if kept else None


def _said(sharing: Sharing, world: int) -> tuple[str, ...]:
    """What decided what, and where the file starts another number of processes."""
    by = "; ".join(f"{_shown(item.option, item.value)} by {item.key}" for item in sharing.decided)
    lines = [by] if by else []
    if sharing.processes not in (None, world):
        lines.append(f"num_processes: {sharing.processes} is not what --gpu says: taken are {world} cards")
    return tuple(lines)


def _shown(option: str, value: Any) -> str:
    if option == "parallel":
        return STRATEGY_ROWS[value].label
    shown = str(value).lower() if isinstance(value, bool) else value
    return f"{option} {shown}"
