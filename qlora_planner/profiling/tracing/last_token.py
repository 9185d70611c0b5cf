"""The last token of a completion, traced beside the first ones: sizes that grow are then known at both ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from qlora_planner.errors import MissingError
from qlora_planner.memory.sweep.validity import uses_vllm
from qlora_planner.profiling.tracing.spec import TraceSpec
from qlora_planner.spec.trace import TOKENS, Tape


def with_last_token(tape: Tape, spec: TraceSpec, generate: Callable[[TraceSpec], Tape]) -> Tape:
    """`tape` with the sizes that storages of a token have at the completion's last one.

    `generate` traces generation alone: of a prompt so long that its first tokens are this run's last.
    Raises MissingError where tokens differ in more than sizes, because then none stands for those between.
    """
    run = spec.run
    tokens = (run.completion_len or 1) - 1  # the prompts' pass gives the first
    if tokens < len(TOKENS) or uses_vllm(run):
        return tape
    born = _births(tape)
    if tokens == len(TOKENS):
        return replace(tape, tokens=tokens)
    late = generate(spec.with_run(prompt_len=(run.prompt_len or 1) + tokens - len(TOKENS)))
    last = _births(late)
    if not _alike(born[TOKENS[-2]], born[TOKENS[-1]]):
        raise MissingError(f"tokens of this model are generated each in another way: {spec.trainer.name} is not traced")
    before, first = ([event for event in born[stage] if event[1]] for stage in TOKENS[-2:])
    late_sizes = [size for _, size in last[TOKENS[-1]] if size]
    if _alike(born[TOKENS[-1]], last[TOKENS[-1]]):
        sizes = late_sizes
    else:  # a mask or a window switches between them: as much more with each token as with the traced ones
        steps = tokens - len(TOKENS)
        sizes = [size + max(0, size - old) * steps for (_, old), (_, size) in zip(before, first, strict=True)]
    grown = tuple((storage, size) for (storage, old), size in zip(first, sizes, strict=True) if size != old)
    return replace(tape, tokens=tokens, last_sizes=grown)


def _alike(first: Sequence[tuple[int, int]], other: Sequence[tuple[int, int]]) -> bool:
    """Whether births and deaths come in the same order."""
    return [size > 0 for _, size in first] == [size > 0 for _, size in other]


def _births(tape: Tape) -> dict[str, Sequence[tuple[int, int]]]:
    """Events of each of TOKENS."""
    return {
        stage: [
            event
            for segment in tape.segments
            if segment.stage == stage
            for event in tape.events[segment.start : segment.stop]
        ]
        for stage in TOKENS
    }
