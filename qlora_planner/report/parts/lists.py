"""The catalogues of cards and models, and a new profile, as tables to read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qlora_planner.report.parts.labels import mib
from qlora_planner.report.parts.theme import Line, Theme, columns
from qlora_planner.spec.machine import GpuSpec
from qlora_planner.spec.model import ModelProfile
from qlora_planner.units import format_params

GPU_HEADS = (
    "name", "label", "vendor", "form", "memory_bytes", "cuda_total_bytes", "bandwidth_bytes_per_s", "bf16_flops",
    "fp16_flops", "compute_capability", "bf16", "rent_usd_per_hour", "verified",
)  # fmt: skip
MODEL_HEADS = ("model", "model_type", "params", "layers", "quantized_params", "max_seq_len", "checkpoint", "note")


def gpu_fields(gpu: GpuSpec) -> dict[str, Any]:
    """One card, JSON-ready."""
    sources = {name: {"source": fact.source, "date": fact.date} for name, fact in gpu.facts.items()}
    links = ("link", "link_bytes_per_s", "node_network_bytes_per_s")
    fields = {name: getattr(gpu, name) for name in (*GPU_HEADS, "fp32_flops", "marketed_gb", *links, "note")}
    return {**fields, "aliases": list(gpu.aliases), "facts": sources}


def render_gpus(gpus: Sequence[GpuSpec], theme: Theme, *, explain: bool = False) -> str:
    """Cards as a table, largest memory last, so that what fits a budget is found from above."""
    widths, left = (26 + min(8, theme.width - 80), 11, 9, 9, 6, 8), frozenset({0})
    lines: list[Line] = [
        columns([(head, "dim") for head in ("name", "MiB", "GB/s", "TFLOPS", "bf16", "$/h")], widths, left)
    ]
    for gpu in sorted(gpus, key=lambda gpu: (gpu.memory_bytes, gpu.name)):
        style = "" if gpu.verified else "dim"
        rate = gpu.bf16_flops or gpu.fp16_flops
        cells = (
            theme.cut(gpu.name + ("" if gpu.verified else " *"), widths[0]),
            mib(gpu.memory_bytes),
            _scaled(gpu.bandwidth_bytes_per_s, 1e9),
            _scaled(rate, 1e12),
            {True: "yes", False: "no", None: "-"}[gpu.bf16],
            "-" if gpu.rent_usd_per_hour is None else f"{gpu.rent_usd_per_hour:.2f}",
        )
        lines.append(columns([(cell, style) for cell in cells], widths, left))
        if explain:
            if gpu.note:
                lines += theme.wrap(gpu.note, 4, style="dim")
            by_source: dict[str, list[str]] = {}
            for name, fact in gpu.facts.items():
                by_source.setdefault(f"{fact.source}, {fact.date}", []).append(name)
            for source, names in by_source.items():
                lines += theme.wrap(f"{', '.join(names)}: {source}", 6, "    ", style="dim")
    if any(not gpu.verified for gpu in gpus):
        lines += [[], *theme.wrap("* nobody has run these library versions on it yet", style="dim")]
    text = f"{_number(len(gpus), 'card')}; MiB as the driver reports them; --explain gives sources"
    lines += [[], *theme.wrap(text, style="dim")]
    return theme.render(lines)


def gpu_row(gpu: GpuSpec) -> list[Any]:
    """One card as GPU_HEADS names its fields."""
    return [getattr(gpu, name) for name in GPU_HEADS]


def model_fields(profile: ModelProfile) -> dict[str, Any]:
    """One model, JSON-ready."""
    quantized = sum(group.total_numel for group in profile.tensors if group.quantized)
    limit = profile.dims.get("max_position_embeddings")
    values = (
        profile.id, profile.model_type, profile.params, profile.layers, quantized, int(limit) if limit else None,
        profile.checkpoint_quantization, profile.note,
    )  # fmt: skip
    return dict(zip(MODEL_HEADS, values, strict=True))


def render_models(models: Sequence[dict[str, Any]], theme: Theme, *, explain: bool = False) -> str:
    """Models as a table, by name."""
    widths, left = (40 + min(10, theme.width - 80), 16, 8, 6, 6), frozenset({0, 1})
    lines: list[Line] = [
        columns([(head, "dim") for head in ("model", "type", "params", "layers", "4-bit")], widths, left, gap=1)
    ]
    for row in models:
        share = 100 * row["quantized_params"] / max(1, row["params"])
        style = "red" if share < 10 else "yellow" if share < 50 else ""
        cells = [
            (theme.cut(row["model"], widths[0]), ""),
            (theme.cut(row["model_type"], widths[1]), "dim"),
            (format_params(row["params"]), ""),
            (f"{row['layers']}", ""),
            (f"{share:.0f} %", style),
        ]
        lines.append(columns(cells, widths, left, gap=1))
        if explain:
            if row["max_seq_len"]:
                lines += theme.wrap(f"trained for {row['max_seq_len']:,} positions", 4, style="dim")
            if row["checkpoint"]:
                lines += theme.wrap(f"published weights: {row['checkpoint']}", 4, style="dim")
            if row["note"]:
                lines += theme.wrap(row["note"], 4, style="dim")
    meaning = "4-bit: the share of parameters that bitsandbytes will hold (audit MODEL says why)"
    text = f"{_number(len(models), 'model')}; {meaning}"
    return theme.render([*lines, [], *theme.wrap(text, style="dim")])


def render_profile(profile: ModelProfile, seconds: float, theme: Theme, *, explain: bool = False) -> str:
    """What profiling found."""
    quantized = sum(group.total_numel for group in profile.tensors if group.quantized)
    lines = theme.wrap(f"{profile.id}: profiled in {seconds:.1f} s", style="bold")
    kinds = ", ".join(f"{kind.count} x {kind.name}" for kind in profile.layer_kinds)
    figures = {
        "class": f"{profile.class_name} ({profile.model_type})",
        "parameters": f"{profile.params:,}",
        "4-bit": f"{format_params(quantized)} ({100 * quantized / max(1, profile.params):.0f} %)",
        "layers": f"{profile.layers}: {kinds}",
        "adapters": "; ".join(_adapters(profile)) or "PEFT accepts none",
        "attention": ", ".join(name for name in ("sdpa", "eager", "flash_attention_2") if profile.supports.get(name)),
        "holds for": ", ".join(f"{name} {version}" for name, version in profile.versions.items()),
    }
    if profile.note:
        figures["note"] = profile.note
    for name, text in figures.items():
        lines += theme.wrap(text, 13, f"  {name}", first_style="dim")
    for name, text in profile.refusals.items():
        lines += theme.wrap(f"{name}: {text}", 13, "  refused", first_style="yellow")
    if explain:
        for group in profile.tensors:
            shape = " x ".join(f"{size:,}" for size in group.shape)
            stored = "4-bit" if group.quantized else group.reason or group.dtype
            text = f"{group.count} of {shape}, {group.role}, {stored}"
            lines += theme.wrap(text, 6, f"  {group.name}  ", style="dim")
    return theme.render(lines)


def _adapters(profile: ModelProfile) -> list[str]:
    sizes = []
    for target, tensors in profile.adapters.items():
        count = 0
        for tensor in tensors:
            numel = tensor.count
            for size in tensor.shape(16):
                numel *= size
            count += numel
        sizes.append(f"{target}: {format_params(count)} at rank 16")
    return sizes


def _number(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def _scaled(figure: int | None, unit: float) -> str:
    return "-" if figure is None else f"{figure / unit:,.0f}"
