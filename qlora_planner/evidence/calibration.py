"""Calibration: what measurements say about a card's context and about how far predictions are off.

It never touches what is counted or derived. It gives the context of a card by its name, and the distribution of
residuals that intervals and chances are read from.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, field, replace
from functools import lru_cache
from typing import Any

from qlora_planner.evidence.efficiency import KernelEfficiency
from qlora_planner.evidence.records import Measurement
from qlora_planner.evidence.residuals import FEWEST, Residuals
from qlora_planner.record import record
from qlora_planner.spec.libraries import library_bytes

SCHEMA = "qlora-plan/calibration/1"
# How a prediction was made, best first: from the run's trace, from a closed form within or outside what it was proved
# for.
TRACED, PROVED_FORM, OTHER_FORM = "traced", "proved-form", "other-form"
METHODS = (TRACED, PROVED_FORM, OTHER_FORM)
# What is compared: torch's peaks while training, the slack between them as a part of what is reserved, NVML's peak.
FIGURES = ("allocated", "reserved", "slack", "device")
# The figure whose residuals decide intervals: the context, which NVML's figure adds, is known by card on its own.
DECIDING = "reserved"
_DIGITS = 6
_NOISE = re.compile(r"\b(nvidia|geforce|tesla|graphics|gpu)\b")


@record
class Prediction:
    """What was predicted for a measured run, in bytes: torch's peaks while training, the device peak of it all."""

    method: str
    allocated_bytes: int
    reserved_bytes: int
    device_bytes: int


@record
class CardContext:
    """What a process holds on a card beside torch's own memory, in bytes, over `count` runs.

    `low_bytes` and `high_bytes` are the least and the most of first tensor and kernels together.
    """

    first_tensor_bytes: int
    kernels_bytes: int
    low_bytes: int
    high_bytes: int
    count: int


@record
class HeldOut:
    """Each residual judged by the others: how many lie in the 90 % interval that the rest give, and how wide it is.

    `median_width` is in parts of the prediction; None where the rest are too few for an interval.
    """

    count: int
    inside: int | None
    median_width: float | None
    mean_abs: float
    worst: float


@record
class Calibration:
    """Contexts by card, and residuals by method and figure, each ascending."""

    created: str  # ISO date
    contexts: Mapping[str, CardContext] = field(default_factory=dict)
    residuals: Mapping[str, Mapping[str, tuple[float, ...]]] = field(default_factory=dict)
    stack: Mapping[str, str] = field(default_factory=dict)  # versions that all measured runs share
    speed: Mapping[str, KernelEfficiency] = field(default_factory=dict)  # what cards reach of their rates, by card

    def law(self, method: str, widening: float = 1.0) -> Residuals | None:
        """The law of what torch reserves over what was predicted; None with fewer than `FEWEST` measurements.

        `widening` multiplies each distance from the median.
        """
        values = self.residuals.get(method, {}).get(DECIDING, ())
        return _law(values, widening) if len(values) >= FEWEST else None

    def held_out(self, method: str, figure: str) -> HeldOut | None:
        """Leave-one-out figures; None without measurements."""
        values = self.residuals.get(method, {}).get(figure, ())
        return held_out(values) if values else None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `from_dict` of evidence.calibration_file gives an equal record back."""
        return {
            "schema": SCHEMA,
            "created": self.created,
            "contexts": {card: asdict(context) for card, context in self.contexts.items()},
            "residuals": {
                method: {figure: list(values) for figure, values in figures.items()}
                for method, figures in self.residuals.items()
            },
            "stack": dict(self.stack),
            **({"speed": {card: traits.to_dict() for card, traits in self.speed.items()}} if self.speed else {}),
        }


@lru_cache(maxsize=16)
def _law(values: tuple[float, ...], widening: float) -> Residuals:
    law = Residuals(values=values)
    return law if widening == 1 else law.widened(widening)


def card_slug(name: str) -> str:
    """`NVIDIA GeForce RTX 4090` as the catalogue of cards names it: `rtx-4090`."""
    return re.sub(r"[^a-z0-9]+", "-", _NOISE.sub(" ", name.lower())).strip("-") or "gpu"


def held_out(values: Sequence[float]) -> HeldOut:
    """Leave-one-out figures of ascending residuals, at least one."""
    count = len(values)
    worst = max(values, key=abs)
    mean_abs = sum(map(abs, values)) / count
    if count - 1 < FEWEST:
        return HeldOut(count=count, inside=None, median_width=None, mean_abs=mean_abs, worst=worst)
    law = Residuals(values=tuple(values))
    bounds = [(rest.quantile(0.05), rest.quantile(0.95)) for rest in map(law.without, values)]
    widths = sorted(high - low for low, high in bounds)
    inside = sum(low <= value <= high for value, (low, high) in zip(values, bounds, strict=True))
    median_width = widths[count // 2]
    return HeldOut(count=count, inside=inside, median_width=median_width, mean_abs=mean_abs, worst=worst)


def usable(measurement: Measurement) -> bool:
    """Whether a measurement can be set beside a prediction: it ran, on a card, whole, and without a limit on torch.

    A limit makes the allocator give cached blocks back, so what it reserved says nothing about a run without one.
    """
    return (
        measurement.outcome == "ok"
        and measurement.device == "cuda"
        and not measurement.toy
        and measurement.cap_bytes is None
    )


def latest(measurements: Iterable[Measurement]) -> list[Measurement]:
    """One measurement of each run, model and card, the last: repeats of one run are not several."""
    kept: dict[tuple[object, ...], Measurement] = {}
    for measurement in measurements:
        card = measurement.gpu.name if measurement.gpu else None
        key = (
            measurement.model,
            measurement.config_sha256,
            card,
            measurement.cap_bytes,
            str(measurement.run.to_dict()),
        )
        if key not in kept or measurement.created >= kept[key].created:
            kept[key] = measurement
    return list(kept.values())


def calibrate(pairs: Sequence[tuple[Measurement, Prediction]], created: str) -> Calibration:
    """What measurements, each with its predictions, say. `created` is an ISO date.

    A measurement may come with several predictions, one for each method. Those that cannot be compared are passed
    over; see `usable`. A figure that was not read gives no residual.
    """
    residuals: dict[str, dict[str, list[float]]] = {}
    measured: dict[int, Measurement] = {}
    for measurement, predicted in pairs:
        if not usable(measurement):
            continue
        measured[id(measurement)] = measurement
        for figure, residual in _residuals(measurement, predicted).items():
            residuals.setdefault(predicted.method, {}).setdefault(figure, []).append(round(residual, _DIGITS))
    return Calibration(
        created=created,
        contexts=_contexts(list(measured.values())),
        residuals={
            method: {
                figure: tuple(sorted(residuals[method][figure])) for figure in FIGURES if figure in residuals[method]
            }
            for method in METHODS
            if method in residuals
        },
        stack=_shared([measurement.stack for measurement in measured.values()]),
    )


def pooled(calibrations: Sequence[Calibration]) -> Calibration | None:
    """All residuals together; of a card that several know, context and speed of the first. None for no calibration."""
    if not calibrations:
        return None
    contexts: dict[str, CardContext] = {}
    speed: dict[str, KernelEfficiency] = {}
    residuals: dict[str, dict[str, tuple[float, ...]]] = {}
    for calibration in calibrations:
        contexts = {**calibration.contexts, **contexts}
        speed = {**calibration.speed, **speed}
        for method, figures in calibration.residuals.items():
            of_method = residuals.setdefault(method, {})
            for figure, values in figures.items():
                of_method[figure] = tuple(sorted((*of_method.get(figure, ()), *values)))
    stack = _shared([calibration.stack for calibration in calibrations])
    return replace(calibrations[0], contexts=contexts, residuals=residuals, stack=stack, speed=speed)


def _residuals(measurement: Measurement, predicted: Prediction) -> dict[str, float]:
    read = measurement.figures()
    allocated, reserved, device = read["train_peak"], read["train_reserved"], read["nvml_peak"]
    residuals: dict[str, float] = {}
    if allocated is not None and predicted.allocated_bytes > 0:
        residuals["allocated"] = allocated / predicted.allocated_bytes - 1
    if reserved is not None and predicted.reserved_bytes > 0:
        residuals["reserved"] = reserved / predicted.reserved_bytes - 1
        if allocated is not None:
            expected = predicted.reserved_bytes - predicted.allocated_bytes
            residuals["slack"] = (reserved - allocated - expected) / predicted.reserved_bytes
    if device is not None and measurement.nvml.source != "device-difference" and predicted.device_bytes > 0:
        residuals["device"] = device / predicted.device_bytes - 1
    return residuals


def _contexts(measurements: Sequence[Measurement]) -> dict[str, CardContext]:
    """By card: what NVML shows for the process beyond what torch reserves, after a step that was the last to reserve.

    What a run's own libraries take beside the usual ones is not counted (spec/libraries.py). Where an evaluation
    followed, torch's reserve at the end is not the training's, so the run is passed over.
    """
    first: dict[str, list[int]] = {}
    whole: dict[str, list[int]] = {}
    for measurement in measurements:
        read = measurement.figures()
        context, end, reserved = read["nvml_context"], read["nvml_end"], read["train_reserved"]
        if (
            measurement.gpu is None
            or measurement.nvml.source == "device-difference"
            or measurement.run.eval_batch_size is not None
        ):
            continue
        if context is None or end is None or reserved is None or end < reserved + context:
            continue
        card = card_slug(measurement.gpu.name)
        first.setdefault(card, []).append(context)
        whole.setdefault(card, []).append(end - reserved - library_bytes(measurement.run))
    contexts = {}
    for card, values in sorted(whole.items()):
        born = _median(first[card])
        contexts[card] = CardContext(
            first_tensor_bytes=born,
            kernels_bytes=max(0, _median(values) - born),
            low_bytes=min(values),
            high_bytes=max(values),
            count=len(values),
        )
    return contexts


def _median(values: Sequence[int]) -> int:
    return sorted(values)[len(values) // 2]


def _shared(stacks: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """What every stack agrees on."""
    if not stacks:
        return {}
    return {name: version for name, version in stacks[0].items() if all(s.get(name) == version for s in stacks)}
