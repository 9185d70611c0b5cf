"""`make families`, its end: from pieces to the files that ship, each proved at the catalogue's own traces.

python -m tools.families.pack PIECES [PIECES ...] ROOT. A model is answered from a family only where the default
recipe's tapes of the family are its own shipped tapes to the byte, in every region that both have; one that ships none
is traced once, at 960 tokens. The others are listed. Pieces for other libraries make further stacks, and what
`tools.families.stacks` wrote beside them is believed.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from qlora_planner.catalog.stack import same_code
from qlora_planner.errors import PlannerError
from qlora_planner.memory.options.resolve import resolve
from qlora_planner.memory.sweep.validity import ValidityRange, trace_key, validity_ranges
from qlora_planner.profiling.tapes import trace_run
from qlora_planner.record import record
from qlora_planner.sources.catalogue import ModelCatalogue
from qlora_planner.sources.configs import read_config
from qlora_planner.sources.families import FAMILY_SCHEMA, INDEX, WHOLE, fuses_short_rows, region_name
from qlora_planner.sources.tapes import KINDS, StoredTape, packed, stored_tapes
from qlora_planner.spec.family import SCANNED, Cut, FamilyTape, cut_by_kinds
from qlora_planner.spec.model import ModelProfile
from qlora_planner.spec.run import RunConfig
from qlora_planner.spec.trace import CompiledTape, Tape
from tools.families.make import STRUCTURES, in_one_order, structures
from tools.families.stacks import HOLDS, digest

_PROOF_TOKENS = (960, 2048, 1504)
Pieces = dict[tuple[str, str], dict[str, Any]]  # by variant and region, all of one stack


def differs(own: StoredTape, family: FamilyTape, profile: ModelProfile) -> str | None:
    """Where a family's tape is not a model's own, to the byte; None where it is."""
    for batch, seq, rank in _points(own.region):
        tape = family.of_model(profile, batch, seq)
        if tape is None:
            return "other layers or dimensions"
        if own.tape.segments != tape.segments or own.tape.places != tape.places:
            return "other segments"
        one, other = own.tape.at(batch, seq, rank), tape.at(batch, seq, rank)
        if one.events != other.events and bytes_of(one) != bytes_of(other):
            return f"other sizes at {batch} x {seq}"
    return None


def bytes_of(tape: Tape) -> list[tuple[int, bool]]:
    """What each event allocates or frees, and whether it is a library's workspace.

    Which of two storages of one size dies first is left open: gemma-3 and OLMo-3 make their tables of positions in the
    order of a Python set of words, which is another in each process. So is the order of deaths with no birth between
    them: releases of torch free what a node of autograd saved in orders of their own, and the same is free after them.
    """
    born: dict[int, int] = {}
    steps: list[tuple[int, bool]] = []
    dying: list[tuple[int, bool]] = []
    for storage, size in tape.events:
        born[storage] = size or -born.get(storage, 0)  # of no bytes is what a region's lowest length leaves empty
        step = born[storage], storage in tape.workspaces
        if not size:
            dying.append(step)
            continue
        steps += [*sorted(dying), step]
        dying.clear()
    return [*steps, *sorted(dying)]


def _points(region: ValidityRange) -> list[tuple[int, int, int]]:
    """Sizes inside a region, its ends among them."""
    if region.high - region.low == 1:
        return [(1, region.high, RunConfig().rank or 16)]
    if not region.batched:
        top = min(region.high, 4 * max(region.low, 2048))
        lengths = sorted({region.low + 1, (region.low + top) // 2, top})
        return [(1, seq, 16) for seq in lengths if region.holds(1, seq)]
    sizes = [(8, 512), (2, 1024), (4, 512), (3, 700), (12, 2048), (2, 5000), (9, 4100), (8, 300)]
    return [(batch, seq, 16) for batch, seq in sizes if region.holds(batch, seq)]


@record
class Proof:
    """Why a model is not answered from a family, every region in which its own trace is another (nothing: it is); and
    the layers that its own trace keeps."""

    faults: tuple[str, ...] = ()
    cut: Cut | None = None

    def header(self, profile: ModelProfile, header: Mapping[str, Any]) -> dict[str, Any]:
        """The header, with the layers that are traced of this model where its profile does not tell them."""
        if self.cut in (None, cut_by_kinds(profile)):
            return dict(header)
        return {**header, "cuts": {profile.config_sha256: self.cut}}


def proved(profile: ModelProfile, pieces: Pieces, header: Mapping[str, Any], root: Path) -> Proof:
    """Whether a model is answered from a family of these pieces, by the traces that ship of it."""
    faults: list[str] = []
    cut: Cut | None = None
    for kind in KINDS:
        for own in stored_tapes(profile, kind, [root / "tapes"]):
            name, one_length = region_name(profile, own.region), own.region.high - own.region.low == 1
            variant = own.tape.variant
            piece = _piece_for(pieces, variant, name, own.region.high) if one_length else pieces.get((variant, name))
            # Tapes of many lengths were compiled at such as fill blocks alike, so they prove nothing of blocks.
            if (
                piece is None
                or ("blocks" in piece["tape"] and not one_length)
                or (name.startswith("single short") and fuses_short_rows(profile))
            ):
                continue
            cut = own.tape.kept, own.tape.places
            family = FamilyTape.from_dict(piece["tape"], Proof(cut=cut).header(profile, header))
            fault = differs(own, family, profile)
            if fault is not None:
                faults.append(f"{name} ({own.region.low} to {own.region.high}): {fault}")
    return _traced_apart(profile, pieces, header, root) if cut is None else Proof(faults=tuple(faults), cut=cut)


def _traced_apart(profile: ModelProfile, pieces: Pieces, header: Mapping[str, Any], root: Path) -> Proof:
    """The same for a model that ships no trace: its default run at some lengths, traced now. Such as fill blocks and
    such as do not, where rows are taken in blocks."""
    source = read_config(root / "configs" / f"{profile.id.replace('/', '__')}.json")
    faults, cut, seen = [], None, 0
    for seq_len in _PROOF_TOKENS:
        resolution = resolve(profile, RunConfig(seq_len=seq_len))
        region = next(part for part in validity_ranges(profile, False) if part.holds(1, seq_len))
        variant, name = trace_key(resolution.run, resolution.stack, None), region_name(profile, region)
        piece = _piece_for(pieces, variant, name, seq_len)
        if piece is None or (seen and "blocks" not in piece["tape"]):
            continue
        try:
            own = trace_run(source, resolution, None)
        except PlannerError as error:
            return Proof(faults=(f"cannot be traced: {error}",))
        seen, cut = seen + 1, (own.kept, own.places)
        family = FamilyTape.from_dict(piece["tape"], Proof(cut=cut).header(profile, header))
        narrow = replace(region, low=seq_len - 1, high=seq_len)
        fault = differs(StoredTape(tape=CompiledTape.of(own, "own"), region=narrow), family, profile)
        faults += [] if fault is None else [fault]
    if not seen:
        return Proof(faults=("no tape of the default recipe to be proved at",))
    return Proof(faults=tuple(faults), cut=cut)


def _piece_for(pieces: Pieces, variant: str, name: str, seq_len: int) -> dict[str, Any] | None:
    """The piece that a run of this length is answered from."""
    for region in (f"{name}{WHOLE}", name):
        piece = pieces.get((variant, region))
        if piece is not None and FamilyTape.from_dict(piece["tape"], piece).lengths_alike(seq_len) is not None:
            return piece
    return None


def header_of(
    header: Mapping[str, Any], answered: Mapping[str, tuple[ModelProfile, Proof]], pieces: Iterable[Mapping[str, Any]]
) -> dict[str, Any]:
    """A family's header, with the layers that are traced of each model that it answers where some profile does not tell
    them; and for state spaces, whose heads toys keep in proportion to those that attend, as no profile says."""
    scans = any(SCANNED in piece["tape"].get("blocks", ()) and "scans" not in piece["tape"] for piece in pieces)
    if not scans and all(proof.header(profile, header) == header for profile, proof in answered.values()):
        return dict(header)
    return {**header, "cuts": {profile.config_sha256: proof.cut for profile, proof in answered.values()}}


class Stacks:
    """Versions of libraries, numbered as they come; the first are the catalogue's, which pieces without any are of."""

    def __init__(self, versions: Mapping[str, str]) -> None:
        self.known = [dict(versions)]
        self._proved: dict[str, set[int]] = defaultdict(set)

    def number(self, versions: Mapping[str, str] | None) -> int:
        """The number of these versions: of those whose models run the same code where there are such."""
        if versions is None:
            return 0
        for number, known in enumerate(self.known):
            if same_code(known, versions):
                return number
        self.known.append(dict(versions))
        return len(self.known) - 1

    def read(self, holds: Path) -> None:
        """What was proved of pieces at other versions."""
        for line in map(json.loads, holds.read_text("utf-8").splitlines() if holds.is_file() else ()):
            if line["same"]:
                self._proved[line["digest"]].add(self.number(line["versions"]))

    def of(self, piece: Mapping[str, Any]) -> list[int]:
        """The stacks that a piece holds for."""
        return sorted({self.number(piece.get("versions")), *self._proved[digest(piece)]})


def main(kept: Sequence[Path], root: Path) -> int:
    """Write the files and the index; print what is left out."""
    words = structures(root, kept[0].parent / STRUCTURES, jobs=2)
    catalogue = ModelCatalogue([root / "models"])
    stacks = Stacks(catalogue.load(catalogue.names()[0]).versions)
    by_word: dict[str, Pieces] = defaultdict(dict)
    others: dict[str, list[dict[str, Any]]] = defaultdict(list)
    headers: dict[str, dict[str, Any]] = {}
    for path in kept:
        stacks.read(path.parent / HOLDS)
        for piece in map(json.loads, path.read_text("utf-8").splitlines()):
            if "tape" not in piece:
                continue
            word = words[piece["name"]]
            if stacks.number(piece.get("versions")):
                others[word].append(piece)
                continue
            by_word[word].setdefault((piece["tape"]["variant"], piece["region"]), piece)
            # Tapes of heads that go tile by tile have symbols for a last tile after the class's own.
            symbols = max(headers.get(word, piece)["symbols"], piece["symbols"], key=len)
            headers[word] = {"symbols": symbols, "kinds": piece["kinds"]}
    index: dict[str, str] = {}
    (root / "families").mkdir(exist_ok=True)
    for old in (root / "families").glob("*.gz"):
        old.unlink()
    numbers: dict[str, int] = defaultdict(int)
    for word, pieces in sorted(by_word.items()):
        answered: dict[str, tuple[ModelProfile, Proof]] = {}
        for stem in (stem for stem, other in words.items() if other == word):
            profile = catalogue.load(stem.replace("__", "/", 1))
            proof = proved(profile, pieces, headers[word], root)
            if proof.faults:
                print(f"not {profile.id}: {'; '.join(proof.faults)}"[:300], flush=True)
            else:
                answered[profile.config_sha256] = profile, proof
        if not answered:
            continue
        profiles = [profile for profile, _ in answered.values()]
        model_type = profiles[0].model_type
        numbers[model_type] += 1
        file = f"{model_type}-{numbers[model_type]}"
        header = header_of(headers[word], answered, pieces.values())
        more = [
            piece
            for piece in others[word]
            if piece["kinds"] == header["kinds"] and piece["symbols"] == header["symbols"][: len(piece["symbols"])]
        ]
        _write(root / "families" / f"{file}.jsonl.gz", [*pieces.values(), *more], stacks, header, profiles)
        index |= dict.fromkeys(answered, file)
        print(f"{file}: {len(pieces)} tapes and {len(more)} of other stacks, {len(answered)} models", flush=True)
    document = {"schema": FAMILY_SCHEMA, "configs": dict(sorted(index.items()))}
    (root / "families" / INDEX).write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    return 0


def _write(
    path: Path, pieces: list[dict[str, Any]], stacks: Stacks, header: dict[str, Any], models: list[ModelProfile]
) -> None:
    """Once for each variant, region and stack."""
    kept = {(p["tape"]["variant"], p["region"], tuple(stacks.of(p))): p["tape"] for p in reversed(pieces)}
    ordered = sorted(kept.items())
    documents = [
        {
            "schema": FAMILY_SCHEMA, **header, "models": [profile.id for profile in models],
            "versions": stacks.known,
            "tapes": [
                {"variant": variant, "region": region, "stacks": numbers} for (variant, region, numbers), _ in ordered
            ],
        },
        *(tape for _, tape in ordered),
    ]  # fmt: skip
    path.write_bytes(packed(documents))


if __name__ == "__main__":
    in_one_order("tools.families.pack")
    *given, to = map(Path, sys.argv[1:])
    sys.exit(main(given, to))
