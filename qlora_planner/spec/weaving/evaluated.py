"""The tape of a run that evaluates between its steps, put together of two: its training's, and one of an evaluation.

Evaluation begins when the step has freed what it made and, without gradients, dropout or checkpointing, frees all that
it makes: so it is the same after every run with the same trainer, layers and kernels, and a tape of it alone holds for
any of them.
"""

from __future__ import annotations

from dataclasses import replace

from qlora_planner.spec.trace import CompiledTape, Term
from qlora_planner.spec.weaving.partial import UnlikeError

EVALUATION = "eval"


def with_evaluation(training: CompiledTape, evaluation: CompiledTape, eval_batch_size: int) -> CompiledTape:
    """`training` followed by `evaluation`, whose batches are `eval_batch_size` rows.

    Raises UnlikeError where the two are of other layers, or one of them generates, offloads or has a second stream.
    """
    if (training.places, training.kept) != (evaluation.places, evaluation.kept):
        raise UnlikeError("the two tapes are of other layers")
    if any(tape.tokens or tape.host_sizes or tape.streamed_sizes for tape in (training, evaluation)):
        raise UnlikeError("generated tokens and offloaded activations are traced run by run")
    if any(segment.stage != EVALUATION for segment in evaluation.segments):
        raise UnlikeError("the second tape is not of an evaluation alone")
    sizes = list(training.sizes)
    number_of = {terms: number for number, terms in enumerate(sizes) if number not in training.workspace_sizes}
    numbers = []
    workspaces = list(training.workspace_sizes)
    for number, terms in enumerate(evaluation.sizes):
        filled = tuple(_filled(term, eval_batch_size) for term in terms)
        workspace = number in evaluation.workspace_sizes
        at = len(sizes) if workspace else number_of.setdefault(filled, len(sizes))
        if at == len(sizes):
            sizes.append(filled)
        if workspace:
            workspaces.append(at)
        numbers.append(at)
    born = sum(code > 0 for code in training.events)
    start = len(training.events)
    events = (numbers[code - 1] + 1 if code > 0 else code - born for code in evaluation.events)
    segments = (segment.at(start + segment.start, start + segment.stop) for segment in evaluation.segments)
    return replace(
        training, sizes=tuple(sizes), workspace_sizes=tuple(workspaces), events=(*training.events, *events),
        segments=(*training.segments, *segments),
    )  # fmt: skip


def _filled(term: Term, batch_size: int) -> Term:
    """A term whose batch is this number of rows."""
    numerator, denominator, (b, s, r) = term
    return numerator * batch_size**b, denominator, (0, s, r)
