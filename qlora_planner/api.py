"""The Python entry points: a model, a card, the memory of a run, the plan. Everything heavy is imported when needed."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from qlora_planner.errors import InputError, MissingError, PlannerError, RefusedError
from qlora_planner.profile.faults import plain, quoted
from qlora_planner.profile.records import ModelProfile
from qlora_planner.sources.catalogue import ModelCatalogue
from qlora_planner.sources.locations import (
    cache_dir,
    calibrations_dirs,
    configs_dirs,
    gpus_dirs,
    models_dirs,
    tapes_dirs,
)

if TYPE_CHECKING:
    from qlora_planner.evidence.calibration import Calibration
    from qlora_planner.hardware import GpuCatalogue, GpuSpec
    from qlora_planner.memory import MemoryEstimate, Problem
    from qlora_planner.planner.plan import Plan
    from qlora_planner.profile.tape import Tape
    from qlora_planner.run import RunConfig
    from qlora_planner.sources.configs import RawConfig

Warn = Callable[[str], None]
Build = Literal["auto", "never", "always"]

TRACE_VARIABLE = "QLORA_PLANNER_TRACE"
# What building a profile imports.
TRAIN_PACKAGES = ("torch", "transformers", "accelerate", "bitsandbytes", "peft")


def _python_warning(text: str) -> None:
    warnings.warn(text, stacklevel=3)


def _silent(_text: str) -> None:
    """Say nothing."""


def load_model(
    text: str,
    *,
    profiles: str | os.PathLike[str] | None = None,
    build: Build = "auto",
    warn: Warn = _python_warning,
) -> ModelProfile:
    """The profile of `text`: a catalogue name, a config.json or model folder, or a Hub id.

    `build` says what to do for a model without a profile: "auto" builds it where the training packages are installed,
    "never" refuses, "always" builds even if there is a profile. A built profile is cached. `warn` gets one line for
    each oddity that does not stop the answer.
    Raises InputError for text that means nothing or several things and for configs that describe no model,
    MissingError for a model that is not profiled where it cannot be built, and for a Hub that cannot be asked.
    """
    text = text.strip()
    if not text:
        raise InputError("MODEL is empty: give a catalogue name, a Hub id, a model folder or a config.json")
    catalogue = ModelCatalogue(models_dirs(profiles))
    found = _find(text, catalogue, warn)
    if isinstance(found, str):
        if build != "always":
            return catalogue.load(found)
        found = _from_hub(found, catalogue)
    return _profile_of(found, text, catalogue, build, warn)


def _find(text: str, catalogue: ModelCatalogue, warn: Warn) -> str | RawConfig:
    """The catalogue id that `text` names, else the config it leads to."""
    from qlora_planner.sources import configs

    if configs.written_as_path(text):
        return configs.read_config(text)
    exists = _exists(text)
    model_id = catalogue.resolve(text)
    if model_id is not None:
        if exists:
            warn(f"{plain(text)}: taken as the catalogue's {model_id}; write ./{plain(text)} for the file or folder")
        return model_id
    if exists:
        return configs.read_config(text)
    if not configs.is_hub_id(text):
        raise InputError(
            f"{quoted(text)} is no catalogue name, no Hub id, and no such file or folder{catalogue.suggestion(text)}"
        )
    return _from_hub(text, catalogue)


def _exists(text: str) -> bool:
    try:
        return Path(text).exists()
    except (OSError, ValueError):  # a name too long for the disk, a null character
        return False


def _from_hub(repo_id: str, catalogue: ModelCatalogue) -> RawConfig:
    from qlora_planner.sources.hub import fetch_config

    try:
        return fetch_config(repo_id, nearest=catalogue.nearest(repo_id))
    except PlannerError as error:
        # `models/llama` with a folder called models is as likely a path that was mistyped.
        folder = repo_id.partition("/")[0]
        if "/" in repo_id and _exists(folder):
            raise type(error)(f"{error}; in the folder {folder} there is no such file either") from None
        raise


def _profile_of(raw: RawConfig, text: str, catalogue: ModelCatalogue, build: Build, warn: Warn) -> ModelProfile:
    """The profile of a config: the catalogue's for the same config, a cached one, or a new one."""
    from qlora_planner.sources.profile_cache import ProfileCache, cache_key, installed_versions
    from qlora_planner.sources.tape_cache import ConfigCache

    ConfigCache(cache_dir() / "configs").store(raw.sha256, raw.config)
    cache = ProfileCache(cache_dir() / "profiles", warn)
    missing = _missing_packages()
    if build != "always":
        known = catalogue.with_config(raw.sha256)
        if known is None:
            key = cache_key(raw.sha256, installed_versions())
            known = cache.newest(raw.sha256) if missing else cache.load(key)
        if known is not None:
            return known if known.source == "catalogue" else replace(known, id=raw.id)
    if build == "never" or missing:
        raise MissingError(_not_profiled(text, missing))
    profile = _build(raw)
    cache.store(profile)
    return profile


def profile_of(raw: RawConfig, *, build: Build = "auto", warn: Warn = _python_warning) -> ModelProfile:
    """The profile of a config that is at hand; raises as `load_model` does."""
    return _profile_of(raw, raw.id, ModelCatalogue(models_dirs()), build, warn)


def calibration(profiles: str | os.PathLike[str] | None = None) -> Calibration | None:
    """What measurements say: the user's own and the shipped ones together. None where there are none.

    Raises InputError naming a file that is no calibration.
    """
    from qlora_planner.sources.evidence import read_calibration

    return read_calibration(calibrations_dirs(profiles))


def missing_for(run: RunConfig) -> list[str]:
    """The packages that this run would import and that are not installed here."""
    needed = [*TRAIN_PACKAGES]
    needed += ["trl", "datasets"] if run.trainer in (None, "trl-sft") else []
    needed += ["liger_kernel"] if run.liger else []
    needed += ["flash_attn"] if run.attention == "flash_attention_2" else []
    return _missing_packages(needed)


def _missing_packages(needed: Sequence[str] = TRAIN_PACKAGES) -> list[str]:
    from importlib.util import find_spec

    return [package for package in needed if find_spec(package) is None]


def _not_profiled(text: str, missing: Sequence[str]) -> str:
    import shlex

    shown = plain(text)
    where = " where `pip install 'qlora-planner[train]'` is installed" if missing else ""
    lacking = f" (missing here: {', '.join(missing)})" if missing else ""
    return f"{shown} is not profiled; run `qlora-plan profile {shlex.quote(shown)}`{where}{lacking}"


def _build(raw: RawConfig) -> ModelProfile:
    try:
        from qlora_planner.profiling.build import build_profile
    except (ImportError, OSError) as error:  # OSError: a shared library of torch that cannot be loaded
        raise MissingError(
            f"{plain(raw.id)} cannot be profiled: {plain(error)}; `qlora-plan doctor` says more"
        ) from None
    return build_profile(raw)


def load_gpu(text: str, *, profiles: str | os.PathLike[str] | None = None) -> GpuSpec:
    """The card of `text`: a size such as 24GB or 24564MiB, a catalogue name, or `local` for the one in this machine.

    Raises InputError for what is none of these (with the nearest names), MissingError for `local` without a card.
    """
    if text.strip().lower() == "local":
        from qlora_planner.measure.nvml import local_gpu

        return local_gpu().spec
    from qlora_planner.hardware import GpuCatalogue, parse_gpu

    return parse_gpu(text, GpuCatalogue(gpus_dirs(profiles)))


def tape_for(
    profile: ModelProfile,
    run: RunConfig,
    gpu: GpuSpec | None = None,
    *,
    profiles: str | os.PathLike[str] | None = None,
    tell: Warn = _silent,
    stored_only: bool = False,
) -> Tape | None:
    """The trace of this run: shipped, kept from before, or made now where the training packages are installed.
    `stored_only` looks among the shipped ones alone.

    None for a run that is refused, where the model's code cannot be traced, and where QLORA_PLANNER_TRACE is `never`;
    `tell` gets the reason, and a word while tracing takes time.
    Raises InputError for target modules that match nothing, RefusedError where the installed libraries break on this
    run, MissingError where it would have to be traced and the packages for that are missing.
    """
    from qlora_planner.catalog.cuda import cublas_workspace_bytes
    from qlora_planner.memory.resolve import resolve
    from qlora_planner.memory.static import targeted
    from qlora_planner.memory.variant import accumulates_apart, variant_key
    from qlora_planner.sources.tapes import stored_tape

    resolution = resolve(profile, run, gpu)
    resolved, variant = resolution.run, variant_key(resolution.run, resolution.stack, gpu)
    targeted(profile, resolved)  # names that match nothing are refused before anything is traced
    stored = stored_tape(profile, tapes_dirs(profiles), resolved.batch_size, resolved.seq_len)
    if stored is not None and stored.tape.variant == variant:
        workspace = cublas_workspace_bytes(gpu.compute_capability if gpu else None)
        return stored.tape.at(resolved.batch_size, resolved.seq_len, resolved.rank, workspace)
    if stored_only:
        return None
    if any(problem.blocking for problem in resolution.problems):
        return None
    from qlora_planner.sources.profile_cache import installed_versions
    from qlora_planner.sources.tape_cache import TapeCache

    versions = installed_versions()
    cache = TapeCache(cache_dir() / "tapes")
    known = cache.load(profile, resolved, variant, versions)
    if known is not None or os.environ.get(TRACE_VARIABLE) == "never":
        return known
    missing = _missing_packages()
    if missing:
        raise MissingError(_not_traced(profile, resolved, missing))
    source = _source_of(profile, profiles)
    if source is None:
        tell(f"{profile.id}: its config is not at hand, so this run cannot be traced; name its config.json")
        return None
    if not accumulates_apart(resolved):
        resolution = replace(resolution, run=resolved.with_(grad_accum=1))
    tell(f"{profile.id}: tracing this run, a quarter of a minute; the trace is kept")
    from qlora_planner.profiling.tapes import trace_run

    try:
        tape = trace_run(source, resolution, gpu)
    except MissingError as error:
        tell(str(error))
        return None
    cache.store(profile, resolved, variant, versions, tape)
    return tape


def tape_orders(
    profile: ModelProfile,
    run: RunConfig,
    widths: Sequence[Sequence[int]],
    gpu: GpuSpec | None = None,
    *,
    profiles: str | os.PathLike[str] | None = None,
    tell: Warn = _silent,
    stored_only: bool = False,
) -> tuple[tuple[Tape, ...], ...]:
    """Traces of `run` for sequences of other `widths`, of those that are made of the same pieces as its own.

    All that ship; of a run that has to be traced a single width, the widest, since each takes a quarter of a minute;
    with `stored_only` none of such a run.
    """
    from qlora_planner.memory.variant import regions

    own = tape_for(profile, run, gpu, profiles=profiles, stored_only=True)
    kept = own is not None
    if not kept and not stored_only:
        own = tape_for(profile, run, gpu, profiles=profiles)
    within = next((one for one in regions(profile, run.batch_size > 1) if one.holds(run.batch_size, run.seq_len)), None)
    if own is None or within is None:
        return ()
    near = {width for order in widths for width in order if within.holds(run.batch_size, width)}
    wanted = near if kept else {max(near)} if near else set()
    tapes: dict[int, Tape] = {}
    for width in wanted:
        found = tape_for(profile, run.with_(seq_len=width), gpu, profiles=profiles, tell=tell, stored_only=kept)
        if found is not None and found.alike(own):
            tapes[width] = found
    orders = dict.fromkeys(tuple(width for width in order if width in tapes) for order in widths)
    return tuple(tuple(tapes[width] for width in order) for order in orders if order)


def _not_traced(profile: ModelProfile, run: RunConfig, missing: Sequence[str]) -> str:
    return (
        f"{profile.id}: this run (batch {run.batch_size}, {run.seq_len} tokens, rank {run.rank}, {run.trainer}) is not"
        f" among the traces that ship; `pip install 'qlora-planner[train]'` traces it (missing: {', '.join(missing)}),"
        f" or {TRACE_VARIABLE}=never estimates it by closed forms, with a wide interval"
    )


def config_of(profile: ModelProfile, profiles: str | os.PathLike[str] | None = None) -> RawConfig:
    """The config that a profile was built from; raises MissingError where it is not at hand."""
    found = _source_of(profile, profiles)
    if found is None:
        raise MissingError(f"{profile.id}: the config that it was profiled from is not at hand; name its config.json")
    return found


def _source_of(profile: ModelProfile, profiles: str | os.PathLike[str] | None) -> RawConfig | None:
    """The config that a profile was built from: the catalogue's, or one kept when it was built."""
    from qlora_planner.sources.configs import RawConfig, read_config
    from qlora_planner.sources.tape_cache import ConfigCache

    for folder in configs_dirs(profiles):
        path = folder / (profile.id.replace("/", "__") + ".json")
        if path.is_file():
            found = read_config(path)
            if found.sha256 == profile.config_sha256:
                return found
    kept = ConfigCache(cache_dir() / "configs").load(profile.config_sha256)
    if kept is None:
        return None
    return RawConfig(id=profile.id, config=kept, sha256=profile.config_sha256, origin="cache")


def with_targets(
    profile: ModelProfile, run: RunConfig, *, profiles: str | os.PathLike[str] | None = None
) -> ModelProfile:
    """The profile with the adapters of `run.target_modules`, asked of PEFT where that is installed.

    Raises InputError when no module matches, RefusedError in PEFT's words when it refuses one.
    """
    wanted = run.target_modules
    known = wanted in (None, "all-linear", "attention") or wanted in profile.adapters
    if known or run.method == "full" or _missing_packages() or os.environ.get(TRACE_VARIABLE) == "never":
        return profile
    source = _source_of(profile, profiles)
    if source is None:
        return profile
    from qlora_planner.profiling.build import profile_target

    assert wanted is not None
    return replace(profile, adapters={**profile.adapters, wanted: profile_target(source, wanted, profile)})


def estimate(
    profile: ModelProfile,
    run: RunConfig | None = None,
    gpu: GpuSpec | None = None,
    *,
    reserve_bytes: int = 0,
    cap_bytes: int | None = None,
    widths: Sequence[Sequence[int]] = (),
    profiles: str | os.PathLike[str] | None = None,
    tell: Warn = _silent,
) -> MemoryEstimate:
    """The memory of one run, from its trace where that can be had: see `tape_for`.

    `widths` are sequences of those of batches that may come before the widest: see `planner.widths`.

    Raises InputError for options that contradict each other or name modules that are not there.
    """
    from qlora_planner.memory.estimate import estimate as answer
    from qlora_planner.memory.refusals import refusal
    from qlora_planner.planner.speed import speed_of
    from qlora_planner.run import RunConfig as Run

    asked = run or Run()
    broken: tuple[Problem, ...] = ()
    tape: Tape | None = None
    try:
        profile = with_targets(profile, asked, profiles=profiles)
    except RefusedError as error:
        # The document is shown for what could be adapted instead, under the verdict that this run will not work.
        asked, broken = asked.with_(target_modules=None, lora_dropout=None), (refusal(error),)
    try:
        tape = tape_for(profile, asked, gpu, profiles=profiles, tell=tell)
    except RefusedError as error:
        broken = (*broken, refusal(error))
    orders = tape_orders(profile, asked, widths, gpu, profiles=profiles, tell=tell) if tape and widths else ()
    known = calibration(profiles)
    found = answer(
        profile,
        asked,
        gpu,
        reserve_bytes=reserve_bytes,
        cap_bytes=cap_bytes,
        tape=tape,
        orders=orders,
        calibration=known,
        broken=broken,
    )
    return replace(found, speed=speed_of(profile, found.run, gpu, known, found.stack))


def plan(
    profile: ModelProfile,
    gpu: GpuSpec,
    run: RunConfig | None = None,
    *,
    profiles: str | os.PathLike[str] | None = None,
    tell: Warn = _silent,
    **asked: Any,
) -> Plan:
    """The recommended run for a model and a card: see `qlora_planner.planner.plan.plan`.

    `asked` are the other fields of `qlora_planner.planner.planning.Request`, such as `objective`, `fixed`, `data`.
    """
    from qlora_planner.hardware import GpuCatalogue
    from qlora_planner.planner.plan import plan as answer
    from qlora_planner.planner.planning import Request
    from qlora_planner.run import RunConfig as Run
    from qlora_planner.sources.tapes import stored_sweep

    told: set[str] = set()

    def traced(chosen: RunConfig) -> Tape | None:
        try:
            return tape_for(profile, chosen, gpu, profiles=profiles, tell=tell)
        except MissingError as error:  # closed forms answer instead, and the plan says so
            if not told:
                tell(str(error))
            told.add(str(error))
            return None

    def orders(chosen: RunConfig, widths: Sequence[Sequence[int]]) -> Sequence[Sequence[Tape]]:
        try:
            return tape_orders(profile, chosen, widths, gpu, profiles=profiles, tell=tell)
        except MissingError:  # said when the run's own trace was asked for
            return ()

    catalogue = GpuCatalogue(gpus_dirs(profiles))
    asked.setdefault("cards", catalogue.all())
    return answer(
        profile,
        Request(gpu=gpu, run=run or Run(), pace_on=_ranking_card(gpu, catalogue), **asked),
        sweep=stored_sweep(profile, tapes_dirs(profiles)),
        tape_of=traced,
        orders_of=orders,
        calibration=calibration(profiles),
    )


def ranking_card(gpu: GpuSpec, *, profiles: str | os.PathLike[str] | None = None) -> GpuSpec:
    """The card itself, or for a bare size one of the catalogue that stands in to rank speeds by.

    That is the one that the table of sizes names; for a size written exactly, the smallest catalogue card that has it.
    """
    from qlora_planner.hardware import GpuCatalogue

    return _ranking_card(gpu, GpuCatalogue(gpus_dirs(profiles)))


def _ranking_card(gpu: GpuSpec, catalogue: GpuCatalogue) -> GpuSpec:
    from qlora_planner.hardware.sizes import marketed_size

    if gpu.bandwidth_bytes_per_s and (gpu.bf16_flops or gpu.fp16_flops or gpu.fp32_flops):
        return gpu
    if gpu.form == "size" and gpu.marketed_gb:
        named = catalogue.get(marketed_size(gpu.marketed_gb).card)
        if named.bandwidth_bytes_per_s and (named.bf16_flops or named.fp16_flops):
            return named
    rated = [card for card in catalogue.all() if card.bandwidth_bytes_per_s and card.bf16_flops]
    return min(rated, key=lambda card: (card.memory_bytes < gpu.memory_bytes, card.memory_bytes, card.name))
