"""Whether shipped tapes of runs with images are what the model's own traces are, to the byte, at sizes not made from.

python -m tools.images.check ROOT DRAWS SEED [MODEL ...]. Draws a tape, a size of image, a length and a rank at random,
traces that very run, and prints those that differ; 1 where one does.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from pathlib import Path

from qlora_planner.catalog.images import picture_of
from qlora_planner.memory.options.resolve import resolve
from qlora_planner.memory.sweep.validity import trace_key
from qlora_planner.profiling.tapes import trace_run
from qlora_planner.sources.catalogue import ModelCatalogue
from qlora_planner.sources.traces.image_tapes import OF_IMAGES, image_tape
from qlora_planner.spec.run import RunConfig
from tools.families.pack import bytes_of
from tools.images.make import RECIPES, config_of

_SIDES = range(224, 1800)
_LENGTHS = {"middle": range(600, 4096, 8), "long": range(4100, 9000, 8)}


def drawn(root: Path, name: str, chance: random.Random) -> RunConfig:
    """A run of some recipe that a model's file may answer."""
    profile = ModelCatalogue([root / "whole"]).load(name)
    while True:
        recipe = chance.choice(list(RECIPES.values()))
        run = recipe.with_(seq_len=chance.choice(_LENGTHS[chance.choice(list(_LENGTHS))]), rank=chance.randrange(4, 80))
        if not recipe.images:
            return run
        run = run.with_(image_size=f"{chance.choice(_SIDES)}x{chance.choice(_SIDES)}")
        if picture_of(profile.model_type, profile.dims, run).all_tokens * recipe.images < run.seq_len:
            return run


def differs(root: Path, name: str, run: RunConfig) -> str | None:
    """What is unlike in the shipped tape of a run; an empty text where none ships, None where nothing is."""
    profile = ModelCatalogue([root / "whole"]).load(name)
    resolution = resolve(profile, run, None)
    variant = trace_key(resolution.run, resolution.stack, None)
    stored = image_tape(profile, variant, [root / "tapes"], run.batch_size, run.seq_len, profile.versions)
    if stored is None:
        return ""
    own, shipped = (
        trace_run(config_of(root, name), resolution, None),
        stored.tape.at(run.batch_size, run.seq_len, run.rank),
    )
    if (own.segments, own.places, own.kept) != (shipped.segments, shipped.places, shipped.kept):
        return "other segments"
    if own.events == shipped.events:
        return None
    one, other = bytes_of(own), bytes_of(shipped)
    return None if one == other else f"{sum(a != b for a, b in zip(one, other, strict=True))} sizes"


def main(root: Path, draws: int, seed: int, names: Sequence[str]) -> int:
    """Compare and print."""
    chance, faults, compared = random.Random(seed), 0, 0
    shipped = [
        path.name.removesuffix(".jsonl.gz").replace("__", "/") for path in (root / "tapes" / OF_IMAGES).iterdir()
    ]
    while compared < draws:
        name = chance.choice(sorted(names or shipped))
        run = drawn(root, name, chance)
        fault = differs(root, name, run)
        if fault == "":
            continue
        compared += 1
        faults += fault is not None
        words = f"{name}, {run.images} x {run.image_size}, {run.seq_len} tokens, rank {run.rank}"
        print(f"{'' if fault is None else 'NOT '}as traced: {words}{'' if fault is None else ': ' + fault}", flush=True)
    print(f"{compared} runs compared, {faults} differ")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]))
