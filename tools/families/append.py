"""`make families-more`: add pieces to the families that ship, where the pieces that these were made of are not at hand.

python -m tools.families.append PIECES [PIECES ...] ROOT. A piece of a structure that ships goes into its file; one of
another structure makes a file of its own, for the models that `tools.families.pack` finds proved. Last, a catalogue
model whose text part has the shape of a model that is answered is answered from the same file.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from qlora_planner.sources.catalogue import ModelCatalogue
from qlora_planner.sources.configs import read_config
from qlora_planner.sources.families import FAMILY_SCHEMA, INDEX, known_configs
from qlora_planner.sources.tapes import lines_of, packed, tape_in
from qlora_planner.sources.unbuilt import by_text
from qlora_planner.spec.model import ModelProfile
from tools.families.make import STRUCTURES, in_one_order, structures
from tools.families.pack import Pieces, Proof, Stacks, header_of, proved
from tools.families.recipes import JOINED, RECIPES


class Shipped:
    """The files of families under a root, and which config is answered from which."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "families"
        self.index: dict[str, str] = json.loads((self.folder / INDEX).read_text("utf-8"))["configs"]

    def read(self, name: str) -> tuple[dict[str, Any], list[tuple[dict[str, Any], Any]]]:
        """A file's header, and its tapes beside what the header says of them."""
        head, *lines = lines_of(self.folder / f"{name}.jsonl.gz", "family")
        header = json.loads(head)
        return header, [(said, tape_in(line)) for said, line in zip(header["tapes"], lines, strict=True)]

    def write(self, name: str, header: dict[str, Any], tapes: list[tuple[dict[str, Any], Any]]) -> None:
        """A file, its tapes by variant and region, each once for the same stacks."""
        once = {
            (said["variant"], said["region"], tuple(said["stacks"])): (said, tape) for said, tape in reversed(tapes)
        }
        ordered = [once[key] for key in sorted(once)]
        documents = [header | {"tapes": [said for said, _ in ordered]}, *(tape for _, tape in ordered)]
        (self.folder / f"{name}.jsonl.gz").write_bytes(packed(documents))

    def new_name(self, model_type: str) -> str:
        """A name for another structure of a class."""
        taken = {name for name in self.index.values() if name.rpartition("-")[0] == model_type}
        return f"{model_type}-{1 + max((int(name.rpartition('-')[2]) for name in taken), default=0)}"

    def write_index(self) -> None:
        """Which config is answered from which file."""
        document = {"schema": FAMILY_SCHEMA, "configs": dict(sorted(self.index.items()))}
        (self.folder / INDEX).write_text(json.dumps(document, indent=1) + "\n", "utf-8")


def _extended(shipped: Shipped, name: str, pieces: Sequence[Mapping[str, Any]]) -> str:
    header, tapes = shipped.read(name)
    stacks = Stacks(header["versions"][0])
    stacks.known = list(header["versions"])
    before = len(tapes)
    kept = {(said["variant"], said["region"], number) for said, _ in tapes for number in said["stacks"]}
    for piece in pieces:
        symbols = piece["symbols"][: len(header["symbols"])]
        if piece["kinds"] != header["kinds"]:
            return f"{name}: other layers than {piece['name']}"
        tape = piece["tape"]
        if symbols != header["symbols"][: len(symbols)]:  # it has its dimensions in another order
            tape = {"symbols": piece["symbols"], **tape}
        elif len(piece["symbols"]) > len(header["symbols"]):  # those of heads that go tile by tile come last
            header["symbols"] = piece["symbols"]
        said = {"variant": piece["tape"]["variant"], "region": piece["region"], "stacks": stacks.of(piece)}
        if not kept & {(said["variant"], said["region"], number) for number in said["stacks"]}:
            tapes.append((said, tape))
    header["versions"] = stacks.known
    shipped.write(name, header, tapes)
    return f"{name}: {before} tapes, now {len(tapes)}"


def _begun(
    shipped: Shipped, root: Path, catalogue: ModelCatalogue, stems: Sequence[str], pieces: Sequence[Mapping[str, Any]]
) -> str:
    """A file for a structure that did not ship."""
    longest = max((piece["symbols"] for piece in pieces), key=len)
    header = {"symbols": longest, "kinds": pieces[0]["kinds"]}
    by_variant: Pieces = {(piece["tape"]["variant"], piece["region"]): dict(piece) for piece in pieces}
    answered: dict[str, tuple[ModelProfile, Proof]] = {}
    faults = []
    for stem in stems:
        profile = catalogue.load(stem.replace("__", "/", 1))
        proof = proved(profile, by_variant, header, root)
        if proof.faults:
            faults.append(f"  not {profile.id}: {'; '.join(proof.faults)}"[:300])
        else:
            answered[profile.config_sha256] = profile, proof
    if not answered:
        return "\n".join([f"nothing for {stems[0]}", *faults])
    profiles = [profile for profile, _ in answered.values()]
    name = shipped.new_name(profiles[0].model_type)
    stacks = Stacks(profiles[0].versions)
    tapes = [
        ({"variant": p["tape"]["variant"], "region": p["region"], "stacks": stacks.of(p)}, p["tape"]) for p in pieces
    ]
    head = header_of(header, answered, pieces) | {"models": [profile.id for profile in profiles]}
    shipped.write(name, {"schema": FAMILY_SCHEMA, **head, "versions": stacks.known}, tapes)
    shipped.index |= dict.fromkeys(answered, name)
    return "\n".join([f"{name}: {len(tapes)} tapes for {len(answered)} models", *faults])


def _text_parts(shipped: Shipped, root: Path, catalogue: ModelCatalogue) -> int:
    """Models that are planned by a text part of the shape, or by the law, of a model that is answered."""
    seen = 0
    for model_id in catalogue.names():
        profile = catalogue.load(model_id)
        if profile.text_part_of is None or profile.config_sha256 in shipped.index:
            continue
        raw = read_config(root / "configs" / f"{model_id.replace('/', '__')}.json", model_id=model_id)
        known, _ = by_text(replace(raw, sha256="0" * 64), catalogue)
        base = None if known is None else known.same_shape_sha256 or known.family_sha256
        if known is None or base not in known_configs([shipped.folder]):
            continue
        name = shipped.index[base]
        header, tapes = shipped.read(name)
        if not set(known.drawn_dims) <= set(header["symbols"]):
            continue
        if "cuts" in header:
            if known.same_shape_sha256 not in header["cuts"]:
                continue
            header["cuts"][profile.config_sha256] = header["cuts"][known.same_shape_sha256]
            shipped.write(name, header, tapes)
        shipped.index[profile.config_sha256] = name
        seen += 1
    return seen


def main(kept: Sequence[Path], root: Path) -> int:
    """Write the files and the index; print what became of each structure."""
    shipped, catalogue = Shipped(root), ModelCatalogue([root / "models"])
    if kept:
        read = [json.loads(line) for path in kept for line in path.read_text("utf-8").splitlines()]
        given = [piece for piece in read if "tape" in piece and piece["recipe"] in {**RECIPES, **JOINED}]
        named = {piece["name"] for piece in given}
        words = structures(root, kept[0].parent / STRUCTURES, 1, named)
        by_word: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for piece in given:
            by_word[words[piece["name"]]].append(piece)
        for word, pieces in sorted(by_word.items()):
            stems = [stem for stem, other in words.items() if other == word]
            shas = [catalogue.load(stem.replace("__", "/", 1)).config_sha256 for stem in stems]
            name = next((shipped.index[sha] for sha in shas if sha in shipped.index), None)
            if name is None:
                print(_begun(shipped, root, catalogue, stems, pieces), flush=True)
            else:
                print(_extended(shipped, name, pieces), flush=True)
            shipped.write_index()
    print(f"{_text_parts(shipped, root, catalogue)} models by the shape of their text part")
    shipped.write_index()
    return 0


if __name__ == "__main__":
    in_one_order("tools.families.append")
    *given, to = map(Path, sys.argv[1:])
    sys.exit(main(given, to))
