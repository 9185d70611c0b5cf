"""Tapes of runs with images, of models that people ask for most: one stands for images of many sizes.

python -m tools.images.make ROOT RECIPE REGION MODEL [MODEL ...]. ROOT/tapes/images/MODEL.jsonl.gz gets the tape of one
of the RECIPES below in a region of `memory.sweep.validity` ("single middle"), in the place of one that it has. It is
traced on the model itself at some lengths, ranks and sizes of image at once; every size of it is solved in these and in
the letters of `catalog.images.image_letters`, and proved at all of them (`tools.images.solving`). What is no such sum,
or has other events at another size of image, is listed and left out. `tools.images.check` proves more.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qlora_planner.catalog.images import Picture, image_letters, picture_of
from qlora_planner.errors import PlannerError
from qlora_planner.memory.options.resolve import resolve
from qlora_planner.memory.sweep.validity import trace_key, validity_ranges
from qlora_planner.profiling.tapes import trace_run
from qlora_planner.record import record
from qlora_planner.sources.catalogue import ModelCatalogue
from qlora_planner.sources.configs import RawConfig, read_config
from qlora_planner.sources.families import FAMILY_SCHEMA, region_name
from qlora_planner.sources.tapes import lines_of, packed, tape_in
from qlora_planner.sources.traces.image_tapes import OF_IMAGES, shown_in
from qlora_planner.spec.model import ModelProfile
from qlora_planner.spec.run import RunConfig
from qlora_planner.spec.scans import ScanLoop
from qlora_planner.spec.weaving.windows import WINDOW, window_lengths, window_letters
from tools.compiling import NotPolynomialError
from tools.images.solving import Traced, solved_tape, window_loops
from tools.traces import fingerprint

RECIPES = {
    "default": RunConfig(images=1),
    "text": RunConfig(images=0),
    "kept": RunConfig(images=1, gradient_checkpointing=False),
    "two": RunConfig(images=2),
}
# So many traces are left of those that have other events at the smallest images.
_FEWEST = 5
# Sizes of images, in pixels, whose grids share few factors, and lengths and ranks of the runs that show them.
SIZES = (
    "640x480", "1024x768", "1920x1184", "864x1216", "448x416", "2240x1376", "1312x992", "736x544", "320x960",
    "1600x1184",
)  # fmt: skip
_SEQS = {
    "single middle": (1088, 1984, 3392, 2624, 1472, 3776),
    "single middle within": (560, 656, 976, 752, 848, 928),
    "single long": (4672, 7232, 8128, 5696, 7744, 6464),
}
_RANKS = (8, 24, 56, 40, 16, 72)
# Patches along a side of a window, by the type of the whole: window_size of the published configs over patch_size.
_WINDOWS = {"qwen2_5_vl": 8}
_WHOLE_WINDOWS = "448x336"


@record
class Shot:
    """One run to trace, and its image; None of a run that shows none."""

    run: RunConfig
    picture: Picture | None

    def traced(self, profile: ModelProfile, raw: RawConfig) -> Traced:
        """Its trace. Raises what tracing raises."""
        tape = trace_run(raw, resolve(profile, self.run, None), None)
        letters = image_letters(self.picture) if self.picture else {}
        windows: tuple[int, ...] = ()
        if self.picture and profile.model_type in _WINDOWS:
            windows = window_lengths(*self.picture.grid, _WINDOWS[profile.model_type])
            letters |= window_letters(*self.picture.grid, _WINDOWS[profile.model_type])
        return Traced(
            tape=tape, point=(self.run.batch_size, self.run.seq_len, self.run.rank), letters=letters, windows=windows
        )


def shots(profile: ModelProfile, recipe: RunConfig, name: str) -> list[Shot]:
    """The runs of one recipe in a region: each with the first size of image, not shown yet, that its rows hold; before
    them, of a tower that attends in windows, one with twelve whole ones."""
    runs: list[Shot] = []
    left = list(SIZES)
    lengths = _SEQS.get(name) or _SEQS[" ".join(name.split()[:2])]
    for seq_len, rank in zip(lengths, _RANKS, strict=True):
        run = recipe.with_(seq_len=seq_len, rank=rank)
        if not recipe.images:
            runs.append(Shot(run=run, picture=None))
            continue
        sizes = [_WHOLE_WINDOWS] if profile.model_type in _WINDOWS and not runs else left
        pictures = {size: picture_of(profile.model_type, profile.dims, run.with_(image_size=size)) for size in sizes}
        size = next((size for size in sizes if pictures[size].all_tokens * recipe.images < seq_len), None)
        if size is None:
            continue
        left = [*(other for other in left if other != size), size]
        runs.append(Shot(run=run.with_(image_size=size), picture=pictures[size]))
    return runs


def piece(profile: ModelProfile, raw: RawConfig, recipe: RunConfig, name: str) -> dict[str, Any]:
    """One tape and what its file says of it. Raises PlannerError where there is none."""
    taken = shots(profile, recipe, name)
    resolution = resolve(profile, taken[0].run, None)
    told = shown_in(trace_key(resolution.run, resolution.stack, None))
    assert told is not None
    traces = [shot.traced(profile, raw) for shot in taken]
    loops = window_loops(traces[0].tape, len(traces[0].windows)) if traces[0].windows else ()
    # The first stays where its windows tell the loops.
    traces[bool(loops) :] = sorted(traces[bool(loops) :], key=lambda each: -each.letters.get("image_tokens", 0))
    while True:  # kernels for few rows are others: images that are too small for this tape are left out
        try:
            return {"variant": told[0], "region": name, **_document(profile, traces, loops, told[0])}
        except NotPolynomialError:
            if len(traces) <= _FEWEST:
                raise
            traces.pop()


def _document(
    profile: ModelProfile, traces: Sequence[Traced], loops: Sequence[ScanLoop], variant: str
) -> dict[str, Any]:
    tape, sums, fitter, windows = solved_tape(traces, loops, variant)
    letters = [*fitter.letters, *([WINDOW] if loops else [])]
    sizes = [
        [[c.numerator, c.denominator, *powers, *map(letters.index, product)] for c, powers, product in terms]
        for terms in sums
    ]
    shown = [each.letters.get("image_tokens", 0) for each in traces]
    words = {"windows": [each.words for each in windows], "window_side": _WINDOWS[profile.model_type]} if loops else {}
    return {
        "tape": tape.to_dict() | {"letters": letters, "sizes": sizes},
        "cut": [list(traces[0].tape.kept), list(traces[0].tape.places)],
        "image_tokens": [min(shown), max(shown)],
        "config_sha256": profile.config_sha256,
        **words,
    }


def config_of(root: Path, name: str) -> RawConfig:
    """The config of the whole model: apart where the catalogue has its text alone."""
    paths = (folder / f"{name.replace('/', '__')}.json" for folder in (root / "configs" / "whole", root / "configs"))
    return read_config(next(path for path in paths if path.is_file()))


def made(name: str, root: Path, recipe: RunConfig, region: str) -> dict[str, Any] | None:
    """One tape of a model; None, and a word why, where there is none."""
    profile = ModelCatalogue([root / "whole"]).load(name)
    raw = config_of(root, name)
    regions = {region_name(profile, each): each for each in validity_ranges(profile, batched=False)}
    if region not in regions or not all(
        regions[region].holds(1, shot.run.seq_len) for shot in shots(profile, recipe, region)
    ):
        print(f"not {name}: {region} is none of its regions, or lies elsewhere: {', '.join(regions)}", flush=True)
        return None
    try:
        return piece(profile, raw, recipe, region)
    except PlannerError as error:
        print(f"not {name}, {recipe.images} images, {region}: {error}"[:400], flush=True)
        return None


def main(root: Path, recipe: str, region: str, names: Sequence[str]) -> None:
    """Make and write one tape of each of these models."""
    for name in names:
        started = time.perf_counter()
        tape = made(name, root, RECIPES[recipe], region)
        if tape is None:
            continue
        profile = ModelCatalogue([root / "whole"]).load(name)
        target = root / "tapes" / OF_IMAGES / f"{name.replace('/', '__')}.jsonl.gz"
        kept: list[tuple[dict[str, Any], dict[str, Any]]] = []
        if target.is_file():
            first, *lines = lines_of(target)
            kept = list(zip(json.loads(first)["tapes"], map(tape_in, lines), strict=True))
        words = {key: value for key, value in tape.items() if key not in ("tape", "cut")}
        same = {key: words[key] for key in ("variant", "region", "config_sha256")}
        kept = [pair for pair in kept if same != {key: pair[0][key] for key in same}]
        kept.append((words, tape["tape"]))
        header = {
            "schema": FAMILY_SCHEMA, "symbols": [], "kinds": [], "models": [name], "versions": dict(profile.versions),
            "tracer": fingerprint(), "cuts": {profile.config_sha256: tape["cut"]}, "tapes": [each for each, _ in kept],
        }  # fmt: skip
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(packed([header, *(each for _, each in kept)]))
        seconds, size = time.perf_counter() - started, target.stat().st_size
        said = f"{len(tape['tape']['events']):,} events, images of {words['image_tokens']} tokens"
        print(f"{name}, {recipe}, {region}: {said}, {seconds:.0f} s, {size:,} bytes", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4:])
