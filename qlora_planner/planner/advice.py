"""What this stack costs on this model, in gigabytes: each line with the figure it rests on."""

from __future__ import annotations

from collections.abc import Iterator

from qlora_planner.memory.allocator.expandable import is_expandable
from qlora_planner.memory.records import Component, MemoryEstimate
from qlora_planner.memory.weights.placement import Placement
from qlora_planner.memory.weights.static import static_memory
from qlora_planner.planner.records import Advice
from qlora_planner.spec.model import ModelProfile
from qlora_planner.units import format_size

# Less is not worth a line.
_WORTH_SAYING = 256 << 20
# Slack below this part of the peak is what most runs have.
_SLACK_PART = 10


def advice(
    profile: ModelProfile,
    answer: MemoryEstimate,
    expandable_bytes: int | None = None,
    upcast_bytes: int | None = None,
) -> Iterator[Advice]:
    """Lines with a code, the words and the bytes: what to know before following common advice.

    `answer` is the estimate of the run that is recommended, `expandable_bytes` what torch would reserve for it with
    expandable segments, where that was played, and `upcast_bytes` what an upcast would add to its floor, where that is
    known: elsewhere it is what its weights would.
    """
    run = answer.run
    placement = Placement(profile, run)
    static = static_memory(placement)
    if run.method == "qlora" and not run.upcast:
        cast = static_memory(Placement(profile, run.with_(upcast=True)))
        more = cast.unquantized_prepared - static.unquantized_loaded if upcast_bytes is None else upcast_bytes
        if more > 0:
            yield Advice(
                code="prepare",
                message=f"prepare_model_for_kbit_training would cost {format_size(more)} here, and {run.trainer} does"
                " not need it",
                bytes=more,
            )
    if run.upcast and run.method != "full":
        more = static.unquantized_prepared - static.unquantized_loaded
        yield Advice(
            code="upcast", message=f"upcasting holds {format_size(more)} more than 16-bit weights would", bytes=more
        )
    if run.quant not in (None, "none"):
        yield from _kept_wide(placement, answer)
    if run.activation_offloading:
        yield Advice(
            code="offloading",
            message="speeds leave out what copying activations to the host and back costs",
            bytes=None,
        )
    freed = 0 if expandable_bytes is None else (answer.peak.reserved_bytes or 0) - expandable_bytes
    if freed >= _WORTH_SAYING:
        yield Advice(
            code="expandable-segments",
            message=f"{format_size(slack_of(answer))} of the peak are slack between what torch reserves and what it"
            f" uses; with --alloc-conf expandable_segments:True it reserves {format_size(freed)} less",
            bytes=freed,
        )
    if answer.peak.phase in ("load", "prepare", "adapters"):
        train = max(
            (
                phase.device_bytes or 0
                for phase in answer.phases
                if phase.name in ("forward", "loss", "backward", "optimizer")
            ),
            default=0,
        )
        more = answer.peak.device_bytes - train
        if more < _WORTH_SAYING:
            return
        yield Advice(
            code="peak-before-training",
            message=f"the peak is not in training but in the phase {answer.peak.phase}, {format_size(more)} above the"
            " steps: shorter sequences will not lower it",
            bytes=more,
        )


def slack_of(answer: MemoryEstimate) -> int:
    """What torch reserves beyond what is in use at the peak, in bytes."""
    return next((line.size_bytes for line in answer.lines if line.component is Component.ALLOCATOR_SLACK), 0)


def worth_playing(answer: MemoryEstimate) -> bool:
    """Whether so much is slack that expandable segments should be played, which takes as long as the run itself."""
    slack = slack_of(answer)
    return slack >= max(_WORTH_SAYING, answer.peak.device_bytes // _SLACK_PART) and not is_expandable(
        answer.run.alloc_conf
    )


def _kept_wide(placement: Placement, answer: MemoryEstimate) -> Iterator[Advice]:
    run = answer.run
    wide = {
        role: sum(
            weight.loaded_bytes * weight.group.count
            for weight in placement.weights
            if weight.group.role == role and weight.scheme is None and not weight.group.tied_with
        )
        for role in ("linear", "experts")
    }
    name, bits = placement.profile.id, "8-bit" if run.quant == "int8" else "4-bit"
    transformers = answer.stack.get("transformers", "this version")
    if not placement.packed_matrices:
        yield Advice(
            code="nothing-quantised",
            message=f"{name} will not be quantised at all by transformers {transformers}: its linear layers are a class"
            f" of their own, and {format_size(wide['linear'] + wide['experts'])} stay 16-bit",
            bytes=wide["linear"] + wide["experts"],
        )
    elif wide["experts"]:
        yield Advice(
            code="experts-kept",
            message=f"{format_size(wide['experts'])} of fused experts stay 16-bit: transformers {transformers}"
            f" makes no {bits} weights of them",
            bytes=wide["experts"],
        )
