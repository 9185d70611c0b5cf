"""What a running verification shows on stderr: one live line on a terminal, a line for each phase elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from qlora_planner.cli.streams import drawing_stream, say
from qlora_planner.report.parts.theme import Theme
from qlora_planner.text import plain
from qlora_planner.units import format_gib

if TYPE_CHECKING:
    from qlora_planner.measure.children import Progress

_WORDS = {
    "load": "loading",
    "prepare": "preparing",
    "adapters": "adding adapters",
    **dict.fromkeys(("training", "generate", "forward", "backward", "optimizer"), "training"),
    "eval": "evaluating",
    "save": "saving",
}
_BAR_COLUMNS = 28


class Watched:
    """The last that was heard of a run, as one line."""

    def __init__(self, what: str, whole_bytes: int | None) -> None:
        self.what, self.whole_bytes = what, whole_bytes
        self.phase, self.step, self.elapsed_s = "starting", 0, 0.0
        self.used_bytes: int | None = None

    def hear(self, progress: Progress) -> bool:
        """Take it in; whether a phase or a step began, which deserves a line of its own."""
        self.elapsed_s = progress.elapsed_s
        if progress.event == "memory":
            used = progress.facts.get("process_bytes")
            self.used_bytes = progress.facts.get("device_bytes") if used is None else used
        elif progress.event == "phase":
            name = str(progress.facts.get("phase"))
            before, self.phase = self.phase, _WORDS.get(name, name)
            return self.phase != before
        elif progress.event == "step":
            self.step = int(progress.facts.get("step") or 0)
            return True
        return False

    def words(self) -> str:
        """Phase, step and time."""
        step = f", step {self.step} done" if self.step else ""
        return f"{self.what}: {self.phase}{step}, {self.elapsed_s:.0f} s"

    def memory(self) -> str:
        """How much of the card it holds."""
        if self.used_bytes is None:
            return ""
        whole = "" if self.whole_bytes is None else f" of {format_gib(self.whole_bytes)}"
        return f"{format_gib(self.used_bytes)}{whole}"


@contextmanager
def watching(what: str, whole_bytes: int | None, *, quiet: bool) -> Iterator[Callable[[Progress], None]]:
    """Something to tell of progress. Nothing is left on a terminal afterwards.

    `quiet` asks for nothing at all.
    """
    state = Watched(what, whole_bytes)
    if quiet:
        yield lambda _progress: None
    elif not on_terminal():

        def line(progress: Progress) -> None:
            if state.hear(progress):
                memory = state.memory()
                say(state.words() + (f", {memory}" if memory else ""))

        yield line
    else:
        with _live(state) as hear:
            yield hear


def on_terminal() -> bool:
    """Whether somebody sees stderr as it is written."""
    try:
        return sys.stderr is not None and sys.stderr.isatty()
    except ValueError:  # closed
        return False


@contextmanager
def _live(state: Watched) -> Iterator[Callable[[Progress], None]]:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    encoding = (getattr(sys.stderr, "encoding", None) or "").lower()
    theme = Theme(color=True, unicode=encoding.startswith("utf"))

    def shown() -> Text:
        line = [(plain(state.words()) + "  ", "")]
        if state.used_bytes is not None and state.whole_bytes:
            over = state.used_bytes > 0.95 * state.whole_bytes
            line += theme.gauge(state.used_bytes, state.whole_bytes, _BAR_COLUMNS, "yellow" if over else "cyan")
        return Text.assemble(*line, ("  " + state.memory(), "bold"))

    with Live(shown(), console=Console(file=drawing_stream()), transient=True, refresh_per_second=8) as live:

        def hear(progress: Progress) -> None:
            state.hear(progress)
            live.update(shown())

        yield hear
