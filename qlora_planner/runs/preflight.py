"""What is looked at before a run starts: versions, the disk, who else is on the card is the caller's."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qlora_planner.catalog import find_optimizer
from qlora_planner.data.files import find_files
from qlora_planner.errors import MissingError
from qlora_planner.memory.weights.placement import Placement
from qlora_planner.runs.dataset import IN_MEMORY_BYTES
from qlora_planner.spec.model import ModelProfile
from qlora_planner.spec.run import RunConfig
from qlora_planner.text import plain
from qlora_planner.train.options import CHECKPOINTS_KEPT
from qlora_planner.units import format_size

# A tokenizer, the trainer's state, random numbers.
_BESIDE_BYTES = 32 << 20


def checkpoint_bytes(profile: ModelProfile, run: RunConfig) -> int:
    """About what one checkpoint takes: trained tensors, the optimizer's states, and what stands beside them."""
    row, total = find_optimizer(run.optimizer), _BESIDE_BYTES
    for tensor in Placement(profile, run).trained:
        states = sum(state.size_bytes for state in row.states(tensor.shape, tensor.dtype)) if row else 8 * tensor.numel
        total += tensor.count * (tensor.size_bytes + states)
    return total


def rows_bytes(data: str) -> int:
    """About what the rows of large data take beside the run: as they are, tokenised, with labels, and cut."""
    size = sum(file.size_bytes for file in find_files(data))
    return 4 * size if size > IN_MEMORY_BYTES else 0


def check_disk(folder: Path, one_bytes: int, rows: int = 0) -> int:
    """The bytes that the run will write. Raises MissingError where the disk has less: checkpoints that are kept, the
    one that is being written, the adapter, and `rows` bytes of data."""
    needed = (CHECKPOINTS_KEPT + 2) * one_bytes + rows
    free = shutil.disk_usage(folder).free
    if free < needed:
        what = "checkpoints and tokenised data need" if rows else "checkpoints need"
        raise MissingError(
            f"{plain(folder)}: {what} {format_size(needed)} and the disk has {format_size(free)} left;"
            " make room, or name another --output"
        )
    return needed


def version_notes(planned: Mapping[str, Any], installed: Mapping[str, str]) -> Iterator[str]:
    """A note for each library that is not the one that the plan's figures hold for."""
    for name, version in planned.items():
        if name in installed and str(version).partition("+")[0] != installed[name].partition("+")[0]:
            yield f"planned for {name} {version}, {installed[name]} is installed: memory may differ"
