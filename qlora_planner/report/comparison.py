"""Predicted beside measured for one verification: by phase, for the process and the card, and by component."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from qlora_planner.evidence import RANDOM_WEIGHTS, UNATTRIBUTED, Measurement, PhaseReading
from qlora_planner.memory.records import Component
from qlora_planner.record import record

_TRAINING = ("generate", "forward", "loss", "reference", "backward", "optimizer")


def training_peak(predicted: Mapping[str, Any], figure: str) -> int | None:
    """The highest `figure` of an estimate's training phases, in bytes; None where it has none."""
    sizes = [phase[figure] for phase in predicted["phases"] if phase["name"] in _TRAINING]
    return max((size for size in sizes if size is not None), default=None)


def phase_figure(predicted: Mapping[str, Any], name: str, figure: str) -> int | None:
    """One figure of one phase of an estimate, in bytes."""
    return next((phase[figure] for phase in predicted["phases"] if phase["name"] == name), None)


@record
class Compared:
    """One figure in bytes, predicted and measured; None where it was not."""

    name: str
    predicted: int | None
    measured: int | None

    @property
    def residual(self) -> float | None:
        """measured / predicted - 1."""
        if self.predicted is None or self.measured is None or self.predicted == 0:
            return None
        return self.measured / self.predicted - 1

    def renamed(self, name: str) -> Compared:
        """The same under another name."""
        return replace(self, name=name)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "name": self.name,
            "predicted_bytes": self.predicted,
            "measured_bytes": self.measured,
            "residual": self.residual,
        }


# A measured phase, and the predicted ones it holds: torch cannot be asked between a forward and its loss.
_PHASES: dict[str, tuple[str, ...]] = {
    "load": ("load",),
    "prepare": ("prepare",),
    "adapters": ("adapters",),
    "wrap": ("wrap",),
    "generate": ("generate",),
    "forward": ("forward", "loss", "reference"),
    "backward": ("backward",),
    "optimizer": ("optimizer",),
    "eval": ("eval",),
    "save": ("save",),
}


# What a CPU holds as a card does; the rest is scratch of its own kernels, and what only a card has.
_ALSO_ON_CPU = (
    Component.QUANTIZED_WEIGHTS, Component.QUANTIZATION_CONSTANTS, Component.UNQUANTIZED_WEIGHTS, Component.ADAPTERS,
    Component.OPTIMIZER_STATES, Component.CHECKPOINTS,
)  # fmt: skip


def compared_static(measurement: Measurement) -> list[Compared]:
    """What is alive after loading, preparing and adding adapters."""
    predicted = (measurement.predicted or {}).get("static_bytes") or {}
    return [
        Compared(name=name, predicted=predicted.get(f"after_{key}"), measured=measurement.phases[key].live_bytes)
        for key, name in (("load", "after loading"), ("prepare", "after preparing"), ("adapters", "after adapters"))
        if key in measurement.phases
    ]


def compared_phases(measurement: Measurement, figure: str) -> list[Compared]:
    """Every phase that was measured, by `allocated_bytes` or `reserved_bytes`, and the training as a whole.

    A CPU's peaks have no prediction: the estimate is of a card.
    """
    rows = []
    # A colocated vLLM takes its weights and cache from the same allocator: torch's figures are of both.
    of_both = measurement.run.vllm == "colocate"
    estimate = measurement.predicted if measurement.device == "cuda" and not of_both else None
    for name, parts in _PHASES.items():
        if name not in measurement.phases:
            continue
        predicted = None
        if estimate is not None:
            sizes = [phase_figure(estimate, part, figure) for part in parts]
            predicted = max((size for size in sizes if size is not None), default=None)
        rows.append(Compared(name=name, predicted=predicted, measured=getattr(measurement.phases[name], figure)))
    if "training" in measurement.phases:
        whole = None if estimate is None else training_peak(estimate, figure)
        rows.append(Compared(name="training", predicted=whole, measured=_training(measurement, figure)))
    return rows


def _training(measurement: Measurement, figure: str) -> int | None:
    """The highest of all training. What is wrapped in it is alive unwrapped before its first step, beside which no
    training phase is predicted."""
    phases = measurement.phases
    if "wrap" in phases and (sizes := [getattr(phases[name], figure) for name in _TRAINING if name in phases]):
        return max((size for size in sizes if size is not None), default=None)
    return getattr(phases["training"], figure)  # type: ignore[no-any-return]


def beside_the_trainer(predicted: Mapping[str, Any]) -> int:
    """What a colocated vLLM holds of the card in a run's own process, beside all that is predicted of the run."""
    held: int = (predicted.get("fit") or {}).get("vllm_bytes") or 0
    return held


def compared_process(measurement: Measurement) -> list[Compared]:
    """What the process held on the card and on the host."""
    predicted = (measurement.predicted if measurement.device == "cuda" else None) or {}
    read, host = measurement.nvml, predicted.get("host") or {}
    context = None
    reserved = measurement.phases.get("training", PhaseReading()).reserved_bytes
    if read.process_end_bytes is not None and reserved is not None and measurement.run.eval_batch_size is None:
        context = read.process_end_bytes - reserved
    peak = predicted.get("peak") or {}
    # With NCCL's part where there is one: a driver's figure of a process does not tell the two apart.
    beside = peak["device_bytes"] - peak["reserved_bytes"] if peak.get("reserved_bytes") is not None else None
    loading = None if RANDOM_WEIGHTS in measurement.notes else host.get("load_peak_bytes")
    return [
        Compared(
            name="process", predicted=None if not peak else peak["device_bytes"] + beside_the_trainer(predicted),
            measured=read.process_peak_bytes,
        ),
        Compared(name="card", predicted=None, measured=read.device_peak_bytes),
        Compared(name="other processes", predicted=None, measured=read.others_bytes),
        Compared(name="context", predicted=beside, measured=context),
        Compared(name="host memory", predicted=loading, measured=measurement.host.rss_peak_bytes),
        Compared(name="paged memory", predicted=host.get("paged_bytes"), measured=measurement.host.paged_bytes),
    ]  # fmt: skip


def compared_components(measurement: Measurement) -> list[Compared]:
    """The components at the peak, in the estimate's order; empty where none were attributed."""
    if measurement.components is None:
        return []
    predicted = (measurement.predicted or {}).get("components") or {}
    if measurement.device == "cpu":
        predicted = {part.value: predicted[part.value] for part in _ALSO_ON_CPU if part.value in predicted}
    names = [part.value for part in Component if part.value in measurement.components or part.value in predicted]
    rows = [
        Compared(name=name, predicted=predicted.get(name), measured=measurement.components.get(name)) for name in names
    ]
    rest = measurement.components.get(UNATTRIBUTED)
    return rows if rest is None else [*rows, Compared(name=UNATTRIBUTED, predicted=None, measured=rest)]


def to_document(measurement: Measurement) -> dict[str, Any]:
    """The comparison, JSON-ready."""
    return {
        "static": [row.to_dict() for row in compared_static(measurement)],
        "allocated": [row.to_dict() for row in compared_phases(measurement, "allocated_bytes")],
        "reserved": [row.to_dict() for row in compared_phases(measurement, "reserved_bytes")],
        "process": [row.to_dict() for row in compared_process(measurement)],
        "components": [row.to_dict() for row in compared_components(measurement)],
    }
