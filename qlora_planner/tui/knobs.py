"""The knobs of a run: what each can be set to, and the run after a turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qlora_planner.profile import ModelProfile
from qlora_planner.run import RunConfig
from qlora_planner.run.config import TRAINERS

Choice = Mapping[str, Any]
_LENGTHS = tuple(sorted({size << power for power in range(18) for size in (128, 192)}))
_SIZES = tuple(1 << power for power in range(9))
_RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True, slots=True, kw_only=True)
class Knob:
    """One line of the knobs: `choices` in their order, each as the options that it sets; `says` is its help."""

    name: str
    label: str
    says: str
    choices: Callable[[ModelProfile], Sequence[Choice]]
    show: Callable[[RunConfig], str]


def _numbers(name: str, label: str, values: Sequence[int], says: str, limit: bool = False) -> Knob:
    def choices(profile: ModelProfile) -> Sequence[Choice]:
        known = profile.dims.get("position_rows") or profile.dims.get("max_position_embeddings") if limit else None
        allowed = [value for value in values if known is None or value <= known]
        if known is not None and known not in allowed:
            allowed.append(int(known))
        return [{name: value} for value in allowed]

    return Knob(name=name, label=label, says=says, choices=choices, show=lambda run: f"{getattr(run, name):,}")


def _words(name: str, label: str, values: Sequence[Any], says: str) -> Knob:
    return Knob(
        name=name, label=label, says=says, choices=lambda _: [{name: value} for value in values],
        show=lambda run: _word(getattr(run, name)),
    )  # fmt: skip


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return "auto" if value is None else str(value)


def _targets(profile: ModelProfile) -> Sequence[Choice]:
    names = [None, "all-linear", "attention", *(name for name in profile.adapters)]
    return [{"target_modules": name} for name in dict.fromkeys(names)]


def _optimizers(_profile: ModelProfile) -> Sequence[Choice]:
    from qlora_planner.catalog.optimizers import OPTIMIZERS

    return [{"optimizer": name} for name in OPTIMIZERS]


_STORAGES: Mapping[str, Choice] = {
    "4-bit nf4 double": {"method": "qlora", "quant": "nf4", "double_quant": True},
    "4-bit nf4": {"method": "qlora", "quant": "nf4", "double_quant": False},
    "4-bit fp4": {"method": "qlora", "quant": "fp4", "double_quant": True},
    "8-bit": {"method": "qlora", "quant": "int8", "double_quant": True},
    "16-bit LoRA": {"method": "lora", "quant": "none", "double_quant": True},
    "full": {"method": "full", "quant": "none", "double_quant": True},
}


def _storage(run: RunConfig) -> str:
    now = _settings(run, ("method", "quant", "double_quant"))
    return next((name for name, choice in _STORAGES.items() if choice == now), f"{run.method} {now['quant']}")


KNOBS = (
    _numbers("seq_len", "sequence", _LENGTHS, "tokens per sequence", limit=True),
    _numbers("batch_size", "batch", _SIZES, "sequences per micro-batch"),
    _numbers("grad_accum", "accumulation", _SIZES, "micro-batches per optimizer step"),
    _numbers("rank", "rank", _RANKS, "LoRA rank"),
    Knob(
        name="target_modules", label="targets", says="what gets adapters", choices=_targets,
        show=lambda run: _word(run.target_modules),
    ),
    Knob(
        name="quant", label="weights", says="how the base is stored, and what is trained",
        choices=lambda _: list(_STORAGES.values()), show=_storage,
    ),
    _words("gradient_checkpointing", "checkpointing", (True, False), "keep layer inputs only, compute the rest again"),
    Knob(
        name="optimizer", label="optimizer", says="whose states are held", choices=_optimizers,
        show=lambda run: run.optimizer,
    ),
    _words("attention", "attention", (None, "sdpa", "eager", "flash_attention_2"), "the attention kernel"),
    _words("trainer", "trainer", (None, *TRAINERS), "who runs the steps"),
    _words("upcast", "upcast", (None, True, False), "PEFT's cast of 16-bit weights to float32"),
    _words("liger", "liger", (False, True), "Liger's fused kernels"),
    _words("activation_offloading", "offloading", (False, True), "checkpoints in host memory"),
    Knob(
        name="alloc_conf", label="allocator", says="torch's allocator settings",
        choices=lambda _: [{"alloc_conf": None}, {"alloc_conf": "expandable_segments:True"}],
        show=lambda run: (run.alloc_conf or "default").removesuffix(":True"),
    ),
)  # fmt: skip


def turned(knob: Knob, profile: ModelProfile, run: RunConfig, by: int) -> RunConfig | None:
    """The run with a knob one place on (`by` 1) or back (-1); None at its end."""
    choices = list(knob.choices(profile))
    now = _settings(run, tuple(choices[0]))
    if now in choices:
        at = choices.index(now) + by
        return _set(run, choices[at]) if 0 <= at < len(choices) else None
    sizes = [choice[knob.name] for choice in choices if isinstance(choice.get(knob.name), int)]
    value = now.get(knob.name)
    if isinstance(value, int) and not isinstance(value, bool) and sizes:
        beyond = [size for size in sizes if (size > value if by > 0 else size < value)]
        return _set(run, {knob.name: min(beyond) if by > 0 else max(beyond)}) if beyond else None
    return _set(run, choices[0 if by > 0 else -1])


def changed(run: RunConfig, change: Mapping[str, Any]) -> RunConfig:
    """The run with options set; dropout is open again where it hangs on what was changed."""
    return _set(run, change)


def _settings(run: RunConfig, names: tuple[str, ...]) -> dict[str, Any]:
    found = {name: getattr(run, name) for name in names}
    if "quant" in found and found["quant"] is None:
        found["quant"] = "nf4" if run.method == "qlora" else "none"
    return found


def _set(run: RunConfig, change: Choice) -> RunConfig:
    opened: dict[str, Any] = {}
    if change.keys() & {"target_modules", "quant", "trainer"} and "lora_dropout" not in change:
        opened["lora_dropout"] = None
    return run.with_(**{**opened, **change})
