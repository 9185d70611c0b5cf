"""Every figure that is worked out in the background: a row each, and its worker, which touches no widget."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from qlora_planner.errors import PlannerError
from qlora_planner.record import record
from qlora_planner.session.cards import PlannedCard
from qlora_planner.session.data import DataSource
from qlora_planner.spec.run import RunConfig
from qlora_planner.tui import core
from qlora_planner.tui.answer import Inputs, Surroundings, same_inputs
from qlora_planner.tui.core import Subject
from qlora_planner.tui.state import ExplorerState
from qlora_planner.tui.widgets.rows import ModelRow

if TYPE_CHECKING:
    from qlora_planner.data.batches.summary import DataSummary
    from qlora_planner.measure.nvml import DeviceReading
    from qlora_planner.memory import MemoryEstimate
    from qlora_planner.tui.control.datasets import DataView
    from qlora_planner.tui.control.readiness import Readiness
    from qlora_planner.tui.control.tasks import Work
    from qlora_planner.tui.saved_state import Pin

SIZES = ("8GB", "12GB", "16GB", "24GB", "32GB", "48GB", "80GB")
# Rows of the survey that are painted first; later ones come in lots that double.
_FIRST_ROWS = 8
_TELL_S = 0.1


@record
class Figure:
    """`work` makes the value of `inputs` in a thread; it is kept as `attribute` of the state.

    `says` is what the screen says meanwhile, None for nothing. `restarts`: other inputs do not wait until the figure of
    those before is done, and its worker looks whether it is still wanted. `holds`: whether the figure of some inputs is
    still worth showing when there are others.
    """

    attribute: str
    inputs: Callable[[ExplorerState], Inputs | None]
    work: Callable[..., Any]
    says: Callable[..., str] | None = None
    restarts: bool = False
    holds: Callable[[Inputs, Inputs], bool] = same_inputs


def _survey(work: Work, card: PlannedCard) -> list[ModelRow]:
    rows: list[ModelRow] = []
    painted = 0
    try:
        for row in work.start.survey(card, True):
            rows.append(row)
            work.check()
            if len(rows) >= max(_FIRST_ROWS, 2 * painted):
                painted = len(rows)
                work.partly(rows[:])
    except PlannerError as error:
        work.tell(core.fault_words(error), "error")
    return rows


def _survey_sizes(work: Work) -> dict[str, dict[str, ModelRow]]:
    by_card: dict[str, dict[str, ModelRow]] = {}
    for size in SIZES:
        rows: dict[str, ModelRow] = {}
        try:
            for row in work.start.survey(core.card_of(size, work.start.profiles), False):
                rows[row.model_id] = row
                work.check()
        except PlannerError as error:
            work.tell(core.fault_words(error), "error")
        by_card = {**by_card, size: rows}
        work.partly(by_card)
    return by_card


def _estimate(_work: Work, subject: Subject, run: RunConfig) -> MemoryEstimate:
    return subject.estimate(run)


def _surround(_work: Work, subject: Subject, run: RunConfig) -> Surroundings:
    return Surroundings(frontier=subject.frontier(run), prices=subject.prices(run))


def _estimate_pins(work: Work, pins: tuple[Pin, ...]) -> list[MemoryEstimate | None]:
    """In the order of the pins; None for one that cannot be had."""
    estimates: list[MemoryEstimate | None] = []
    subjects: dict[tuple[str, str], Subject] = {}
    for pin in pins:
        try:
            key = pin.model, pin.card
            if key not in subjects:
                card = core.card_of(pin.card, work.start.profiles)
                subjects[key] = Subject.of(pin.model, card, work.start.profiles)
            estimates.append(subjects[key].estimate(RunConfig(**dict(pin.run))))
        except PlannerError as error:
            work.tell(core.fault_words(error), "warning")
            estimates.append(None)
    return estimates


def _count(work: Work, source: DataSource, tokenizer: str | None) -> DataSummary:
    from qlora_planner.tui.control.datasets import count

    last = 0.0

    def moved(done_bytes: int, size_bytes: int, rows: int) -> None:
        nonlocal last
        work.check()
        if time.monotonic() - last >= _TELL_S:
            last = time.monotonic()
            work.progress((done_bytes, size_bytes, rows))

    return count(source, tokenizer, moved=moved, warn=lambda text: work.tell(text, "warning"))


def _view(_work: Work, subject: Subject, data: DataSummary, run: RunConfig, cut: int | None) -> DataView:
    from qlora_planner.tui.control.datasets import DataView

    return DataView.of(subject, run, data, cut)


def _same_dataset(before: Inputs, now: Inputs) -> bool:
    """While slider or knobs move, the figures follow from one place to the next, and do not wait for the last."""
    return same_inputs(before[:2], now[:2])


def _look(_work: Work, run: RunConfig) -> Readiness:
    from qlora_planner.tui.control.readiness import Readiness

    return Readiness.of(run)


def _read_cards(work: Work, _tick: int) -> Sequence[DeviceReading]:
    return work.start.cards_here()


def _whatever(_before: Inputs, _now: Inputs) -> bool:
    return True


SURVEY = Figure(
    attribute="survey", inputs=ExplorerState.survey_inputs, work=_survey, says=lambda _: "surveying", restarts=True
)
SURVEY_OF_SIZES = Figure(
    attribute="sizes", inputs=ExplorerState.sizes_inputs, work=_survey_sizes,
    says=lambda: "surveying every size of card",
)  # fmt: skip
ESTIMATE = Figure(attribute="estimated", inputs=ExplorerState.run_inputs, work=_estimate)
PREVIEW = Figure(attribute="previewed", inputs=ExplorerState.pointed_inputs, work=_estimate)
SURROUNDINGS = Figure(
    attribute="surroundings", inputs=ExplorerState.run_inputs, work=_surround,
    says=lambda *_: "working out what lies around",
)  # fmt: skip
PINNED = Figure(
    attribute="pinned", inputs=ExplorerState.pinned_inputs, work=_estimate_pins,
    says=lambda _: "estimating pinned runs",
)  # fmt: skip
DATA = Figure(
    attribute="counted", inputs=ExplorerState.counted_inputs, work=_count,
    says=lambda source, _: f"counting {source.path}", restarts=True,
)  # fmt: skip
DATA_VIEW = Figure(attribute="viewed", inputs=ExplorerState.viewed_inputs, work=_view, holds=_same_dataset)
CARDS_HERE = Figure(attribute="here", inputs=ExplorerState.here_inputs, work=_read_cards, holds=_whatever)
READINESS = Figure(attribute="looked", inputs=ExplorerState.looked_inputs, work=_look)
