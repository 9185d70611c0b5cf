"""Compiled tapes: shipped for the default recipe of every catalogue model.

A file holds JSON lines: a header with the regions that the tapes hold for and their moments, then a tape per region.
A search reads the header alone. In a file a death says how many births before it the storage was born, in memory which
storage of all it is: the layers of a model are then the same text again and again, which packs four times smaller.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, field, replace
from functools import lru_cache
from itertools import accumulate
from os import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from qlora_planner.bounded import read_bytes, unpacked
from qlora_planner.catalog.stack import same_code
from qlora_planner.errors import InputError
from qlora_planner.memory.sweep.validity import ValidityRange
from qlora_planner.record import record
from qlora_planner.spec.model import ModelProfile
from qlora_planner.spec.trace import CompiledTape
from qlora_planner.spec.weaving.partial import UnlikeError, checkpoints_every

if TYPE_CHECKING:
    from qlora_planner.memory.sweep.polynomials import PeakPolynomials
    from qlora_planner.planner.sweeps import KeptSweep

TAPE_SCHEMA = "qlora-plan/tape/3"
KINDS = ("single", "batched")
# Where tapes of trainers that are traced with packages of their own lie, several variants a model.
OF_TRAINERS = "trainers"
_ENDING = ".jsonl.gz"
_LARGEST_BYTES = 4 << 20  # the largest shipped has 66 kB, unpacked 215 kB
_MOST_KEPT = 16  # files that are kept as they were read
T = TypeVar("T")


@record
class StoredTape:
    """A compiled tape and the sizes for which it holds."""

    tape: CompiledTape
    region: ValidityRange
    versions: Mapping[str, str] = field(default_factory=dict)  # of the libraries it was traced with


def tape_path(folder: Path, kind: str, model_id: str) -> Path:
    """Where a folder of tapes keeps those of one model at batch 1 (`single`) or at larger batches (`batched`)."""
    return folder / kind / (model_id.replace("/", "__") + _ENDING)


def stored_tape(
    profile: ModelProfile,
    dirs: Sequence[Path],
    batch_size: int = 1,
    seq_len: int = 2048,
    variant: str | None = None,
) -> StoredTape | None:
    """The tape of this config, or of the model that it has the shape of, for these sizes in the first folder that has
    one, of this `variant` where a file has several; None when none does.

    Raises InputError naming a file that cannot be read.
    """

    def pick(file: _TapeFile) -> StoredTape | None:
        for number, raw in enumerate(file.header["regions"], start=1):
            region = ValidityRange(**raw["region"])
            if region.holds(batch_size, seq_len) and variant in (None, raw["variant"]):
                return StoredTape(tape=file.tape(number), region=region, versions=file.header.get("versions", {}))
        return None

    return _first(profile, "batched" if batch_size > 1 else "single", dirs, pick)


def woven_tape(checkpointed: StoredTape | None, kept: StoredTape | None, every: int) -> StoredTape | None:
    """The tape of a run that checkpoints every `every`-th layer, from those of the runs that checkpoint every layer and
    none; None where one is missing, was made with other libraries, or the two do not go together."""
    return _of_two(checkpointed, kept, lambda one, other: checkpoints_every(one, other, every))


def hosted_tape(card: StoredTape | None, kept: StoredTape | None) -> StoredTape | None:
    """The tape of a run whose checkpoints lie in the host's memory, from that of the run whose lie on the card and the
    one that keeps everything; None as of `woven_tape`."""
    from qlora_planner.spec.weaving.hosted import inputs_on_host  # few runs ask for it

    return _of_two(card, kept, inputs_on_host)


def evaluated_tape(
    training: StoredTape | None, evaluation: StoredTape | None, eval_batch_size: int
) -> StoredTape | None:
    """The tape of a run that evaluates on so many rows at once, from its own without evaluation and one of evaluations
    alone, held for as many; None as of `woven_tape`."""
    from qlora_planner.spec.weaving.evaluated import with_evaluation  # few runs ask for it

    if training is None or evaluation is None:
        return None
    low, high = evaluation.region.of_rows(eval_batch_size)
    lengths = replace(training.region, low=low, high=high)
    return _of_two(
        training, replace(evaluation, region=lengths), lambda one, other: with_evaluation(one, other, eval_batch_size)
    )


def _of_two(
    first: StoredTape | None,
    second: StoredTape | None,
    weave: Callable[[CompiledTape, CompiledTape], CompiledTape],
) -> StoredTape | None:
    """What is woven of two tapes, for the sizes that both hold for."""
    if first is None or second is None or not same_code(first.versions, second.versions):
        return None
    try:
        tape = weave(first.tape, second.tape)
    except UnlikeError:
        return None
    return StoredTape(tape=tape, region=first.region.within(second.region), versions=first.versions)


def stored_tapes(profile: ModelProfile, kind: str, dirs: Sequence[Path]) -> list[StoredTape]:
    """Every tape of this kind in the first folder that has any, with its region."""

    def pick(file: _TapeFile) -> list[StoredTape]:
        return [
            StoredTape(tape=CompiledTape.from_dict(tape_in(line)), region=ValidityRange(**raw["region"]))
            for raw, line in zip(file.header["regions"], file.lines[1:], strict=True)
        ]

    return _first(profile, kind, dirs, pick) or []


def stored_sweep(profile: ModelProfile, dirs: Sequence[Path]) -> KeptSweep | None:
    """The highest moments of a model's default recipe, for a search; None where no tape is kept."""
    # Late: an estimate plays one tape and sweeps none.
    from qlora_planner.memory.sweep.polynomials import PeakPolynomials
    from qlora_planner.planner.sweeps import KeptSweep, SweptRange

    def pick(file: _TapeFile) -> tuple[SweptRange[PeakPolynomials], ...]:
        return tuple(
            SweptRange(
                variant=raw["variant"],
                region=ValidityRange(**raw["region"]),
                moments=PeakPolynomials.from_dict(raw["moments"]),
            )
            for raw in file.header["regions"]
        )

    parts = [part for kind in KINDS for part in _first(profile, kind, dirs, pick) or ()]
    return KeptSweep(parts=tuple(parts)) if parts else None


def encode(header: dict[str, Any], tapes: Iterable[tuple[StoredTape, PeakPolynomials]]) -> bytes:
    """A tape file: `header` and what is kept of each tape."""
    kept = list(tapes)
    regions = [
        {"variant": stored.tape.variant, "region": asdict(stored.region), "moments": moments.to_dict()}
        for stored, moments in kept
    ]
    return packed(
        [{**header, "schema": TAPE_SCHEMA, "regions": regions}, *(stored.tape.to_dict() for stored, _ in kept)]
    )


def lines_of(path: Path, what: str = "tape") -> list[bytes]:
    """The lines of a packed file, within the bounds on `what` it holds."""
    return unpacked(read_bytes(path, _LARGEST_BYTES, what), 16 * _LARGEST_BYTES).split(b"\n")


def tape_in(line: bytes) -> dict[str, Any]:
    """The tape that a line of a file holds."""
    document: dict[str, Any] = json.loads(line)
    return document | {"events": _turned(document["events"])}


def packed(documents: Iterable[Mapping[str, Any]]) -> bytes:
    """A packed file of these documents, one a line; the same bytes for the same documents. Those with `events` are
    tapes, which `tape_in` reads again."""
    text = "\n".join(
        json.dumps(
            {key: _turned(value) if key == "events" else value for key, value in document.items()},
            separators=(",", ":"),
        )
        for document in documents
    )
    return gzip.compress(text.encode(), mtime=0)


def _turned(events: Sequence[int]) -> list[int]:
    """Deaths by how many storages were born since, 1 for the last one, from their storages' numbers, or back."""
    births = accumulate(code > 0 for code in events)
    return [code if code > 0 else -(born + code + 1) for code, born in zip(events, births, strict=True)]


def header_of(path: Path) -> dict[str, Any]:
    """The first line of a tape file; an older schema's document as it is."""
    header: dict[str, Any] = json.loads(lines_of(path)[0])
    return header


@record
class _TapeFile:
    """A file of tapes as it was read; `tape` decodes one of its lines, once."""

    header: dict[str, Any]
    lines: list[bytes]
    decoded: dict[int, CompiledTape] = field(default_factory=dict)

    def tape(self, number: int) -> CompiledTape:
        """The tape of a line."""
        if number not in self.decoded:
            self.decoded[number] = CompiledTape.from_dict(tape_in(self.lines[number]))
        return self.decoded[number]


@lru_cache(maxsize=_MOST_KEPT)
def _read(path: Path, _changed_ns: int, _size: int) -> _TapeFile:
    """A file as it was when it had this size and time: a search asks the same one for every option set."""
    lines = lines_of(path)
    return _TapeFile(header=json.loads(lines[0]), lines=lines)


def _first(profile: ModelProfile, kind: str, dirs: Sequence[Path], pick: Callable[[_TapeFile], T | None]) -> T | None:
    made_from = profile.same_shape_sha256 or profile.config_sha256
    for folder in dirs:
        path = tape_path(folder, kind, profile.same_shape_as or profile.id)
        if not path.is_file():
            continue
        try:
            status = stat(path)
            file = _read(path, status.st_mtime_ns, status.st_size)
            if file.header["schema"] != TAPE_SCHEMA or file.header["config_sha256"] != made_from:
                return None
            return pick(file)
        except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
            raise InputError(
                f"{path}: not a readable trace ({type(error).__name__}); `make tapes` rebuilds it"
            ) from error
    return None
