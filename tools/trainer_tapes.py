"""Tapes of a trainer that is traced with packages of its own, for models that are asked for most.

ENVIRONMENT/bin/python -m tools.trainer_tapes ROOT TRAINER MODEL [MODEL ...], by the python of an environment with the
trainer's packages. Each model gets ROOT/tapes/trainers/KIND/MODEL.jsonl.gz with its default recipe, for cards of up to
and of more than 24.5 GiB and each region of sizes in which nothing switches. What is no polynomial is listed.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qlora_planner.memory.sweep.validity import ValidityRange
    from qlora_planner.sources.tapes import StoredTape
    from qlora_planner.spec.model import ModelProfile

# unsloth_zoo 2026.10.9: inputs of layers up to so many bytes stay on the card (gradient_checkpointing.py), and a chunk
# of logits has as many rows as make so many values, between two bounds (fused_losses/fused_linear.py).
_STAYS_BYTES = 2 << 20
_CHUNK_VALUES, _LEAST_ROWS, _MOST_ROWS = 512 * 151936, 512, 4096
# One card of each kind for which its code takes another way: with flash attention and memory on either side of the
# loss's limit, and with cuDNN's attention.
CARDS = ("l40s", "rtx-4090", "h200")
# Several rows have as many positions without a label; from here on that changes no kernel.
_SPARE_TOKENS = 256


def regions_of(profile: ModelProfile, batched: bool) -> Iterator[ValidityRange]:
    """Sizes between which no layer input stays, no chunk is left half full, and the loss takes one way."""
    from qlora_planner.memory.sweep.validity import HEAD_TILE_TOKENS, ValidityRange

    stays = _STAYS_BYTES // 2 // int(profile.dims["hidden_size"] or 1)
    rows = 1 << ((_CHUNK_VALUES // int(profile.dims["vocab_size"] or 1)).bit_length() - 1)
    rows = min(max(rows, _LEAST_ROWS), _MOST_ROWS)
    end = int(profile.dims.get("max_position_embeddings") or 1 << 24)
    if batched:
        least = max(stays, rows) + _SPARE_TOKENS
        if least < HEAD_TILE_TOKENS // 2:
            yield ValidityRange(batched=True, low=0, high=end, tokens=least, most_tokens=HEAD_TILE_TOKENS)
        yield ValidityRange(batched=True, low=0, high=end, tokens=HEAD_TILE_TOKENS + _SPARE_TOKENS)
        return
    edges = sorted({max(stays, rows), HEAD_TILE_TOKENS, end})
    for low, high in pairwise(edges):
        yield ValidityRange(batched=False, low=low, high=high)


def points_of(region: ValidityRange) -> list[tuple[int, int, int]]:
    """Batch, sequence and rank of each trace, the last of which proves the others. Sequences are multiples of 128, to
    which attention's log-sum-exp is rounded: at others it takes some kilobytes more."""
    if region.batched and region.most_tokens <= 4096:
        return [(2, 768, 8), (3, 1024, 24), (5, 640, 56), (4, 896, 40), (3, 1280, 16), (2, 1920, 72)]
    if region.batched:
        return [(8, 640, 8), (9, 768, 24), (11, 1024, 56), (10, 896, 40), (4, 1536, 16), (2, 2688, 72)]
    top = min(region.high, max(2 * region.low, 4096))
    seqs = [-(-(16 * region.low + (top - region.low) * part) // 16 // 128) * 128 for part in (3, 7, 11, 15)]
    return [(1, seq, rank) for seq, rank in zip(seqs, (8, 24, 56, 40), strict=True)]


def tapes_of(name: str, root: Path, trainer: str, batched: bool) -> Iterator[StoredTape]:
    """The tapes of one model. Raises what reading its config raises."""
    from qlora_planner import RunConfig, load_gpu
    from qlora_planner.memory.options.resolve import resolve
    from qlora_planner.memory.sweep.validity import HEAD_TILE_TOKENS, trace_key
    from qlora_planner.profiling.tapes import trace_run
    from qlora_planner.sources.catalogue import ModelCatalogue
    from qlora_planner.sources.configs import read_config
    from qlora_planner.sources.tapes import StoredTape
    from qlora_planner.spec.trace import Tape
    from tools.compiling import NotPolynomialError, Point, compile_tapes

    profile = ModelCatalogue([root / "models"]).load(name)
    raw = read_config(root / "configs" / (name.replace("/", "__") + ".json"))
    recipe = RunConfig(trainer=trainer, batch_size=8 if batched else 1)
    cards = [load_gpu(card) for card in CARDS]

    def trace_at(point: Point) -> Tape:
        batch, seq, rank = point
        return trace_run(raw, replace(resolution, run=run.with_(batch_size=batch, seq_len=seq, rank=rank)), gpu)

    for region in regions_of(profile, batched):
        tape = None
        for gpu in cards:
            resolution = resolve(profile, recipe, gpu)
            run = resolution.run
            variant = trace_key(run, resolution.stack, gpu)
            either = max(region.low, region.tokens) >= HEAD_TILE_TOKENS  # there the card's memory decides nothing
            if tape is not None and either and "cudnn" not in variant.split():
                tape = replace(tape, variant=variant)
            else:
                points = points_of(region)
                try:
                    tape = compile_tapes(trace_at, points[:-1], points[-1], variant)
                except NotPolynomialError as error:
                    print(f"  {name} {region}: {error}", flush=True)
                    continue
            yield StoredTape(tape=tape, region=region)


def main(root: Path, trainer: str, names: Sequence[str]) -> None:
    """Make and write the tapes of these models."""
    from qlora_planner.catalog.trainers import trainer_named
    from qlora_planner.installing import installed_versions

    row = trainer_named(trainer)
    os.environ.update(row.trace_environment)
    importlib.import_module(row.packages[0])
    from qlora_planner.sources.catalogue import ModelCatalogue
    from qlora_planner.sources.profile_cache import PROFILE_PACKAGES
    from qlora_planner.sources.tapes import KINDS, OF_TRAINERS, TAPE_SCHEMA, packed, tape_path
    from tools.traces import fingerprint

    versions = installed_versions((*PROFILE_PACKAGES, *row.packages))
    for name in names:
        for kind in KINDS:
            kept = list(tapes_of(name, root, trainer, kind == "batched"))
            header = {
                "schema": TAPE_SCHEMA,
                "config_sha256": ModelCatalogue([root / "models"]).load(name).config_sha256,
                "versions": versions,
                "tracer": fingerprint(),
                "regions": [{"variant": one.tape.variant, "region": asdict(one.region)} for one in kept],
            }
            target = tape_path(root / "tapes" / OF_TRAINERS, kind, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(packed([header, *(one.tape.to_dict() for one in kept)]))
            print(f"{name}, {kind}: {len(kept)} tapes, {target.stat().st_size:,} bytes", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
