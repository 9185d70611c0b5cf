"""Everything that takes time, in threads: each worker ends with one message, and none touches a widget."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from textual import work

from qlora_planner.errors import PlannerError, UnprofiledError
from qlora_planner.spec.run import RunConfig
from qlora_planner.tui import core
from qlora_planner.tui.control import messages
from qlora_planner.tui.core import Place, Subject
from qlora_planner.tui.exploration import Exploration
from qlora_planner.tui.startup import DataAsked
from qlora_planner.tui.state import Pin
from qlora_planner.tui.widgets.rows import ModelRow

if TYPE_CHECKING:
    from qlora_planner.data.batches.summary import DataSummary
    from qlora_planner.memory import MemoryEstimate
    from qlora_planner.tui.control.child_process import Launch

WRITING = "writing a file"
# Rows of the survey that are painted first; later ones come in lots that double.
_FIRST_ROWS = 8
_TELL_S, _LISTEN_S = 0.1, 0.2


class Workers(Exploration):
    """The workers of the explorer."""

    @contextmanager
    def _doing(self, words: str) -> Iterator[None]:
        """While it is open, `busy` says so."""
        self.busy.append(words)
        self.post_message(messages.Began())
        try:
            yield
        finally:
            self.busy.remove(words)
            self.post_message(messages.Rested())

    @work(thread=True, group="survey")
    def _survey(self, place: Place) -> None:
        rows: list[ModelRow] = []
        told = 0
        with self._doing("surveying"):
            try:
                for row in self._start.survey(place, True):
                    rows.append(row)
                    if place is not self.place or self._left:  # another card was picked meanwhile
                        return
                    if len(rows) >= max(_FIRST_ROWS, 2 * told):
                        told = len(rows)
                        self.post_message(messages.Surveyed(place, rows[:], False))
            except PlannerError as error:
                self.post_message(messages.Told(core.fault_words(error), "error"))
        self.post_message(messages.Surveyed(place, rows, True))

    @work(thread=True, group="sizes")
    def _survey_sizes(self, sizes: tuple[str, ...]) -> None:
        with self._doing("surveying every size of card"):
            for size in sizes:
                rows: dict[str, ModelRow] = {}
                try:
                    for row in self._start.survey(core.place_of(size, self.profiles), False):
                        rows[row.model_id] = row
                        if self._left:
                            return
                except PlannerError as error:
                    self.post_message(messages.Told(core.fault_words(error), "error"))
                self.post_message(messages.SurveyedSize(size, rows, size == sizes[-1]))

    @work(thread=True, group="warm")
    def _warm(self) -> None:
        """Load what the first model will need, while nobody waits for it."""
        import qlora_planner.memory.estimate
        import qlora_planner.planner
        import qlora_planner.report.estimate  # noqa: F401

    @work(thread=True, group="open")
    def _open(self, model: str, place: Place, run: RunConfig | None, *, show: bool) -> None:
        """`run` None asks for the recommended one, which the survey has not come to."""
        with self._doing(f"reading {model}"):
            try:
                found = self._subject(model, place)
            except PlannerError as error:
                self.post_message(messages.Told(core.fault_words(error), "error"))
                return
        self.post_message(messages.Opened(found, run or RunConfig(), show, best=run is None))

    def _told(self, line: str) -> None:
        self.post_message(messages.Told(line))

    def _subject(self, model: str, place: Place) -> Subject:
        """A model on a card, profiled where it is new and the packages for that are here, as every verb does."""
        from qlora_planner.session.packages import missing_packages

        try:
            return Subject.of(model, place, self.profiles)
        except UnprofiledError:
            if missing_packages():
                raise
        from qlora_planner.tui.control.profiling import profile

        with self._doing(f"profiling {model}"):
            profile(model, self.profiles, self._told)
        return Subject.of(model, place, self.profiles)

    @work(thread=True, group="estimate")
    def _estimate(self, subject: Subject, run: RunConfig) -> None:
        found, fault = None, None
        try:
            found = subject.estimate(run)
        except PlannerError as error:
            fault = core.fault_words(error)
        self.post_message(messages.Estimated(subject, run, found, fault))

    @work(thread=True, group="plan")
    def _recommend(self, subject: Subject, asked: RunConfig, *, keep_length: bool = False) -> None:
        """The best run of a model on its card in place of the run `asked`, whose sequence length can be kept."""
        keep = RunConfig(seq_len=asked.seq_len) if keep_length else None
        with self._doing("looking for the best run"):
            try:
                found = subject.plan() if keep is None else subject.plan(keep, {"seq_len": keep.seq_len})
            except PlannerError as error:
                self.post_message(messages.Told(core.fault_words(error), "error"))
                return
        self.post_message(messages.Planned(subject, asked, found, None if keep is None else keep.seq_len))

    @work(thread=True, group="around")
    def _surround(self, subject: Subject, run: RunConfig) -> None:
        frontier, prices, fault = None, [], None
        with self._doing("ranking what lies around"):
            try:
                frontier, prices = subject.frontier(run), subject.prices(run)
            except PlannerError as error:
                fault = core.fault_words(error)
        self.post_message(messages.Surrounded(subject, run, frontier, prices, fault))

    @work(thread=True, group="pins")
    def _estimate_pins(self, pins: tuple[Pin, ...]) -> None:
        found: list[MemoryEstimate | None] = []
        subjects: dict[tuple[str, str], Subject] = {}
        with self._doing("estimating pinned runs"):
            for pin in pins:
                try:
                    key = pin.model, pin.card
                    if key not in subjects:
                        place = core.place_of(pin.card, self.profiles)
                        subjects[key] = Subject.of(pin.model, place, self.profiles)
                    found.append(subjects[key].estimate(RunConfig(**dict(pin.run))))
                except PlannerError as error:
                    self.post_message(messages.Told(core.fault_words(error), "warning"))
                    found.append(None)
        self.post_message(messages.Pinned(found))

    @work(thread=True, group="count", exclusive=True)
    def _count(self, asked: DataAsked, model: str | None) -> None:
        from qlora_planner.tui.control.datasets import NoTokenizerError, count

        last = 0.0

        def moved(done_bytes: int, size_bytes: int, rows: int) -> None:
            nonlocal last
            if asked is not self.data_asked or self._left:
                raise _NotWanted
            if time.monotonic() - last >= _TELL_S:
                last = time.monotonic()
                self.post_message(messages.Counting(asked, (done_bytes, size_bytes, rows)))

        def odd(text: str) -> None:
            self.post_message(messages.Told(text, "warning"))

        uncounted = False
        with self._doing(f"counting {asked.path}"):
            try:
                found, fault = count(asked, model, moved=moved, warn=odd), None
            except _NotWanted:
                return
            except PlannerError as error:
                found, fault = None, core.fault_words(error)
                uncounted = isinstance(error, NoTokenizerError)
        self.post_message(messages.Counted(asked, found, fault, uncounted))

    @work(thread=True, group="view")
    def _view(self, wanted: object, subject: Subject, run: RunConfig, data: DataSummary, cut: int | None) -> None:
        from qlora_planner.tui.control.datasets import DataView

        found, fault = None, None
        try:
            found = DataView.of(subject, run, data, cut)
        except PlannerError as error:
            fault = core.fault_words(error)
        self.post_message(messages.Viewed(wanted, found, fault))

    @work(thread=True, group="export")
    def _export(self, model: str, place: Place, run: RunConfig, kind: str, path: str, force: bool) -> None:
        from qlora_planner.tui.control.exporting import write

        with self._doing(WRITING):
            try:
                same = self.subject is not None and self.subject.model == model and self.subject.place is place
                subject = self.subject if same and self.subject else Subject.of(model, place, self.profiles)
                data = None if self.data_asked is None else self.data_asked.path
                write(subject, run, kind, path, data=data, force=force)
            except PlannerError as error:
                self.post_message(messages.Told(core.fault_words(error), "error"))
                return
        self.post_message(messages.Told(f"wrote {path}"))

    @work(thread=True, group="look", exclusive=True)
    def _look(self, run: RunConfig) -> None:
        from qlora_planner.tui.control.readiness import Readiness

        self.post_message(messages.Looked(Readiness.of(run)))

    @work(thread=True, group="launch")
    def _follow(self, launch: Launch) -> None:
        """Listen to a launched process until it has ended."""
        with self._doing(launch.words):
            while True:
                changed, running = launch.listen(), launch.running
                if changed or not running:
                    self.post_message(messages.Heard())
                if not running or self._left:
                    return
                time.sleep(_LISTEN_S)


class _NotWanted(Exception):
    """Another dataset was asked for while this one was counted."""
