"""What is asked for once, in threads: a model read, the best run looked for, a file written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qlora_planner.errors import PlannerError, UnprofiledError
from qlora_planner.session.cards import PlannedCard
from qlora_planner.spec.run import RunConfig
from qlora_planner.tui import core
from qlora_planner.tui.control import messages
from qlora_planner.tui.control.tasks import Tasks
from qlora_planner.tui.core import Subject

if TYPE_CHECKING:
    from qlora_planner.tui.commands import Target

WRITING = "writing a file"


def warm(_tasks: Tasks) -> None:
    """Load what the first model will need, while nobody waits for it."""
    import qlora_planner.memory.estimate
    import qlora_planner.planner
    import qlora_planner.report.estimate  # noqa: F401


def open_model(tasks: Tasks, model: str, card: PlannedCard, run: RunConfig | None, show: bool) -> None:
    """`run` None asks for the recommended one, which the survey has not come to."""
    with tasks.doing(f"reading {model}"):
        try:
            subject = _subject(tasks, model, card)
        except PlannerError as error:
            tasks.tell(core.fault_words(error), "error")
            return
    tasks.post(messages.Opened(subject, run or RunConfig(), show, best=run is None))


def _subject(tasks: Tasks, model: str, card: PlannedCard) -> Subject:
    """A model on a card, profiled where it is new and the packages for that are here, as every verb does."""
    from qlora_planner.session.packages import missing_packages

    profiles = tasks.start.profiles
    try:
        return Subject.of(model, card, profiles)
    except UnprofiledError:
        if missing_packages():
            raise
    from qlora_planner.tui.control.profiling import profile

    with tasks.doing(f"profiling {model}"):
        profile(model, profiles, tasks.tell)
    return Subject.of(model, card, profiles)


def recommend(tasks: Tasks, subject: Subject, run: RunConfig, keep_length: bool) -> None:
    """The best run of a model on its card in place of the run `run`, whose sequence length can be kept."""
    keep = RunConfig(seq_len=run.seq_len) if keep_length else None
    with tasks.doing("looking for the best run"):
        try:
            plan = subject.plan(fixed=()) if keep is None else subject.plan(keep, {"seq_len": keep.seq_len})
        except PlannerError as error:
            tasks.tell(core.fault_words(error), "error")
            return
    tasks.post(messages.Planned(subject, run, plan, None if keep is None else keep.seq_len))


def export(
    tasks: Tasks, subject: Subject | None, target: Target, data: str | None, kind: str, path: str, force: bool
) -> None:
    """Write the run of `target` as `kind`; `subject` None is read first."""
    from qlora_planner.tui.control.exporting import write

    model, card, run = target
    with tasks.doing(WRITING):
        try:
            subject = subject or Subject.of(model, card, tasks.start.profiles)
            write(subject, run, kind, path, data=data, force=force)
        except PlannerError as error:
            tasks.tell(core.fault_words(error), "error")
            return
    tasks.tell(f"wrote {path}")
