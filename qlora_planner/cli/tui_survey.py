"""The survey that the explorer shows, and its first one in a process of its own.

While this process loads the framework of the screen, a fork of it surveys: on two cores the table is there when the
screen is. Where there is no fork, and for cards that are picked later, a thread surveys instead.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from qlora_planner.errors import MissingError, PlannerError

if TYPE_CHECKING:
    from qlora_planner.session.cards import PlannedCard
    from qlora_planner.tui.widgets.rows import ModelRow


def documents(card: PlannedCard, profiles: str | None, recommend: bool = True) -> Iterator[dict[str, Any]]:
    """The rows of `qlora-plan --gpu`, JSON-ready, as they are worked out."""
    from qlora_planner.record import document
    from qlora_planner.session import Session
    from qlora_planner.session.surveying.survey import stream_rows
    from qlora_planner.spec.run import RunConfig

    bench = Session(profiles).on(card)
    for row in stream_rows(bench, RunConfig(), recommend=recommend):
        yield document(row)


class Surveys:
    """The explorer's `survey`: rows of a card, the first card's from a fork where `ahead` was called for it."""

    def __init__(self, profiles: str | None) -> None:
        self._profiles = profiles
        self._ahead: tuple[PlannedCard, int, int] | None = None

    def ahead(self, card: PlannedCard) -> None:
        """Begin with this card in a process of its own. Only before the first thread is started."""
        if not hasattr(os, "fork"):
            return
        read, write = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if child == 0:
            os.close(read)
            self._child(card, write)
        os.close(write)
        self._ahead = card, read, child

    def __call__(self, card: PlannedCard, recommend: bool = True) -> Iterable[ModelRow]:
        """Raises MissingError for an empty catalogue."""
        from qlora_planner.tui.widgets.rows import ModelRow

        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] is card and recommend:
            yield from map(ModelRow.of, _told(ahead[1], ahead[2]))
            return
        if ahead is not None:
            _end(ahead[1], ahead[2])
        yield from map(ModelRow.of, documents(card, self._profiles, recommend))

    def close(self) -> None:
        """Leave nothing behind of a survey that nobody asked for."""
        if self._ahead is not None:
            _end(*self._ahead[1:])
            self._ahead = None

    def _child(self, card: PlannedCard, write: int) -> None:
        """The fork: a row a line, then the end of the process whatever happened."""
        code = 1
        try:
            with os.fdopen(write, "w", encoding="utf-8") as out:
                try:
                    for row in documents(card, self._profiles):
                        out.write(json.dumps(row) + "\n")
                        out.flush()
                except PlannerError as error:
                    out.write(json.dumps({"fault": str(error)}) + "\n")
            code = 0
        except OSError:  # nobody reads any more
            code = 0
        finally:
            os._exit(code)


def _told(read: int, child: int) -> Iterator[dict[str, Any]]:
    """The rows of the fork. Raises MissingError with its words where it could not go on."""
    try:
        with os.fdopen(read, "r", encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                if "fault" in row:
                    raise MissingError(row["fault"])
                yield row
    finally:
        with suppress(ChildProcessError):
            if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
                raise MissingError("the survey ended early; g and the same card starts it again")


def _end(read: int, child: int) -> None:
    import signal

    os.close(read)
    with suppress(ProcessLookupError, ChildProcessError):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
