"""Names that screens share: components, options, recipes and cards in the words a person would use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qlora_planner.catalog.parallel import strategy_row
from qlora_planner.catalog.trainers import trainer_named
from qlora_planner.memory.records import Speed
from qlora_planner.spec.machine import GpuSpec, Machine, Network
from qlora_planner.spec.run import RunConfig
from qlora_planner.text import short
from qlora_planner.units import GIB, format_mib, format_params

# Component -> its label, and the memory bar's segment that it belongs to.
COMPONENTS: Mapping[str, tuple[str, str]] = {
    "quantized_weights": ("quantised weights", "weights"),
    "quantization_constants": ("quantisation constants", "weights"),
    "unquantized_weights": ("unquantised weights", "weights"),
    "adapters": ("adapters", "training"),
    "gradients": ("gradients", "training"),
    "optimizer_states": ("optimizer states", "training"),
    "checkpoints": ("checkpoints", "activations"),
    "activations": ("activations", "activations"),
    "logits_and_loss": ("logits and loss", "activations"),
    "workspace": ("workspace", "overhead"),
    "allocator_slack": ("allocator slack", "overhead"),
    "cuda_context": ("CUDA context", "overhead"),
    "communication": ("communication", "overhead"),
}

_SHORT_LIMITS = {
    "quantized_weights": "4-bit layers",
    "quantization_constants": "constants",
    "unquantized_weights": "16-bit rest",
    "optimizer_states": "optimizer",
    "logits_and_loss": "logits",
    "allocator_slack": "slack",
    "cuda_context": "CUDA context",
}


# Where a predicted speed comes from.
_SPEEDS = {
    "calibrated": "predicted, calibrated on this card",
    "assumed": "predicted from the data sheet; nobody timed this card",
}


def speed_line(speed: Speed) -> str | None:
    """Tokens per second and seconds per step with where they come from; None where they are unknown."""
    if speed.tokens_per_s is None or speed.step_s is None:
        return None
    basis = _SPEEDS.get(str(speed.basis), f"predicted, {speed.basis}")
    return f"{speed.tokens_per_s:,.0f} tokens/s, {speed.step_s:.2f} s per step ({basis})"


def component_label(name: str) -> str:
    """`quantised weights` for `quantized_weights`; an unknown component keeps its name."""
    return COMPONENTS.get(name, (name.replace("_", " "), ""))[0]


def limit_label(name: str, quant: str | None = "nf4") -> str:
    """What fills the card, in at most 12 columns."""
    if name == "quantized_weights" and quant == "int8":
        return "8-bit layers"
    return _SHORT_LIMITS.get(name, component_label(name))


def segments(components: Mapping[str, int]) -> list[tuple[str, int]]:
    """Bytes by bar segment, in the bar's order."""
    sums = dict.fromkeys(("weights", "training", "activations", "overhead"), 0)
    for name, size in components.items():
        sums[COMPONENTS.get(name, ("", "overhead"))[1]] += size
    return list(sums.items())


def gib(size_bytes: int | None, digits: int = 2) -> str:
    """A figure whose unit stands elsewhere."""
    return "-" if size_bytes is None else f"{size_bytes / GIB:,.{digits}f}"


def mib(size_bytes: int | None) -> str:
    """A figure whose unit stands elsewhere."""
    return format_mib(size_bytes).removesuffix(" MiB")


def count(number: int) -> str:
    """`8.03B`, `525M`, `266K`: parameters, however few."""
    if number >= 10**6:
        return format_params(number)
    return f"{number / 1e3:.0f}K" if number >= 1000 else f"{number}"


def binary_count(number: int) -> str:
    """`512`, `4k`, `1M`: powers of two."""
    for unit, size in (("M", 1 << 20), ("k", 1 << 10)):
        if number >= size:
            return f"{number // size}{unit}"
    return str(number)


def chance(probability: float | None) -> str:
    """A probability as one would say it: never 0 or 100 percent of something that is only predicted."""
    if probability is None:
        return "unknown"
    if probability < 0.001:
        return "below 0.1 %"
    return "above 99.9 %" if probability > 0.999 else f"{100 * probability:.1f} %"


def option(name: str) -> str:
    """The command line's spelling of an option."""
    return "--" + name.replace("_", "-")


def value(raw: Any) -> str:
    """An option's value as it would be typed; on and off for switches."""
    if raw is None:
        return "none"
    if isinstance(raw, bool):
        return "on" if raw else "off"
    if isinstance(raw, Mapping):
        return ",".join(f"{name}={version}" for name, version in raw.items()) or "none"
    return str(raw)


# What leaves no layer out, where it is typed beside options that leave some out.
_EVERY_LAYER = 1


def change(changes: Mapping[str, Any]) -> str:
    """Changed options as they would be typed."""
    words = []
    for name, raw in changes.items():
        if isinstance(raw, bool):
            words.append(option(name) if raw else option(name).replace("--", "--no-", 1))
        else:
            words.append(f"{option(name)} {value(_EVERY_LAYER if name == 'checkpoint_every' and raw is None else raw)}")
    return " ".join(words)


def recipe(run: RunConfig, *, sizes: bool = True) -> str:
    """A run in one line: what is stored how, what is trained, by whom. `sizes` adds batch and sequence."""
    task = [] if run.task is None else [f"{run.task}, {run.num_labels} labels"]
    parts = [*task, run.method if run.quant in (None, "none") else f"{run.method} {run.quant}"]
    if run.quant in ("nf4", "fp4") and not run.double_quant:
        parts.append("no double quantisation")
    if run.compute_dtype:
        parts.append(run.compute_dtype)
    if run.method != "full":
        kind = "DoRA rank" if run.dora else "rank"
        but = f" but {short(run.exclude_modules, 200)}" if run.exclude_modules else ""
        parts.append(f"{kind} {run.rank} on {short(run.target_modules or 'all-linear', 200)}{but}")
    if sizes:
        accumulated = f", {run.grad_accum} batches a step" if run.grad_accum > 1 else ""
        parts.append(f"{run.batch_size} x {run.seq_len:,} tokens{accumulated}")
        if run.images:
            shown = "1 image" if run.images == 1 else f"{run.images:,} images"
            size = f" of {run.image_size}" if run.image_size else ""
            parts.append(f"{shown}{size}, {run.image_tokens or 0:,} tokens, in each")
    parts.append(_checkpointing(run))
    extras = {"liger": run.liger, "activation offloading": run.activation_offloading, "packing": run.packing}
    parts += [name for name, on in extras.items() if on]
    if run.upcast:
        parts.append("upcast to float32")
    if run.attention not in (None, "sdpa"):
        parts.append(f"{run.attention} attention")
    parts += [run.optimizer, trainer_named(run.trainer).name]
    return ", ".join(parts)


def _checkpointing(run: RunConfig) -> str:
    if not run.gradient_checkpointing:
        return "no checkpointing"
    every = f" of 1 layer in {run.checkpoint_every}" if (run.checkpoint_every or 1) > 1 else ""
    return f"gradient checkpointing{every}" + (", inputs in host memory" if run.checkpoint_offload else "")


def card_line(gpu: GpuSpec) -> str:
    """What is meant by the card that was asked for: for a marketing size, the bytes that were looked up."""
    if gpu.form == "size":
        return gpu.note or f"{gpu.name} is {format_mib(gpu.memory_bytes)}"
    unverified = "" if gpu.verified else "; nobody has run these library versions on it yet"
    whose = "by CUDA, shared with the host" if gpu.shared_with_host else "by the driver"
    return f"{gpu.label}: {format_mib(gpu.memory_bytes)} {whose}{unverified}"


def cards_line(machine: Machine, strategy: str | None) -> str:
    """How many cards share the work, over what, and of which of them figures are."""
    cards = f"{machine.world} cards"
    if machine.nodes > 1:
        each = machine.gpus_per_node
        cards = f"{machine.nodes} nodes with {each} card{'s' if each > 1 else ''} each"
    link = machine.link if machine.gpus_per_node > 1 else None
    over = ""
    if link is not None:
        rate = "" if link.bytes_per_s is None else f", {link.bytes_per_s / 1e9:.0f} GB/s each way"
        over = f" over {link.kind}{rate}"
    if machine.nodes > 1:
        over += _between(machine.network)
    how = "" if strategy is None else f", {strategy_row(strategy).label}"
    shown = f"{cards}{over}{how}; memory is each card's, speed that of all"
    return f"{shown}, and none of what nodes send is taken to hide behind arithmetic" if machine.network else shown


def _between(network: Network | None) -> str:
    """What nodes talk over, and whether anybody said so."""
    if network is None:
        return ", between nodes unknown: speed needs --node-network, as 8x400Gb"
    why = "; an adapter a card is assumed, --node-network says otherwise" if network.assumed else ""
    return f", between nodes over {network.kind} ({network.bytes_per_s / 1e9:.4g} GB/s each way{why})"


def card_name(gpu: GpuSpec, machine: Machine | None = None) -> str:
    """The card as a headline names it, with how many there are."""
    if machine is not None and machine.world > 1:
        return f"{machine.world} x {card_name(gpu)}"
    return gpu.name if gpu.form == "size" else short_label(gpu.label)


def short_label(label: str) -> str:
    """A card's label without its maker and family: RTX 4090."""
    return label.removeprefix("NVIDIA ").removeprefix("GeForce ")
