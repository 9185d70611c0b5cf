"""The live view of a training run on a terminal, and the plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import TYPE_CHECKING, Any, TextIO, cast

import click

from qlora_planner.cli.data import counting
from qlora_planner.cli.progress import on_terminal
from qlora_planner.cli.streams import drawing_stream, say
from qlora_planner.cli.values import Output
from qlora_planner.report.parts.labels import gib
from qlora_planner.report.parts.theme import Theme
from qlora_planner.runs.watch import READING, Watch, duration
from qlora_planner.session.training.onlooker import Draw, MakeWatch, Onlooker
from qlora_planner.text import plain
from qlora_planner.train.figures import words_of
from qlora_planner.units import format_gib, format_size

if TYPE_CHECKING:
    from rich.text import Text

    from qlora_planner.data.scan import Moved
    from qlora_planner.session.views.planned import PlanAnswer

_SPARKS = "▁▂▃▄▅▆▇█"
# Three lines of 80 columns, with the temperature and power of a card.
_SPARKS_KEPT, _BAR_COLUMNS, _MEMORY_COLUMNS = 36, 24, 12


def draw(watch: Watch, theme: Theme) -> Text:
    """The live view, three lines, and one of rewards where a trainer has them."""
    from rich.text import Text

    head: list[tuple[str, str]] = [(f"{plain(watch.what)}  ", "bold"), (plain(watch.phase), "cyan")]
    if watch.of:
        head += [("  ", ""), *theme.gauge(watch.step, watch.of, _BAR_COLUMNS, "green")]
        head += [
            (f"  {watch.step}/{watch.of}", "bold"),
            (f"  {duration(watch.left_s)} left" if watch.left_s else "", ""),
        ]
    lines = [Text.assemble(*head)]
    if watch.losses:
        latest = watch.last
        lines.append(Text.assemble(
            ("loss ", "dim"), (f"{watch.losses[-1]:.4f} ", "bold"),
            (spark(watch.losses) if theme.unicode else "", "cyan"),
            ("  lr ", "dim"), f"{latest.get('learning_rate') or 0:.2e}",
            ("  ", ""), f"{latest.get('tokens_per_s') or 0:,.0f}", (" tokens/s", "dim"),
        ))  # fmt: skip
    if watch.rewards:
        lines.append(Text.assemble(
            (f"{words_of(watch.last)} ", "bold"), (spark(watch.rewards) if theme.unicode else "", "cyan"),
        ))  # fmt: skip
    memory = _memory_line(watch, theme)
    return Text("\n").join([*lines, Text.assemble(*memory)] if memory else lines)


def _memory_line(watch: Watch, theme: Theme) -> list[tuple[str, str]]:
    if watch.used_bytes is None or not watch.whole_bytes:
        host = watch.last.get("host_peak_bytes")
        return [("memory ", "dim"), (f"{format_size(host)} of host memory", "")] if host else []
    planned = watch.planned_bytes()
    over = watch.peak_bytes is not None and planned is not None and watch.peak_bytes > planned
    line = [
        ("memory ", "dim"),
        *theme.gauge(watch.used_bytes, watch.whole_bytes, _MEMORY_COLUMNS, "yellow" if over else "cyan"),
    ]
    line.append((f" {format_gib(watch.used_bytes)} now, {gib(watch.peak_bytes)} peak", "bold"))
    if planned is not None:
        line.append((f", {gib(planned)} predicted{' here' if watch.in_phase else ''}", "dim"))
    return [*line, (f"  {watch.temperature}", "dim")]


def spark(values: list[float]) -> str:
    """The last values as blocks, lowest to highest."""
    shown = values[-_SPARKS_KEPT:]
    low, high = min(shown), max(shown)
    return "".join(_SPARKS[round((value - low) / (high - low) * 7) if high > low else 3] for value in shown)


class _Deaf:
    """A terminal that may be closed while a run goes on to its checkpoint: what nobody sees is no error."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError):
            return self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def shown(make: Callable[[Callable[[str], None]], Watch], *, quiet: bool) -> Iterator[tuple[Watch, Callable[[], None]]]:
    """A Watch and what draws it again. `quiet` shows nothing; off a terminal its lines are the view."""
    if quiet or not on_terminal():
        yield make((lambda _text: None) if quiet else say), lambda: None
        return
    from rich.console import Console
    from rich.live import Live

    encoding = (getattr(sys.stderr, "encoding", None) or "").lower()
    theme = Theme(color=True, unicode=encoding.startswith("utf"))
    console = Console(file=cast(TextIO, _Deaf(drawing_stream())))
    steps = ("step ", f"{READING}:")

    def out(text: str) -> None:
        """Steps are in the view; the rest scrolls by above it."""
        if not text.startswith(steps) or "checkpoint" in text or "held-out" in text:
            console.print(plain(text), style="dim", highlight=False, markup=False)

    watch = make(out)
    with Live(draw(watch, theme), console=console, refresh_per_second=8, transient=True) as live:
        yield watch, lambda: live.update(draw(watch, theme))


class Terminal(Onlooker):
    """Somebody at a terminal, or a log: asked once before anything starts unless `yes` was typed."""

    def __init__(self, output: Output, *, yes: bool) -> None:
        super().__init__(output.warn)
        self._output, self._yes = output, yes

    def confirm(self, proposal: PlanAnswer | str) -> None:
        """Show what will be run, and ask. Raises click's Abort for a no."""
        if not self._output.quiet:
            shown = proposal if isinstance(proposal, str) else proposal.render(self._output.theme)
            click.echo(shown, err=True)
        if not self._yes:
            click.confirm("Start it?", default=True, abort=True, err=True)

    def counting(self, data: str) -> AbstractContextManager[Moved | None]:
        """A bar, or a line where it takes long."""
        return counting(data, quiet=self._output.quiet)

    def watching(self, make: MakeWatch) -> AbstractContextManager[tuple[Watch, Draw]]:
        """The live view."""
        return shown(make, quiet=self._output.quiet)
