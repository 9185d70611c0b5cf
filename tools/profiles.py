"""`make profiles`: rebuild profiles/models and the indexes from profiles/configs; `make cards`: the cards' alone."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from qlora_planner.catalog.gpus.card_index import build_card_index, index_path
from qlora_planner.errors import MissingError
from qlora_planner.planner.survey.index import build_index
from qlora_planner.profiling.build import build_profile
from qlora_planner.profiling.refusals import Prober
from qlora_planner.record import record
from qlora_planner.sources.catalogue import file_name
from qlora_planner.sources.configs import read_config
from qlora_planner.spec.codec import profile_to_json
from qlora_planner.spec.model import ModelProfile
from tools.families.sweeps import full_sweep

# Text models that on the Hub sit inside a wrapper with a vision or audio tower.
_TEXT_OF_WRAPPER = ("gemma3_text", "gemma4_text", "qwen3_5_text", "qwen3_5_moe_text", "llama4_text", "ministral3")
_NOTE = "the text model alone; the repository's checkpoint also holds towers for other inputs"


@record
class Outcome:
    """What became of one config: its profile, or why there is none."""

    path: Path
    profile: ModelProfile | None
    refusal: str | None
    took_s: float


def rebuild(path: Path, prober: Prober | None = None) -> Outcome:
    """Profile one config of the catalogue; a model type that transformers does not have is refused, not an error.

    `prober` carries what is known about classes from one config to the next.
    """
    started = time.perf_counter()
    raw = read_config(path)
    note = _NOTE if raw.config["model_type"] in _TEXT_OF_WRAPPER else None
    try:
        profile, refusal = build_profile(raw, note, prober), None
    except MissingError as error:
        profile, refusal = None, str(error)
    return Outcome(path=path, profile=profile, refusal=refusal, took_s=time.perf_counter() - started)


def rebuild_whole(path: Path, prober: Prober | None = None) -> Outcome:
    """The same with the tower of a model that takes images."""
    started = time.perf_counter()
    raw = read_config(path)
    profile = build_profile(raw, None, prober, whole_model=True)
    return Outcome(path=path, profile=profile, refusal=None, took_s=time.perf_counter() - started)


def write_whole(root: Path, paths: Iterable[Path], prober: Prober | None = None) -> None:
    """Write whole/ from the configs at `paths`; prints a line per model."""
    folder = root / "whole"
    folder.mkdir(exist_ok=True)
    for path in paths:
        outcome = rebuild_whole(path, prober)
        assert outcome.profile is not None
        (folder / path.name).write_text(profile_to_json(outcome.profile), encoding="utf-8")
        print(f"{outcome.profile.id}, whole: {outcome.profile.params:,} parameters, {outcome.took_s:.1f} s", flush=True)


def write_index(root: Path, profiles: Iterable[ModelProfile]) -> None:
    """Write models.index.json from the profiles and the tapes or families that lie beside them."""
    known = list(profiles)
    found = {profile.id: full_sweep(profile, root) for profile in known}
    index = build_index(known, {name: sweep for name, sweep in found.items() if sweep is not None})
    rows = ",\n".join(json.dumps(row, separators=(",", ":")) for row in index["models"])
    text = f'{{"schema":"{index["schema"]}","models":[\n{rows}\n]}}\n'
    (root / "models.index.json").write_text(text, encoding="utf-8")


def write_card_index(root: Path) -> None:
    """Write gpus.index.json from the cards' files."""
    index_path(root / "gpus").write_text(build_card_index(root / "gpus"), encoding="utf-8")


def main(root: Path) -> int:
    """Rebuild everything under `root`; prints a line per model and the refusals at the end."""
    models = root / "models"
    models.mkdir(exist_ok=True)
    refused: list[Outcome] = []
    profiles: list[ModelProfile] = []
    prober = Prober()
    for path in sorted((root / "configs").glob("*.json")):
        outcome = rebuild(path, prober)
        if outcome.profile is None:
            refused.append(outcome)
            continue
        profiles.append(outcome.profile)
        (models / path.name).write_text(profile_to_json(outcome.profile), encoding="utf-8")
        print(f"{outcome.profile.id}: {outcome.profile.params:,} parameters, {outcome.took_s:.1f} s", flush=True)
    towers = {profile.id for profile in profiles if profile.text_part_of is not None}
    beside = sorted((root / "configs" / "whole").glob("*.json"))  # of models that are listed by their text
    write_whole(root, [*(root / "configs" / file_name(name) for name in sorted(towers)), *beside], prober)
    write_index(root, profiles)
    write_card_index(root)
    for outcome in refused:
        print(f"refused: {outcome.refusal}")
    print(f"{len(profiles)} profiles, {len(refused)} refused")
    return 0


if __name__ == "__main__":
    where = Path(sys.argv[1] if len(sys.argv) > 1 else "profiles")
    if sys.argv[2:] == ["cards"]:
        write_card_index(where)
    else:
        sys.exit(main(where))
