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
    if [size > 0 for _, size in born[TOKENS[-2]]] != [size > 0 for _, size in born[TOKENS[-1]]]:
        raise MissingError(f"tokens of this model are generated each in another way: {spec.trainer.name} is not traced")
    pairs = zip(born[TOKENS[-1]], last[TOKENS[-1]], strict=False)
    alike = len(born[TOKENS[-1]]) == len(last[TOKENS[-1]])
    grown = tuple((storage, size) for (storage, first), (_, size) in pairs if first and size != first) if alike else ()
    return replace(tape, tokens=tokens, last_sizes=grown)


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
