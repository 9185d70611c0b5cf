"""The trace of a run: shipped, kept from before, or made now."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from qlora_planner import installing
from qlora_planner.catalog.stack import CODE_SINCE, same_code, stack_of
from qlora_planner.errors import MissingError
from qlora_planner.installing import install_packages
from qlora_planner.session import packages
from qlora_planner.session.models import source_of
from qlora_planner.session.packages import Warn
from qlora_planner.sources.locations import PROFILES_VARIABLE, cache_dir, families_dirs, models_dirs, tapes_dirs
from qlora_planner.spec.model import ModelProfile
from qlora_planner.text import listed

if TYPE_CHECKING:
    from pathlib import Path

    from qlora_planner.memory.sweep.validity import ValidityRange
    from qlora_planner.planner.survey.played import PlayedRuns
    from qlora_planner.planner.sweeps import Sweep
    from qlora_planner.sources.tapes import StoredTape
    from qlora_planner.spec.machine import GpuSpec
    from qlora_planner.spec.run import RunConfig
    from qlora_planner.spec.trace import CompiledTape, Tape

# Tapes that were looked up or put together a moment ago, and sizes for which none ships, with the profile that is
# meant: its address is no one else's while it is kept here.
_kept: dict[tuple[Any, ...], tuple[ModelProfile, list[StoredTape], set[tuple[int, int]]]] = {}
# Folders of families and of tapes, by such a profile and what names the folders: forgotten with what was looked up.
_folders: dict[tuple[int, str, str | None], tuple[tuple[Path, ...], tuple[Path, ...]]] = {}
_MOST_KEPT = 128


def tape_for(
    profile: ModelProfile,
    run: RunConfig,
    gpu: GpuSpec | None = None,
    *,
    profiles: str | os.PathLike[str] | None = None,
    tell: Warn = packages.silent,
    stored_only: bool = False,
    make: bool = True,
) -> Tape | None:
    """The trace of this run: shipped, kept from before, or made now where the training packages are installed.
    `stored_only` looks among the shipped ones alone, and without `make` none is made.

    None for a run that is refused, where the model's code cannot be traced, and where QLORA_PLANNER_TRACE is `never`;
    `tell` gets the reason, and a word while tracing takes time.
    Raises InputError for target modules that match nothing, RefusedError where the installed libraries break on this
    run, MissingError where it would have to be traced and the packages for that are missing.
    """
    from qlora_planner.catalog.cuda import cublas_workspace_bytes
    from qlora_planner.memory.options.resolve import resolve
    from qlora_planner.memory.sweep.validity import accumulates_apart, trace_key
    from qlora_planner.memory.weights.targets import as_traced, targeted

    resolution = resolve(profile, run, gpu)
    targeted(profile, resolution.run)  # modules that no adapter is known for are refused before anything is traced
    resolved = as_traced(profile, resolution.run)
    resolution, variant = replace(resolution, run=resolved), trace_key(resolved, resolution.stack, gpu)
    sizes = resolved.batch_size, resolved.seq_len
    stored = shipped_tape(profile, variant, *sizes, profiles=profiles, stack=resolution.stack)
    exact = stored is not None and same_code(stored.versions, resolution.stack)
    if stored is not None and (exact or stored_only or not _code_at_hand(resolution.stack)):
        if not (exact or stored_only):
            tell(_stands_in(profile, stored.versions, resolution.stack))
        workspace = cublas_workspace_bytes(gpu.compute_capability if gpu else None)
        return stored.tape.at(resolved.batch_size, resolved.seq_len, resolved.rank, workspace)
    if stored_only:
        return None
    if any(problem.blocking for problem in resolution.problems):
        return None
    from qlora_planner.sources.profile_cache import installed_versions
    from qlora_planner.sources.traces.tape_cache import TapeCache

    trainer = resolution.trainer
    versions = installed_versions()
    if trainer.patches_libraries:
        versions |= installing.installed_versions(trainer.packages)
    cache = TapeCache(cache_dir() / "tapes")
    cached = cache.load(profile, resolved, variant, versions)
    if cached is not None or not make or os.environ.get(packages.TRACE_VARIABLE) == "never":
        return cached
    if trainer.traced_types and (profile.text_part_of or profile.model_type) not in trainer.traced_types:
        return None  # `unmodelled` says why
    missing = packages.missing_packages()
    own = packages.missing_packages(trainer.packages)
    if own and not trainer.closed_forms:
        tell(
            f"{profile.id}: {trainer.name} is traced where its packages are (missing: {', '.join(own)});"
            f" {install_packages(own)}"
        )
        return None
    if missing:
        raise MissingError(_not_traced(profile, resolved, missing))
    source = source_of(profile, profiles)
    if source is None:
        tell(f"{profile.id}: its config is not at hand, so this run cannot be traced; name its config.json")
        return None
    if not accumulates_apart(resolved) and resolution.trainer.generation is None:
        resolution = replace(resolution, run=resolved.with_(grad_accum=1))
    step = f"a training step of this run{_images(resolved)}"
    tell(f"{profile.id}: recording {step} (a trace), a quarter of a minute; it is kept")
    from qlora_planner.profiling.tapes import trace_run

    try:
        tape = trace_run(source, resolution, gpu)
    except MissingError as error:
        tell(str(error))
        return None
    cache.store(profile, resolved, variant, versions, tape)
    return tape


def shipped_tape(
    profile: ModelProfile,
    variant: str,
    batch_size: int,
    seq_len: int,
    *,
    profiles: str | os.PathLike[str] | None = None,
    stack: Mapping[str, str] | None = None,
) -> StoredTape | None:
    """The tape that ships for a variant (see `trace_key`) of a model at these sizes, its family's or its own; None
    where there is none. One that holds for the versions of `stack`, else one that the profile's versions were traced
    with. A run that checkpoints some layers is answered from the two that checkpoint all of them and none. Raises
    InputError naming a file that cannot be read.
    """
    from qlora_planner.sources.families import lengths_alike

    versions = tuple(sorted((stack or {}).items()))
    key = (
        id(profile),
        variant,
        lengths_alike(variant, seq_len),
        str(profiles),
        os.environ.get(PROFILES_VARIABLE),
        versions,
    )
    if key not in _kept and len(_kept) >= _MOST_KEPT:
        _kept.clear()
        _folders.clear()
    _, tapes, missing = _kept.setdefault(key, (profile, [], set()))
    tape = next((tape for tape in tapes if tape.region.holds(batch_size, seq_len)), None)
    if tape is None and (batch_size, seq_len) not in missing:
        tape = _look_up(profile, variant, batch_size, seq_len, profiles, stack)
        if tape is None:
            missing.add((batch_size, seq_len))
        else:
            tapes.append(tape)
    return tape


def _look_up(
    profile: ModelProfile,
    variant: str,
    batch_size: int,
    seq_len: int,
    profiles: str | os.PathLike[str] | None,
    stack: Mapping[str, str] | None,
) -> StoredTape | None:
    from qlora_planner.memory.sweep.validity import (
        of_one_row,
        variants_of_evaluation,
        variants_of_some_layers,
        variants_on_card,
    )
    from qlora_planner.memory.weights.placement import stores_experts
    from qlora_planner.sources.families import family_tape
    from qlora_planner.sources.tapes import evaluated_tape, hosted_tape, woven_tape
    from qlora_planner.sources.traces.image_tapes import image_tape

    if profile.tower is not None:  # whose layers are checkpointed, and evaluated, beside those that would be woven
        own = of_one_row(variant) if batch_size == 1 else variant
        wanted = profile.counted if stack is None else stack
        return image_tape(profile, own, tapes_dirs(profiles), batch_size, seq_len, wanted)
    evaluates = variants_of_evaluation(variant)
    if evaluates is not None:
        training, evaluation, rows = evaluates
        trains = shipped_tape(profile, training, batch_size, seq_len, profiles=profiles, stack=stack)
        held_out = shipped_tape(profile, evaluation, rows, seq_len, profiles=profiles, stack=stack)
        return evaluated_tape(trains, held_out, rows)
    if batch_size == 1:
        variant = of_one_row(variant)
    on_card = variants_on_card(variant)
    if on_card is not None:
        inputs, none = (
            shipped_tape(profile, each, batch_size, seq_len, profiles=profiles, stack=stack) for each in on_card
        )
        return hosted_tape(inputs, none)
    some_layers = variants_of_some_layers(variant)
    if some_layers is not None:
        if any(stores_experts(tensor) for tensor in profile.tensors):
            return None  # what a router leaves for its loss is of all layers together
        *variants, every = some_layers
        whole, none = (
            shipped_tape(profile, each, batch_size, seq_len, profiles=profiles, stack=stack) for each in variants
        )
        return woven_tape(whole, none, every)
    named = id(profile), str(profiles), os.environ.get(PROFILES_VARIABLE)
    if named not in _folders:
        _folders[named] = families_dirs(profiles), tapes_dirs(profiles)
    families, tapes = _folders[named]
    wanted = profile.counted if stack is None else stack
    return (
        family_tape(profile, variant, families, batch_size, seq_len, wanted)
        or _own_tape(profile, variant, batch_size, seq_len, tapes)
        or family_tape(profile, variant, families, batch_size, seq_len)
    )


def _own_tape(
    profile: ModelProfile, variant: str, batch_size: int, seq_len: int, folders: Sequence[Path]
) -> StoredTape | None:
    """What was traced of the model itself: where its class has no family, or kernels round what no law says, as for
    short rows of small weights; and of trainers that are traced with packages of their own."""
    from qlora_planner.sources.tapes import OF_TRAINERS, stored_tape

    return stored_tape(
        profile, [folder / OF_TRAINERS for folder in folders], batch_size, seq_len, variant
    ) or stored_tape(profile, folders, batch_size, seq_len, variant)


def sweep_for(
    profile: ModelProfile,
    *,
    profiles: str | os.PathLike[str] | None = None,
    named: Mapping[str, str] | None = None,
) -> Sweep:
    """What ships of a model, by which a search ranks: the very tapes that an estimate plays, of runs with the versions
    in `named`."""
    from qlora_planner.planner.sweeps import TapeSweep
    from qlora_planner.sources.played import played_runs

    stack = stack_of(profile.counted, named or {}).versions

    def tape_of(variant: str, batch_size: int, seq_len: int) -> tuple[CompiledTape, ValidityRange] | None:
        stored = shipped_tape(profile, variant, batch_size, seq_len, profiles=profiles, stack=stack)
        return None if stored is None else (stored.tape, stored.region)

    def played_of(workspace_bytes: int) -> PlayedRuns | None:
        of_text = not named and profile.tower is None
        return played_runs(profile, workspace_bytes, models_dirs(profiles)) if of_text else None

    return TapeSweep(profile=profile, tape_of=tape_of, played_of=played_of)


def _code_at_hand(stack: Mapping[str, str]) -> bool:
    """Whether the packages that are installed here would trace just what a run with these versions does."""
    if os.environ.get(packages.TRACE_VARIABLE) == "never" or packages.missing_packages():
        return False
    from qlora_planner.sources.profile_cache import installed_versions

    return same_code(installed_versions(), stack)


def _stands_in(profile: ModelProfile, versions: Mapping[str, str], stack: Mapping[str, str]) -> str:
    others = [f"{name} {versions[name]}" for name in CODE_SINCE if name in versions]
    wanted = [f"{name} {stack[name]}" for name in CODE_SINCE if name in stack]
    return f"{profile.id}: no trace with {listed(wanted)} ships for this run; its trace with {listed(others)} answers"


def tape_orders(
    profile: ModelProfile,
    run: RunConfig,
    widths: Sequence[Sequence[int]],
    gpu: GpuSpec | None = None,
    *,
    profiles: str | os.PathLike[str] | None = None,
    tell: Warn = packages.silent,
    stored_only: bool = False,
) -> tuple[tuple[Tape, ...], ...]:
    """Traces of `run` for sequences of other `widths`, of those that are made of the same pieces as its own.

    All that ship; of a run that has to be traced a single width, the widest, since each takes a quarter of a minute;
    with `stored_only` none of such a run.
    """
    from qlora_planner.memory.sweep.validity import validity_ranges

    own = tape_for(profile, run, gpu, profiles=profiles, stored_only=True)
    kept = own is not None
    if not kept and not stored_only:
        own = tape_for(profile, run, gpu, profiles=profiles)
    within = next(
        (
            validity
            for validity in validity_ranges(profile, run.batch_size > 1)
            if validity.holds(run.batch_size, run.seq_len)
        ),
        None,
    )
    if own is None or within is None:
        return ()
    near = {width for order in widths for width in order if within.holds(run.batch_size, width)}
    wanted = near if kept else {max(near)} if near else set()
    tapes: dict[int, Tape] = {}
    for width in wanted:
        tape = tape_for(profile, run.with_(seq_len=width), gpu, profiles=profiles, tell=tell, stored_only=kept)
        if tape is not None and tape.alike(own):
            tapes[width] = tape
    orders = dict.fromkeys(tuple(width for width in order if width in tapes) for order in widths)
    return tuple(tuple(tapes[width] for width in order) for order in orders if order)


def _images(run: RunConfig) -> str:
    """What tells one run with images from the next, of which a plan traces several."""
    if not run.images:
        return ""
    size, checkpointed = run.image_size or f"{run.image_tokens} tokens", "" if run.gradient_checkpointing else ", none"
    return (
        f" ({run.batch_size} x {run.seq_len:,} tokens, {run.images} of {size} in each, rank {run.rank}{checkpointed})"
    )


def _not_traced(profile: ModelProfile, run: RunConfig, missing: Sequence[str]) -> str:
    sizes = f"batch {run.batch_size}, {run.seq_len} tokens, rank {run.rank}"
    words = [] if run.task is None else [run.task]
    words += [f"--checkpoint-every {run.checkpoint_every}"] if (run.checkpoint_every or 1) > 1 else []
    words += ["--checkpoint-offload"] if run.checkpoint_offload else []
    words += [f"--loss-kernel {run.loss_kernel}"] if run.loss_kernel is not None else []
    return (
        f"{profile.id}: this run ({', '.join([sizes, str(run.trainer), *words])}) is not among the traces that ship;"
        f" `{install_packages(missing)}` traces it (missing: {', '.join(missing)})"
    )
