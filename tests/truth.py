"""The measured rows (NVIDIA H200) as runs of this project."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from qlora_planner.spec.run import RunConfig

FOLDER = Path(__file__).parent / "data" / "truth"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measured run: the model's name, the run, and the bytes that were read."""

    index: int
    model: str
    run: RunConfig
    measured: dict[str, int]
    outcome: str


def run_of(raw: dict[str, Any]) -> RunConfig:
    """The recorded options under this project's names."""
    quant = raw["quant"] or "none"
    return RunConfig(
        method="qlora" if quant != "none" else raw["method"],
        quant=quant,
        double_quant=bool(raw["double_quant"]),
        compute_dtype=raw["compute_dtype"],
        upcast=raw["prepare_for_kbit_training"],
        batch_size=raw["batch_size"],
        seq_len=raw["seq_len"],
        grad_accum=raw["grad_accum"],
        rank=raw["lora_rank"] or 16,
        alpha=32,
        target_modules=raw["target_modules"],
        lora_dropout=raw["lora_dropout"],
        dora=raw["dora"],
        gradient_checkpointing=raw["gradient_checkpointing"],
        use_reentrant=raw["use_reentrant"],
        attention=raw["attention"],
        optimizer=raw["optimizer"],
        trainer=raw["trainer"],
        liger=raw["liger"],
        activation_offloading=raw["activation_offloading"],
        alloc_conf=raw["alloc_conf"],
        padding=raw["padding"],
        stack=raw["stack"],
    )


@cache
def rows() -> tuple[Row, ...]:
    """Every row of the open set."""
    lines = (FOLDER / "h200-open.jsonl").read_text(encoding="utf-8").splitlines()
    found = []
    for index, line in enumerate(lines):
        raw = json.loads(line)
        found.append(
            Row(
                index=index,
                model=raw["model"],
                run=run_of(raw["run"]),
                measured=raw.get("measured_bytes") or {},
                outcome=raw["outcome"],
            )
        )
    return tuple(found)


def config_path(model: str) -> Path:
    """The config.json of a measured model."""
    return FOLDER / "configs" / f"{model}.json"
