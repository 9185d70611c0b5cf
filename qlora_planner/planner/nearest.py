"""The run nearest to one that does not fit as asked: what was fixed is given up step by step, least harm first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import field
from typing import Any

from qlora_planner.errors import NothingRunsError
from qlora_planner.memory.options.resolve import resolve
from qlora_planner.memory.records import MemoryEstimate
from qlora_planner.planner.fallbacks import SHORTEST
from qlora_planner.planner.knobs import generates
from qlora_planner.planner.objectives import OBJECTIVES, Objective
from qlora_planner.planner.planner import Planner
from qlora_planner.planner.search import Choice, Ranking
from qlora_planner.record import record
from qlora_planner.spec.run import RunConfig

_BATCH = frozenset({"batch_size", "grad_accum"})
_STORED = frozenset({"method", "quant", "double_quant"})
_LENGTH = frozenset({"seq_len", "completion_len"})  # a prompt that was asked for stays, and completions get shorter


@record
class Step:
    """What is given up: options that are searched again, and options that go back to what the stack would take.

    `shorter`: the longest sequence that fits is looked for in place of the one asked for.
    """

    searched: frozenset[str] = frozenset()
    reset: Mapping[str, Any] = field(default_factory=dict)
    shorter: bool = False

    @property
    def names(self) -> frozenset[str]:
        """Every option that may become another."""
        return frozenset({*self.searched, *self.reset, *(_LENGTH if self.shorter else ())})


def _steps(run: RunConfig, fixed: frozenset[str], prompt_len: int | None) -> Iterator[Step]:
    """From what changes nothing that is learnt to what changes most; a step that touches nothing fixed is left out.

    `prompt_len` is that of a run that generates, whose prompts are cut when no completion fits beside them.
    """
    attention = Step(reset={"attention": None} if run.attention == "eager" else {})
    upcast = Step(reset={"upcast": None} if run.upcast else {})
    checkpoints = Step(searched=frozenset({"gradient_checkpointing", "checkpoint_every"}))
    optimizer = Step(searched=frozenset({"optimizer", "alloc_conf"}))
    batch = Step(searched=_BATCH if "batch_size" in fixed and run.batch_size > 1 else frozenset())
    constants = Step(searched=frozenset({"double_quant"}))
    harmless = _joined(attention, upcast, checkpoints, optimizer, batch)
    stored = _joined(harmless, Step(searched=_STORED))
    shorter = Step(shorter=True)
    listed = (
        attention, upcast, checkpoints, optimizer, batch, harmless, _joined(harmless, constants),
        _joined(batch, shorter), _joined(harmless, shorter), stored, _joined(stored, shorter),
        *(_joined(harmless, shorter, Step(reset={"prompt_len": length})) for length in _shorter_prompts(prompt_len)),
    )  # fmt: skip
    seen: set[tuple[frozenset[str], int | None]] = set()
    for step in listed:
        given_up = step.names & fixed, step.reset.get("prompt_len")
        if given_up[0] and given_up not in seen and not (step.shorter and "seq_len" not in fixed):
            seen.add(given_up)
            yield step


def _shorter_prompts(length: int | None) -> Iterator[int]:
    while length is not None and length // 2 >= SHORTEST:
        length //= 2
        yield length


def _joined(*steps: Step) -> Step:
    return Step(
        searched=frozenset().union(*(step.searched for step in steps)),
        reset={name: value for step in steps for name, value in step.reset.items()},
        shorter=any(step.shorter for step in steps),
    )


def nearest(
    planner: Planner, run: RunConfig, fixed: frozenset[str], objective: Objective
) -> tuple[Ranking, Choice, MemoryEstimate] | None:
    """The first run that fits when some of what is `fixed` in `run` is given up; None where none does.

    The sequences of an optimizer step stay as they were asked for: a smaller micro-batch accumulates more.
    """
    prompt_len = resolve(planner.profile, run, planner.request.gpu).run.prompt_len if generates(run) else None
    for step in _steps(run, fixed, prompt_len):
        try:
            settled = _after(planner, run, fixed, objective, step)
        except NothingRunsError:  # the stack refuses what is left
            continue
        if settled is not None:
            return settled
    return None


def _after(
    planner: Planner, run: RunConfig, fixed: frozenset[str], objective: Objective, step: Step
) -> tuple[Ranking, Choice, MemoryEstimate] | None:
    freed = step.searched & _BATCH
    effective = run.batch_size * run.grad_accum if freed and planner.request.effective_batch is None else None
    run, left = run.with_(**step.reset), fixed - step.names
    if "prompt_len" in step.reset:  # which with its completion makes the sequence
        run = run.with_(seq_len=resolve(planner.profile, run, planner.request.gpu).run.seq_len)
    goals = [OBJECTIVES["context"] if step.shorter else objective]
    if "seq_len" not in fixed and not objective.lengths:  # nobody asked for this length
        goals.append(OBJECTIVES["context"])
    for goal in goals:
        longest = run.seq_len - 1 if goal.lengths and not objective.lengths else None
        ranking = planner.rank(run, left, goal, effective_batch=effective, longest=longest)
        settled = planner.settle(ranking)
        if settled is not None:
            return ranking, *settled
    return None
