"""A card, the memory of a run on it, and the plan for it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from qlora_planner.errors import MissingError, RefusedError
from qlora_planner.session import packages
from qlora_planner.session.models import with_targets
from qlora_planner.session.packages import Warn
from qlora_planner.session.traces import tape_for, tape_orders
from qlora_planner.sources.locations import calibrations_dirs, gpus_dirs, tapes_dirs
from qlora_planner.spec.model import ModelProfile

if TYPE_CHECKING:
    from qlora_planner.catalog.gpus import GpuCatalogue
    from qlora_planner.evidence.calibration import Calibration
    from qlora_planner.memory import MemoryEstimate, Problem, Unmodelled
    from qlora_planner.planner.plan import Plan
    from qlora_planner.spec.machine import GpuSpec
    from qlora_planner.spec.run import RunConfig
    from qlora_planner.spec.trace import Tape


def calibration(profiles: str | os.PathLike[str] | None = None) -> Calibration | None:
    """What measurements say: the user's own and the shipped ones together. None where there are none.

    Raises InputError naming a file that is no calibration.
    """
    from qlora_planner.sources.evidence import read_calibration

    return read_calibration(calibrations_dirs(profiles))


def load_gpu(text: str, *, profiles: str | os.PathLike[str] | None = None) -> GpuSpec:
    """The card of `text`: a size such as 24GB or 24564MiB, a catalogue name, or `local` for the one in this machine.

    Raises InputError for what is none of these (with the nearest names), MissingError for `local` without a card.
    """
    if text.strip().lower() == "local":
        from qlora_planner.measure.nvml import local_gpu

        return local_gpu().spec
    from qlora_planner.catalog.gpus import GpuCatalogue, parse_gpu

    return parse_gpu(text, GpuCatalogue(gpus_dirs(profiles)))


def estimate(
    profile: ModelProfile,
    run: RunConfig | None = None,
    gpu: GpuSpec | None = None,
    *,
    reserve_bytes: int = 0,
    cap_bytes: int | None = None,
    widths: Sequence[Sequence[int]] = (),
    unmodelled: Sequence[Unmodelled] = (),
    profiles: str | os.PathLike[str] | None = None,
    tell: Warn = packages.silent,
) -> MemoryEstimate:
    """The memory of one run, from its trace where that can be had: see `tape_for`.

    `widths` are sequences of those of batches that may come before the widest: see `data.batches`. `unmodelled` is
    what the figures leave out of the run that is meant: see `memory.unmodelled.qualified`.

    Raises InputError for options that contradict each other or name modules that are not there.
    """
    from qlora_planner.memory.estimate import estimate as answer
    from qlora_planner.memory.options.refusals import refusal
    from qlora_planner.memory.unmodelled.qualified import qualified
    from qlora_planner.spec.run import RunConfig as Run
    from qlora_planner.speed.roofline import speed_of

    asked = run or Run()
    broken: tuple[Problem, ...] = ()
    tape: Tape | None = None
    try:
        profile = with_targets(profile, asked, profiles=profiles)
    except RefusedError as error:
        # The document is shown for what could be adapted instead, under the verdict that this run will not work.
        asked, broken = asked.with_(target_modules=None, lora_dropout=None), (refusal(error),)
    try:
        tape = tape_for(profile, asked, gpu, profiles=profiles, tell=tell)
    except RefusedError as error:
        broken = (*broken, refusal(error))
    orders = tape_orders(profile, asked, widths, gpu, profiles=profiles, tell=tell) if tape and widths else ()
    known = calibration(profiles)
    found = answer(
        profile,
        asked,
        gpu,
        reserve_bytes=reserve_bytes,
        cap_bytes=cap_bytes,
        tape=tape,
        orders=orders,
        calibration=known,
        broken=broken,
    )
    found = replace(found, speed=speed_of(profile, found.run, gpu, known, found.stack))
    return qualified(found, unmodelled)


def plan(
    profile: ModelProfile,
    gpu: GpuSpec,
    run: RunConfig | None = None,
    *,
    profiles: str | os.PathLike[str] | None = None,
    tell: Warn = packages.silent,
    **asked: Any,
) -> Plan:
    """The recommended run for a model and a card: see `qlora_planner.planner.plan.plan`.

    `asked` are the other fields of `qlora_planner.planner.planner.Request`, such as `objective`, `fixed`, `data`.
    """
    from qlora_planner.catalog.gpus import GpuCatalogue
    from qlora_planner.planner.plan import plan as answer
    from qlora_planner.planner.planner import Request
    from qlora_planner.sources.tapes import stored_sweep
    from qlora_planner.spec.run import RunConfig as Run

    told: set[str] = set()

    def traced(chosen: RunConfig) -> Tape | None:
        try:
            return tape_for(profile, chosen, gpu, profiles=profiles, tell=tell)
        except MissingError as error:  # closed forms answer instead, and the plan says so
            if not told:
                tell(str(error))
            told.add(str(error))
            return None

    def orders(chosen: RunConfig, widths: Sequence[Sequence[int]]) -> Sequence[Sequence[Tape]]:
        try:
            return tape_orders(profile, chosen, widths, gpu, profiles=profiles, tell=tell)
        except MissingError:  # said when the run's own trace was asked for
            return ()

    catalogue = GpuCatalogue(gpus_dirs(profiles))
    asked.setdefault("cards", catalogue.all())
    return answer(
        profile,
        Request(gpu=gpu, run=run or Run(), pace_on=_ranking_card(gpu, catalogue), **asked),
        sweep=stored_sweep(profile, tapes_dirs(profiles)),
        tape_of=traced,
        orders_of=orders,
        calibration=calibration(profiles),
    )


def ranking_card(gpu: GpuSpec, *, profiles: str | os.PathLike[str] | None = None) -> GpuSpec:
    """The card itself, or for a bare size one of the catalogue that stands in to rank speeds by.

    That is the one that the table of sizes names; for a size written exactly, the smallest catalogue card that has it.
    """
    from qlora_planner.catalog.gpus import GpuCatalogue

    return _ranking_card(gpu, GpuCatalogue(gpus_dirs(profiles)))


def _ranking_card(gpu: GpuSpec, catalogue: GpuCatalogue) -> GpuSpec:
    from qlora_planner.catalog.gpus.sizes import MARKETED_SIZES, marketed_size

    if gpu.bandwidth_bytes_per_s and (gpu.bf16_flops or gpu.fp16_flops or gpu.fp32_flops):
        return gpu
    if gpu.form == "size" and gpu.marketed_gb:
        named = catalogue.get(marketed_size(gpu.marketed_gb).card)
        if named.bandwidth_bytes_per_s and (named.bf16_flops or named.fp16_flops):
            return named
    rated = [card for card in catalogue.all() if card.bandwidth_bytes_per_s and card.bf16_flops]
    # Of cards with the same memory the one that stands for its size: the others are rarer, and some far slower.
    known = {row.card for row in MARKETED_SIZES}
    return min(
        rated,
        key=lambda card: (card.memory_bytes < gpu.memory_bytes, card.memory_bytes, card.name not in known, card.name),
    )
