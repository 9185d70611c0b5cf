"""Predicted beside measured, in parts: the same comparison for one verification and for a whole campaign."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from qlora_planner.evidence import Measurement

FIGURES = ("load peak", "prepare peak", "train allocated", "train reserved", "device")
_TRAINING = ("forward", "loss", "backward", "optimizer")


def training_peak(predicted: Mapping[str, Any], figure: str) -> int | None:
    """The highest `figure` of an estimate's training phases, in bytes; None where it has none."""
    sizes = [phase[figure] for phase in predicted["phases"] if phase["name"] in _TRAINING]
    return max((size for size in sizes if size is not None), default=None)


def phase_figure(predicted: Mapping[str, Any], name: str, figure: str) -> int | None:
    """One figure of one phase of an estimate, in bytes."""
    return next((phase[figure] for phase in predicted["phases"] if phase["name"] == name), None)


def errors_of(one: Measurement) -> dict[str, float]:
    """Predicted / measured - 1 by figure, for those that were both predicted and read; `predicted` must be there."""
    predicted, read = one.predicted or {}, one.figures()
    pairs = (
        (phase_figure(predicted, "load", "allocated_bytes"), read["load_peak"]),
        (phase_figure(predicted, "prepare", "allocated_bytes"), read["prepare_peak"]),
        (training_peak(predicted, "allocated_bytes"), read["train_peak"]),
        (training_peak(predicted, "reserved_bytes"), read["train_reserved"]),
        (predicted["peak"]["device_bytes"], read["nvml_peak"]),
    )
    return {
        name: ours / theirs - 1 for name, (ours, theirs) in zip(FIGURES, pairs, strict=True) if ours and theirs
    }  # fmt: skip


def summary(rows: Sequence[Mapping[str, float]]) -> Iterator[tuple[str, int, float, float, float]]:
    """By figure: count, mean absolute error, worst under, worst, in percent."""
    for name in FIGURES:
        values = [100 * row[name] for row in rows if name in row]
        if values:
            yield name, len(values), sum(map(abs, values)) / len(values), min(values), max(values, key=abs)
