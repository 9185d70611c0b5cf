"""Background work: threads that are begun here and end with a message. A figure comes at most once at a time, and one
that is no longer wanted is dropped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from textual.message import Message

from qlora_planner.errors import PlannerError
from qlora_planner.tui.answer import Answer, Inputs, same_inputs
from qlora_planner.tui.control import messages
from qlora_planner.tui.control.figures import Figure
from qlora_planner.tui.startup import Start

if TYPE_CHECKING:
    from qlora_planner.tui.app import Explorer
    from qlora_planner.tui.state import ExplorerState


class Tasks:
    """What is worked on. `ended`: nobody waits for anything any more, and what looks at it stops."""

    def __init__(self, app: Explorer, state: ExplorerState, start: Start) -> None:
        self._app, self._state = app, state
        self.start = start
        self.busy: list[str] = []
        self.ended = False
        self._running: dict[str, Inputs] = {}  # attribute of a figure -> what it is worked out from now

    @property
    def busy_with(self) -> str:
        """What is worked on, in words; empty when nothing is."""
        dots = ".." if self.start.plain else "…"
        if self.busy:
            return f"{self.busy[-1]} {dots}"
        return "" if self._state.settled else f"simulating this run {dots}"

    @property
    def idle(self) -> bool:
        """Whether nothing is left to do; a launched process counts as work."""
        return not self._running and all(worker.is_finished for worker in self._app.workers)

    # ------------------------------------------------------------------ figures

    def want(self, figure: Figure) -> None:
        """Work a figure out, unless it is there or under way. That of other inputs is let come to its end first."""
        inputs, running = figure.inputs(self._state), self._running.get(figure.attribute)
        answer: Answer[Any] = getattr(self._state, figure.attribute)
        if inputs is None or answer.of(inputs):
            return
        if running is not None and (not figure.restarts or same_inputs(running, inputs)):
            return
        self._running[figure.attribute] = inputs
        if figure.restarts:
            setattr(self._state, figure.attribute, Answer(inputs, done=False))
        self.begin(figure.attribute, _worked_out, figure, inputs)

    def wanted(self, figure: Figure, inputs: Inputs) -> bool:
        """Whether somebody still waits for this figure of these inputs."""
        return not self.ended and same_inputs(inputs, figure.inputs(self._state))

    def take(self, message: messages.Answered) -> bool:
        """Keep an answer in the state; whether it was not too late for that."""
        figure, answer = message.figure, message.answer
        if (answer is None or answer.done) and self._running.get(figure.attribute) is message.inputs:
            del self._running[figure.attribute]
        now = figure.inputs(self._state)
        if answer is not None and now is not None and figure.holds(message.inputs, now):
            setattr(self._state, figure.attribute, answer)
            return True
        if figure.attribute not in self._running and getattr(self._state, figure.attribute).inputs is message.inputs:
            setattr(self._state, figure.attribute, Answer())  # begun and given up: it can be wanted again
        return False

    # ------------------------------------------------------------------ threads

    def begin(self, group: str, function: Callable[..., None], *given: Any) -> None:
        """Call `function` with this object and what is `given`, in a thread."""
        self._app.run_worker(partial(function, self, *given), group=group, thread=True)

    @contextmanager
    def doing(self, words: str) -> Iterator[None]:
        """While it is open, `busy` says so."""
        self.busy.append(words)
        self.post(messages.ChangedWork())
        try:
            yield
        finally:
            self.busy.remove(words)
            self.post(messages.ChangedWork())

    def post(self, message: Message) -> None:
        """Tell the app, from any thread."""
        self._app.post_message(message)

    def tell(self, text: str, severity: str = "information") -> None:
        """A word for the reader, from any thread."""
        self.post(messages.Told(text, severity))


class Work:
    """One figure that is worked out, as its worker sees it."""

    def __init__(self, tasks: Tasks, figure: Figure, inputs: Inputs) -> None:
        self._tasks, self._figure, self._inputs = tasks, figure, inputs
        self.start, self.tell = tasks.start, tasks.tell

    def check(self) -> None:
        """Raises NotWantedError where nobody waits for it any more."""
        if not self._tasks.wanted(self._figure, self._inputs):
            raise NotWantedError

    def partly(self, value: Any) -> None:
        """The figure so far."""
        self.answer(Answer(self._inputs, value, done=False))

    def progress(self, progress: tuple[int, int, int]) -> None:
        """How far it is."""
        self.answer(Answer(self._inputs, done=False, progress=progress))

    def answer(self, answer: Answer[Any] | None) -> None:
        """The figure, or that it is given up."""
        self._tasks.post(messages.Answered(self._figure, self._inputs, answer))

    def run(self) -> Answer[Any] | None:
        """Call the worker; None where it gave up."""
        try:
            return Answer(self._inputs, self._figure.work(self, *self._inputs))
        except NotWantedError:
            return None
        except PlannerError as error:
            return Answer(self._inputs, error=error)


class NotWantedError(Exception):
    """Something else was asked for while this was worked on."""


def _worked_out(tasks: Tasks, figure: Figure, inputs: Inputs) -> None:
    work = Work(tasks, figure, inputs)
    if figure.says is None:
        answer = work.run()
    else:
        with tasks.doing(figure.says(*inputs)):
            answer = work.run()
    work.answer(answer)
