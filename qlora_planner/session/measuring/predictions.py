"""Predictions for runs that were measured: from their trace, and by closed forms."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import replace
from typing import TYPE_CHECKING

from qlora_planner.errors import InputError, MissingError
from qlora_planner.evidence import Measurement
from qlora_planner.evidence.calibration import TRACED, Calibration, Prediction, card_slug, latest
from qlora_planner.evidence.efficiency import KernelEfficiency

if TYPE_CHECKING:
    from qlora_planner.memory import MemoryEstimate
    from qlora_planner.spec.machine import GpuSpec
    from qlora_planner.spec.model import ModelProfile
    from qlora_planner.speed.fit import TimedRun

TRAINING = ("generate", "forward", "loss", "reference", "backward", "optimizer")
Tell = Callable[[str], None]


def prediction_of(answer: MemoryEstimate) -> Prediction:
    """The figures of an estimate that measurements are set beside."""
    phases = [phase for phase in answer.phases if phase.name in TRAINING]
    return Prediction(
        method=answer.method,
        allocated_bytes=max(phase.allocated_bytes or 0 for phase in phases),
        reserved_bytes=max(phase.reserved_bytes or 0 for phase in phases),
        device_bytes=answer.peak.device_bytes,
    )


def card_of(measurement: Measurement) -> GpuSpec | None:
    """The card that a measurement was made on: the catalogue's, else what the driver told; None for none."""
    from qlora_planner.session import load_gpu
    from qlora_planner.spec.machine import GpuSpec

    card = measurement.gpu
    if card is None:
        return None
    slug = card_slug(card.name)
    try:
        return load_gpu(slug)
    except InputError:
        capability = card.compute_capability
        return GpuSpec(
            name=slug,
            label=card.name,
            memory_bytes=card.capacity_bytes or 0,
            form="local",
            compute_capability=capability,
            bf16=None if capability is None else int(capability.partition(".")[0]) >= 8,
        )


def profile_of(measurement: Measurement, tell: Tell) -> ModelProfile:
    """The profile of a measured model: of the config that was kept with it, else the catalogue's of that name.

    Raises MissingError where neither is at hand.
    """
    from qlora_planner import session
    from qlora_planner.sources.configs import RawConfig, config_sha256

    if measurement.config is None:
        profile = session.load_model(measurement.model, build="never", warn=tell)
        if profile.config_sha256 != measurement.config_sha256:
            raise MissingError(f"{measurement.model}: the catalogue's config is not the one that was measured")
    else:
        # A copy: transformers completes nested parts of a config in place.
        config = deepcopy(dict(measurement.config))
        raw = RawConfig(id=measurement.model, config=config, sha256=config_sha256(config), origin="evidence")
        profile = session.profile_of(raw, warn=tell)
    return replace(profile, tied_stored=measurement.tied_stored)


def predictions_of(measurement: Measurement, tell: Tell) -> list[Prediction]:
    """What is predicted now for a measured run: from its trace where that can be had, and by closed forms.

    Raises MissingError for a model that cannot be profiled, InputError for a run that contradicts itself.
    """
    from qlora_planner.memory.estimate import estimate
    from qlora_planner.session import tape_for

    profile, gpu = profile_of(measurement, tell), card_of(measurement)
    run = measurement.run
    predictions = [] if run.eval_batch_size else [prediction_of(estimate(profile, run, gpu))]
    tape = tape_for(profile, run, gpu, tell=tell)
    if tape is not None:
        traced = prediction_of(estimate(profile, run, gpu, tape=tape))
        predictions.insert(0, replace(traced, method=TRACED))
    return predictions


def timed_run(measurement: Measurement, tell: Tell) -> TimedRun | None:
    """A measured run with its derived work; None where it shared the card while it was timed, or the card's rates are
    unknown. Raises MissingError and InputError as `predictions_of` does."""
    from qlora_planner.memory.options.resolve import Resolution
    from qlora_planner.speed.fit import TimedRun, timed
    from qlora_planner.speed.roofline import Rates
    from qlora_planner.speed.step import step_work

    run, seconds, gpu = measurement.run, timed(measurement), card_of(measurement)
    rates = None if gpu is None else Rates.of(gpu, run.compute_dtype)
    if seconds is None or rates is None:
        return None
    profile = profile_of(measurement, tell)
    return TimedRun(
        work=step_work(profile, Resolution.resolved(run, dict(measurement.stack or profile.versions))),
        rates=rates,
        batch_size=run.batch_size,
        seq_len=run.seq_len,
        rank=run.rank,
        step_s=seconds,
    )


def speed_traits(
    measurements: Iterable[Measurement], tell: Tell, calibration: Calibration | None = None
) -> dict[str, KernelEfficiency]:
    """What timed runs say of each card, by its name; `calibration` is what is believed of a card before, if
    anything is.

    Of repeats of one run the last counts. Raises MissingError and InputError as `predictions_of` does.
    """
    from qlora_planner.speed.fit import fit, timed
    from qlora_planner.speed.roofline import efficiency_of

    runs: dict[str, list[TimedRun]] = {}
    cards: dict[str, GpuSpec] = {}
    for measurement in latest(row for row in measurements if timed(row) is not None):
        gpu, run = card_of(measurement), timed_run(measurement, tell)
        if gpu is not None and run is not None:
            cards[gpu.name] = gpu
            runs.setdefault(gpu.name, []).append(run)
    return {
        card: fit(timed_runs, efficiency_of(cards[card], calibration)[0]).traits
        for card, timed_runs in sorted(runs.items())
    }
