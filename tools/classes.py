"""docs/classes.md: what a base install answers of each class that transformers has a causal language model for.

python -m tools.classes ROOT PAGE writes the table between the page's markers, from what ships under ROOT alone.
python -m tools.classes ROOT takes the names of the classes from the transformers that is installed, beside those of
other releases, into ROOT/laws/classes.json.
"""

from __future__ import annotations

import gzip
import json
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qlora_planner.sources.families import INDEX
from qlora_planner.sources.tapes import header_of
from qlora_planner.sources.text_part import WRAPPERS
from tools.readme import regenerated

CLASSES = "classes.json"
MARKER = "classes"
# Why a class of the catalogue has no law: what `make laws` says, in short.
WITHOUT_LAW = {
    "ernie4_5_moe": "a last layer of experts of -1 is not understood",
    "glm_moe_dsa": "the known model's head_dim is not what its class works out",
    "gpt_neo": "no toy of it can be built: its heads do not divide another width",
    "jamba": "its state spaces do not run on 4-bit weights",
    "mpt": "another vocabulary than a toy's is built otherwise than the law says",
    "recurrent_gemma": "the making of its law was not finished",
}
# Classes whose families hold a number that their configs may change.
LINEAR = ("olmo_hybrid", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next")


def names_of_installed(root: Path) -> None:
    """Write the classes of the installed transformers beside those that are there."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    path = root / "laws" / CLASSES
    releases: dict[str, list[str]] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    releases[transformers.__version__] = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    path.write_text(
        "{\n" + ",\n".join(f" {json.dumps(k)}: {json.dumps(v)}" for k, v in sorted(releases.items())) + "\n}\n"
    )


class Shipped:
    """What ships of each class: catalogue models, structures with a law, models with a family, tapes."""

    def __init__(self, root: Path) -> None:
        self.releases: dict[str, list[str]] = json.loads((root / "laws" / CLASSES).read_text("utf-8"))
        self.wrappers: Mapping[str, Any] = json.loads((root / "laws" / WRAPPERS).read_text("utf-8"))["classes"]
        self.laws = {
            path.name.partition(".")[0]: len(json.loads(gzip.decompress(path.read_bytes()))["structures"])
            for path in (root / "laws").glob("*.json.gz")
        }
        self.models, self.answered = Counter[str](), Counter[str]()
        index = json.loads((root / "families" / INDEX).read_text("utf-8"))["configs"]
        for path in sorted((root / "models").glob("*.json")):
            profile = json.loads(path.read_text("utf-8"))
            kind = profile.get("text_part_of") or profile["model_type"]
            self.models[kind] += 1
            own = root / "tapes" / "single" / f"{path.stem}.jsonl.gz"
            traced = own.is_file() and bool(header_of(own)["regions"])
            self.answered[kind] += traced or profile["config_sha256"] in index
        self.tapes, self.drawn = Counter[str](), Counter[str]()  # all, and those that answer for other sizes too
        for path in (root / "families").glob("*.jsonl.gz"):
            header = json.loads(gzip.decompress(path.read_bytes()).split(b"\n", 1)[0])
            kind = path.name.rpartition("-")[0]
            self.tapes[kind] += len(header["tapes"])
            self.drawn[kind] += 0 if "cuts" in header else len(header["tapes"])

    def row(self, kind: str) -> tuple[str, ...]:
        """A class: where it is, models, law, tapes, and how a config.json of it is answered without torch."""
        since = [release for release, names in self.releases.items() if kind in names]
        where = "both" if len(since) == len(self.releases) else ", ".join(since)
        law, tapes = self.laws.get(kind, 0), self.tapes[kind]
        return kind, where, str(self.models[kind] or ""), str(law or ""), str(tapes or ""), self.answer(kind)

    def answer(self, kind: str) -> str:
        """How a config.json of this class is answered without torch."""
        part = self.wrappers.get(kind, {}).get("text")
        if kind in self.wrappers:
            text = self.wrappers[kind]["texts"].get(part, {"law": part})["law"]
            return f"by its text part, {text}" if text in self.laws else f"refused: no law of its text part, {text}"
        if kind in self.laws:
            alike = (
                " with the linear attention of a known model, without flash-linear-attention" if kind in LINEAR else ""
            )
            return f"any sizes{alike}" if self.drawn[kind] else "any sizes profiled; runs of catalogue models"
        if self.models[kind]:
            known = "catalogue models alone" if self.answered[kind] else "refused"
            return f"{known}: {WITHOUT_LAW.get(kind, 'no law yet')}"
        return "refused: no model of it in the catalogue"


def table(root: Path) -> str:
    """Every class of the mapping in any of the releases, those with most models in the catalogue first."""
    shipped = Shipped(root)
    kinds = {kind for names in shipped.releases.values() for kind in names}
    ordered = sorted(kinds, key=lambda kind: (-shipped.models[kind], kind not in shipped.laws, kind))
    counts = [
        f"{len(kinds)} classes in transformers {' and '.join(shipped.releases)}: "
        f"{sum(kind in shipped.laws for kind in kinds)} with a law, "
        f"{sum(bool(shipped.tapes[kind]) for kind in kinds)} with tapes, "
        f"{sum(shipped.answer(kind).startswith('by its text part') for kind in kinds)} by their text part; "
        f"{sum(shipped.tapes.values()):,} tapes.",
        "",
        "| class | transformers | models | structures with a law | tapes | a config.json without torch |",
        "| --- | --- | ---: | ---: | ---: | --- |",
    ]
    parts = sorted(kind for kind in shipped.wrappers if shipped.answer(kind).startswith("by its text part"))
    counts.insert(1, f"\nBy their text part besides: {', '.join(kind for kind in parts if kind not in kinds)}.")
    return "\n".join([*counts, *(f"| {' | '.join(shipped.row(kind))} |" for kind in ordered)])


def main(root: Path, page: Path | None = None) -> int:
    """The command lines above."""
    if page is None:
        names_of_installed(root)
        return 0
    page.write_text(regenerated(page.read_text("utf-8"), {MARKER: table(root)}, str(page)), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
