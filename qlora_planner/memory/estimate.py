"""estimate: the memory of exactly one run, by phase and by component."""

from __future__ import annotations

from collections.abc import Sequence

from qlora_planner.catalog.cuda import ContextRow, cublas_workspace_bytes
from qlora_planner.catalog.gpus import remarks
from qlora_planner.evidence.calibration import Calibration
from qlora_planner.memory.breakdown import Breakdown
from qlora_planner.memory.options.resolve import Resolution, resolve
from qlora_planner.memory.records import HostBytes, MemoryEstimate, Peak, Problem, StaticBytes
from qlora_planner.memory.unmodelled.left_out import whole
from qlora_planner.memory.verdict import (
    beside_a_cap,
    context_of,
    distribution,
    fit,
    interval,
    usable_with_reason,
    with_libraries,
)
from qlora_planner.spec.machine import GpuSpec
from qlora_planner.spec.model import ModelProfile
from qlora_planner.spec.run import RunConfig
from qlora_planner.spec.trace import Tape

NOT_TRACED = Problem(
    code="not-traced",
    message="this run is not traced, so closed forms stand in and the interval is wide",
    fix="install [train], which traces it from the model's own code (`qlora-plan doctor` has the line)",
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
    resolution = resolve(profile, run, gpu)
    workspace = cublas_workspace_bytes(gpu.compute_capability if gpu else None)
    context = with_libraries(context_of(gpu, calibration), resolution.run)
    available = None if gpu is None else usable_with_reason(gpu, reserve_bytes, cap_bytes, context)
    usable = None if available is None else available[0]
    view = _view(profile, resolution, tape, workspace, context, gpu, usable, orders, cap_bytes)
    about_card = (
        Problem(code=one.code, message=one.message, fix=one.fix)
        for one in remarks(gpu, {**resolution.stack, **run.stack})
    )
    problems = (*resolution.problems, *broken, *about_card, *(() if tape is not None else (NOT_TRACED,)))
    device = view.peak.device_bytes or 0
    low, high = interval(device, distribution(device, view.method, context, calibration))
    around_floor = distribution(view.floor_bytes, view.method, context, calibration)
    if (
        gpu is not None
        and available is not None
        and available[0] < usable_with_reason(gpu, reserve_bytes, None, context)[0]
    ):
        around_floor = beside_a_cap(around_floor, context)
    found = MemoryEstimate(
        model={
            "id": profile.id, "model_type": profile.model_type, "params": profile.params,
            "trainable_params": view.trainable_params, "text_part_of": profile.text_part_of,
            "profile": {"source": profile.source, "versions": dict(profile.versions)},
        },
        run=resolution.run,
        resolved=resolution.why,
        stack=resolution.stack,
        static=StaticBytes(
            after_load=view.load.live,
            after_prepare=(view.prepare or view.load).live,
            after_adapters=view.adapters.live,
        ),
        phases=view.phases,
        lines=view.lines,
        peak=Peak(
            phase=view.peak.name, allocated_bytes=view.peak.allocated_bytes or 0,
            reserved_bytes=view.peak.reserved_bytes or 0, device_bytes=device,
            low_bytes=low, high_bytes=high,
        ),
        floor_bytes=view.floor_bytes,
        host=HostBytes(
            paged_bytes=view.paged_bytes,
            offloaded_bytes=view.offloaded_bytes,
            load_peak_bytes=None,
        ),
        fit=None
        if gpu is None or available is None
        else fit(
            gpu,
            available,
            device,
            view.floor_bytes,
            around_floor,
            problems,
        ),
        problems=problems,
        method=view.method,
    )  # fmt: skip
    return whole(profile, found) if complete else found


def _view(
    profile: ModelProfile,
    resolution: Resolution,
    tape: Tape | None,
    workspace_bytes: int,
    context: ContextRow,
    gpu: GpuSpec | None,
    usable_bytes: int | None,
    orders: Sequence[Sequence[Tape]],
    cap_bytes: int | None,
) -> Breakdown:
    """Each way is imported when it is taken: together they are a tenth of a second."""
    if tape is None:
        from qlora_planner.memory.closed_form.estimate import closed_form_breakdown

        return closed_form_breakdown(profile, resolution, workspace_bytes, gpu, context)
    from qlora_planner.memory.replay.estimate import traced_breakdown

    return traced_breakdown(profile, resolution, tape, workspace_bytes, context, usable_bytes, orders, cap_bytes)
