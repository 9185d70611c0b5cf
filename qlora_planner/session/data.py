"""A dataset and how its tokens are counted."""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import TYPE_CHECKING

from qlora_planner.catalog.trainers import data_task, trainer_named
from qlora_planner.record import record
from qlora_planner.session.packages import Warn

if TYPE_CHECKING:
    from qlora_planner.data.batches.summary import DataSummary
    from qlora_planner.data.scan import Moved
    from qlora_planner.spec.run import RunConfig


@record
class DataSource:
    """What `--data` and the options beside it say: `path` is a file, a folder, a pattern or a Hub dataset.

    `tokenizer` is a folder or a Hub id (None: the model's own); `chars_per_token` guesses instead. `bad_rows` is refuse
    or skip. `task` is the run's: a classifier learns from text and label.
    """

    path: str
    tokenizer: str | None = None
    chars_per_token: float | None = None
    bad_rows: str = "refuse"
    task: str | None = None


def summary_of(
    source: DataSource, model: str | os.PathLike[str] | None, *, tell: Warn, moved: Moved | None = None
) -> DataSummary:
    """The lengths of every row. `model` is the folder or Hub id whose tokenizer counts where the source names none.

    Raises InputError and MissingError as `qlora_planner.data.summarise` does.
    """
    from qlora_planner.data import summarise
    from qlora_planner.data.hub import rows_of
    from qlora_planner.sources.locations import cache_dir

    return summarise(
        rows_of(source.path, tell),
        tokenizer=source.tokenizer or (None if model is None else os.fspath(model)),
        chars_per_token=source.chars_per_token,
        bad_rows=source.bad_rows,
        cache=cache_dir(),
        warn=tell,
        moved=moved,
        task=source.task,
    )


def with_prompts(
    run: RunConfig | None, fixed: Collection[str] | None, data: DataSummary | None
) -> tuple[RunConfig | None, Collection[str] | None, DataSummary | None]:
    """What is planned for prompts: they say how long a prompt is at the most where that was not given, and nothing of
    the completions that make up the rest of a sequence. Anything else as it is."""
    if run is None or data is None or data_task(run) != "prompts":
        return run, fixed, data
    return with_longest(run, data), None if fixed is None else {*fixed, "prompt_len"}, None


def with_longest(run: RunConfig, data: DataSummary) -> RunConfig:
    """The run of prompts as long as the longest, unless their length was given."""
    return run if run.prompt_len is not None else run.with_(prompt_len=data.longest.tokens)


def check_shape(run: RunConfig | None, data: DataSummary | None) -> None:
    """Raises InputError for rows of another task than the run's trainer has, as pairs are to SFT."""
    if data is None or (run is not None and run.task is not None):
        return
    from qlora_planner.data.shapes import check_trained_on

    trainer = trainer_named(None if run is None else run.trainer)
    check_trained_on(data.shape, trainer.row_shapes, trainer.name, data.paths[0])
