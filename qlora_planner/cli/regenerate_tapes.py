"""`make tapes`: trace the default recipe of every catalogue model and compile it into profiles/tapes.

Called with a folder, `single`, `batched` or `index`, then model ids (none: all), and `--resume` to skip what is
current. `index` traces nothing and writes the index of the tapes that are there.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import qlora_planner.profiling as profiling
from qlora_planner.cli.regenerate import write_index
from qlora_planner.errors import PlannerError
from qlora_planner.memory.moments import moments_of
from qlora_planner.memory.resolve import resolve
from qlora_planner.memory.sweep import Moments
from qlora_planner.memory.variant import Region, regions
from qlora_planner.profiling.tapes import compile_run
from qlora_planner.run import RunConfig
from qlora_planner.sources.catalogue import ModelCatalogue
from qlora_planner.sources.configs import read_config
from qlora_planner.sources.tapes import TAPE_SCHEMA, StoredTape, encode, header_of, tape_path

# What is shipped: the default recipe at batch 1 and at larger batches, for cards of compute capability 9.0 and later.
SHIPPED = {"single": RunConfig(), "batched": RunConfig(batch_size=8)}
# The families most used come first, so that a run that is stopped has made what is asked for most.
FIRST = (
    "meta-llama/Llama-3", "Qwen/Qwen3-", "Qwen/Qwen2.5-", "mistralai/", "google/gemma-3", "google/gemma-2", "microsoft/",
    "openai/gpt-oss", "meta-llama/",
)  # fmt: skip


def fingerprint() -> str:
    """A digest of the source that decides what a tape holds: tapes traced by other source are stale."""
    folder = Path(profiling.__path__[0])
    digest = hashlib.sha256()
    for path in [*sorted((folder / "tracing").glob("*.py")), folder / "compile.py"]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def compiled(name: str, root: Path, which: str) -> Iterator[tuple[Region, tuple[StoredTape, Moments] | PlannerError]]:
    """By region, the tape of one model's default recipe and its moments, or why it has none."""
    profile = ModelCatalogue([root / "models"]).load(name)
    raw = read_config(root / "configs" / (name.replace("/", "__") + ".json"))
    for region in regions(profile, which == "batched"):
        resolution = resolve(profile, SHIPPED[which])
        try:
            tape = compile_run(raw, resolution, None, region)
        except PlannerError as error:
            yield region, error
            continue
        moments = moments_of(tape, resolution.run, region, peaks_only=True)
        yield region, (StoredTape(tape=tape, region=region), moments)


def is_current(target: Path, name: str, root: Path, tracer: str) -> bool:
    """Whether `target` holds tapes of this config, traced by this tracer with the versions that the profile names."""
    if not target.is_file():
        return False
    profile, kept = ModelCatalogue([root / "models"]).load(name), header_of(target)
    found = tuple(kept.get(key) for key in ("schema", "config_sha256", "versions", "tracer"))
    return found == (TAPE_SCHEMA, profile.config_sha256, dict(profile.versions), tracer)


def main(root: Path, which: str, names: Sequence[str] = (), resume: bool = False) -> int:
    """Make the tapes called `which` (single or batched) of `names`, or of all models under `root`; then the index.

    Those that fail are listed. With `resume`, models whose tapes are current are left as they are.
    """
    catalogue = ModelCatalogue([root / "models"])
    failed: list[str] = []
    tracer = fingerprint()
    for name in () if which == "index" else names or sorted(catalogue.names(), key=_turn):
        target = tape_path(root / "tapes", which, name)
        if not (resume and is_current(target, name, root, tracer)):
            failed += _make(target, name, root, which, tracer)
    write_index(root, (catalogue.load(name) for name in catalogue.names()))
    print("\n".join(["not traced:", *failed]) if failed else "all traced")
    return 0


def _make(target: Path, name: str, root: Path, which: str, tracer: str) -> list[str]:
    """Write one model's file and say how long it took; the regions that failed, with the reason."""
    started = time.perf_counter()
    profile = ModelCatalogue([root / "models"]).load(name)
    kept, failed = [], []
    for region, outcome in compiled(name, root, which):
        if isinstance(outcome, PlannerError):
            failed.append(f"{name}, {region.low} to {region.high} tokens: {outcome}")
            print(f"failed: {failed[-1]}", flush=True)
        else:
            kept.append(outcome)
    header = {
        "id": name, "config_sha256": profile.config_sha256, "versions": dict(profile.versions), "tracer": tracer,
        "failed": failed,
    }  # fmt: skip
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".part")
    partial.write_bytes(encode(header, kept))
    partial.replace(target)
    print(f"{name}: {len(kept)} tapes, {time.perf_counter() - started:.1f} s", flush=True)
    return failed


def _turn(name: str) -> tuple[int, str]:
    return next((at for at, start in enumerate(FIRST) if name.startswith(start)), len(FIRST)), name


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if word != "--resume"]
    sys.exit(main(Path(words[0]), words[1], words[2:], resume="--resume" in sys.argv))
