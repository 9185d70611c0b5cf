"""Runs whose rows are prompts and completions, pairs of texts or labelled ones: the sizes that their traces have beside
batch, sequence and rank, as the words of a variant say them, and where nothing switches between them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qlora_planner.catalog.trainers import TRAINER_ROWS, TrainerRow, trainer_named
from qlora_planner.memory.sweep.validity import HEAD_TILE_TOKENS
from qlora_planner.record import record
from qlora_planner.spec.family import COMPLETION, LABELS, LEFT_OUT, PROMPT, ROWS
from qlora_planner.spec.run import RunConfig
from qlora_planner.spec.trace import TOKENS, Term


@record
class TaskSizes:
    """What a variant (see `trace_key`) says of the sizes of a task; `key` is the variant without these numbers."""

    key: str
    trainer_name: str
    prompt_len: int | None = None
    completion_len: int | None = None
    steps_per_generation: int | None = None
    num_labels: int | None = None

    @property
    def trainer(self) -> TrainerRow:
        """The facts of its trainer that no version changes."""
        return trainer_named(self.trainer_name)

    @property
    def tiled(self) -> bool:
        """Whether completions are scored in tiles of tokens."""
        return self.trainer.tiles_completions

    def completion(self, seq_len: Any) -> Any:
        """Tokens of a completion in a sequence, as `spec.lengths` shares it out; for arrays too."""
        if self.prompt_len is not None:
            return seq_len - self.prompt_len
        return seq_len - seq_len // 2 if self.completion_len is None else 0 * seq_len + self.completion_len

    def prompt(self, seq_len: Any) -> Any:
        """Tokens of its prompt."""
        return seq_len - self.completion(seq_len)

    def scored(self, batch_size: Any, seq_len: Any) -> Any:
        """Tokens that the head scores in a pass, all but those of padding: the last row's completion is half as long,
        and of each micro-batch that is generated one token is none."""
        completion, rows = self.completion(seq_len), self.trainer.sequences_per_row * batch_size
        if self.trainer.generation is not None:
            return rows * completion - 1
        short = "padding" in self.key.split()
        return rows * completion - (completion - completion // 2 if short else 0)

    def letters(self, seq_len: int) -> Mapping[str, tuple[Term, ...]]:
        """Each letter in batch and sequence, for sequences that are as even or odd as this one."""
        if self.prompt_len is not None:
            completion: tuple[Term, ...] = ((1, 1, (0, 1, 0)), (-self.prompt_len, 1, (0, 0, 0)))
            prompt: tuple[Term, ...] = ((self.prompt_len, 1, (0, 0, 0)),)
        elif self.completion_len is not None:
            completion = ((self.completion_len, 1, (0, 0, 0)),)
            prompt = ((1, 1, (0, 1, 0)), (-self.completion_len, 1, (0, 0, 0)))
        else:
            halved = seq_len % 2
            completion, prompt = (((1, 2, (0, 1, 0)), (sign * halved, 2, (0, 0, 0))) for sign in (1, -1))
        odd = int(self.completion(seq_len)) % 2
        letters = {
            COMPLETION: completion,
            PROMPT: prompt,
            LEFT_OUT: (*completion, *([(1, 1, (0, 0, 0))] if odd else [])),
        }
        if self.steps_per_generation is not None:
            letters[ROWS] = ((self.steps_per_generation, 1, (1, 0, 0)),)
        if self.num_labels is not None:
            letters[LABELS] = ((self.num_labels, 1, (0, 0, 0)),)
        return letters


@record
class TaskRange:
    """Runs of a task in which nothing switches: batches of one or of more, completions that fill at most a tile of the
    head or more, and where the class has a sliding window rows that lie within it or beyond (None: no matter)."""

    sizes: TaskSizes
    batched: bool | None = None
    long: bool | None = None
    beyond: bool | None = None
    last: int = 0  # the longest row that lies within the window

    @property
    def name(self) -> str:
        """How the families name it."""
        side = {None: "", True: " beyond", False: " within"}[self.beyond]
        return f"{'single' if self.batched is False else 'batched'} {'long' if self.long else 'middle'}{side}"

    def holds(self, batch_size: int, seq_len: int) -> bool:
        """Whether a run of these sizes lies in it."""
        return bool(self.inside(batch_size, seq_len))

    def inside(self, batch_size: Any, seq_len: Any) -> Any:
        """The same for arrays of runs."""
        sizes = self.sizes
        inside = seq_len > 0
        if self.beyond is not None:
            # What is generated goes on from its prompt: a cache that only then outgrows its window is neither.
            least = sizes.prompt(seq_len) if self.beyond and sizes.trainer.generation is not None else seq_len
            inside = inside & ((least > self.last) == self.beyond)
        if self.batched is not None:
            inside = inside & ((batch_size > 1) == self.batched)
        if sizes.trainer.scores_completions:
            # Of a completion some tokens are traced one by one; without any, rows would be dropped.
            least = len(TOKENS) + 1 if sizes.trainer.generation is not None else 1
            inside = inside & (sizes.completion(seq_len) >= least) & (sizes.completion(seq_len) <= seq_len)
        if self.long is not None:
            inside = inside & ((sizes.scored(batch_size, seq_len) > HEAD_TILE_TOKENS) == self.long)
        return inside


def is_task(run: RunConfig) -> bool:
    """Whether a run trains something else than a language model on texts."""
    return run.task is not None or not trainer_named(run.trainer).one_pass


def task_sizes(variant: str) -> TaskSizes | None:
    """What a variant says of its task; None for one that trains a language model on texts."""
    words = variant.split()
    trainer = trainer_named(next((word for word in words if word in TRAINER_ROWS), None))
    labelled = [word for word in words if word.startswith("labels")]
    if trainer.one_pass and not labelled:
        return None
    numbers: dict[str, int] = {}
    kept = []
    # What is scored before it is trained on is taken in as many passes as there are micro-batches: no size, but steps.
    passes = "scored" in words
    for word in words:
        name, _, number = word.partition(":")
        if name in ("prompt", "completion") and number.isdecimal():
            numbers[f"{name}_len"] = int(number)
        elif name == "generated" and number.isdecimal():
            numbers["steps_per_generation"] = int(number)
            kept.append(word if passes else name)
        elif word in labelled and word != "labels1":
            numbers[LABELS] = int(word.removeprefix("labels"))
            kept.append("labels")
        else:
            kept.append(word)
    return TaskSizes(key=" ".join(kept), trainer_name=trainer.name, **numbers)


def task_ranges(sizes: TaskSizes, last: int | None = None) -> tuple[TaskRange, ...]:
    """Every range of a task's sizes inside which nothing switches; `last` is the longest row that lies within the
    sliding window of a class that has one (see `last_within_window`)."""
    kinds: tuple[bool | None, ...]
    fills: tuple[bool | None, ...]
    # Rows of one length have no mask: where there is one row alone. One side of a pair alone is not as wide as the
    # other; of several pairs both are traced so.
    if not sizes.tiled:
        alike = sizes.trainer.sequences_per_row > 1 and not sizes.trainer.pads_sides
        kinds, fills = (None,) if alike else (False, True), (None,)
    else:
        alone = sizes.trainer.generation is None and sizes.trainer.sequences_per_row == 1
        kinds, fills = (False, True) if alone else (None,), (False, True)
    return tuple(
        TaskRange(sizes=sizes, batched=batched, long=long, beyond=beyond, last=last or 0)
        for batched in kinds
        for long in fills
        for beyond in ((None,) if last is None else (False, True))
    )
