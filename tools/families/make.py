"""`make families`: trace every structure of the catalogue for every recipe.

python -m tools.families.make OUT [--jobs N] [--seconds S] [--names A,B] [--recipes A,B] [--regions A,B] [--all]

Each piece of work ends in a line of OUT/pieces.jsonl, errors among them; pieces that are there already are not made
again, so that it can be stopped and called anew. `tools.families.pack` makes the shipped files of them.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from qlora_planner.memory.sweep.tasks import is_task
from qlora_planner.sources.families import WHOLE
from tools.families.blocks import chunk_of
from tools.families.recipes import RECIPES, batches_only
from tools.families.regions import Region, regions
from tools.families.scans import CHUNKS
from tools.families.task_regions import TaskRegion, task_regions
from tools.families.toys import NOT_ARCHITECTURE, Toys, toys_of

# The classes most used come first, so that a run that is stopped has made what is asked for most.
FIRST = (
    "llama",
    "qwen2",
    "mistral",
    "qwen3",
    "gemma2",
    "gemma3_text",
    "phi3",
    "gemma",
    "gpt_neox",
    "gpt2",
    "ministral3",
)
Piece = tuple[str, str, str]
STRUCTURES = "structures.json"
_HASH_SEED = "PYTHONHASHSEED"
# Fields that say which layers there are, as the kinds do, or of a head that is not trained.
_IN_KINDS = ("full_attention_interval", "num_nextn_predict_layers")


def structure_of(raw: dict[str, Any]) -> str:
    """A word for the structure of a config: its first toy, with whether it has a sliding window."""
    toys = toys_of(raw)
    small = {
        key: _told_apart(key, value)
        for key, value in toys.configs[0].items()
        if key not in NOT_ARCHITECTURE and not key.endswith("_token_id") and key not in _IN_KINDS and value != []
    }
    windowed = isinstance(small.get("sliding_window"), int) and small.get("use_sliding_window") is not False
    if windowed:
        small["sliding_window"] = True
    return json.dumps([small, toys.kinds], sort_keys=True, default=str)


def _told_apart(name: str, value: Any) -> Any:
    """What of a field may make another structure: of a number with a fraction whether it is zero, of rotary positions
    which part of a head they turn and whether they have factors for short and long rows (`make fields` found so).
    Whether that holds is proved at the end, at every model's own trace."""
    if isinstance(value, float):
        return value != 0
    if name == "max_window_layers":  # read where sliding windows are used alone, whose pattern is among the kinds
        return None
    if name.startswith("rope_"):
        rope = value if isinstance(value, Mapping) else {}
        part, kind = rope.get("partial_rotary_factor") or 1.0, rope.get("rope_type", rope.get("type"))
        return [part, kind == "longrope"] if part != 1.0 or kind == "longrope" else None
    return value


def structures(root: Path, kept: Path, jobs: int, named: Collection[str] | None = None) -> dict[str, str]:
    """The structure of every config of the catalogue by file name, or why there is none; minutes, and so kept. With
    `named` of those alone that are of the classes of these."""
    configs = {path.stem: json.loads(path.read_text("utf-8")) for path in sorted((root / "configs").glob("*.json"))}
    words: dict[str, str] = json.loads(kept.read_text("utf-8")) if kept.is_file() else {}
    classes = {configs[stem]["model_type"] for stem in configs if named is None or stem in named}
    wanted = [stem for stem, config in configs.items() if config["model_type"] in classes]
    missing = [stem for stem in wanted if stem not in words]
    if missing:
        with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
            words |= zip(missing, pool.map(_structure, [configs[stem] for stem in missing]), strict=True)
        kept.write_text(json.dumps(words, indent=0), "utf-8")
    return {stem: words[stem] for stem in wanted}


def _structure(raw: dict[str, Any]) -> str:
    quieten()
    try:
        return structure_of(raw)
    except Exception as error:  # a class of which no toys can be made
        return f"refused: {type(error).__name__}: {error}"[:200]


def made(piece: Piece, raw: dict[str, Any]) -> dict[str, Any]:
    """One piece of work: its family's tape, or the reason why there is none."""
    from qlora_planner.sources.profile_cache import installed_versions

    started = time.process_time()
    name, recipe, region_name = piece
    line: dict[str, Any] = {"name": name, "recipe": recipe, "region": region_name}
    try:
        quieten()
        line |= _traced(name, raw, recipe, region_name)
    except Exception as error:  # the reason is what is wanted of a piece that cannot be made
        line["error"] = f"{type(error).__name__}: {error}"[:500]
    return line | {"versions": installed_versions(), "seconds": round(time.process_time() - started, 1)}


def in_one_order(module: str) -> None:
    """Start the program `module` again where words hash otherwise in each process: some classes make their tables of
    positions in the order of a set of words, and gemma-4's differ in size."""
    if os.environ.get(_HASH_SEED) != "0":
        os.execve(sys.executable, [sys.executable, "-m", module, *sys.argv[1:]], {**os.environ, _HASH_SEED: "0"})


def quieten() -> None:
    """One thread and no chatter of the libraries."""
    import warnings

    import torch
    import transformers

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity(50)


def _traced(name: str, raw: dict[str, Any], recipe: str, region_name: str) -> dict[str, Any]:
    from qlora_planner.session import load_gpu, load_model
    from tools.families.tracing import family_tape

    run, before_80 = RECIPES[recipe]
    region = region_for(recipe, region_name)
    toys = toys_for(json.dumps(raw), region.windows, region.tiled, before_80)
    refusals = dict(load_model(name.replace("__", "/", 1)).refusals)
    family = family_tape(replace(toys, refusals=refusals), run, load_gpu("t4") if before_80 else None, region)
    document = family.tape.to_dict()
    names = (*family.symbols, *family.letters)
    document["sizes"] = [
        [[c.numerator, c.denominator, *m, *(names.index(name) for name in product)] for c, m, product in terms]
        for terms in family.sizes
    ]
    if family.letters:
        document |= {"symbols": family.symbols, "letters": family.letters}
    if family.blocks:
        document |= {"blocks": family.blocks} | ({} if family.whole is None else {"whole": family.whole})
    if family.scans:
        document |= {"scans": [loop.words for loop in family.scans], "chunks": CHUNKS}
    if family.loops:
        document |= {
            "loops": [loop.words for loop in family.loops],
            "scored": [(n, d, *m) for n, d, m in family.scored],
        }
    return {"kinds": toys.kinds, "symbols": family.symbols, "tape": document}


@lru_cache(maxsize=8)
def toys_for(raw: str, windows: tuple[int, ...], tiled: bool, aligned: bool = False) -> Toys:
    """The toys of a config, given as text: see `toys_of`."""
    return toys_of(json.loads(raw), windows, tiled, aligned)


def region_for(recipe: str, name: str) -> Region | TaskRegion:
    """The region that a piece of this recipe names."""
    run, _ = RECIPES[recipe]
    if is_task(run):
        ranges = (part for windowed in (False, True) for part in task_regions(run, windowed))
        return next(region for region in ranges if region.name == name)
    region = next(r for windowed in (False, True) for r in regions(windowed, name.endswith(WHOLE)) if r.name == name)
    return replace(region, tiled=run.trainer in (None, "trl-sft") and not run.packing and not run.stack)


def pieces(root: Path, given: argparse.Namespace) -> Iterator[tuple[Piece, dict[str, Any]]]:
    """All that is to be made, likeliest to be asked for first."""
    representatives: dict[str, tuple[str, dict[str, Any], bool, list[Region]]] = {}
    wanted = given.names.split(",") if given.names else None
    words = structures(root, given.out / STRUCTURES, given.jobs, wanted)
    for stem, word in words.items():
        if word.startswith("refused: "):
            print(f"  {stem}: {word[:160]}", flush=True)
        elif wanted is None or stem in wanted:
            raw = json.loads((root / "configs" / f"{stem}.json").read_text("utf-8"))
            small, _ = json.loads(word)
            windowed = small.get("sliding_window") is True
            usual = regions(windowed, chunk_of(small) is not None)
            representatives.setdefault(word, (stem, raw, windowed, usual))
    print(len(representatives), "structures", flush=True)
    ordered = sorted(representatives.values(), key=lambda one: _turn(one[1]["model_type"]))
    recipes = given.recipes.split(",") if given.recipes else list(RECIPES)
    chosen = given.regions.split(",") if given.regions else None
    waiting: list[tuple[int, Piece, dict[str, Any]]] = []
    for turn, recipe in enumerate(recipes):
        for name, raw, windowed, usual in ordered:
            popular = raw["model_type"] in FIRST
            if popular or recipe == "default" or given.all:
                run = RECIPES[recipe][0]
                own: Sequence[Region | TaskRegion] = task_regions(run, windowed) if is_task(run) else usual
                for region in own:
                    if batches_only(recipe) and not region.batched:
                        continue
                    if chosen is None or re.sub(f" within| beyond|{WHOLE}", "", region.name) in chosen:
                        late = {"middle": 0, "long": 2, "short": 4}[region.length] + (0 if popular else 6)
                        waiting.append((turn + late, (name, recipe, region.name), raw))
    yield from ((piece, raw) for _, piece, raw in sorted(waiting, key=lambda one: one[0]))


def _turn(model_type: str) -> int:
    return FIRST.index(model_type) if model_type in FIRST else len(FIRST)


def main() -> int:
    """The command line above."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--root", type=Path, default=Path("profiles"))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--names")
    parser.add_argument("--recipes")
    parser.add_argument("--regions")
    parser.add_argument("--all", action="store_true", help="all recipes for the less used classes too")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    kept = given.out / "pieces.jsonl"
    done = set()
    if kept.is_file():
        done = {(p["name"], p["recipe"], p["region"]) for p in map(json.loads, kept.read_text("utf-8").splitlines())}
    quieten()
    waiting = [(piece, raw) for piece, raw in pieces(given.root, given) if piece not in done]
    print(len(waiting), "pieces", flush=True)
    until, finished, failed = time.monotonic() + given.seconds, 0, 0
    with (
        ProcessPoolExecutor(given.jobs, mp_context=get_context("spawn")) as pool,
        kept.open("a", encoding="utf-8") as to,
    ):
        futures = [pool.submit(made, piece, raw) for piece, raw in waiting]
        try:
            for future in as_completed(futures, timeout=max(1.0, until - time.monotonic())):
                line = future.result()
                to.write(json.dumps(line, separators=(",", ":")) + "\n")
                to.flush()
                finished += 1
                failed += "error" in line
        except TimeoutError:
            pass
        to.flush()
        for process in list(pool._processes.values()):
            process.kill()
        pool.shutdown(wait=False, cancel_futures=True)
    print(f"{finished} of {len(waiting)} made, {failed} of them refused", flush=True)
    os._exit(0)


if __name__ == "__main__":
    in_one_order("tools.families.make")
    main()
