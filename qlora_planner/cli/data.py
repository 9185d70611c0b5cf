"""The dataset that --data names, counted with progress on stderr."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from qlora_planner.cli.progress import on_terminal
from qlora_planner.cli.streams import drawing_stream, patience
from qlora_planner.cli.values import Output
from qlora_planner.text import plain

if TYPE_CHECKING:
    from qlora_planner.data.batches.summary import DataSummary
    from qlora_planner.data.scan import Moved


def summary_from(given: Mapping[str, Any], model: str, output: Output) -> DataSummary | None:
    """The lengths of the dataset that was given; None where none was.

    `model` is the folder or Hub id whose tokenizer is taken where none was named. Raises InputError and MissingError
    as `qlora_planner.data.summarise` does.
    """
    path = given.get("data")
    if path is None:
        return None
    from qlora_planner.catalog.trainers import data_task
    from qlora_planner.session.data import DataSource, summary_of
    from qlora_planner.spec.run import RunConfig

    rows = data_task(RunConfig(task=given.get("task"), trainer=given.get("trainer")))
    source = DataSource(
        path=path, tokenizer=given.get("tokenizer"), chars_per_token=given.get("chars_per_token"),
        bad_rows=given.get("bad_rows") or "refuse", task=rows,
    )  # fmt: skip
    with counting(path, quiet=output.quiet) as moved:
        return summary_of(source, model, tell=output.warn, moved=moved)


@contextmanager
def counting(what: str, *, quiet: bool) -> Iterator[Moved | None]:
    """A bar on a terminal, gone when it is done; elsewhere a line where it takes long."""
    if quiet or not on_terminal():
        with patience(f"counting {what}", quiet, after_s=5.0):
            yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(28),
        DownloadColumn(),
        TimeRemainingColumn(),
        console=Console(file=drawing_stream()),
        transient=True,
        refresh_per_second=8,
    )
    with bar:
        what = plain(what)
        task = bar.add_task(f"counting {what}", total=None)

        def moved(done_bytes: int, size_bytes: int, rows: int) -> None:
            bar.update(task, completed=done_bytes, total=size_bytes, description=f"counting {what}: {rows:,} rows")

        yield moved
