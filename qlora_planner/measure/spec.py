"""What a measuring child is told: one JSON file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from qlora_planner.errors import InputError
from qlora_planner.record import record
from qlora_planner.spec.faults import known_fields, refuse
from qlora_planner.spec.run import RunConfig
from qlora_planner.text import quoted


@record
class ChildSpec:
    """One run to execute and measure.

    `config` is the model's parsed config.json, run with random weights; or `model_dir` a folder with config and
    weights. `tied_stored` says whether tied tensors are among them, where files say so. `cap_bytes` is torch's
    per-process limit. `toy` cuts the model to a toy size first (by default on the CPU). `snapshot` keeps every
    allocation, to say what was alive at the peak. `steps` optimizer steps, then one evaluation where the run evaluates,
    and saving where `save` says so. `gpu_index` counts visible cards.
    There are `ranks` processes, one a card, which accelerate starts with its config `launch`.
    `rank` of `world` is played alone where it is given, on a fake process group: see `measure.as_rank`.
    `created`, `config_sha256`, `predicted` and `role` go into the measurement as they are.
    """

    run: RunConfig
    model_id: str = "model"
    config: Mapping[str, Any] | None = None
    model_dir: str | None = None
    config_sha256: str | None = None
    device: str = "cuda"
    gpu_index: int = 0
    cap_bytes: int | None = None
    steps: int = 3
    snapshot: bool = True
    save: bool = False
    toy: bool | None = None
    tied_stored: bool | None = None
    created: str | None = None
    predicted: Mapping[str, Any] | None = None
    role: str | None = None
    ranks: int = 1
    launch: str | None = None
    rank: int | None = None
    world: int = 1

    def __post_init__(self) -> None:
        faults = []
        if self.device not in ("cuda", "cpu"):
            faults.append(f"device must be cuda or cpu, not {quoted(self.device)}")
        if (self.config is None) == (self.model_dir is None):
            faults.append("give either config or model_dir")
        if type(self.steps) is not int or self.steps < 1:
            faults.append(f"steps must be a whole number from 1, not {quoted(self.steps)}")
        if self.cap_bytes is not None and (type(self.cap_bytes) is not int or self.cap_bytes < 1):
            faults.append(f"cap_bytes must be a whole number from 1, not {quoted(self.cap_bytes)}")
        if self.rank is not None and not 0 <= self.rank < self.world:
            faults.append(f"rank must be one of {self.world} from 0, not {quoted(self.rank)}")
        if faults:
            refuse(faults, "specification")

    @property
    def is_toy(self) -> bool:
        """Whether the model is cut down: on the CPU unless said otherwise."""
        return self.device == "cpu" if self.toy is None else self.toy

    @property
    def date(self) -> str:
        """When the measurement is said to be made, ISO, UTC."""
        return self.created or datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `from_dict` reads it back."""
        return {name: value for name, value in asdict(self).items() if name != "run"} | {"run": self.run.to_dict()}

    @classmethod
    def from_dict(cls, raw: Any, location: str = "specification") -> ChildSpec:
        """Raises InputError for what is no object, unknown fields and bad values."""
        known_fields(raw, cls, location)
        if not isinstance(raw.get("run"), dict):
            raise InputError(f"{location}: lacks run, an object of run options")
        return cls(**{**raw, "run": RunConfig.from_dict(raw["run"], f"{location}: run")})
