"""An estimate from a traced run: every phase as the allocator plays it, and the smallest limit that it works under."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from qlora_planner.catalog.cuda import ContextRow
from qlora_planner.catalog.trainers import REFERENCE
from qlora_planner.evidence.calibration import TRACED
from qlora_planner.memory.allocator.caching import OutOfMemory
from qlora_planner.memory.allocator.expandable import is_expandable
from qlora_planner.memory.breakdown import Breakdown, highest
from qlora_planner.memory.budget import Budget
from qlora_planner.memory.explanations import before_training, communication_words, counted_words
from qlora_planner.memory.options.resolve import Resolution
from qlora_planner.memory.records import WRAP, Basis, Component, ComponentLine, Phase
from qlora_planner.memory.replay.player import COMPONENTS
from qlora_planner.memory.replay.simulate import SimulatedRun, remembered_run, stage_of
from qlora_planner.memory.replay.tokens import EACH
from qlora_planner.memory.weights.loading import PhasePeak
from qlora_planner.record import replaced
from qlora_planner.spec.model import ModelProfile
from qlora_planner.spec.run import RunConfig
from qlora_planner.spec.trace import PREFILL, Tape
from qlora_planner.units import format_mib

_COUNTED = (
    Component.QUANTIZED_WEIGHTS, Component.QUANTIZATION_CONSTANTS, Component.UNQUANTIZED_WEIGHTS,
    Component.ADAPTERS, Component.GRADIENTS, Component.OPTIMIZER_STATES,
)  # fmt: skip
# How close the search for the smallest limit comes, as a part of it; to that of a long generation, which a token more
# moves by percents, it comes no closer.
FLOOR_TOLERANCE = 0.004
_LONG_TOLERANCE = 0.02
# A limit this much above what stays reserved is met whatever a replay under it would give.
NEAR = 1.1


def traced_breakdown(
    profile: ModelProfile,
    resolution: Resolution,
    tape: Tape,
    budget: Budget,
    orders: Sequence[Sequence[Tape]] = (),
    refines: bool = True,
) -> Breakdown:
    """Everything an estimate shows, from the tape of this run played through the allocator.

    Each of `orders` is a sequence of batches of other widths that may come before; the one that reserves most counts.

    Near what is usable within the `budget`, which is the run's own, the floor is worked out more finely where that
    `refines`; without, it may be said too large, which is never a run that fits too many. Under torch's own limit a run
    that gets through gives back what it has cached; of one that does not, all is shown.
    """
    run, context, workspace_bytes, limit_bytes = (
        resolution.run, budget.context, budget.workspace_bytes, budget.cap_bytes,
    )  # fmt: skip
    tried = [
        (remembered_run(profile, resolution, tape, workspace_bytes, before=order, world=budget.world), order)
        for order in orders or ((),)
    ]
    played, before = max(tried, key=lambda pair: pair[0].reserved)
    shown = played
    if limit_bytes is not None and played.reserved > limit_bytes:
        with suppress(OutOfMemory):
            shown = remembered_run(profile, resolution, tape, workspace_bytes, limit_bytes, before, budget.world)
    asleep = budget.vllm_bytes(run) if run.vllm_enable_sleep_mode else 0
    phases = _phases(shown, context, asleep)
    peak = highest(phases)
    full = context.total_bytes
    return Breakdown(
        load=played.load,
        prepare=played.prepare,
        adapters=played.adapters,
        # A reference whose figures are precomputed has its pass while the trainer is made, and cuBLAS keeps its buffer.
        ready_bytes=played.training[REFERENCE if run.precompute_ref_log_probs else "adapters"].peak.live,
        phases=phases,
        peak=peak,
        lines=_lines(run, shown, peak, context),
        # Loading is over before the libraries' kernels join the context: what works at the peak bounds the floor.
        floor_bytes=min(
            max(
                full
                + floor_bytes(
                    profile,
                    resolution,
                    tape,
                    workspace_bytes,
                    played,
                    None if budget.usable is None else budget.usable_bytes - full,
                    before,
                    budget.world,
                    refines,
                ),
                full + played.training[PREFILL].peak.allocated + asleep if asleep else 0,
            ),
            peak.device_bytes or 0,
        ),
        trainable_params=played.state.count,
        paged_bytes=played.state.paged,
        offloaded_bytes=played.offloaded,
        method=TRACED,
    )


def floor_bytes(
    profile: ModelProfile,
    resolution: Resolution,
    tape: Tape,
    workspace_bytes: int,
    played: SimulatedRun,
    limit_bytes: int | None = None,
    before: Sequence[Tape] = (),
    world: int = 1,
    refines: bool = True,
) -> int:
    """The smallest limit on torch's reserved bytes at which the run still works; the rest as in `simulate_run`.

    Under pressure the allocator gives back segments that hold nothing, and what the others came to is mostly the floor,
    to a tolerance. What follows is laid out anew, though, which decides either way: small blocks that find no
    cache keep large segments, as between the logits of ORPO, so a playing under it shows whether that is enough. Where
    a card would leave `limit_bytes`, the floor is on the side of it that a playing under that very limit says, and is
    looked for below what the others came to where that is near; so it is for expandable segments, which give back parts
    of segments too. Without `refines` it may be said too large, but never below a limit that does not suffice.
    """
    most = max(played.non_releasable_bytes, played.allocated)
    expandable = is_expandable(resolution.run.alloc_conf)
    within = limit_bytes is not None and played.allocated <= limit_bytes < played.reserved
    if limit_bytes is not None and not within and not expandable:
        return most  # nothing is given back on such a card, or nothing helps: no more is asked of it
    if not refines and (limit_bytes is None or not within or most > limit_bytes):
        return most
    stage = stage_of(profile, resolution, tape, workspace_bytes, before, world)
    tolerance = FLOOR_TOLERANCE if tape.tokens <= EACH else _LONG_TOLERANCE
    met = high = played.reserved
    low = played.allocated - 1

    def works(limit: int) -> bool:
        """What was reserved under a limit is so under each from there on: what that held back, these do, and no more.
        An expandable segment is held back for more than it comes to."""
        nonlocal met
        if limit >= met and not expandable:
            return True
        if limit not in played.within:
            played.within[limit] = stage.reserved_within(limit)
        reserved = played.within[limit]
        met = met if reserved is None else reserved
        return reserved is not None

    if limit_bytes is not None and within:
        low, high = (low, limit_bytes) if works(limit_bytes) else (limit_bytes, high)
    if low < most < high and not expandable:
        close = most + int(tolerance * most)
        low, high = (low, most) if close >= high or works(close) else (most, high)
    if high == most and not expandable and (limit_bytes is None or limit_bytes > NEAR * most):
        return most
    low = max(low, played.allocated)
    guess = high - int(tolerance * high)  # mostly nothing less will do, which one playing shows
    while high - low > tolerance * high:
        if works(guess):
            high = guess
        else:
            low = guess
        guess = (low + high) // 2
    return high


def _phases(played: SimulatedRun, context: ContextRow, asleep_bytes: int = 0) -> tuple[Phase, ...]:
    """`asleep_bytes` is what vLLM wakes up to beside the trainer, which empties its cache first."""
    born = context.first_tensor_bytes
    full = context.total_bytes

    def phase(name: str, peak: PhasePeak | None, beside: int) -> Phase:
        if peak is None:
            return Phase(name=name)
        awake = asleep_bytes if name == PREFILL else 0
        reserved = peak.allocated + awake if awake else peak.reserved
        figures = Phase(
            name=name,
            allocated_bytes=peak.allocated + awake,
            reserved_bytes=reserved,
            device_bytes=reserved + beside,
        )
        return replaced(figures, components=_sizes(played, figures, context))

    cast = played.training["adapters"].peak
    added = PhasePeak(
        live=cast.live,
        allocated=max(played.adapters.allocated, cast.allocated),
        reserved=max(played.adapters.reserved, cast.reserved),
    )
    rollout = [PREFILL] if PREFILL in played.training else []
    compared = [REFERENCE] if REFERENCE in played.training else []
    training = (*rollout, "forward", "loss", *compared, "backward", "optimizer")
    kept = played.training["optimizer"].peak
    saved = PhasePeak(live=kept.live, allocated=kept.live, reserved=kept.reserved)
    if "save" in played.training:
        saved = played.training["save"].peak
    return (
        phase("load", played.load, born),
        phase("prepare", played.prepare, born),
        phase("adapters", added, born),
        *(phase(WRAP, played.training[name].peak, born) for name in (WRAP,) if name in played.training),
        *(phase(name, played.training[name].peak if name in played.training else None, full) for name in training),
        phase("eval", played.training["eval"].peak if "eval" in played.training else None, full),
        # Adapters are copied to the host one by one: nothing is added on the device, but where they are gathered.
        phase("save", saved, full),
    )


def _sizes(played: SimulatedRun, phase: Phase, context: ContextRow) -> dict[Component, int]:
    """What a phase's device bytes are made of; slack is what torch reserves beyond what is in use."""
    if phase.name in ("load", "prepare", "adapters"):
        # A model that the host holds until it is wrapped has nothing on the card.
        sizes = before_training(played.static, phase) if played.load.live else {}
        beside = context.first_tensor_bytes
    else:
        name = "optimizer" if phase.name == "save" and "save" not in played.training else phase.name
        sizes = dict(zip(COMPONENTS, played.training[name].components, strict=True))
        beside = context.first_tensor_bytes if phase.name == WRAP else context.total_bytes
    communication = sizes.pop(Component.COMMUNICATION, 0) + context.communication_bytes
    sizes[Component.CUDA_CONTEXT] = beside - context.communication_bytes
    sizes[Component.ALLOCATOR_SLACK] = 0
    if communication:
        sizes[Component.COMMUNICATION] = communication
    sizes[Component.ALLOCATOR_SLACK] = (phase.device_bytes or 0) - sum(sizes.values())
    return sizes


def _lines(run: RunConfig, played: SimulatedRun, peak: Phase, context: ContextRow) -> tuple[ComponentLine, ...]:
    sizes = _sizes(played, peak, context)
    words = counted_words(run, played.static, played.state)
    words |= {
        Component.CHECKPOINTS: f"what forward keeps between layers for {run.tokens:,} tokens, traced",
        Component.ACTIVATIONS: "alive in the layer at the peak, traced from the model's own code",
        Component.LOGITS_AND_LOSS: "alive of the head and the loss at the peak, traced",
        Component.WORKSPACE: "buffers that cuBLAS keeps, and scratch of the optimizer; before training, a tensor"
        " beside its cast or quantised form",
        Component.ALLOCATOR_SLACK: f"torch reserves {format_mib(peak.reserved_bytes)} for"
        f" {format_mib(peak.allocated_bytes)} in use: simulated block by block",
        Component.CUDA_CONTEXT: context.why,
        Component.COMMUNICATION: communication_words(context, run.parallel),
    }
    return tuple(
        ComponentLine(component=part, size_bytes=sizes.get(part, 0), basis=_basis(part, context), why=words[part])
        for part in Component
        if part is not Component.COMMUNICATION or part in sizes
    )


def _basis(part: Component, context: ContextRow) -> Basis:
    if part in _COUNTED:
        return Basis.COUNTED
    if part is Component.COMMUNICATION:
        return Basis.CALIBRATED if context.communication_measured else Basis.ASSUMED
    if part is Component.CUDA_CONTEXT:
        return Basis.CALIBRATED if context.measured else Basis.ASSUMED
    return Basis.DERIVED
