"""Where families of tasks are traced: rows of prompts and completions, pairs of texts, labelled ones, each as many as
share no factors, in the ranges of `memory.sweep.tasks`."""

from __future__ import annotations

from typing import Any

from qlora_planner.catalog.classifiers import labels_of
from qlora_planner.catalog.trainers import trainer_named
from qlora_planner.memory.sweep.tasks import TaskSizes, task_ranges
from qlora_planner.record import record
from qlora_planner.spec.family import COMPLETION, LABELS
from qlora_planner.spec.run import RunConfig
from tools.compiling import Point
from tools.families.regions import windows_of

_RANKS = (8, 24, 56, 40, 16, 72)
# Rows, prompt and completion of each toy: completions of all rows fill no tile of the head, or more than one.
_ROWS, _LONG_ROWS = (2, 4, 6, 10, 8, 2), (8, 6, 10, 12, 14, 6)
_PROMPTS = (320, 192, 448, 128, 576, 704)
_COMPLETIONS, _LONG_COMPLETIONS = (768, 576, 448, 320, 256, 1344), (768, 1152, 832, 704, 640, 1472)
_LABELS = (3, 7, 5, 11, 2, 13)
_STEPS = (3, 2, 5, 4, 7, 1)


@record
class TaskRegion:
    """One range of a recipe's task, with the sizes of each toy."""

    run: RunConfig
    name: str
    batched: bool
    long: bool
    tiled: bool  # whether the head goes over the vocabulary in tiles
    beyond: bool | None = None  # where the class has a sliding window: whether rows lie within it or beyond
    several: bool = False  # batches of one are another range

    @property
    def length(self) -> str:
        """How far down the list of pieces it comes."""
        return "long" if self.long else "middle"

    @property
    def windows(self) -> tuple[int, ...]:
        """Sliding windows of the toys: see `Region`."""
        return windows_of(self.beyond, short=True)

    @property
    def letters(self) -> tuple[str, ...]:
        """The letters of its sizes beside a class's dimensions."""
        scored = trainer_named(self.run.trainer).scores_completions
        return (*([COMPLETION] if scored else []), *([LABELS] if self.run.task is not None else []))

    def points(self, count: int) -> list[Point]:
        """Sizes (batch, sequence, rank) of as many toys."""
        rows, completions = (_LONG_ROWS, _LONG_COMPLETIONS) if self.long else (_ROWS, _COMPLETIONS)
        row = trainer_named(self.run.trainer).sequences_per_row
        # Of rows alone KTO likens one half to the other, so that they stay even.
        more = 1 if self.several and row > 1 else 0
        batches = [each // row + more if self.batched else 1 for each in rows]
        lengths = [prompt + completion for prompt, completion in zip(_PROMPTS, completions, strict=True)]
        return list(zip(batches, lengths, _RANKS, strict=True))[:count]

    def options(self, at: int) -> dict[str, Any]:
        """What else toy number `at` is told."""
        run, trainer = self.run, trainer_named(self.run.trainer)
        given: dict[str, Any] = {}
        if labels_of(run) is not None and run.task is not None:
            given[LABELS] = _LABELS[at]
        if trainer.scores_completions:
            given[COMPLETION] = (_LONG_COMPLETIONS if self.long else _COMPLETIONS)[at]
        if trainer.generation is not None:
            steps = run.steps_per_generation or _STEPS[at]
            given |= {"prompt_len": _PROMPTS[at], "steps_per_generation": steps, "grad_accum": steps}
        return given


def task_regions(run: RunConfig, windowed: bool = False) -> list[TaskRegion]:
    """Every range of a recipe's task, of a class with a sliding window or of one without."""
    trainer = trainer_named(run.trainer)
    sizes = TaskSizes(key="padding", trainer_name=trainer.name)
    kinds = {part.name: part for part in task_ranges(sizes, 1 if windowed else None)}
    return [
        TaskRegion(
            run=run, name=name, batched=part.batched is not False, long=bool(part.long),
            tiled=trainer.tiles_completions, several=part.batched is True, beyond=part.beyond,
        )
        for name, part in kinds.items()
    ]  # fmt: skip
