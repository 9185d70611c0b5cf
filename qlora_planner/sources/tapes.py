"""Compiled tapes: shipped for the default recipe of every catalogue model."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qlora_planner.errors import InputError
from qlora_planner.memory.frontier import Frontier
from qlora_planner.memory.variant import Region
from qlora_planner.planner.limits import Sweep
from qlora_planner.profile import ModelProfile
from qlora_planner.profile.tape import CompiledTape

TAPE_SCHEMA = "qlora-plan/tape/1"
KINDS = ("single", "batched")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTape:
    """A compiled tape, the sizes for which it holds, and its highest moments."""

    tape: CompiledTape
    region: Region
    frontier: Frontier


def stored_tape(profile: ModelProfile, kind: str, dirs: Sequence[Path]) -> StoredTape | None:
    """The tape of this very config in the first folder that has it; None when none does.

    Raises InputError naming a file that cannot be read.
    """
    for folder in dirs:
        path = folder / kind / (profile.id.replace("/", "__") + ".json.gz")
        if path.is_file():
            return _read(path, profile)
    return None


def stored_sweep(profile: ModelProfile, dirs: Sequence[Path]) -> Sweep | None:
    """The highest moments of a model's default recipe at batch 1, for a search; None where no tape is kept."""
    stored = stored_tape(profile, "single", dirs)
    return None if stored is None else Sweep(variant=stored.tape.variant, frontier=stored.frontier)


def _read(path: Path, profile: ModelProfile) -> StoredTape | None:
    try:
        raw = json.loads(gzip.decompress(path.read_bytes()))
        if raw["schema"] != TAPE_SCHEMA or raw["config_sha256"] != profile.config_sha256:
            return None
        return StoredTape(
            tape=CompiledTape.from_dict(raw["tape"]),
            region=Region(**raw["region"]),
            frontier=Frontier.from_dict(raw["frontier"]),
        )
    except (OSError, EOFError, ValueError, KeyError, TypeError, IndexError) as error:
        raise InputError(f"{path}: not a readable tape ({type(error).__name__}); `make tapes` rebuilds it") from error
