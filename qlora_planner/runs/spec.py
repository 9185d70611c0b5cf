"""What a training child is told: one JSON file."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from qlora_planner.errors import InputError
from qlora_planner.record import record
from qlora_planner.spec.faults import known_fields
from qlora_planner.spec.run import RunConfig
from qlora_planner.text import quoted
from qlora_planner.train.settings import Settings


@record
class LaunchSpec:
    """One attempt at a run.

    `weights` is the folder with config, weights and (unless `tokenizer` names another) tokenizer; `model_id` what the
    adapter will name as its base. `output` is the run's folder, `resume` a checkpoint to go on from, whose optimizer
    states are dropped where `fresh_optimizer` says so. `quantized` is how many matrices the plan counts as quantised,
    None where nobody counted. `cap_bytes` is torch's per-process limit; `gpu_index` counts visible cards. There are
    `ranks` processes, one a card; or one, over all cards of `device_map`, which says on which of them each module is.
    """

    run: RunConfig
    settings: Settings
    model_id: str
    weights: str
    data: str
    output: str
    tokenizer: str | None = None
    bad_rows: str = "refuse"
    device: str = "cuda"
    gpu_index: int = 0
    cap_bytes: int | None = None
    quantized: int | None = None
    resume: str | None = None
    fresh_optimizer: bool = False
    ranks: int = 1
    device_map: dict[str, int] | None = None

    @property
    def cards(self) -> int:
        """How many cards the run is on."""
        return self.ranks if self.device_map is None else 1 + max(self.device_map.values())

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `from_dict` reads it back."""
        plain = {name: value for name, value in asdict(self).items() if name not in ("run", "settings")}
        return plain | {"run": self.run.to_dict(), "settings": self.settings.to_dict()}

    @classmethod
    def from_dict(cls, raw: Any, location: str = "specification") -> LaunchSpec:
        """Raises InputError for what is no object, unknown or missing fields and bad values."""
        known_fields(raw, cls, location, needed=("run", "settings", "model_id", "weights", "data", "output"))
        if raw.get("device", "cuda") not in ("cuda", "cpu"):
            raise InputError(f"{location}: device must be cuda or cpu, not {quoted(raw['device'])}")
        parts = {
            "run": RunConfig.from_dict(raw["run"], f"{location}: run"),
            "settings": Settings.from_dict(raw["settings"], f"{location}: settings"),
        }
        return cls(**{**raw, **parts})
