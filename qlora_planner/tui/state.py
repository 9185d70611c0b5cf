"""What is explored now, and what is known of it, without a terminal or a thread.

Screens read it; the controller changes what is explored, tasks bring what was worked out of it. A figure is kept with
its inputs, so whether it is still that of the run now is looked at and never marked.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from qlora_planner.session.data import DataSource
from qlora_planner.spec.run import RunConfig
from qlora_planner.tui.answer import Answer, Inputs, Surroundings, same_inputs
from qlora_planner.tui.saved_state import MOST_PINS, Pin, SavedState
from qlora_planner.tui.startup import Start

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from qlora_planner.data.batches.summary import DataSummary
    from qlora_planner.measure.nvml import DeviceReading
    from qlora_planner.memory import MemoryEstimate
    from qlora_planner.planner.records import Price
    from qlora_planner.session.cards import PlannedCard
    from qlora_planner.tui.control.datasets import DataView
    from qlora_planner.tui.control.readiness import Readiness
    from qlora_planner.tui.core import Frontier, Subject
    from qlora_planner.tui.widgets.rows import ModelRow

_MOST_UNDONE = 100


class ExplorerState:
    """Card, model, run, pins and dataset; and the last answer of every figure."""

    def __init__(self, start: Start) -> None:
        saved = start.saved
        self.profiles = start.profiles
        self.sort, self.group = saved.sort, saved.group
        self.wide = False  # whether the table has a column per size of card
        self.card: PlannedCard = start.card
        self.subject: Subject | None = None
        self.run = RunConfig()
        self.refusal: str | None = None  # why the run now cannot work
        self.pins: list[Pin] = list(saved.pins)
        self.data_source: DataSource | None = start.data
        if start.data is None and saved.data is not None:
            self.data_source = DataSource(**dict(saved.data))
        self.cut: int | None = None  # where the slider stands, in tokens; None: at the run's own length
        self._undo: list[RunConfig] = []
        self.survey: Answer[list[ModelRow]] = Answer()
        self.sizes: Answer[Mapping[str, dict[str, ModelRow]]] = Answer()
        self.estimated: Answer[MemoryEstimate] = Answer()
        self.surroundings: Answer[Surroundings] = Answer()
        self.pointed: RunConfig | None = None  # the run that Enter would take, in Frontier and Prices
        self.previewed: Answer[MemoryEstimate] = Answer()
        self.pinned: Answer[list[MemoryEstimate | None]] = Answer()
        self.counted: Answer[DataSummary] = Answer()
        self.viewed: Answer[DataView] = Answer()
        self.looked: Answer[Readiness] = Answer()
        self.here: Answer[Sequence[DeviceReading]] = Answer()
        self.tick = 0  # how often the cards of this machine were to be read

    # ------------------------------------------------------------------ what each figure is worked out from

    def survey_inputs(self) -> Inputs:
        """The card."""
        return (self.card,)

    def sizes_inputs(self) -> Inputs | None:
        """Nothing: every size of card is surveyed once."""
        return ()

    def run_inputs(self) -> Inputs | None:
        """The run on its model and card: of the estimate, and of what lies around it."""
        return None if self.subject is None else (self.subject, self.run)

    def pointed_inputs(self) -> Inputs | None:
        """The run under the cursor of Frontier or Prices."""
        return None if self.subject is None or self.pointed is None else (self.subject, self.pointed)

    def pinned_inputs(self) -> Inputs:
        """The pins."""
        return (tuple(self.pins),)

    def counted_inputs(self) -> Inputs | None:
        """The dataset and whose tokenizer counts it; None while there is neither tokenizer nor model to count with."""
        source = self.data_source
        if source is None or (self.subject is None and source.tokenizer is None and source.chars_per_token is None):
            return None
        return source, source.tokenizer or self.model

    def viewed_inputs(self) -> Inputs | None:
        """The dataset under the run, cut where the slider stands."""
        data = self.data
        return None if self.subject is None or data is None else (self.subject, data, self.run, self.cut)

    def looked_inputs(self) -> Inputs:
        """The run, whose trainer, kernels and attention ask for packages."""
        return (self.run,)

    def here_inputs(self) -> Inputs:
        """Another tick: what the cards of this machine hold now."""
        return (self.tick,)

    # ------------------------------------------------------------------ what is known now

    @property
    def cards_here(self) -> Sequence[DeviceReading]:
        """The cards of this machine as NVML read them last; none where there is none, or not yet."""
        return self.here.value or ()

    @property
    def model(self) -> str | None:
        """The model that is explored, as it can be named again."""
        return None if self.subject is None else self.subject.model

    @property
    def rows(self) -> list[ModelRow] | None:
        """The models on the card, as far as they are surveyed; None: no row yet."""
        return self.survey.value if self.survey.of(self.survey_inputs()) else None

    @property
    def by_card(self) -> Mapping[str, dict[str, ModelRow]]:
        """Size of card -> model -> row, as far as surveyed."""
        return self.sizes.value or {}

    @property
    def estimate(self) -> MemoryEstimate | None:
        """The last estimate of this model on this card; `settled`: that of the run now."""
        return self.estimated.value

    @property
    def settled(self) -> bool:
        """Whether the estimate, or why there is none, is that of the run now."""
        return self.subject is None or self.estimated.of(self.run_inputs())

    @property
    def frontier(self) -> Frontier | None:
        """The grid around the run now."""
        around = self.surroundings.value if self.surroundings.of(self.run_inputs()) else None
        return None if around is None else around.frontier

    @property
    def prices(self) -> list[Price] | None:
        """What turning one knob of the run now would cost or free."""
        around = self.surroundings.value if self.surroundings.of(self.run_inputs()) else None
        return None if around is None else around.prices

    def around_words(self) -> str:
        """Why there is no frontier yet."""
        if self.subject is None:
            return "No model yet: choose one in Fit (1)."
        fault = self.surroundings.fault if self.surroundings.of(self.run_inputs()) else None
        return fault or "working out what lies around this run ..."

    @property
    def data(self) -> DataSummary | None:
        """The dataset, when it is counted."""
        return self.counted.value if self.counted.of(self.counted_inputs()) else None

    @property
    def data_progress(self) -> tuple[int, int, int] | None:
        """Bytes read, of how many, rows counted; None while nothing is counted."""
        counting = not self.counted.done and self.counted.of(self.counted_inputs())
        return self.counted.progress if counting else None

    @property
    def data_fault(self) -> str | None:
        """Why the dataset is not counted, or means nothing for the run."""
        if self.counted.of(self.counted_inputs()) and self.counted.fault is not None:
            return self.counted.fault
        return self.viewed.fault if self.data is not None and self._viewed_here else None

    @property
    def data_view(self) -> DataView | None:
        """The dataset under the run: the last that was worked out for this model, card and dataset."""
        return self.viewed.value if self._viewed_here else None

    @property
    def _viewed_here(self) -> bool:
        return self.viewed.inputs is not None and same_inputs(self.viewed.inputs[:2], (self.subject, self.data))

    # ------------------------------------------------------------------ changes

    def take(self, run: RunConfig) -> None:
        """Another run, which cannot be undone."""
        self.run = run
        self.refusal = None if self.subject is None else self.subject.refusal(run)
        estimate = None if self.subject is None else self.subject.known(run)
        if estimate is not None:
            self.estimated = Answer((self.subject, run), estimate)

    def change(self, run: RunConfig) -> None:
        """Another run, which can be undone."""
        self._undo = [*self._undo[-_MOST_UNDONE:], self.run]
        self.take(run)

    def undo(self) -> bool:
        """Back to the run before; whether there was one."""
        if self._undo:
            self.take(self._undo.pop())
            return True
        return False

    def open(self, subject: Subject, run: RunConfig, *, keep_undo: bool) -> None:
        """Another model, or the same on another card."""
        if self.model != subject.model and self.data_source is not None and self.data_source.tokenizer is None:
            self.cut = None  # the lengths were counted with another model's tokenizer
        self.subject, self.estimated = subject, Answer()
        if not keep_undo:
            self._undo.clear()
        self.take(run)

    def use_data(self, source: DataSource) -> None:
        """Another dataset, or the same counted again."""
        self.data_source, self.counted, self.viewed, self.cut = source, Answer(), Answer(), None

    def pin(self) -> bool:
        """Keep the run now; whether it was not kept already."""
        assert self.model is not None, "a pin is of a model"
        pin = Pin(model=self.model, card=self.card.asked, run=self.run.to_dict())
        if pin in self.pins:
            return False
        self.pins = [*self.pins, pin][-MOST_PINS:]
        return True

    def unpin(self, at: int) -> None:
        """Forget one pinned run and its figures."""
        del self.pins[at]
        estimates = self.pinned.value or []
        self.pinned = Answer(None, [*estimates[:at], *estimates[at + 1 :]])

    def saved(self, theme: str) -> SavedState:
        """What the next start restores."""
        return SavedState(
            theme=theme, sort=self.sort, group=self.group, card=None if self.card.note else self.card.asked,
            model=self.model, run=None if self.subject is None else self.run.to_dict(), pins=tuple(self.pins),
            data=None if self.data_source is None else asdict(self.data_source),
        )  # fmt: skip
