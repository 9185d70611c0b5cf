"""estimate: the memory of exactly one run, by phase and by component."""

from __future__ import annotations

from collections.abc import Sequence

from qlora_planner.catalog.gpus import remarks
from qlora_planner.catalog.parallel import BOUNDED
from qlora_planner.evidence.calibration import Calibration
from qlora_planner.memory.breakdown import Breakdown
from qlora_planner.memory.budget import Budget
from qlora_planner.memory.options.resolve import Resolution, resolve
from qlora_planner.memory.parallel.choice import for_cards
from qlora_planner.memory.parallel.host import load_file_bytes, load_peak_bytes
from qlora_planner.memory.records import (
    HostBytes,
    MemoryEstimate,
    ModelFacts,
    Peak,
    Problem,
    ProfileOrigin,
    StaticBytes,
)
from qlora_planner.memory.unmodelled.left_out import whole
from qlora_planner.memory.verdict import fit
from qlora_planner.memory.weights.classifier import profile_for
from qlora_planner.memory.weights.placement import Placement
from qlora_planner.record import replaced
from qlora_planner.spec.machine import GpuSpec
from qlora_planner.spec.model import ModelProfile
from qlora_planner.spec.run import RunConfig
from qlora_planner.spec.trace import Tape

NOT_TRACED = Problem(
    code="not-traced",
    message="no training step of this run is recorded, so formulas stand in and the interval is wide",
    fix="install [train], which records one from the model's own code (`qlora-plan doctor` has the line)",
)


def estimate(
    profile: ModelProfile,
    run: RunConfig,
    gpu: GpuSpec | None = None,
    *,
    reserve_bytes: int = 0,
    cap_bytes: int | None = None,
    tape: Tape | None = None,
    orders: Sequence[Sequence[Tape]] = (),
    calibration: Calibration | None = None,
    broken: tuple[Problem, ...] = (),
    complete: bool = True,
) -> MemoryEstimate:
    """The memory of `run` on `profile`, with a verdict when a card is given.

    `tape` is the trace of this very run; without it, closed forms stand in, with a wide interval. `orders` are
    sequences of its traces at the widths of a dataset's batches, any of which may come before the widest: the one that
    reserves most counts (see `memory.replay.simulate.simulate_run`).
    `reserve_bytes` is held back for a desktop or other processes; `cap_bytes` is torch's own per-process limit,
    under which a traced run that gets through peaks no higher.
    `calibration` gives the context of the card and the distribution of predictions, where it was measured.
    `broken` is what tracing found the installed libraries to refuse.
    What the figures leave out qualifies the answer, but where `complete` is off, as in a search: see
    `memory.unmodelled.qualified`.
    Raises InputError for options that contradict each other or name modules that are not there.
    """
    budget = Budget.of(gpu, reserve_bytes=reserve_bytes, cap_bytes=cap_bytes, calibration=calibration)
    return estimate_within(budget, profile, run, tape=tape, orders=orders, broken=broken, complete=complete)


def estimate_within(
    budget: Budget,
    profile: ModelProfile,
    run: RunConfig,
    *,
    tape: Tape | None = None,
    orders: Sequence[Sequence[Tape]] = (),
    broken: tuple[Problem, ...] = (),
    complete: bool = True,
    refines: bool = True,
) -> MemoryEstimate:
    """The memory of `run` on `profile` within the budget of a card, or of none: see `estimate`.

    Without `refines` a traced run's floor is not worked out more finely near what is usable: one that fits fits.
    """
    profile = profile_for(profile, run)
    run, chosen = for_cards(run, budget.world, budget.nodes)
    resolution = resolve(profile, run, budget.gpu)
    budget = budget.beside_vllm(resolution.run).for_run(resolution.run)
    breakdown = _breakdown(profile, resolution, tape, orders, budget, refines)
    about_card = (
        Problem(code=remark.code, message=remark.message, fix=remark.fix)
        for remark in remarks(budget.gpu, {**resolution.stack, **run.stack})
    )
    problems = (*resolution.problems, *broken, *about_card, *(() if tape is not None else (NOT_TRACED,)))
    device_bytes = breakdown.peak.device_bytes or 0
    # In a search the interval is worked out for what is shown alone: see `with_interval`.
    low, high = budget.interval(device_bytes, breakdown.method) if complete else (device_bytes, device_bytes)
    answer = MemoryEstimate(
        model=ModelFacts(
            id=profile.id, model_type=profile.model_type, params=profile.params,
            trainable_params=breakdown.trainable_params, text_part_of=profile.text_part_of,
            resolved_from=profile.resolved_from,
            profile=ProfileOrigin(
                source=profile.source, versions=profile.versions, same_shape_as=profile.same_shape_as
            ),
        ),
        run=resolution.run,
        resolved={**resolution.why, **chosen},
        stack=resolution.stack,
        static=StaticBytes(
            after_load=breakdown.load.live,
            after_prepare=(breakdown.prepare or breakdown.load).live,
            after_adapters=breakdown.adapters.live,
            before_training=breakdown.ready_bytes,
        ),
        phases=breakdown.phases,
        lines=breakdown.lines,
        peak=Peak(
            phase=breakdown.peak.name, allocated_bytes=breakdown.peak.allocated_bytes or 0,
            reserved_bytes=breakdown.peak.reserved_bytes or 0, device_bytes=device_bytes,
            low_bytes=low, high_bytes=high,
        ),
        floor_bytes=breakdown.floor_bytes,
        host=HostBytes(
            paged_bytes=breakdown.paged_bytes,
            offloaded_bytes=breakdown.offloaded_bytes,
            load_peak_bytes=load_peak_bytes(profile, resolution.run, budget.machine),
            load_file_bytes=load_file_bytes(profile, budget.machine),
        ),
        fit=fit(budget, device_bytes, breakdown.floor_bytes, breakdown.method, problems),
        problems=problems,
        method=breakdown.method,
        machine=budget.machine,
    )  # fmt: skip
    if answer.run.parallel in BOUNDED:
        from qlora_planner.memory.parallel.bounded import bounded

        answer = bounded(answer, Placement(profile, answer.run), resolution.trainer, budget)
    if answer.run.parallel is not None and complete:
        from qlora_planner.memory.parallel.priced import with_prices

        answer = with_prices(answer, Placement(profile, answer.run), budget)
    return whole(profile, answer) if complete else answer


def with_interval(answer: MemoryEstimate, budget: Budget) -> MemoryEstimate:
    """An answer of a search with its interval; `budget` is the one that it was made within."""
    if answer.run.parallel in BOUNDED:
        return answer
    own = budget.beside_vllm(answer.run).for_run(answer.run)
    low, high = own.interval(answer.peak.device_bytes, answer.method)
    return replaced(answer, peak=replaced(answer.peak, low_bytes=low, high_bytes=high))


def _breakdown(
    profile: ModelProfile,
    resolution: Resolution,
    tape: Tape | None,
    orders: Sequence[Sequence[Tape]],
    budget: Budget,
    refines: bool,
) -> Breakdown:
    """Each way is imported when it is taken: together they are a tenth of a second."""
    if tape is None:
        from qlora_planner.memory.closed_form.estimate import closed_form_breakdown

        return closed_form_breakdown(profile, resolution, budget)
    from qlora_planner.memory.replay.estimate import traced_breakdown

    return traced_breakdown(profile, resolution, tape, budget, orders, refines)
