"""What workers found, taken in: each message changes what is known, and the place that is shown is painted again."""

from __future__ import annotations

from qlora_planner.spec.run import RunConfig
from qlora_planner.tui.control import messages
from qlora_planner.tui.control.actions import Asks


class Heard(Asks):
    """The message handlers of the explorer."""

    def on_surveyed(self, message: messages.Surveyed) -> None:
        """The table of the card now; of another, it came too late."""
        if message.place is not self.place:
            return
        self.rows, self.surveyed = message.rows, message.done
        if message.done:
            restored, self._restored = self._restored, None
            if restored is not None and restored.model is not None and self.subject is None:
                run = RunConfig() if restored.run is None else RunConfig(**dict(restored.run))
                self._open(restored.model, message.place, run, show=False)
            else:
                self._warm()
            if self._start.data is not None and self.data is None:
                self.want_data()
        self.refresh_page()

    def on_surveyed_size(self, message: messages.SurveyedSize) -> None:
        """One more column of the table of cards."""
        self.by_card = {**self.by_card, message.size: message.rows}
        self._widening = not message.done
        self.refresh_page()

    def on_opened(self, message: messages.Opened) -> None:
        """A model, with the run that it starts with."""
        if message.subject.place is not self.place:
            return
        another = self.subject is None or self.subject.model != message.subject.model
        self.subject, self.estimate = message.subject, None
        if another and self.data_asked is not None and self.data_asked.tokenizer is None:
            self.data, self.data_fault, self.cut = None, None, None  # counted with another model's tokenizer
        if message.show:
            self._undo.clear()
        self._take(message.run)
        if message.show:
            self.go("run")
        if message.best:
            self._recommend(message.subject, self.run_now)

    def on_estimated(self, message: messages.Estimated) -> None:
        """The figures of a run; where the knobs have moved on, the next is worked out."""
        self._estimating = False
        if message.subject is self.subject and message.run == self.run_now:
            self._show_estimate(message.estimate, message.fault)
        else:
            self._want_estimate()

    def on_planned(self, message: messages.Planned) -> None:
        """Take the recommended run, unless somebody has changed the run since it was looked for."""
        if message.subject is self.subject and message.asked != self.run_now:
            self.notify("the run was changed meanwhile: it stays, and the best run that was looked for is not taken")
        elif message.subject is self.subject:
            self.set_run(RunConfig(**dict(message.plan.options)))
            if message.plan.estimate.verdict in ("does-not-fit", "will-not-run"):
                self.notify("no run of this model was found that fits so; the nearest is shown", severity="warning")
            elif message.seq_len is not None and self.run_now.seq_len < message.seq_len:
                told = f"{message.seq_len:,} tokens fit in no way that was tried: {self.run_now.seq_len:,} do"
                self.notify(told, severity="warning")

    def on_surrounded(self, message: messages.Surrounded) -> None:
        """Frontier and prices of a run."""
        self._surrounding = False
        if message.subject is self.subject and message.run == self.run_now:
            failed = message.fault is not None
            self.frontier, self.prices = (None, None) if failed else (message.frontier, message.prices)
            self._around_fault = message.fault
        else:
            self._around_of = None
        self.refresh_page()

    def on_pinned(self, message: messages.Pinned) -> None:
        """The figures of pinned runs."""
        self._pinning = False
        self.pinned = message.estimates
        self.refresh_page()

    def on_counting(self, message: messages.Counting) -> None:
        """How far the dataset is counted."""
        if message.asked is self.data_asked:
            self.data_done = message.done
            self.refresh_page()

    def on_counted(self, message: messages.Counted) -> None:
        """A dataset, or why there is none."""
        if message.asked is self.data_asked:
            self.data, self.data_fault, self.data_done = message.summary, message.fault, None
            self._viewed_of = None
            self.refresh_page()
            if message.uncounted and self.current_mode == "data":
                self.ask_tokenizer()

    def on_viewed(self, message: messages.Viewed) -> None:
        """A dataset under a run; where slider or knobs have moved on, the next is worked out."""
        self._viewing = False
        if message.wanted == self._viewed_of:
            self.data_view, self.data_fault = message.view, message.fault
        self.refresh_page()

    def on_looked(self, message: messages.Looked) -> None:
        """What a launch would lack."""
        self.readiness = message.readiness
        self.refresh_page()

    def on_heard(self, _message: messages.Heard) -> None:
        """Something new of the launched process."""
        self.refresh_page()

    def on_began(self, _message: messages.Began) -> None:
        """What is worked on is said on the screen."""
        self.refresh_page()

    def on_rested(self, _message: messages.Rested) -> None:
        """What is worked on is said on the screen."""
        self.refresh_page()

    def on_told(self, message: messages.Told) -> None:
        """A word for the reader."""
        self.notify(message.text, severity=message.severity)
        self.refresh_page()
