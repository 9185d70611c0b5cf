"""Families for a trainer that joins rows and changes the libraries for whoever imports it: Unsloth.

ENVIRONMENT/bin/python -m tools.families.joined OUT --names A,B [--cards A,B] [--recipes A,B] [--regions A] ...

Run by the python of an environment that has its packages. Toys are made before they are imported, since a traced step
leaves classes changed; then each piece is traced on six toys, solved, and written as `tools.families.make` does.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from qlora_planner.catalog.trainers import trainer_named
from qlora_planner.memory.options.resolve import Resolution
from qlora_planner.memory.sweep.joined import JOINED, TABLE_PART, joined_letters, joined_region, tables
from qlora_planner.memory.sweep.validity import trace_key
from qlora_planner.session import load_gpu
from qlora_planner.spec.trace import Tape
from tools.compiling import Point, aligned_codes
from tools.families.fitting import SizeFitter
from tools.families.make import in_one_order, quieten
from tools.families.recipes import JOINED as RECIPES
from tools.families.toys import Toys, toys_of
from tools.families.tracing import CONFIGS, never_fused, solved, toy_resolution, trace_toy

CARDS = ("rtx-4090", "t4", "a100-80gb", "h100")
SMALL_CARD, CUDNN_CARDS = "rtx-4090", ("h100",)
_RANKS = (8, 24, 56, 40, 16, 72)
# Heads are wider together than the hidden size and narrower than the MLP, as those of models are.
_WIDER = (3, 4, 5, 3, 4, 5)
# In the last part of rotary tables.
_POSITIONS = (16832, 21120, 30016, 8448, 12352, 26240)
# Words that are whole numbers of eight: up to two splits of them, and more.
_FEW_WORDS, _MANY_WORDS = (18960, 24000, 30000, 32000, 20480, 16000), (64000, 100352, 33000, 128256, 151936, 50304)
_ROWS, _MIXED_ROWS = (2, 3, 4, 3, 5, 4), (1, 2, 3, 1, 4, 2)
# Of few tokens, of some thousand, and of more and of less than MOST_ROWS.
_LENGTHS = {
    "single": (
        (128, 320, 448, 192, 384, 256),
        (4160, 3904, 6400, 4672, 3776, 5248),
        (4160, 4224, 6400, 4672, 5248, 4800),
        (4032, 3904, 3968, 3840, 4032, 3776),
    ),
    "batched": (
        (64, 128, 64, 128, 64, 64),
        (1984, 1344, 2112, 1472, 1280, 1600),
        (2112, 1408, 2112, 1472, 1280, 1600),
        (1984, 1344, 960, 1280, 768, 960),
    ),
    JOINED: (
        (192, 128, 64, 320, 64, 192),
        (4160, 1984, 1344, 6400, 960, 3776),
        (4160, 2112, 1472, 6400, 1088, 3776),
        (4032, 1984, 1344, 3968, 960, 1920),
    ),
}


def points(rows: str, size: int) -> list[Point]:
    """Sizes (batch, sequence, rank) for as many traces, all of whole blocks of 64 tokens: of one row, of several, or of
    both where they are one tape."""
    counts = {"single": (1,) * CONFIGS, "batched": _ROWS, JOINED: _MIXED_ROWS}[rows]
    return list(zip(counts, _LENGTHS[rows][size], _RANKS, strict=False))


@lru_cache(maxsize=64)
def joined_toys(config: str, words: tuple[int, ...]) -> Toys:
    """Toys of a config, given as text, with heads, words and positions as models have them beside each other."""
    raw = json.loads(config)
    toys = toys_of(raw, aligned=True)
    before = TABLE_PART * (tables(raw) - 1)
    configs, dims = [], []
    for at, (small, row) in enumerate(zip(toys.configs[:CONFIGS], toys.dims, strict=False)):
        own = {
            "intermediate_size": _WIDER[at] * row["num_attention_heads"] * row["head_dim"] + 64 * at,
            "vocab_size": words[at],
            "max_position_embeddings": before + _POSITIONS[at],
        }
        configs.append({**small, **own})
        dims.append({**row, **own})
    return replace(toys, configs=tuple(configs), dims=tuple(dims))


def prepared(config: str, recipe: str, card: str) -> Iterator[tuple[dict[str, Any], list[Any]]]:
    """The pieces of one model, recipe and card: what names each, and the toys and sizes that it is made from."""
    run, gpu = RECIPES[recipe], load_gpu(card)
    seen: set[str | None] = set()
    for many in (True, False):
        if not many and card == SMALL_CARD and json.loads(config)["vocab_size"] > _MANY_WORDS[2]:
            continue
        toys = joined_toys(config, _MANY_WORDS if many else _FEW_WORDS)
        for rows in ("single", "batched") if card in CUDNN_CARDS else (JOINED,):
            resolution = toy_resolution(toys, run, gpu, rows == "batched")
            words = trace_key(resolution.run, resolution.stack, gpu).split()
            for size in (1, 2, 3, 0):
                sizes = points(rows, size)
                names = {joined_region(words, row, b, s) for row, (b, s, _) in zip(toys.dims, sizes, strict=False)}
                if len(names) != 1 or names & seen:
                    continue
                seen |= names
                yield {"recipe": recipe, "card": card, "region": names.pop()}, [toys, resolution, sizes]


def made(name: str, said: Mapping[str, Any], given: list[Any]) -> dict[str, Any]:
    """One piece: its tape, or the reason why there is none."""
    from qlora_planner.installing import installed_versions as of_packages
    from qlora_planner.sources.profile_cache import installed_versions

    started = time.process_time()
    line: dict[str, Any] = {"name": name, **said}
    try:
        quieten()
        line |= _traced(said["card"], *given)
    except Exception as error:  # the reason is what is wanted of a piece that cannot be made
        line["error"] = f"{type(error).__name__}: {error}"[:500]
    versions = installed_versions() | of_packages(given[1].trainer.packages)
    return line | {"versions": versions, "seconds": round(time.process_time() - started, 1)}


def _traced(card: str, toys: Toys, resolution: Resolution, sizes: list[Point]) -> dict[str, Any]:
    gpu = load_gpu(card)
    key = trace_key(resolution.run, resolution.stack, gpu).split()
    variant = " ".join(word for word in key if word != "padding")
    with never_fused():
        tapes: list[Tape] = [
            trace_toy(config, resolution, gpu, point) for config, point in zip(toys.configs, sizes, strict=True)
        ]
    letters = [joined_letters(key, row, b, s) for row, (b, s, _) in zip(toys.dims, sizes, strict=True)]
    own = [name for name in toys.dims[0] if name != "max_position_embeddings"]
    rows = [{**row, **more} for row, more in zip(toys.dims, letters, strict=True)]
    symbols = (*own, *letters[0])
    fitter = SizeFitter(symbols, rows, sizes, ())
    tape, terms = solved(tapes, aligned_codes(tapes, sizes), variant, lambda _at, observed: fitter.fit(observed), ())
    document = tape.to_dict()
    document["sizes"] = [
        [[c.numerator, c.denominator, *m, *(symbols.index(name) for name in product)] for c, m, product in size]
        for size in terms
    ]
    document |= {"symbols": own, "letters": list(letters[0])}
    if len(tapes[0].kept) > len(toys.kinds):
        document["last_apart"] = True
    return {"kinds": toys.kinds, "symbols": own, "tape": document}


def begin(packages: tuple[str, ...]) -> None:
    """Import what changes the libraries, in a process that does nothing else."""
    from qlora_planner.profiling.tracing import apart

    importlib.import_module(packages[0])
    apart.stand_in()


def main(given: argparse.Namespace) -> int:
    """Make what is missing; print each piece as it ends."""
    path = given.out / "pieces.jsonl"
    given.out.mkdir(parents=True, exist_ok=True)
    done = [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []
    have = {(line["name"], line["recipe"], line["card"], line["region"]) for line in done}
    quieten()
    begun = time.monotonic()
    trainer = trainer_named("unsloth")
    os.environ.update(trainer.trace_environment)
    for card in given.cards.split(","):  # what its kernels ask of a card is kept for the whole process
        with ProcessPoolExecutor(
            given.jobs, mp_context=get_context("spawn"), initializer=begin, initargs=(trainer.packages,)
        ) as pool:
            work = [
                pool.submit(made, name, said, what)
                for recipe in given.recipes.split(",")
                for name in given.names.split(",")
                for said, what in prepared((given.root / "configs" / f"{name}.json").read_text("utf-8"), recipe, card)
                if (name, recipe, card, said["region"]) not in have and given.regions in said["region"]
            ]
            for future in as_completed(work):
                line = future.result()
                with path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
                what = line.get("error", f"{len(line.get('tape', {}).get('events', ()))} events")
                about = [line[key] for key in ("name", "recipe", "card", "region")]
                print(*about, line["seconds"], "s", what[:200], flush=True)
                if time.monotonic() - begun > given.seconds:
                    pool.shutdown(wait=False, cancel_futures=True)
                    return 0
    return 0


if __name__ == "__main__":
    in_one_order("tools.families.joined")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path)
    parser.add_argument("--names", required=True)
    parser.add_argument("--cards", default=",".join(CARDS))
    parser.add_argument("--recipes", default="joined")
    parser.add_argument("--regions", default="", help="those alone whose name has this")
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--root", type=Path, default=Path("profiles"))
    raise SystemExit(main(parser.parse_args()))
