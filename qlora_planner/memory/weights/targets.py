"""Which modules the names of `--target-modules` mean, as PEFT matches them: by the end of a module's full name.

PEFT takes the names that match and passes over the rest, as long as one matches (tuners_utils.py,
check_target_module_exists and inject_adapter).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from qlora_planner.catalog.attention import nearest_kernel
from qlora_planner.errors import InputError, MissingError
from qlora_planner.record import record
from qlora_planner.spec.model import AdapterTensor, ModelProfile
from qlora_planner.spec.run import RunConfig
from qlora_planner.text import listed, quoted

WHOLE_SETS = (None, "all-linear", "attention")
# What stands in patterns and in no module's name.
_PATTERN = re.compile(r"[\\*()\[\]|+?^$]")


@record
class Targets:
    """Names of modules taken apart: those that match something in the model, and those that match nothing.

    `numbered` are those of the former that name one layer by its number.
    """

    matched: tuple[str, ...]
    unmatched: tuple[str, ...]
    numbered: tuple[str, ...]

    @property
    def on_every_layer(self) -> tuple[str, ...]:
        """The matched names without layer numbers: what `layers.3.self_attn.q_proj` names is `self_attn.q_proj`."""
        return tuple(dict.fromkeys(_unnumbered(name) for name in self.matched))


def names_in(wanted: str) -> tuple[str, ...]:
    """The names of a list joined by commas."""
    return tuple(name.strip() for name in wanted.split(",") if name.strip())


def targets_of(profile: ModelProfile, wanted: str) -> Targets:
    """What the names in `wanted` match in this model, whether adapters can be put there or not.

    Raises InputError where none matches, with what there is.
    """
    modules = _modules(profile)
    layers = sum(count for _, count in profile.layer_order)
    names = names_in(wanted)
    matched = tuple(name for name in names if any(matches(module, name, layers) for module in modules))
    if not matched:
        shown = sorted({module.rpartition(".")[2] for module in adaptable(profile)})
        said = f"matches nothing in {profile.id}; it has {', '.join(shown)}, or use all-linear or attention"
        if _PATTERN.search(wanted):
            said = f"is a pattern, and names are taken here: {profile.id} has {', '.join(shown)}"
        raise InputError(f"--target-modules: {quoted(wanted)} {said}")
    return Targets(
        matched=matched,
        unmatched=tuple(name for name in names if name not in matched),
        numbered=tuple(name for name in matched if _unnumbered(name) != name),
    )


def targeted(profile: ModelProfile, run: RunConfig) -> tuple[AdapterTensor, ...]:
    """The adapter tensors that `run.target_modules` adds, those of a numbered layer on every layer.

    Raises InputError listing what exists where none matches,
    MissingError for a module that the profile holds no adapters for.
    """
    if run.method == "full":
        return ()
    return without_excluded(profile, run, _chosen(profile, run.target_modules or "all-linear"))


def _chosen(profile: ModelProfile, wanted: str) -> tuple[AdapterTensor, ...]:
    if wanted in profile.adapters:
        return profile.adapters[wanted]
    names = targets_of(profile, wanted).on_every_layer
    for name in names:
        check_adaptable(profile, name)
    chosen = {module for module in adaptable(profile) if any(matches(module, name) for name in names)}
    unique = {
        (tensor.module, tensor.name, tensor.layer_kind, tensor.dims): tensor
        for tensors in profile.adapters.values()
        for tensor in tensors
        if tensor.target in chosen
    }
    return tuple(unique.values())


def exclusion(names: str) -> str:
    """The regular expression by which PEFT leaves out what `--exclude-modules` names; one that is given stays.

    A name stands for every module that it ends, as in PEFT, and for all that is in it: `visual` is the whole tower.
    Raises InputError for an expression that is none.
    """
    if not _PATTERN.search(names):
        return r"(?:.*\.)?(?:" + "|".join(re.escape(name) for name in names_in(names)) + r")(?:\..*)?"
    try:
        re.compile(names)
    except re.error as error:
        raise InputError(f"--exclude-modules: {quoted(names)} is no regular expression: {error}") from None
    return names


def without_excluded(
    profile: ModelProfile, run: RunConfig, adapters: tuple[AdapterTensor, ...]
) -> tuple[AdapterTensor, ...]:
    """`adapters` but for those of `run.exclude_modules`.

    Raises InputError where these match nothing, where they match everything, and where they match some layers of a
    kind alone, which is not planned.
    """
    if run.exclude_modules is None:
        return adapters
    pattern = re.compile(exclusion(run.exclude_modules))
    kept = []
    for tensor in adapters:
        matched = {bool(pattern.fullmatch(name)) for name in _numberings(tensor)}
        if len(matched) > 1:
            raise InputError(
                f"--exclude-modules: {quoted(run.exclude_modules)} leaves out {tensor.target} of some layers alone,"
                " which is not planned: name modules of every layer"
            )
        if not matched.pop():
            kept.append(tensor)
    if len(kept) in (0, len(adapters)):
        shown = listed(sorted({part for tensor in adapters for part in tensor.target.split(".") if part != "*"}), 40)
        said = "leaves no module with adapters" if not kept else "matches no module that would carry adapters"
        raise InputError(f"--exclude-modules: {quoted(run.exclude_modules)} {said}; there are {shown}")
    return tuple(kept)


def _numberings(tensor: AdapterTensor) -> Iterator[str]:
    """A module's name with the numbers that its layers may have."""
    if "*" not in tensor.target:
        return iter((tensor.target,))
    return (tensor.target.replace("*", str(number)) for number in range(max(tensor.count, 1)))


def as_traced(profile: ModelProfile, run: RunConfig) -> RunConfig:
    """`run` with the names that match alone, without numbers of layers, and with an attention kernel that is modelled:
    what is traced, at every layer. Names of all the modules of a set are that set, by the name that the profile has for
    it: PEFT puts adapters into modules in the model's order, whatever the names' own is."""
    if (near := nearest_kernel(run.attention)) is not None:
        run = run.with_(attention=near.kernel)
    if run.modules_to_save:  # PEFT copies them in the model's order, whatever the names' own is
        run = run.with_(modules_to_save=",".join(sorted(name.strip() for name in run.modules_to_save.split(","))))
    if run.method == "full" or run.target_modules in WHOLE_SETS:
        return run
    assert run.target_modules is not None
    names = targets_of(profile, run.target_modules).on_every_layer
    chosen = _adapted(_chosen(profile, run.target_modules))
    whole = next((name for name, adapters in profile.adapters.items() if chosen == _adapted(adapters)), None)
    return run.with_(target_modules=whole or ",".join(sorted(names)))


def _adapted(adapters: Iterable[AdapterTensor]) -> frozenset[tuple[str, str | None]]:
    return frozenset((tensor.target, tensor.layer_kind) for tensor in adapters)


def adaptable(profile: ModelProfile) -> tuple[str, ...]:
    """The modules that the profile holds adapters for, `*` for a layer's number."""
    return tuple(dict.fromkeys(tensor.target for tensors in profile.adapters.values() for tensor in tensors))


def check_adaptable(profile: ModelProfile, name: str) -> None:
    """Raises MissingError for a module that is there and that the profile holds no adapters for."""
    if not any(matches(module, name) for module in adaptable(profile)):
        raise MissingError(
            f"--target-modules: {profile.id} has {quoted(name)}, and its profile holds no adapters for it: only PEFT"
            " itself says what it would add there, with [train] installed (`qlora-plan doctor` has the line)"
        )


def matches(module: str, name: str, layers: int | None = None) -> bool:
    """Whether PEFT finds `name` in a module, `*` for numbers of layers: equal, or its end from a dot on."""
    parts, wanted = module.split("."), name.split(".")
    if len(wanted) > len(parts):
        return False
    return all(_same(part, word, layers) for part, word in zip(parts[-len(wanted) :], wanted, strict=True))


def _same(part: str, word: str, layers: int | None) -> bool:
    if part != "*":
        return part == word
    return word == "*" or (word.isdecimal() and (layers is None or int(word) < layers))


def _modules(profile: ModelProfile) -> tuple[str, ...]:
    parameters = (group.name.rpartition(".")[0] for group in profile.tensors if not group.buffer)
    return tuple(dict.fromkeys((*adaptable(profile), *parameters)))


def _unnumbered(name: str) -> str:
    parts = name.split(".")
    last = max((at for at, part in enumerate(parts) if part.isdecimal()), default=-1)
    return ".".join(parts[last + 1 :]) or name
