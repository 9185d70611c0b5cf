"""`make played`: play the usual runs of every model of the catalogue, for profiles/played.json.

Half an hour on one core. With names of models, these alone are played anew.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from qlora_planner.planner.survey.played import BATCHES, LARGEST_BYTES, SCHEMA, keys, run_of
from qlora_planner.session.packages import TRACE_VARIABLE
from qlora_planner.session.session import Session
from qlora_planner.sources.catalogue import ModelCatalogue
from qlora_planner.sources.played import FILE, digest_of
from qlora_planner.spec.model import ModelProfile
from qlora_planner.spec.run import RunConfig

# A card with a small cuBLAS workspace and one with a large one.
CARDS = ("rtx-4090", "h200")


def length_of(profile: ModelProfile) -> int:
    """Tokens a sequence: the usual ones, as far as the model goes."""
    limit = profile.dims.get("position_rows") or profile.dims.get("max_position_embeddings")
    return min(RunConfig().seq_len, int(limit or RunConfig().seq_len))


def floors_of(session: Session, profile: ModelProfile, cards: Sequence[str] = CARDS) -> dict[str, Any]:
    """The floors of one model, without the context: by card's workspace a list of option sets of a floor a batch.

    None stands for what has no trace, and for what no card holds.
    """
    seq_len = length_of(profile)
    floors: dict[str, list[list[int | None]]] = {}
    for name in cards:
        model = session.open(profile, session.on(name).card)
        rows: list[list[int | None]] = []
        for key in keys():
            row: list[int | None] = []
            for batch in BATCHES:
                run = run_of(key, batch, seq_len)
                played = None if max(filter(None, row), default=0) > LARGEST_BYTES else model.played(run)
                context = model.budget.context_for(run).total_bytes
                row.append(None if played is None else played.floor_bytes - context)
            rows.append(row)
        floors[str(model.budget.workspace_bytes)] = rows
    return {"profile": digest_of(profile), "seq_len": seq_len, "floors": floors}


def write(root: Path, models: dict[str, Any]) -> None:
    """Write played.json, a line per model."""
    rows = ",\n".join(
        f"{json.dumps(name)}:{json.dumps(row, separators=(',', ':'))}" for name, row in sorted(models.items())
    )
    (root / FILE).write_text(f'{{"schema":"{SCHEMA}","models":{{\n{rows}\n}}}}\n', encoding="utf-8")


def main(root: Path, names: Iterable[str] = ()) -> int:
    """Play and write; prints a line per model."""
    os.environ[TRACE_VARIABLE] = "never"
    path = root / FILE
    chosen = set(names)
    kept = json.loads(path.read_text(encoding="utf-8"))["models"] if chosen and path.is_file() else {}
    models: dict[str, Any] = dict(kept)
    session = Session(profiles=root)
    for profile in ModelCatalogue([root / "models"]).load_all(print):
        if chosen and profile.id not in chosen:
            continue
        started = time.perf_counter()
        row = floors_of(session, profile)
        if any(floor is not None for rows in row["floors"].values() for each in rows for floor in each):
            models[profile.id] = row
        print(f"{profile.id}: {time.perf_counter() - started:.1f} s", flush=True)
    write(root, models)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "profiles"), sys.argv[2:]))
