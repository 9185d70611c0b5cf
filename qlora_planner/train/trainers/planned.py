"""Trainers that are planned for and not yet built here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qlora_planner.errors import InputError
from qlora_planner.spec.run import RunConfig
from qlora_planner.train.trainers.protocol import AnyTrainer, Collate


def build(model: Any, run: RunConfig, *, rows: list[list[int]], steps: int, folder: str, device: str) -> AnyTrainer:
    """Raises InputError."""
    raise InputError(f"--trainer {run.trainer} is planned for, and neither measured nor trained with by this tool")


def make(
    model: Any,
    run: RunConfig,
    arguments: Mapping[str, Any],
    *,
    sequence: Mapping[str, Any],
    tokenizer: Any,
    collate: Collate,
    **more: Any,
) -> Any:
    """Raises InputError."""
    raise InputError(f"--trainer {run.trainer} is planned for, and neither measured nor trained with by this tool")
