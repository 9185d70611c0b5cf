"""`make families`, one recipe more: pieces beside the tapes that ship.

python -m tools.families.add PIECES [PIECES ...] ROOT. Each piece goes into the file from which its model is answered;
what that file has of a recipe and region stays, unless `--anew` is given. Pieces of other dimensions or layers than
their file's are counted and left out, as are those that could not be made.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qlora_planner.catalog.stack import same_code
from qlora_planner.sources.catalogue import ModelCatalogue
from qlora_planner.sources.families import INDEX
from qlora_planner.sources.tapes import lines_of, packed


def added(path: Path, pieces: Sequence[dict[str, Any]], anew: bool) -> Counter[str]:
    """Put pieces into a family's file; how many were added, kept as they were, or left out and why."""
    header, *tapes = (json.loads(line) for line in lines_of(path, "family"))
    rows = [(row["variant"], row["region"], tuple(row.get("stacks", (0,)))) for row in header["tapes"]]
    kept = dict(zip(rows, tapes, strict=True))
    counts: Counter[str] = Counter()
    for piece in pieces:
        symbols = piece["symbols"]
        longer = max(header["symbols"], symbols, key=len)
        if piece["kinds"] != header["kinds"] or longer[: len(symbols)] != symbols:
            counts["other dimensions or layers"] += 1
            continue
        stacks = tuple(at for at, known in enumerate(header["versions"]) if same_code(known, piece["versions"]))
        if not stacks:
            counts["other libraries"] += 1
            continue
        header["symbols"] = longer
        key = (piece["tape"]["variant"], piece["region"], stacks)
        if key in kept and not anew:
            counts["there already"] += 1
            continue
        kept[key] = piece["tape"]
        counts["added"] += 1
    ordered = sorted(kept.items(), key=lambda pair: pair[0])
    header["tapes"] = [
        {"variant": variant, "region": region, "stacks": list(stacks)} for (variant, region, stacks), _ in ordered
    ]
    path.write_bytes(packed([header, *(tape for _, tape in ordered)]))
    return counts


def main() -> int:
    """The command line above."""
    parser = argparse.ArgumentParser()
    parser.add_argument("pieces", type=Path, nargs="+")
    parser.add_argument("root", type=Path)
    parser.add_argument("--anew", action="store_true", help="in place of what is there")
    given = parser.parse_args()
    catalogue = ModelCatalogue([given.root / "models"])
    index = json.loads((given.root / "families" / INDEX).read_text("utf-8"))["configs"]
    by_file: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for path in given.pieces:
        for piece in map(json.loads, path.read_text("utf-8").splitlines()):
            file = index.get(catalogue.load(piece["name"].replace("__", "/", 1)).config_sha256)
            if "tape" not in piece or file is None:
                print(f"not {piece['name']}, {piece['recipe']}: {piece.get('error', 'no family')}"[:200], flush=True)
            else:
                by_file[file].append(piece)
    for file, pieces in sorted(by_file.items()):
        counts = added(given.root / "families" / f"{file}.jsonl.gz", pieces, given.anew)
        print(f"{file}: " + ", ".join(f"{count} {what}" for what, count in sorted(counts.items())), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
