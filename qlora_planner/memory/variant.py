"""Which runs share a tape: the options that change what is allocated, and sizes between which nothing switches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from qlora_planner.catalog.trainers import parse_version
from qlora_planner.hardware import GpuSpec
from qlora_planner.profile import ModelProfile
from qlora_planner.run import RunConfig

# bitsandbytes multiplies short batches with 4-bit weights directly; from a few hundred tokens on, every card's rule in
# backends/cuda/ops.py (0.50.2) takes the path that dequantises.
LEAST_TOKENS = 512
# trl 1.15 and later score at most so many tokens per tile of the head (kernels/chunked_logprob.py).
HEAD_TILE_TOKENS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """Sequence lengths above `low` up to `high`, at batch 1 or at batches above 1 with more than `tokens` in all."""

    batched: bool
    low: int
    high: int
    tokens: int = 0

    def holds(self, batch_size: int, seq_len: int) -> bool:
        """Whether a run of these sizes lies in it."""
        inside = self.low < seq_len <= self.high and batch_size * seq_len > self.tokens
        return inside and (batch_size > 1) == self.batched


def kernel_class(gpu: GpuSpec | None) -> str:
    """Cards whose kernels take the same bytes: sm90 or sm70.

    From compute capability 8.0 on attention is fused; FlashAttention-2's backward takes what cuDNN's takes, up to
    rounding of the length, and workspaces are put in for each card. An unknown card is taken as one of these.
    """
    if gpu is None or gpu.compute_capability is None or float(gpu.compute_capability) >= 8:
        return "sm90"
    return "sm70"


def variant_key(run: RunConfig, stack: Mapping[str, str], gpu: GpuSpec | None) -> str:
    """One word per option that changes the graph; runs with equal keys differ in sizes alone."""
    trl = parse_version(stack.get("trl", "1.16")) if run.trainer == "trl-sft" else None
    words = [
        kernel_class(gpu), run.method, run.quant or "none", "dq" if run.double_quant else "flat",
        run.compute_dtype or "bfloat16", run.trainer or "trl-sft", run.target_modules or "all-linear",
        "dropout" if run.lora_dropout else "plain", run.attention or "sdpa",
    ]  # fmt: skip
    flags = {
        "upcast": run.upcast, "padding": run.padding, "dora": run.dora, "liger": run.liger, "packing": run.packing,
        "offload": run.activation_offloading, "reentrant": run.use_reentrant, "accumulated": run.grad_accum > 1,
        "kept": not run.gradient_checkpointing, f"save:{run.modules_to_save}": run.modules_to_save is not None,
        f"trl{trl}": trl is not None and trl < (1, 15),
    }  # fmt: skip
    return " ".join(words + sorted(word for word, on in flags.items() if on))


def usual_region(profile: ModelProfile, run: RunConfig) -> Region:
    """The range around the run's sequence length in which no kernel, tile or mask switches, as far as is known."""
    window = profile.dims.get("sliding_window")
    batched = run.batch_size > 1
    breaks = [LEAST_TOKENS, *([] if batched else [HEAD_TILE_TOKENS]), *([int(window)] if window else [])]
    return Region(
        batched=batched,
        low=max((b for b in breaks if b < run.seq_len), default=0),
        high=min((b for b in breaks if b >= run.seq_len), default=1 << 24),
        tokens=HEAD_TILE_TOKENS if batched else 0,
    )
