"""MemoryEstimate: phases x components, the peak, and the verdict, as the stable JSON has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from enum import StrEnum
from typing import Any

from qlora_planner.catalog.trainers import run_document
from qlora_planner.evidence.calibration import TRACED
from qlora_planner.record import document, fields_of, record
from qlora_planner.spec.machine import Machine
from qlora_planner.spec.risk import TIGHT_AT_MOST
from qlora_planner.spec.run import RunConfig

SCHEMA = "qlora-plan/estimate/1"
# Keys of the document in their order, with an attribute that is called otherwise after a colon.
_KEYS = (
    "model run resolved stack static_bytes:static phases components peak floor_bytes host speed fit partial unmodelled"
    " problems basis why footing:method machine parallel ranks"
)
# The code of the problem that the published weights are quantised in a way that no run here can take.
STORED_QUANTIZED = "stored-quantized"


class Basis(StrEnum):
    """How well a number is known, best first; a sum takes its weakest."""

    COUNTED = "counted"
    DERIVED = "derived"
    CALIBRATED = "calibrated"
    ASSUMED = "assumed"


BASIS_ORDER = tuple(Basis)


def weakest(parts: list[Basis]) -> Basis:
    """The weakest basis of a sum."""
    return max(parts, key=BASIS_ORDER.index, default=Basis.COUNTED)


class Component(StrEnum):
    """What bytes are for, in the order in which they are shown."""

    QUANTIZED_WEIGHTS = "quantized_weights"
    QUANTIZATION_CONSTANTS = "quantization_constants"
    UNQUANTIZED_WEIGHTS = "unquantized_weights"
    ADAPTERS = "adapters"
    GRADIENTS = "gradients"
    OPTIMIZER_STATES = "optimizer_states"
    CHECKPOINTS = "checkpoints"
    ACTIVATIONS = "activations"
    LOGITS_AND_LOSS = "logits_and_loss"
    WORKSPACE = "workspace"
    ALLOCATOR_SLACK = "allocator_slack"
    CUDA_CONTEXT = "cuda_context"
    COMMUNICATION = "communication"  # of runs on several cards alone


PHASES = ("load", "prepare", "adapters", "forward", "loss", "backward", "optimizer", "eval", "save")
WRAP = "wrap"  # of runs on several cards, between adapters and the first forward


@record
class Phase:
    """One phase's peaks in bytes; all `None` when the run does not have it or it is not known.

    `components` add up to `device_bytes`, where they are known; they are for screens and no part of the document.
    """

    name: str
    allocated_bytes: int | None = None
    reserved_bytes: int | None = None
    device_bytes: int | None = None
    components: Mapping[Component, int] | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {name: value for name, value in fields_of(self).items() if name != "components"}


@record
class ComponentLine:
    """What one component takes at the peak, how it is known, and one line that shows the arithmetic."""

    component: Component
    size_bytes: int
    basis: Basis
    why: str


@record
class Peak:
    """The highest moment of the whole run. `low_bytes` to `high_bytes` is a 90 % interval of device bytes."""

    phase: str
    allocated_bytes: int
    reserved_bytes: int
    device_bytes: int
    low_bytes: int
    high_bytes: int


@record
class StaticBytes:
    """Live bytes on the GPU as torch counts them; `before_training` when the trainer has been made: it may have cast
    adapters, or have put the data through its reference."""

    after_load: int
    after_prepare: int
    after_adapters: int
    before_training: int


@record
class HostBytes:
    """Memory outside the card: managed pages of a paged optimizer, offloaded activations, the loader's peak and what
    of it are mapped files."""

    paged_bytes: int | None
    offloaded_bytes: int | None
    load_peak_bytes: int | None
    load_file_bytes: int | None = None


@record
class Speed:
    """Throughput of the run; `None` where nothing is known about the card."""

    tokens_per_s: float | None = None
    step_s: float | None = None
    basis: Basis | None = None


@record
class Problem:
    """Something to know about the run. `blocking`: this stack refuses or breaks on it."""

    code: str
    message: str
    fix: str
    blocking: bool = False


@record
class Unmodelled:
    """Something of a run that its figures leave out; `memory.unmodelled.qualified` decides what becomes of a verdict.

    `key` is as whoever asked wrote it (`rl: dpo`), `what` one clause on its effect on memory. `direction` says whether
    the run takes more than is said ("up"), less ("down"), or may do either ("both"). `at_most` is the largest part of
    the figure by which it is off, None where that is not known.
    """

    key: str
    what: str
    direction: str = "both"
    at_most: float | None = None


@record
class Fit:
    """The run against one card. Verdict: fits, tight, does-not-fit, will-not-run, cannot-say.

    `risk` is the highest chance of running out that is called tight. `vllm_bytes` is what vLLM holds in the run's own
    process while it trains: no figure of the run counts it, and what is usable is what it leaves.
    """

    gpu: str
    capacity_bytes: int
    usable_bytes: int
    headroom_bytes: int
    verdict: str
    probability_oom: float | None
    reasons: tuple[str, ...]
    risk: float = TIGHT_AT_MOST
    vllm_bytes: int = 0


@record
class ProfileOrigin:
    """Where a profile came from, catalogue, cache or built, the versions that it was made with, and the catalogue model
    whose facts it has under another name."""

    source: str
    versions: Mapping[str, str]
    same_shape_as: str | None = None


@record
class ModelFacts:
    """The model that a figure is of; `path` is the folder that it was named by, None for a model named by its id."""

    id: str
    model_type: str
    params: int
    trainable_params: int
    text_part_of: str | None
    profile: ProfileOrigin
    path: str | None = None
    resolved_from: str | None = None  # what was typed, where that is not the id

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; without a path where there is none."""
        return {name: document(value) for name, value in fields_of(self).items() if (name, value) != ("path", None)}


@record
class RankMemory:
    """What one rank of several holds: `rank` counts from 0, `gpu` is its card's name."""

    rank: int
    gpu: str
    phases: tuple[Phase, ...]
    components: Mapping[str, int]
    peak: Peak
    floor_bytes: int
    fit: Fit | None


@record
class MemoryEstimate:
    """Everything that is said about the memory of one run on one model."""

    model: ModelFacts
    run: RunConfig  # resolved: no option is None unless it means off
    resolved: Mapping[str, str]  # auto options and the one-line reason for what each became
    stack: Mapping[str, str]
    static: StaticBytes
    phases: tuple[Phase, ...]
    lines: tuple[ComponentLine, ...]  # add up to peak.device_bytes
    peak: Peak
    floor_bytes: int
    host: HostBytes
    speed: Speed = field(default_factory=Speed)
    fit: Fit | None = None
    problems: tuple[Problem, ...] = ()
    unmodelled: tuple[Unmodelled, ...] = ()  # put here by `memory.unmodelled.qualified.qualified` alone
    method: str = TRACED  # how it was had, which decides how far it may be off: see evidence.calibration
    machine: Machine | None = None  # None: no card was given
    uneven: tuple[RankMemory, ...] = ()  # every rank, where they differ; the estimate's own figures are the highest's

    @property
    def parallel(self) -> str | None:
        """The strategy of several cards; None on one."""
        return self.run.parallel

    @property
    def ranks(self) -> tuple[RankMemory, ...]:
        """What each of several cards holds, in the order of ranks; nothing for one card."""
        if self.machine is None or self.machine.world == 1:
            return ()
        if self.uneven:
            return self.uneven
        return tuple(
            RankMemory(
                rank=rank, gpu=gpu.name, phases=self.phases, components=self.components, peak=self.peak,
                floor_bytes=self.floor_bytes, fit=self.fit,
            )
            for rank, gpu in enumerate(self.machine.gpus)
        )  # fmt: skip

    @property
    def components(self) -> dict[str, int]:
        """Bytes by component at the peak."""
        return {line.component.value: line.size_bytes for line in self.lines}

    @property
    def basis(self) -> dict[str, str]:
        """Basis by component."""
        return {line.component.value: line.basis.value for line in self.lines}

    @property
    def why(self) -> dict[str, str]:
        """The arithmetic by component, a line each."""
        return {line.component.value: line.why for line in self.lines}

    @property
    def partial(self) -> bool:
        """Whether something is left out that can move the peak by more than its interval."""
        return any(self.matters(thing) for thing in self.unmodelled)

    def matters(self, thing: Unmodelled) -> bool:
        """Whether it can move the peak by more than its interval."""
        if thing.at_most is None:
            return True
        peak, low, high = self.peak.device_bytes, self.peak.low_bytes, self.peak.high_bytes
        below = thing.direction != "up" and peak * (1 - thing.at_most) < low
        return below or (thing.direction != "down" and peak * (1 + thing.at_most) > high)

    @property
    def verdict(self) -> str | None:
        """The verdict on the card, if one was given."""
        return self.fit.verdict if self.fit else None

    def to_dict(self) -> dict[str, Any]:
        """The JSON document `qlora-plan/estimate/1`, and one line of why per component."""
        pairs = (key.partition(":") for key in _KEYS.split())
        figures = {"schema": SCHEMA, **{key: document(getattr(self, name or key)) for key, _, name in pairs}}
        return {**figures, "run": run_document(self.run)}
