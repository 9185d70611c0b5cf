"""`make tapes`: trace the default recipe of every catalogue model and compile it into profiles/tapes."""

from __future__ import annotations

import gzip
import json
import sys
import time
from pathlib import Path
from typing import Any

from qlora_planner.cli.regenerate import write_index
from qlora_planner.errors import PlannerError
from qlora_planner.memory.frontier import frontier_of
from qlora_planner.memory.resolve import resolve
from qlora_planner.memory.variant import usual_region
from qlora_planner.profiling.tapes import compile_run
from qlora_planner.run import RunConfig
from qlora_planner.sources.catalogue import ModelCatalogue
from qlora_planner.sources.configs import read_config
from qlora_planner.sources.tapes import TAPE_SCHEMA

# What is shipped: the default recipe at batch 1 and at larger batches, for cards of compute capability 9.0 and later.
SHIPPED = {"single": RunConfig(), "batched": RunConfig(batch_size=8)}


def tape_document(name: str, folder: Path, run: RunConfig) -> dict[str, Any]:
    """The compiled tape of one model's default recipe, JSON-ready; raises PlannerError where it cannot be traced."""
    profile = ModelCatalogue([folder / "models"]).load(name)
    raw = read_config(folder / "configs" / (name.replace("/", "__") + ".json"))
    resolution = resolve(profile, run)
    region = usual_region(profile, resolution.run)
    tape = compile_run(raw, resolution, None, region)
    return {
        "schema": TAPE_SCHEMA,
        "id": name,
        "config_sha256": profile.config_sha256,
        "versions": dict(profile.versions),
        "region": {"batched": region.batched, "low": region.low, "high": region.high, "tokens": region.tokens},
        "tape": tape.to_dict(),
        "frontier": frontier_of(tape, resolution.run.gradient_checkpointing).to_dict(),
    }


def main(root: Path, which: str) -> int:
    """Make the tapes called `which` (single or batched) of all models under `root`; those that fail are listed."""
    folder = root / "tapes" / which
    folder.mkdir(parents=True, exist_ok=True)
    failed = []
    for name in ModelCatalogue([root / "models"]).names():
        target = folder / (name.replace("/", "__") + ".json.gz")
        started = time.perf_counter()
        try:
            document = tape_document(name, root, SHIPPED[which])
        except PlannerError as error:
            failed.append(f"{name}: {error}")
            print(f"{name}: failed, {error}", flush=True)
            continue
        text = json.dumps(document, separators=(",", ":")).encode()
        target.write_bytes(gzip.compress(text, mtime=0))
        print(f"{name}: {time.perf_counter() - started:.1f} s", flush=True)
    catalogue = ModelCatalogue([root / "models"])
    write_index(root, (catalogue.load(name) for name in catalogue.names()))
    print("\n".join(["not traced:", *failed]) if failed else "all traced")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
