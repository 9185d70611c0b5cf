"""One family's tape of one recipe and region: traced on toys of its class, solved, and proved at every one of them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import field, replace
from functools import lru_cache
from typing import Any
from unittest import mock

from qlora_planner.memory.options.resolve import Resolution, resolve
from qlora_planner.memory.sweep.tasks import task_sizes
from qlora_planner.memory.sweep.validity import ALWAYS, EVALUATION, trace_key, variants_of_evaluation
from qlora_planner.profiling.build import PROBES, build_profile
from qlora_planner.profiling.refusals import Prober
from qlora_planner.profiling.tapes import trace_run
from qlora_planner.profiling.tracing.cuda import bitsandbytes
from qlora_planner.profiling.tracing.trainers import sft_before_1_15
from qlora_planner.record import record
from qlora_planner.sources.families import kernel_letters
from qlora_planner.spec.family import (
    HEAD_BLOCKS,
    PROMPT,
    ROWS,
    block_sizes,
    flash_sizes,
)
from qlora_planner.spec.machine import GpuSpec
from qlora_planner.spec.model import ModelProfile
from qlora_planner.spec.run import RunConfig
from qlora_planner.spec.scans import ScanLoop
from qlora_planner.spec.tiles import RESTS, TileLoop
from qlora_planner.spec.trace import ROLLOUT, SCORE, CompiledTape, Tape, Term
from tools.compiling import NotPolynomialError, Point, aligned_codes
from tools.families.blocks import begun_by_blocks, begun_sums, blocks_of, chunk_of, settled
from tools.families.fitting import SizeFitter, Sum, UnfittedError
from tools.families.regions import Region
from tools.families.scans import few_chunks_of
from tools.families.task_regions import TaskRegion
from tools.families.tiles import TilesError, loops_of, rests, scored_tokens
from tools.families.toys import Toys

# What makes rows of lengths that are alike modulo 128 tell a length from one that is rounded up to it.
_UNEVEN = (0, 16, 64, 32, 48, 0)
CONFIGS = 6  # toys, each traced once: two tapes solve a sum of two products, the others prove it


@record
class Toy:
    """A toy's config as the profiler takes it."""

    config: Mapping[str, Any]
    id: str = "toy"
    sha256: str = "0" * 64


@record
class TracedFamily:
    """A tape of the first toy and, for each of its sizes, the terms in the class's dimensions."""

    tape: CompiledTape
    sizes: tuple[Sum, ...]
    symbols: tuple[str, ...]
    loops: tuple[TileLoop, ...] = ()
    scored: tuple[Term, ...] = ()  # tokens that the head scores, where there are loops
    letters: tuple[str, ...] = ()  # of a task, after the symbols
    blocks: Mapping[str, int] = field(default_factory=dict)  # see `blocks_of`
    whole: bool | None = None  # holds for rows of a whole number of blocks alone, or for others alone
    scans: tuple[ScanLoop, ...] = ()  # of a tape of CHUNKS chunks


@record
class TracedToy:
    """One toy's tape and sizes; `dims` are its dimensions and what the last tiles of its head hold."""

    tape: Tape
    variant: str
    point: Point
    dims: Mapping[str, int]
    loops: tuple[TileLoop, ...]


@contextlib.contextmanager
def never_fused() -> Iterator[None]:
    """As for weights of many millions and rows of some hundred tokens: toys are so small that bitsandbytes would
    multiply them by its fused kernel at lengths at which no real model does. Below those lengths a family bounds from
    above: a fused product makes no copy of the weight."""
    own = bitsandbytes._bitsandbytes_rule
    bitsandbytes._bitsandbytes_rule = lambda: (None, 0)  # type: ignore[assignment]
    try:
        yield
    finally:
        bitsandbytes._bitsandbytes_rule = own


@contextlib.contextmanager
def few_chunks() -> Iterator[None]:
    """Of the chunks in which trl 1.7 to 1.14 score tokens the first two and the last whole one: as many events at every
    length. What each chunk leaves behind are scalars; the peak was the same to the byte with all of them."""

    def whole(start: int, stop: int, step: int) -> list[int]:
        starts = [at for at in range(start, stop, step) if at + step <= stop]
        return [*starts[:2], *starts[-1:]] if len(starts) > 3 else list(range(start, stop, step))

    with mock.patch.object(sft_before_1_15, "range", whole, create=True):
        yield


def family_tape(toys: Toys, recipe: RunConfig, gpu: GpuSpec | None, region: Region | TaskRegion) -> TracedFamily:
    """Trace and solve. Raises NotPolynomialError and UnfittedError where the class is not one tape in this region, and
    what tracing raises."""
    with never_fused(), few_chunks():
        return _family_tape(toys, recipe, gpu, region) if isinstance(region, Region) else _task(toys, recipe, region)


def traced_toy(toys: Toys, recipe: RunConfig, gpu: GpuSpec | None, region: Region, at: int) -> TracedToy:
    """Toy number `at`, traced as a family is made of it."""
    with never_fused(), few_chunks():
        resolution, variant = _resolution(toys, recipe, gpu, region)
        point = settled(region, toys.configs[0]).points(CONFIGS)[at]
        tape, _ = few_chunks_of(toys.configs[at], trace_toy(toys.configs[at], resolution, gpu, point), point[1])
    dims = toy_dims(toys, recipe, gpu, region, at)
    loops = loops_of(tape, toys.dims[at], dims) if region.tiled else ()
    return TracedToy(tape=tape, variant=variant, point=point, dims=dims, loops=loops)


def toy_dims(toys: Toys, recipe: RunConfig, gpu: GpuSpec | None, region: Region, at: int) -> dict[str, int]:
    """The dimensions of toy number `at`, and what the last tiles of its head hold."""
    dims = dict(toys.dims[at])
    if not region.tiled:
        return dims
    resolution, _ = _resolution(toys, recipe, gpu, region)
    return {
        **dims,
        **rests(dims, scored_tokens(resolution, region.batched), settled(region, toys.configs[0]).points(CONFIGS)[at]),
    }


def _resolution(toys: Toys, recipe: RunConfig, gpu: GpuSpec | None, region: Region) -> tuple[Resolution, str]:
    resolution = toy_resolution(toys, recipe, gpu, region.batched)
    variant = trace_key(resolution.run, resolution.stack, gpu)
    if resolution.run.eval_batch_size is None:
        return resolution, variant
    alone = variants_of_evaluation(variant)
    assert alone is not None
    _, variant, rows = alone
    # Rows of a batch that is padded are padded in an evaluation too, though the one that names the recipe is alone.
    padded = ["padding"] if region.batched and resolution.run.padding and rows == 1 else []
    words = variant.split()
    return resolution, " ".join([*words[:ALWAYS], *sorted([*words[ALWAYS:], *padded])])


def _family_tape(toys: Toys, recipe: RunConfig, gpu: GpuSpec | None, region: Region) -> TracedFamily:
    resolution, variant = _resolution(toys, recipe, gpu, region)
    region, blocks = settled(region, toys.configs[0]), blocks_of(toys.configs[0])
    points = region.points(CONFIGS)
    if resolution.run.attention == "flash_attention_2" and not blocks:
        points = [(batch, seq + more, rank) for (batch, seq, rank), more in zip(points, _UNEVEN, strict=False)]
    traced = [
        few_chunks_of(config, trace_toy(config, resolution, gpu, point), point[1])
        for config, point in zip(toys.configs[:CONFIGS], points, strict=True)
    ]
    tapes, scans = [tape for tape, _ in traced], traced[0][1]
    if any(other != scans for _, other in traced):
        raise NotPolynomialError("toys differ in where they loop over chunks")
    codes = aligned_codes(tapes, points)
    rows, letters = _with_rounded(toys, variant, points, blocks)
    fitter = SizeFitter((*toys.symbols, *letters), rows, points, (*begun_sums(), *begun_by_blocks(toys.configs[0])))
    scored, symbols, of_last = scored_tokens(resolution, region.batched), toys.symbols, fitter
    loops: tuple[TileLoop, ...] = ()
    in_last: set[int] = set()
    if region.tiled:
        rest = [rests(row, scored, point) for row, point in zip(rows, points, strict=True)]
        loops = loops_of(tapes[0], rows[0], rest[0])
        if any(loops_of(*facts) != loops for facts in zip(tapes, rows, rest, strict=True)):
            raise TilesError("toys differ in where their heads go tile by tile")
        symbols = (*toys.symbols, *rest[0])
        dims = [{**row, **last} for row, last in zip(rows, rest, strict=True)]
        of_last = SizeFitter((*symbols, *letters), dims, points, ()) if loops else fitter
        in_last = {at for loop in loops for at in range(loop.last, loop.stop)}

    def fit(at: int, observed: tuple[int, ...]) -> Sum:
        return (of_last if at in in_last else fitter).fit(observed)

    tape, sizes = solved(tapes, codes, variant, fit, in_last)
    return TracedFamily(
        tape=tape, sizes=sizes, symbols=symbols, loops=loops, scored=scored if loops else (), letters=letters,
        blocks=blocks, whole=region.whole if chunk_of(toys.configs[0]) else None, scans=scans,
    )  # fmt: skip


def _with_rounded(
    toys: Toys, variant: str, points: Sequence[Point], blocks: Mapping[str, int]
) -> tuple[list[dict[str, int]], tuple[str, ...]]:
    """The toys' dimensions with the letters of the run's kernels, and of rows that the class takes by blocks; and these
    letters."""
    rows = [dict(row) for row in toys.dims[:CONFIGS]]
    sizes = [
        kernel_letters(variant, row, batch, seq) | block_sizes(blocks, seq)
        for row, (batch, seq, _) in zip(rows, points, strict=True)
    ]
    return [{**row, **size} for row, size in zip(rows, sizes, strict=True)], tuple(sizes[0])


def _task(toys: Toys, recipe: RunConfig, region: TaskRegion) -> TracedFamily:
    """The same for a task. What is generated has its own sizes: all rows together, and the prompt."""
    points, options = region.points(CONFIGS), [region.options(at) for at in range(CONFIGS)]
    resolution = resolve(
        _profile(json.dumps(toys.configs[0], default=str)),
        recipe.with_(batch_size=points[0][0], seq_len=points[0][1], **options[0]),
    )
    sizes = task_sizes(trace_key(resolution.run, resolution.stack, None))
    assert sizes is not None
    tapes = [
        trace_toy(config, replace(resolution, run=resolution.run.with_(**given)), None, point)
        for config, given, point in zip(toys.configs[:CONFIGS], options, points, strict=True)
    ]
    if any(
        loops_of(tape, dims, dict.fromkeys(RESTS.values(), 0)) for tape, dims in zip(tapes, toys.dims, strict=False)
    ):
        raise TilesError("a head that goes tile by tile is shipped for trainers on texts alone")
    # Rows of which some are shorter are attended to end to end, so that no length is rounded up, but the heads are.
    flash = (HEAD_BLOCKS,) if resolution.run.attention == "flash_attention_2" else ()
    own_letters = (*region.letters, *flash)
    symbols = (*toys.symbols, *own_letters)
    dims = [
        {**row, **{name: ({**flash_sizes(row, 1), **given})[name] for name in own_letters}}
        for row, given in zip(toys.dims, options, strict=False)
    ]
    fitters = [SizeFitter(symbols, dims, points, begun_sums(sizes.trainer.sequences_per_row, flash))]
    generated: set[int] = set()
    if sizes.trainer.generation is not None:
        together = [
            (batch * given["steps_per_generation"], given["prompt_len"], rank)
            for (batch, _, rank), given in zip(points, options, strict=True)
        ]
        fitters.append(SizeFitter(symbols, dims, together, ()))
        spans = [part for part in tapes[0].segments if part.stage in ROLLOUT and part.stage != SCORE]
        generated = {at for part in spans for at in range(part.start, part.stop)}

    def fit(at: int, observed: tuple[int, ...]) -> Sum:
        own = at in generated
        for later in (own, not own) if generated else (False,):
            try:
                terms = fitters[later].fit(observed)
            except UnfittedError:
                continue
            return _of_rows(terms) if later else terms
        return fitters[own].fit(observed)

    tape, terms = solved(tapes, aligned_codes(tapes, points), sizes.key, fit, generated)
    letters = (PROMPT, ROWS) if sizes.trainer.generation is not None else ()
    return TracedFamily(tape=tape, sizes=terms, symbols=toys.symbols, letters=(*own_letters, *letters))


def _of_rows(terms: Sum) -> Sum:
    """A sum in all rows that are generated together, their prompt and the rank, by letters."""
    return tuple((c, (0, 0, r), (*product, *[ROWS] * b, *[PROMPT] * s)) for c, (b, s, r), product in terms)


def solved(
    tapes: Sequence[Tape],
    codes: Sequence[int],
    variant: str,
    fit: Callable[[int, tuple[int, ...]], Sum],
    apart: Collection[int],
) -> tuple[CompiledTape, tuple[Sum, ...]]:
    """One tape of several, and what each of its sizes is; `fit` solves an event, and those `apart` otherwise."""
    fits: dict[tuple[tuple[int, ...], bool], Sum] = {}
    sizes: dict[tuple[Sum, tuple[bool, bool, bool]], int] = {}
    events: list[int] = []
    for at, code in enumerate(codes):
        if code < 0:
            events.append(code)
            continue
        observed = tuple(tape.events[at][1] for tape in tapes), at in apart
        if observed not in fits:
            fits[observed] = fit(at, observed[0])
        storage = tapes[0].events[at][0]
        place = storage in tapes[0].workspaces, storage in tapes[0].on_host, storage in tapes[0].streamed
        events.append(sizes.setdefault((fits[observed], place), len(sizes)) + 1)
    tape = CompiledTape(
        variant=variant,
        sizes=tuple(() for _ in sizes),
        workspace_sizes=tuple(index for index, (_, place) in enumerate(sizes) if place[0]),
        host_sizes=tuple(index for index, (_, place) in enumerate(sizes) if place[1]),
        streamed_sizes=tuple(index for index, (_, place) in enumerate(sizes) if place[2]),
        events=tuple(events),
        segments=tapes[0].segments,
        places=(),
        kept=(),
    )
    return tape, tuple(terms for terms, _ in sizes)


class _OfModel(Prober):
    """Does not ask what breaks: what breaks on the model breaks, and a piece of work that breaks besides says so."""

    def __init__(self, refusals: Mapping[str, str]) -> None:
        super().__init__()
        self.refusals = refusals

    def refusal(self, *_given: Any, **options: Any) -> str | None:
        own = {name: value for name, value in options.items() if name not in ("target_modules", "attention")}
        probe = next((name for name, probed in PROBES.items() if probed == own), None)
        return self.refusals.get(probe or "") if own else self.refusals.get(options["target_modules"])


@lru_cache(maxsize=256)
def _profile(config: str, refusals: tuple[tuple[str, str], ...] = ()) -> ModelProfile:
    return build_profile(Toy(config=json.loads(config)), prober=_OfModel(dict(refusals)))


def toy_resolution(toys: Toys, recipe: RunConfig, gpu: GpuSpec | None, batched: bool) -> Resolution:
    profile = _profile(json.dumps(toys.configs[0], default=str), tuple(toys.refusals.items()))
    # What a batch of several rows makes of options left open (padding) is resolved at such a batch.
    return resolve(profile, recipe.with_(batch_size=8 if batched else 1), gpu)


def trace_toy(config: Mapping[str, Any], resolution: Resolution, gpu: GpuSpec | None, point: Point) -> Tape:
    batch, seq, rank = point
    run = resolution.run.with_(batch_size=batch, seq_len=seq, rank=rank)
    if run.eval_batch_size is None:
        return trace_run(Toy(config=config), replace(resolution, run=run), gpu)
    run = run.with_(eval_batch_size=batch)
    return _evaluation_of(trace_run(Toy(config=config), replace(resolution, run=run), gpu))


def _evaluation_of(tape: Tape) -> Tape:
    """The evaluation of a tape alone. Raises NotPolynomialError where it frees what training made."""
    segments = [segment for segment in tape.segments if segment.stage == EVALUATION]
    start = segments[0].start
    events = tape.events[start:]
    born = {storage for storage, size in events if size}
    if any(storage not in born for storage, _ in events):
        raise NotPolynomialError("the evaluation frees what training made")
    return replace(
        tape, events=events, workspaces=tape.workspaces & born,
        segments=tuple(segment.at(segment.start - start, segment.stop - start) for segment in segments),
    )  # fmt: skip
