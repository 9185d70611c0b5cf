"""The ladder that a run climbs down when memory is short: each rung takes less, and costs as little as can be."""

from __future__ import annotations

from collections.abc import Iterator

from qlora_planner.catalog import find_optimizer, trainer_named
from qlora_planner.catalog.parallel import FSDP2, ZERO2, ZERO3
from qlora_planner.planner.knobs import fewer_together, generates
from qlora_planner.spec.model import ModelProfile
from qlora_planner.spec.run import RunConfig

SMALL_OPTIMIZER = "paged_adamw_8bit"
# A sequence is never cut below this by itself: what is left would hardly be the same task.
SHORTEST = 256

Rung = tuple[RunConfig, str]


def fallbacks(run: RunConfig, profile: ModelProfile | None = None, *, phase: str | None = None) -> Iterator[Rung]:
    """Every rung below a resolved `run`, in order, each with what it says; a rung keeps what the ones above it changed.

    Smaller micro-batches with more accumulation come first: the same effective batch, the same schedule. Then gradient
    checkpointing, of every layer where some are left out, an optimizer whose states are paged 8-bit ones, activations
    kept in host memory, and at the very end sequences of half the length. A trainer that generates keeps the
    completions of a step together until fewer of them at a time are all that is left, and its completions are what is
    cut. Where memory ran out in `phase` "eval",
    evaluation batches shrink before all that. `profile` tells whether the class can be checkpointed. Nothing is yielded
    that changes nothing.
    """
    if phase == "eval":
        while run.eval_batch_size is not None and run.eval_batch_size > 1:
            run = run.with_(eval_batch_size=run.eval_batch_size // 2)
            yield run, f"evaluation batches of {run.eval_batch_size}"
    while run.batch_size > 1:
        factor = _least_factor(run.batch_size)
        batch, accumulated = run.batch_size // factor, run.grad_accum * factor
        run = run.with_(
            batch_size=batch, grad_accum=accumulated, padding=run.padding if batch > 1 or generates(run) else False,
            steps_per_generation=None if run.steps_per_generation is None else run.steps_per_generation * factor,
            eval_batch_size=None if run.eval_batch_size is None else min(run.eval_batch_size, batch),
        )  # fmt: skip
        yield run, f"micro-batches of {batch}, {accumulated} of them a step: the same effective batch and schedule"
    if not run.gradient_checkpointing and (profile is None or profile.supports.get("gradient_checkpointing", True)):
        run = run.with_(gradient_checkpointing=True)
        yield run, "gradient checkpointing on: slower, the same result"
    while run.gradient_checkpointing and (run.checkpoint_every or 1) > 1:
        every = 2 if (run.checkpoint_every or 1) > 2 else None
        run = run.with_(checkpoint_every=every)
        layers = f"every {every}nd layer" if every else "every layer"
        yield run, f"{layers} checkpointed: slower, the same result"
    # FSDP2 breaks on bitsandbytes' optimizers, and DeepSpeed takes up no checkpoint of another one.
    row, sharded = find_optimizer(run.optimizer), run.parallel in (FSDP2, ZERO2, ZERO3)
    if not sharded and (row is None or (not (row.paged and row.bits == 8) and row.kind != "none")):
        run = run.with_(optimizer=SMALL_OPTIMIZER)
        yield run, f"{SMALL_OPTIMIZER}: its states start anew"
    # Nobody has traced what offloading and gathers take together.
    if not sharded and _offloads(run) and run.gradient_checkpointing and not run.activation_offloading:
        run = run.with_(activation_offloading=True)
        yield run, "activations kept in host memory: slower, the same result"
    while (fewer := fewer_together(run)) is not None:
        run = run.with_(**fewer)
        together = run.batch_size * (run.steps_per_generation or 1)
        yield run, f"{together} completions generated at a time: slower, the same prompts and groups"
    if run.completion_len is not None and generates(run):
        while run.completion_len // 2 >= SHORTEST:
            run = run.with_(completion_len=run.completion_len // 2)
            yield run, f"COMPLETIONS CUT TO {run.completion_len} TOKENS: this is another training"
        return
    while run.seq_len // 2 >= SHORTEST:
        run = run.with_(seq_len=run.seq_len // 2)
        yield run, f"SEQUENCES CUT TO {run.seq_len} TOKENS: longer samples lose their end, this is another training"


def _offloads(run: RunConfig) -> bool:
    return "activation_offloading" in trainer_named(run.trainer).own_options


def keeps_states(before: str, after: str) -> bool:
    """Whether the states of optimizer `before` fit optimizer `after`: paging changes only where they lie."""
    return before.removeprefix("paged_") == after.removeprefix("paged_")


def _least_factor(number: int) -> int:
    return next((factor for factor in range(2, int(number**0.5) + 1) if number % factor == 0), number)
