"""An out-of-memory failure against the plan of its run: which tensor it was, and what beat the plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from qlora_planner.diagnose.oom import OomReport
from qlora_planner.diagnose.oom.logits import are_whole_logits
from qlora_planner.memory import MemoryEstimate
from qlora_planner.record import record
from qlora_planner.units import MIB

_SMALL, _MIDDLE, _STEP = 1 * MIB, 10 * MIB, 2 * MIB
# Less than this more than planned is the spread of any prediction.
_NOTICED_SHARE = 0.02
# So many times the largest tensor of a run is no tensor of it, whatever its length was.
_SENSELESS_TIMES = 64


@record
class Against:
    """What a plan says of a failure. `tensors` are what a request of that size can have been, in words.

    `planned_bytes` is what the plan lets torch hold in tensors at the most, `tried_bytes` what they would have come to
    with the request granted, `excess_bytes` the difference where it is noticeable. None where the failure tells too
    little.
    """

    tensors: tuple[str, ...]
    planned_bytes: int
    tried_bytes: int | None
    excess_bytes: int | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "tensors": list(self.tensors),
            "planned_bytes": self.planned_bytes,
            "tried_bytes": self.tried_bytes,
            "excess_bytes": self.excess_bytes,
        }


def against(report: OomReport, estimate: MemoryEstimate, dims: Mapping[str, int]) -> Against:
    """`report` beside the estimate of the run that it failed in; `dims` are the sizes of the model's config."""
    # The highest moment of the device need not be that of the tensors: a card that wraps a model caches what it freed.
    planned = max([estimate.peak.allocated_bytes, *(phase.allocated_bytes or 0 for phase in estimate.phases)])
    tried = None
    if report.allocated_bytes is not None and report.requested_bytes is not None and not report.senseless:
        tried = report.allocated_bytes + report.requested_bytes
    excess = None if tried is None else tried - planned
    noticed = excess is not None and excess > _NOTICED_SHARE * planned
    return Against(
        tensors=tuple(_tensors(report, estimate, dims)),
        planned_bytes=planned,
        tried_bytes=tried,
        excess_bytes=excess if noticed else None,
    )


def _tensors(report: OomReport, estimate: MemoryEstimate, dims: Mapping[str, int]) -> Iterator[str]:
    """Tensors of that size; else how many tokens' logits it was, or that the run has nothing of that order."""
    same = list(tensors_of(report.requested_bytes, estimate, dims))
    yield from same
    requested_bytes, vocabulary = report.requested_bytes, dims.get("vocab_size")
    if same or requested_bytes is None or requested_bytes < _MIDDLE:
        return
    largest = max((size for _, size in _candidates(estimate, dims)), default=0)
    if largest and requested_bytes > _SENSELESS_TIMES * largest:
        yield f"no tensor of the plan's run, whose largest can have {largest / MIB:,.0f} MiB: shapes are at fault"
    elif vocabulary and are_whole_logits(report):
        run = estimate.run
        tokens = round(requested_bytes / (vocabulary * 4))
        yield (
            f"about {tokens:,} tokens x {vocabulary:,} x 4 bytes, logits in float32; the plan has batch"
            f" {run.batch_size} x {run.seq_len:,} tokens"
        )


def tensors_of(requested_bytes: int | None, estimate: MemoryEstimate, dims: Mapping[str, int]) -> Iterator[str]:
    """What of this run has the size that was asked for, to the digits that torch prints.

    Requests under 10 MiB are not told apart: torch asks CUDA for the same 2 or 20 MiB whatever the tensor.
    """
    if requested_bytes is None or requested_bytes < _MIDDLE:
        return
    said: set[str] = set()
    for words, size in _candidates(estimate, dims):
        what = words.partition(":")[0]
        # A token more or less is often the same to the digits that are printed: once is enough.
        if size >= _MIDDLE and what not in said and _printed(asked_for(size)) == _printed(requested_bytes):
            said.add(what)
            yield words


def asked_for(size_bytes: int) -> int:
    """What torch asks CUDA for when a tensor of this size finds no block (`get_allocation_size` of its allocator)."""
    if size_bytes <= _SMALL:
        return 2 * MIB
    if size_bytes < _MIDDLE:
        return 20 * MIB
    return -(-size_bytes // _STEP) * _STEP


def _printed(size_bytes: int) -> str:
    """A size as torch's messages print it."""
    gib = 1 << 30
    return f"{size_bytes / gib:.2f} GiB" if size_bytes >= gib else f"{size_bytes / MIB:.2f} MiB"


def _candidates(estimate: MemoryEstimate, dims: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    run = estimate.run
    vocabulary, hidden = dims.get("vocab_size"), dims.get("hidden_size")
    inner, heads = dims.get("intermediate_size"), dims.get("num_attention_heads")
    batch, length = run.batch_size, run.seq_len
    evaluated = run.eval_batch_size
    kinds = (("float32", 4), ("16 bits", 2))
    for kind, width in kinds:
        if vocabulary:
            # The loss drops the last token of every row, because it has no next one.
            for tokens in (length, length - 1):
                size = batch * tokens * vocabulary * width
                yield f"the logits in {kind}: batch {batch} x {tokens:,} tokens x {vocabulary:,} x {width} bytes", size
            if evaluated:
                size = evaluated * length * vocabulary * width
                words = f"an evaluation's logits in {kind}: batch {evaluated} x {length:,} tokens x {vocabulary:,}"
                yield f"{words} x {width} bytes", size
        if heads:
            size = batch * heads * length * length * width
            words = f"attention scores in {kind}: batch {batch} x {heads} heads x {length:,} x {length:,} tokens"
            yield f"{words} x {width} bytes", size
        if inner:
            size = batch * length * inner * width
            words = f"a feed-forward activation in {kind}: batch {batch} x {length:,} tokens x {inner:,}"
            yield f"{words} x {width} bytes", size
        if hidden:
            size = batch * length * hidden * width
            words = f"hidden states in {kind}: batch {batch} x {length:,} tokens x {hidden:,}"
            yield f"{words} x {width} bytes", size
        if vocabulary and hidden:
            words = f"a whole embedding or head in {kind}: {vocabulary:,} x {hidden:,} x {width} bytes"
            yield words, vocabulary * hidden * width
        if inner and hidden:
            words = f"a feed-forward matrix in {kind}: {inner:,} x {hidden:,} x {width} bytes"
            yield words, inner * hidden * width
