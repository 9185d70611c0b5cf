"""The explorer's objects by themselves: no terminal, no thread; a worker runs when the test says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from textual.message import Message

from qlora_planner.errors import InputError
from qlora_planner.session.data import DataSource
from qlora_planner.spec.run import RunConfig
from qlora_planner.tui.app import Explorer
from qlora_planner.tui.control import messages
from qlora_planner.tui.control.figures import Figure
from qlora_planner.tui.control.tasks import Tasks
from qlora_planner.tui.core import Subject, card_of
from qlora_planner.tui.saved_state import SavedState
from qlora_planner.tui.startup import Start
from qlora_planner.tui.state import ExplorerState


class HeldApp:
    """Stands for the app: threads wait here until they are run, messages lie in a list."""

    def __init__(self) -> None:
        self.threads: list[Callable[[], None]] = []
        self.told: list[Message] = []
        self.workers: list[object] = []

    def run_worker(self, call: Callable[[], None], **_: object) -> None:
        self.threads.append(call)

    def post_message(self, message: Message) -> None:
        self.told.append(message)


class Desk:
    """State and tasks, and the app that holds their threads."""

    def __init__(self, data: DataSource | None = None) -> None:
        start = Start(
            survey=lambda card, recommend: [], card=card_of("24GB"), saved=SavedState(), state_path=Path("tui.json"),
            data=data,
        )  # fmt: skip
        self.app = HeldApp()
        self.state = ExplorerState(start)
        self.tasks = Tasks(cast(Explorer, self.app), self.state, start)

    def work(self) -> list[bool]:
        """Run what was begun, and take in what it tells; whether each answer was kept."""
        threads, self.app.threads = self.app.threads, []
        for thread in threads:
            thread()
        answers = [message for message in self.app.told if isinstance(message, messages.Answered)]
        self.app.told = []
        return [self.tasks.take(message) for message in answers]


def subject(model: str = "llama-3.1-8b", known: dict[str, Any] | None = None) -> Subject:
    """A model of which nothing is read."""
    return cast(
        Subject,
        SimpleNamespace(
            model=model, card=None, refusal=lambda run: None, known=lambda run: (known or {}).get(repr(run))
        ),
    )


def figure(work: Callable[..., Any], *, restarts: bool = False) -> Figure:
    """An estimate that `work` makes."""
    return Figure(attribute="estimated", inputs=ExplorerState.run_inputs, work=work, restarts=restarts)


def test_a_figure_is_worked_out_once_however_often_it_is_wanted() -> None:
    desk, called = Desk(), list[RunConfig]()
    desk.state.open(subject(), RunConfig(), keep_undo=False)

    def seven(_work: Any, _subject: Subject, run: RunConfig) -> int:
        called.append(run)
        return 7

    wanted = figure(seven)
    for _ in range(3):
        desk.tasks.want(wanted)
    assert not desk.tasks.idle
    assert desk.work() == [True]
    desk.tasks.want(wanted)
    assert desk.work() == []
    assert called == [RunConfig()]
    assert (desk.state.estimated.value, desk.state.settled, desk.tasks.idle) == (7, True, True)


def test_an_answer_of_a_run_that_was_left_is_dropped_and_the_last_run_alone_is_worked_out() -> None:
    desk = Desk()
    desk.state.open(subject(), RunConfig(), keep_undo=False)
    wanted = figure(lambda work, subject, run: run.rank)
    desk.tasks.want(wanted)
    for rank in (32, 64):
        desk.state.change(RunConfig(rank=rank))
        desk.tasks.want(wanted)
    assert desk.work() == [False]
    assert desk.state.estimate is None
    desk.tasks.want(wanted)
    assert desk.work() == [True]
    assert desk.state.estimated.value == 64


def test_a_run_that_was_worked_out_before_is_there_at_once() -> None:
    desk, run = Desk(), RunConfig(rank=32)
    desk.state.open(subject(known={repr(run): 5}), RunConfig(), keep_undo=False)
    assert not desk.state.settled
    desk.state.change(run)
    assert (desk.state.estimate, desk.state.settled) == (5, True)
    assert desk.state.undo()
    assert not desk.state.settled
    assert not desk.state.undo()


def test_a_fault_is_kept_and_not_tried_again_until_the_run_changes() -> None:
    def refused(work: object, subject: Subject, run: RunConfig) -> None:
        raise InputError(f"rank {run.rank} is refused")

    desk, wanted = Desk(), figure(refused)
    desk.state.open(subject(), RunConfig(rank=8), keep_undo=False)
    desk.tasks.want(wanted)
    assert desk.work() == [True]
    assert (desk.state.estimated.fault, desk.state.settled) == ("rank 8 is refused", True)
    desk.tasks.want(wanted)
    assert desk.work() == []
    desk.state.change(RunConfig(rank=16))
    desk.tasks.want(wanted)
    assert desk.work() == [True]
    assert desk.state.estimated.fault == "rank 16 is refused"


def test_a_figure_that_was_given_up_can_be_wanted_again() -> None:
    desk, first, second = Desk(), RunConfig(rank=8), RunConfig(rank=16)

    def long(work: Any, subject: Subject, run: RunConfig) -> int:
        work.check()
        return run.rank

    wanted = figure(long, restarts=True)
    desk.state.open(subject(), first, keep_undo=False)
    desk.tasks.want(wanted)
    desk.state.take(second)
    desk.tasks.want(wanted)  # does not wait for the first
    assert desk.work() == [False, True]
    assert desk.state.estimated.value == 16
    desk.state.take(first)
    desk.tasks.want(wanted)
    desk.tasks.ended = True
    assert desk.work() == [False]
    desk.tasks.ended = False
    desk.tasks.want(wanted)
    assert desk.work() == [True]
    assert desk.state.estimated.value == 8


@pytest.mark.parametrize(("tokenizer", "kept"), [("./mine", True), (None, False)])
def test_lengths_stay_with_the_tokenizer_that_counted_them(tokenizer: str | None, kept: bool) -> None:
    desk = Desk(DataSource(path="a.jsonl", tokenizer=tokenizer))
    counted = Figure(attribute="counted", inputs=ExplorerState.counted_inputs, work=lambda *_: "lengths")
    desk.state.open(subject("a"), RunConfig(), keep_undo=False)
    desk.tasks.want(counted)
    assert desk.work() == [True]
    desk.state.cut = 512
    desk.state.open(subject("a"), RunConfig(), keep_undo=False)  # as on another card
    assert (desk.state.data, desk.state.cut) == ("lengths", 512)
    desk.state.open(subject("b"), RunConfig(), keep_undo=False)
    assert (desk.state.data == "lengths", desk.state.cut == 512) == (kept, kept)


def test_a_dataset_that_is_named_again_is_counted_again() -> None:
    desk = Desk()
    counted = Figure(attribute="counted", inputs=ExplorerState.counted_inputs, work=lambda *_: object(), restarts=True)
    desk.state.open(subject(), RunConfig(), keep_undo=False)
    for _ in range(2):
        desk.state.use_data(DataSource(path="a.jsonl"))
        desk.tasks.want(counted)
        assert desk.state.data_progress == (0, 0, 0)
        assert desk.work() == [True]
        assert desk.state.data_progress is None


def test_no_module_of_the_explorer_has_a_method_that_only_a_descendant_has() -> None:
    import qlora_planner.tui

    folder = Path(qlora_planner.tui.__file__).parent
    assert not [path for path in folder.rglob("*.py") if "NotImplementedError" in path.read_text(encoding="utf-8")]
    assert [base.__name__ for base in Explorer.__bases__] == ["App"]
