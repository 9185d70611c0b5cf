"""What the explorer is started with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING

from qlora_planner.measure.nvml import DeviceReading, visible_devices
from qlora_planner.record import record
from qlora_planner.session.data import DataSource
from qlora_planner.tui.saved_state import SavedState
from qlora_planner.tui.user_config import UserConfig

if TYPE_CHECKING:
    from qlora_planner.session.cards import PlannedCard
    from qlora_planner.tui.widgets.rows import ModelRow


@record
class Start:
    """`survey` gives the rows of `qlora-plan --gpu`, likely ones first; with False as its second argument the verdicts
    alone, faster. `note` is a word about the start for the reader, `plain` asks for ASCII alone, `model` is opened at
    once, with the `tour` of the places. `tour_path` is there once that was seen; None: it is not offered. `cards_here`
    reads the cards of this machine, and raises MissingError where there is none."""

    survey: Callable[[PlannedCard, bool], Iterable[ModelRow]]
    card: PlannedCard
    saved: SavedState
    state_path: Path
    profiles: str | None = None
    data: DataSource | None = None
    note: str | None = None
    plain: bool = False
    model: str | None = None
    config: UserConfig = field(default_factory=UserConfig)
    tour: bool = False
    tour_path: Path | None = None
    cards_here: Callable[[], Sequence[DeviceReading]] = visible_devices
