"""How a config has several cards share a run: the strategy, which key decided what, and what no figure counts of it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qlora_planner.catalog.parallel import strategy_row
from qlora_planner.memory.parallel.ring import ring_bytes
from qlora_planner.memory.records import MemoryEstimate, Problem, Unmodelled
from qlora_planner.record import record
from qlora_planner.spec.model import ModelProfile


@record
class Decision:
    """A run option with the key that decided it, as it stands in the file, or the tool's default that did."""

    option: str
    value: Any
    key: str


@record
class Beyond:
    """What a setting does to a card's memory that its figures leave out, as `memory.Unmodelled`.

    `at_most` is a part of the figure, `at_most_bytes` a size; None where nothing bounds it. `after_loading`: what is
    loaded onto a card takes all that is said in any case. `ring_of`: cards that share each sequence, whose attention
    bounds it.
    """

    key: str
    what: str
    direction: str = "both"
    at_most: float | None = None
    at_most_bytes: int | None = None
    after_loading: bool = False
    ring_of: int | None = None

    def of(self, estimate: MemoryEstimate, profile: ModelProfile) -> Unmodelled:
        """The same as a part of this estimate's figures."""
        at_most, floor_bytes = self.at_most, max(estimate.floor_bytes, 1)
        most_bytes = self.at_most_bytes
        if self.ring_of is not None:
            most_bytes = ring_bytes(profile, estimate.run, self.ring_of)
        if most_bytes is not None:
            at_most = round(most_bytes / floor_bytes, 4)
        elif self.after_loading and (loaded_bytes := _loaded_bytes(estimate)):
            at_most = round(max(0.0, 1 - loaded_bytes / floor_bytes), 4)
        return Unmodelled(key=self.key, what=self.what, direction=self.direction, at_most=at_most)


def _loaded_bytes(estimate: MemoryEstimate) -> int:
    """What loading takes of a card, with the context; 0 where it is not known, or nothing is loaded onto it."""
    allocated = next((phase.allocated_bytes or 0 for phase in estimate.phases if phase.name == "load"), 0)
    context = ("cuda_context", "communication")
    return allocated + sum(estimate.components.get(part, 0) for part in context) if allocated else 0


@record
class Sharing:
    """What a file says of several cards. `keys` are its own top-level keys that say it.

    `strategy` is None where it is one that is not planned, or cannot be told; `why` then says so. `saves_whole`:
    whether the end writes a whole adapter, None where no key says.
    """

    strategy: str | None
    keys: tuple[str, ...]
    why: str
    decided: tuple[Decision, ...] = ()
    beyond: tuple[Beyond, ...] = ()
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()
    saves_whole: bool | None = None
    processes: int | None = None  # how many the file itself starts
    communicators: int = 1  # NCCL's, of each card

    @property
    def options(self) -> dict[str, Any]:
        """The run options that are decided."""
        return {decision.option: decision.value for decision in self.decided}

    @property
    def on_one_card(self) -> str:
        """What a figure for one card lacks, in a clause that ends in what to give."""
        label = "several cards share this run" if self.strategy is None else f"{_label(self.strategy)} on several cards"
        return f"{label}: say how many, as --gpu 2xrtx-4090"


@dataclass(slots=True)
class Draft:
    """A Sharing while it is read."""

    strategy: str | None
    keys: tuple[str, ...]
    why: str
    decided: dict[str, Decision] = field(default_factory=dict)
    beyond: list[Beyond] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    saves_whole: bool | None = None
    processes: int | None = None
    communicators: int = 1

    def decide(self, option: str, value: Any, key: str) -> None:
        """Say what decided an option; the last word counts."""
        self.decided[option] = Decision(option=option, value=value, key=key)

    def leave(self, key: str, what: str, direction: str = "both", **bound: Any) -> None:
        """Say what no figure counts: see Beyond."""
        self.beyond.append(Beyond(key=key, what=what, direction=direction, **bound))

    def problem(self, code: str, message: str, fix: str, *, blocking: bool = False) -> None:
        """Say what the libraries refuse, or do in silence."""
        self.problems.append(Problem(code=code, message=message, fix=fix, blocking=blocking))

    def unplanned(self, why: str) -> None:
        """Say that no figure here is of what the file asks for."""
        self.strategy, self.why = None, why

    def done(self) -> Sharing:
        """The record."""
        return Sharing(
            strategy=self.strategy, keys=self.keys, why=self.why, decided=tuple(self.decided.values()),
            beyond=tuple(self.beyond), problems=tuple(self.problems), notes=tuple(self.notes),
            saves_whole=self.saves_whole, processes=self.processes, communicators=self.communicators,
        )  # fmt: skip


def truth(value: Any, default: bool = False) -> bool:
    """A switch as these files write it: a boolean, or a word for one."""
    if isinstance(value, str):
        return value.strip().lower() in ("true", "yes", "on", "1", "y", "t")
    return default if value is None else bool(value)


def mapping(value: Any) -> Mapping[str, Any]:
    """Names with values, none where it is something else."""
    return value if isinstance(value, Mapping) else {}


def beside(name: str, location: str) -> Path | None:
    """The file of this name, from the config's own folder or from where the command runs; None where there is none."""
    for folder in (Path(location).parent, Path()):
        with suppress(OSError, ValueError):  # what is no name of a file is no file
            if (folder / name).is_file():
                return folder / name
    return None


def _label(strategy: str) -> str:
    return strategy_row(strategy).label
