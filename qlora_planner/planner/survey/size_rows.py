"""What the two tables of sizes consist of: methods, figures, rows, and how each is written as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qlora_planner.evidence.calibration import TRACED
from qlora_planner.memory.records import MemoryEstimate
from qlora_planner.record import document, record
from qlora_planner.spec.machine import GpuSpec
from qlora_planner.spec.run import RunConfig

SCHEMA = "qlora-plan/table/1"
COMMON_CARD_GB = 6  # what "a 7B model needs" by the tables that are copied
# From 16-bit weights to 4-bit ones: with a sixteenth or an eighth of a byte for constants it is 3.6 at best, and less
# where embeddings are large; below this a model's weights for the most part stay as they are.
_MOSTLY_4BIT = 2.0


@record
class Method:
    """A column: a way to train."""

    name: str
    label: str
    options: Mapping[str, Any]


METHODS = (
    Method(
        name="full", label="full, 16-bit",
        options={"method": "full", "optimizer": "adamw_torch_fused"},
    ),
    Method(name="lora", label="LoRA, 16-bit", options={"method": "lora", "quant": "none"}),
    Method(name="qlora-8bit", label="QLoRA, 8-bit", options={"method": "qlora", "quant": "int8"}),
    Method(name="qlora-4bit", label="QLoRA, 4-bit", options={"method": "qlora", "quant": "nf4"}),
)  # fmt: skip


@record
class Figure:
    """Device bytes of one run at its peak. A refused run has no bytes.

    `basis` is `traced` (played from its trace), `swept` (allocated bytes of its trace, with what segments usually take
    more: as a survey ranks) or `closed-form`.
    """

    device_bytes: int | None
    basis: str | None
    refused: str | None = None

    @classmethod
    def of(cls, answer: MemoryEstimate) -> Figure:
        """What an estimate says."""
        blocking = [problem.message for problem in answer.problems if problem.blocking]
        if blocking:
            return cls(device_bytes=None, basis=None, refused=blocking[0])
        return cls(device_bytes=answer.peak.device_bytes, basis=basis_of(answer))


def basis_of(answer: MemoryEstimate) -> str:
    """`traced` for a run that was played from its trace, else `closed-form`."""
    return TRACED if answer.method == TRACED else "closed-form"


@record
class MemoryRow:
    """One model under every method.

    `double_quant_saves_bytes` are constants, counted. `upcast_costs_bytes` is the difference of two peaks by closed
    forms; `upcast_weights_bytes` the counted part of it, float32 copies of 16-bit weights. Weights are what is alive
    after loading, counted.
    """

    model_id: str
    params: int
    figures: Mapping[str, Figure]
    double_quant_saves_bytes: int
    upcast_costs_bytes: int | None
    upcast_weights_bytes: int
    weights_16bit_bytes: int
    weights_4bit_bytes: int

    @property
    def weights_ratio(self) -> float:
        """16-bit weights over those that a 4-bit load leaves."""
        return self.weights_16bit_bytes / self.weights_4bit_bytes

    @property
    def mostly_16bit(self) -> bool:
        """Whether 4-bit loading leaves most weights as they are."""
        return self.weights_ratio < _MOSTLY_4BIT


@record
class Largest:
    """The largest model of the catalogue that fits, or is `tight`, on a card with one method; `basis` as in Figure."""

    model_id: str
    params: int
    device_bytes: int
    basis: str
    verdict: str


@record
class CardRow:
    """One card, as sold, and the largest model for each method; None where no model fits.

    `perhaps` is a larger one that more likely than not fits, where closed forms cannot say more.
    """

    card: GpuSpec
    usable_bytes: int
    largest: Mapping[str, Largest | None]
    perhaps: Mapping[str, Largest | None]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "gpu": self.card.name, "memory_bytes": self.card.memory_bytes, "usable_bytes": self.usable_bytes,
            "largest": document(self.largest),
            "perhaps": document(self.perhaps),
        }  # fmt: skip


@record
class SixGb:
    """What a model of about seven billion parameters really does with the 6 GB that tables give it."""

    model_id: str
    device_bytes: int
    basis: str
    longest_seq_len: int | None  # at batch 1 on a card sold with 6 GB; None where not even 64 tokens fit


@record
class Tables:
    """Both tables, and what of common advice they show to be wrong."""

    run: RunConfig
    memory: tuple[MemoryRow, ...]
    cards: tuple[CardRow, ...]
    six_gb: tuple[SixGb, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "schema": SCHEMA,
            "run": self.run.to_dict(),
            "methods": {method.name: {"label": method.label, **method.options} for method in METHODS},
            "memory": document(self.memory),
            "cards": document(self.cards),
            "six_gb": document(self.six_gb),
        }
