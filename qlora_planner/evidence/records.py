"""Measurement: one verified run, with everything needed to repeat it, as one JSON object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, field, fields
from typing import Any, TypeVar

from qlora_planner.errors import InputError
from qlora_planner.evidence.checks import MEASUREMENT, MEASUREMENT_NEEDS, PARTS, PARTS_NEEDS, PHASE
from qlora_planner.evidence.readings import MEASURED_PHASES, CardReading, HostReading, NvmlReading, PhaseReading
from qlora_planner.record import record
from qlora_planner.spec.faults import refuse
from qlora_planner.spec.fields import faults_of
from qlora_planner.spec.run import RunConfig
from qlora_planner.text import plain, quoted

SCHEMA = "qlora-plan/measurement/1"
UNATTRIBUTED = "unattributed"
# In the notes of a measurement that read no checkpoint.
RANDOM_WEIGHTS = (
    "host memory is not compared: random weights share one buffer of it, where a checkpoint is read file by file"
)

_Part = TypeVar("_Part", CardReading, NvmlReading, HostReading)


@record
class Measurement:
    """A run that was really executed, and what was read while it ran. Sizes in bytes, times in seconds.

    `outcome` is `ok`, `out-of-memory`, `error` or `interrupted`; in the last three `failed_phase` names the phase
    and `error` the reason, and phases that were reached still have their figures. `config` is the model's
    `config.json` as run (None when the evidence is kept without it); `toy` says that it was cut down from the model
    named. `components` are the bytes alive at the highest moment, by the names of the estimate's components, with
    what cannot be attributed under `unattributed`; for a run out of memory, at the moment of the failed request.
    `predicted` is the estimate's `to_dict()` at the time. `role` is `calibration` or `holdout` in a campaign.
    """

    created: str  # ISO date, UTC
    model: str
    config_sha256: str | None  # None where the asker gave none
    run: RunConfig  # resolved
    outcome: str
    device: str = "cuda"
    config: Mapping[str, Any] | None = None
    toy: bool = False
    tied_stored: bool | None = None  # whether the files that were loaded held tied tensors too, where they say
    params: int | None = None
    trainable_params: int | None = None
    stack: Mapping[str, str] = field(default_factory=dict)  # package, cuda, driver, python -> version
    gpu: CardReading | None = None
    cap_bytes: int | None = None
    failed_phase: str | None = None
    error: str | None = None
    requested_bytes: int | None = None  # the request that failed, where torch says
    phases: Mapping[str, PhaseReading] = field(default_factory=dict)
    nvml: NvmlReading = field(default_factory=NvmlReading)
    host: HostReading = field(default_factory=HostReading)
    components: Mapping[str, int] | None = None
    step_s: tuple[float, ...] = ()
    tokens_per_s: float | None = None
    predicted: Mapping[str, Any] | None = None
    role: str | None = None
    notes: tuple[str, ...] = ()  # what a reader should know, e.g. that the driver gives no process figure

    @property
    def timing_valid(self) -> bool | None:
        """Whether no other process held memory on the card; None where that could not be seen."""
        return None if self.nvml.others_bytes is None else self.nvml.others_bytes == 0

    def figures(self) -> dict[str, int | None]:
        """The readings under the names of the measured rows; None for one that was not taken."""
        none = PhaseReading()
        load, prepare = self.phases.get("load", none), self.phases.get("prepare", none)
        adapters, training = self.phases.get("adapters", none), self.phases.get("training", none)
        return {
            "load_alloc": load.live_bytes,
            "load_peak": load.allocated_bytes,
            "load_reserved": load.reserved_bytes,
            "prepare_alloc": prepare.live_bytes,
            "prepare_peak": prepare.allocated_bytes,
            "peft_alloc": adapters.live_bytes,
            "train_peak": training.allocated_bytes,
            "train_reserved": training.reserved_bytes,
            "train_alloc_end": training.live_bytes,
            "nvml_context": self.nvml.context_bytes,
            "nvml_peak": self.nvml.process_peak_bytes,
            "nvml_end": self.nvml.process_end_bytes,
        }

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, in a fixed order; `from_dict` gives an equal record back."""
        return {
            "schema": SCHEMA,
            "created": self.created,
            "model": self.model,
            "config_sha256": self.config_sha256,
            "config": None if self.config is None else dict(self.config),
            "toy": self.toy,
            "tied_stored": self.tied_stored,
            "device": self.device,
            "params": self.params,
            "trainable_params": self.trainable_params,
            "run": self.run.to_dict(),
            "stack": dict(self.stack),
            "gpu": None if self.gpu is None else asdict(self.gpu),
            "cap_bytes": self.cap_bytes,
            "outcome": self.outcome,
            "failed_phase": self.failed_phase,
            "error": self.error,
            "requested_bytes": self.requested_bytes,
            "phases": {name: asdict(self.phases[name]) for name in MEASURED_PHASES if name in self.phases},
            "nvml": asdict(self.nvml),
            "host": asdict(self.host),
            "components": None if self.components is None else dict(self.components),
            "step_s": list(self.step_s),
            "tokens_per_s": self.tokens_per_s,
            "predicted": None if self.predicted is None else dict(self.predicted),
            "role": self.role,
            "notes": list(self.notes),
        }

    @classmethod
    def from_dict(cls, raw: Any, location: str = "measurement") -> Measurement:
        """Read `to_dict` back.

        Raises InputError naming `location` and all that is wrong: another schema, unknown, missing or ill-typed
        fields.
        """
        if type(raw) is dict and raw.get("schema") != SCHEMA:
            raise InputError(f"{plain(location)}: schema must be {SCHEMA}, not {quoted(raw.get('schema'))}")
        faults = faults_of(raw, MEASUREMENT, MEASUREMENT_NEEDS, "")
        if type(raw) is dict:
            faults += _inner_faults(raw)
        run: RunConfig | None = None
        if type(raw) is dict and type(raw.get("run")) is dict:
            try:
                run = RunConfig.from_dict(raw["run"])
            except InputError as error:
                faults.append(str(error))
        if faults or run is None:
            refuse(faults, location)
        values = {key: value for key, value in raw.items() if key != "schema"}
        values |= {
            "run": run,
            "gpu": _part(CardReading, raw.get("gpu")) if raw.get("gpu") is not None else None,
            "nvml": _part(NvmlReading, raw.get("nvml") or {}),
            "host": _part(HostReading, raw.get("host") or {}),
            "phases": {name: PhaseReading(**figures) for name, figures in (raw.get("phases") or {}).items()},
            "step_s": tuple(raw.get("step_s") or ()),
            "notes": tuple(raw.get("notes") or ()),
        }
        return cls(**values)


def _inner_faults(raw: dict[str, Any]) -> list[str]:
    faults: list[str] = []
    for name, checks in PARTS.items():
        if type(raw.get(name)) is dict:
            faults += faults_of(raw[name], checks, PARTS_NEEDS[name], name)
    phases = raw.get("phases")
    for name, figures in phases.items() if type(phases) is dict else ():
        if name in MEASURED_PHASES:
            faults += faults_of(figures, PHASE, frozenset(), f"phases.{name}")
        else:
            faults.append(f"phases has an unknown phase {quoted(name)}")
    return faults


def _part(kind: type[_Part], raw: Mapping[str, Any]) -> _Part:
    return kind(**{spec.name: raw[spec.name] for spec in fields(kind) if spec.name in raw})
