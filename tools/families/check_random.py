"""Configs drawn at random against their own models: the law's profile is what the class builds, and the family's tape
is the model's own trace to the byte.

python -m tools.families.check_random [--draws N] [--seed N] [--classes A,B] [--profiles-only]. Exits with 1 where any
differs. Half a minute a draw, a few seconds without traces.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from qlora_planner.bounded import unpacked
from qlora_planner.errors import InputError
from qlora_planner.memory.options.resolve import resolve
from qlora_planner.memory.sweep.validity import trace_key
from qlora_planner.profiling.build import build_profile
from qlora_planner.profiling.refusals import Prober
from qlora_planner.profiling.tapes import trace_run
from qlora_planner.session import load_gpu
from qlora_planner.sources.configs import RawConfig, config_faults, config_sha256, read_config
from qlora_planner.sources.families import family_tape, known_configs
from qlora_planner.sources.laws.lookup import profile_by_law
from qlora_planner.sources.laws.sizes import NotWholeError, size_at
from qlora_planner.spec.model import ModelProfile
from qlora_planner.spec.trace import CompiledTape
from tools.families.check import SIZES
from tools.families.recipes import RECIPES
from tools.laws.tensors import facts_of

POPULAR = (
    "llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gemma3_text", "phi3", "gpt_neox", "gpt2", "opt", "falcon",
)  # fmt: skip


# Dimensions that few classes have, and that hang on nothing else there.
_FREE = r"experts$|lora_rank$|d_state$|state_size$|(nope|v)_head_dim$|mamba_n|linear_num_value_heads$"


def drawn_configs(root: Path, classes: list[str], drawn: random.Random) -> Iterator[tuple[str, RawConfig]]:
    """Configs like those of catalogue models with other sizes, without end; not all are covered by a law."""
    laws = {
        kind: json.loads(unpacked((root / "laws" / f"{kind}.json.gz").read_bytes(), 16 << 20))
        for kind in classes if (root / "laws" / f"{kind}.json.gz").is_file()
    }  # fmt: skip
    tables = {kind: json.loads((root / "fields" / f"{kind}.json").read_text("utf-8")) for kind in laws}
    aliases = {kind: table["structures"][0]["aliases"] for kind, table in tables.items()}
    while True:
        kind = drawn.choice(sorted(laws))
        structure = drawn.choice(laws[kind]["structures"])
        name = drawn.choice(sorted(structure["models"]))
        source = read_config(root / "configs" / (name.replace("/", "__") + ".json"))
        raw = _resized(dict(source.config), structure, structure["models"][name]["dims"], drawn, aliases[kind])
        if not config_faults(raw):
            yield name, RawConfig(id="drawn", config=raw, sha256=config_sha256(raw), origin="file")


def _resized(
    raw: dict[str, Any],
    structure: Mapping[str, Any],
    own: Mapping[str, int],
    drawn: random.Random,
    aliases: Mapping[str, str],
) -> dict[str, Any]:
    dims = dict(own)
    if "num_key_value_heads" in structure["symbols"]:
        dims["num_key_value_heads"] = drawn.choice([2, 4, 8])
        dims["num_attention_heads"] = dims["num_key_value_heads"] * drawn.choice([2, 3, 4, 6])
    else:
        dims["num_attention_heads"] = drawn.choice([8, 12, 16, 20, 25, 32])
    width = drawn.choice([32, 64, 80, 96, 112, 128])
    if "mrope_section" in (raw.get("rope_parameters") or {}):
        width = dims.get("head_dim", width)  # its sections are written for one width
    if "head_dim" in structure["symbols"]:
        dims["head_dim"] = width
    dims["hidden_size"] = dims["num_attention_heads"] * drawn.choice([width, width, 64])
    dims["vocab_size"] += drawn.choice([0, 1, 7, 64, 256, 3333])
    dims["num_hidden_layers"] = drawn.choice([2, 4, 6, 11, 20])
    for name in dims:
        if name.endswith("intermediate_size"):
            dims[name] = drawn.choice([2, 3, 4]) * dims["hidden_size"] + drawn.choice([0, 64, 8, 192])
        if name == "sliding_window":
            dims[name] = drawn.choice([512, 1024, 2048, 4096])
        elif re.search(_FREE, name):
            dims[name] = _others(name, dims, raw, drawn)
    rules = {rule["symbol"]: name for name, rule in structure["fields"].items() if "symbol" in rule}
    for symbol, name in rules.items():
        for alias in (alias for alias, own_name in aliases.items() if own_name == name):
            raw.pop(alias, None)
        if symbol in dims:
            raw[name] = dims[symbol]
    for name, rule in structure["fields"].items():
        if "size" in rule and name in raw:
            with suppress(NotWholeError):
                raw[name] = size_at(rule["size"], dims)
    _relist(raw, structure["layers"], dims["num_hidden_layers"])
    return raw


def _others(name: str, dims: Mapping[str, int], raw: Mapping[str, Any], drawn: random.Random) -> int:
    """Another value of a dimension that the rest leaves free: experts, ranks, heads of state spaces."""
    if name == "mamba_n_heads":
        return dims["num_attention_heads"] * drawn.choice([1, 2])
    if name == "linear_num_value_heads":
        return dims["linear_num_key_heads"] * drawn.choice([1, 2, 3])
    if name.endswith(("_experts", "mamba_num_heads")):
        return dims[name] + int(raw.get("n_group") or 1) * int(raw.get("n_groups") or 1) * drawn.choice([0, 2, 8])
    return dims[name] + drawn.choice([0, 8, 32])


def _relist(raw: dict[str, Any], layers: Mapping[str, Any], depth: int) -> None:
    """Lists of layers as the class fills them in, else as many times what the model has as the depth takes."""
    pattern = (layers.get("pattern") or {}).get("field")
    for name in (*layers["fields"], pattern, "layer_types", "layers_block_type"):
        listed = raw.get(name)
        filled_in = layers.get("absent", {}).get(name)
        if filled_in and set(listed or ()) <= set(filled_in[:depth]):
            raw.pop(name, None)
        elif listed and isinstance(listed, (list, str)):
            again = [listed[at % len(listed)] for at in range(depth)]
            raw[name] = "".join(again) if isinstance(listed, str) else again


def main() -> int:
    """The command line above."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", type=Path, default=Path("profiles"))
    parser.add_argument("--draws", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--classes", default=",".join(POPULAR))
    parser.add_argument("--profiles-only", action="store_true")
    given = parser.parse_args()
    drawn, prober = random.Random(given.seed), Prober()
    configs = drawn_configs(given.root, given.classes.split(","), drawn)
    compared = faults = traced = 0
    while compared < given.draws:
        like, raw = next(configs)
        by_law = profile_by_law(
            raw, [given.root / "laws"], [given.root / "fields"], known_configs([given.root / "families"])
        )
        if not isinstance(by_law, ModelProfile):
            continue
        compared += 1
        wrong = None if facts_of(by_law) == facts_of(build_profile(raw, prober=prober)) else "another profile"
        if wrong is None and not given.profiles_only:
            seen, wrong = _traced(given.root, by_law, raw, drawn)
            traced += seen
        if wrong is not None:
            faults += 1
            print(f"like {like}: {wrong}: {json.dumps(dict(by_law.dims))}", flush=True)
    print(f"{compared - faults} of {compared} the same; {traced} of them traced, to the byte")
    return 1 if faults else 0


def _traced(root: Path, profile: ModelProfile, raw: RawConfig, drawn: random.Random) -> tuple[int, str | None]:
    """Whether a tape was compared at all, and how it differs."""
    if profile.family_sha256 is None:
        return 0, None
    names = sorted(RECIPES)
    for _ in range(60):
        (batch, seq), recipe = drawn.choice(SIZES), drawn.choice(names)
        run, before_80 = RECIPES[recipe]
        gpu = load_gpu("t4") if before_80 else None
        try:
            resolution = resolve(profile, run.with_(batch_size=batch, seq_len=seq, rank=drawn.choice([4, 16, 48])), gpu)
        except InputError:  # a task that the class has no head for
            continue
        variant = trace_key(resolution.run, resolution.stack, gpu)
        family = family_tape(profile, variant, [root / "families"], batch, seq)
        if family is None:
            continue
        sizes = batch, seq, resolution.run.rank
        own = CompiledTape.of(trace_run(raw, resolution, gpu), "own")
        same = own.at(*sizes) == family.tape.at(*sizes)
        return 1, None if same else f"another trace by {recipe} at {batch} x {seq}, rank {resolution.run.rank}"
    return 0, None


if __name__ == "__main__":
    sys.exit(main())
