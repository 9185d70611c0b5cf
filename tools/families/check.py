"""Families against models' own traces, at sizes and models drawn at random: equal to the byte, or listed.

python -m tools.families.check [--draws N] [--seed N]. Exits with 1 where any differs. Some seconds a draw.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

from qlora_planner.memory.options.resolve import resolve
from qlora_planner.memory.sweep.validity import trace_key
from qlora_planner.profiling.tapes import trace_run
from qlora_planner.session import load_gpu
from qlora_planner.sources.catalogue import ModelCatalogue
from qlora_planner.sources.configs import read_config
from qlora_planner.sources.families import family_tape
from qlora_planner.spec.trace import CompiledTape
from tools.families.recipes import RECIPES

SIZES = [(1, 416), (1, 1600), (1, 2048), (1, 3968), (1, 4800), (1, 8000), (2, 1024), (4, 512), (3, 1216), (8, 2048)]


def main() -> int:
    """The command line above."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", type=Path, default=Path("profiles"))
    parser.add_argument("--draws", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    drawn, catalogue = random.Random(given.seed), ModelCatalogue([given.root / "models"])
    names, compared, faults = sorted(catalogue.names()), 0, 0
    while compared < given.draws:
        name, (batch, seq) = drawn.choice(names), drawn.choice(SIZES)
        recipe, (run, before_80) = drawn.choice(sorted(RECIPES.items()))
        profile, gpu = catalogue.load(name), load_gpu("t4") if before_80 else None
        resolution = resolve(profile, run.with_(batch_size=batch, seq_len=seq, rank=drawn.choice([4, 16, 48])), gpu)
        variant = trace_key(resolution.run, resolution.stack, gpu)
        family = family_tape(profile, variant, [given.root / "families"], batch, seq)
        if family is None or run.stack:  # of older losses a few chunks stand for all: the peak is alike, not the events
            continue
        source = read_config(given.root / "configs" / (name.replace("/", "__") + ".json"))
        own = CompiledTape.of(trace_run(source, resolution, gpu), "own")
        sizes = batch, seq, resolution.run.rank
        compared += 1
        if own.at(*sizes) != family.tape.at(*sizes):
            faults += 1
            print(f"differs: {name}, {recipe}, {batch} x {seq}", flush=True)
    print(f"{compared - faults} of {compared} the same to the byte")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
