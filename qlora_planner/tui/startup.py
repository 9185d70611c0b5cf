"""What the explorer is started with."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from qlora_planner.record import record
from qlora_planner.tui.saved_state import SavedState

if TYPE_CHECKING:
    from qlora_planner.session.cards import PlannedCard
    from qlora_planner.tui.widgets.rows import ModelRow


@record
class DataAsked:
    """A dataset and how its tokens are counted, as `--data` and the options beside it say."""

    path: str
    tokenizer: str | None = None
    chars_per_token: float | None = None
    bad_rows: str = "refuse"


@record
class Start:
    """`survey` gives the rows of `qlora-plan --gpu`, likely ones first; with False as its second argument the verdicts
    alone, faster. `note` is a word about the start for the reader, `plain` asks for ASCII alone, `model` is opened at
    once."""

    survey: Callable[[PlannedCard, bool], Iterable[ModelRow]]
    card: PlannedCard
    saved: SavedState
    state_path: Path
    profiles: str | None = None
    data: DataAsked | None = None
    note: str | None = None
    plain: bool = False
    model: str | None = None
