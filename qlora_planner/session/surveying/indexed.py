"""The catalogue for a survey: one index file where it answers for the run, whole profiles for the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from qlora_planner.errors import InputError
from qlora_planner.planner.survey.index import SCHEMA, candidates, serves
from qlora_planner.sources.catalogue import ModelCatalogue
from qlora_planner.sources.json_files import read_bytes, read_object
from qlora_planner.sources.played import rows_beside

if TYPE_CHECKING:
    from qlora_planner.planner.survey.survey import Candidate
    from qlora_planner.spec.machine import GpuSpec
    from qlora_planner.spec.model import ModelProfile
    from qlora_planner.spec.run import RunConfig

INDEX_FILE = "models.index.json"
Warn = Callable[[str], None]


def indexed_candidates(
    folders: Sequence[Path], gpu: GpuSpec, run: RunConfig, warn: Warn
) -> tuple[list[Candidate], list[ModelProfile]]:
    """Every model of the folders, of which an earlier one wins: as a candidate from an index, else as a profile."""
    indexed: list[Candidate] = []
    others: list[ModelProfile] = []
    seen: set[str] = set()
    for folder in folders:
        catalogue = ModelCatalogue([folder])
        names = set(catalogue.names()) - seen
        seen |= names
        there = _from_index(folder.parent / INDEX_FILE, names, gpu, run, warn) if serves(run) else []
        indexed += there
        left = names - {candidate.model_id for candidate in there}
        if left:
            others += _profiles(catalogue, left, warn)
    return indexed, others


def _profiles(catalogue: ModelCatalogue, names: set[str], warn: Warn) -> list[ModelProfile]:
    if names == set(catalogue.names()):
        return list(catalogue.load_all(warn))
    loaded = []
    for name in sorted(names):
        try:
            loaded.append(catalogue.load(name))
        except InputError as error:
            warn(f"{error}; left out")
    return loaded


def _read(path: Path) -> dict[str, Any]:
    """The index, by a reader that takes a tenth of the time and words no fault."""
    try:
        index = msgspec.json.decode(read_bytes(path))
    except ValueError:
        return read_object(path)
    return index if type(index) is dict else read_object(path)


def _from_index(path: Path, names: set[str], gpu: GpuSpec, run: RunConfig, warn: Warn) -> list[Candidate]:
    """What the index says of `names`; nothing when there is no index, and a word when it cannot be used."""
    if not names or not path.is_file():
        return []
    try:
        index = _read(path)
        if index.get("schema") != SCHEMA:
            raise InputError(f"{path}: its schema is not {SCHEMA}")
        rows = [row for row in index["models"] if row["id"] in names]
        return candidates({"models": rows}, gpu, run, rows_beside(path.parent / "models"))
    except (InputError, KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        reason = str(error) if isinstance(error, InputError) else f"{path}: is damaged"
        warn(f"{reason}; reading every profile instead, which takes longer")
        return []
