"""Which runs share a tape: the options that change what is allocated, and sizes between which nothing switches."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from qlora_planner.catalog.classifiers import labels_of
from qlora_planner.catalog.cuda import CUDNN_CAPABILITIES
from qlora_planner.catalog.losses import takes_place
from qlora_planner.catalog.trainers import trainer_named, version_of
from qlora_planner.record import record
from qlora_planner.spec.machine import GpuSpec
from qlora_planner.spec.model import ModelProfile
from qlora_planner.spec.run import RunConfig

# bitsandbytes multiplies short batches with 4-bit weights directly; from a few hundred tokens on, every card's rule in
# backends/cuda/ops.py (0.50.2) takes the path that dequantises.
LEAST_TOKENS = 512
# trl 1.15 and later score at most so many tokens per tile of the head (kernels/chunked_logprob.py).
HEAD_TILE_TOKENS = 4096
# unsloth_zoo 2026.10.9, fused_losses/fused_linear.py: cards up to which the loss always goes over the words in tiles.
SMALL_CARD_BYTES = 49 << 29
# Two tables of 16 values: the same tensors, the same kernels, the same bytes.
FOUR_BIT = ("nf4", "fp4")

# Of the variant of an evaluation alone, which stands for any number of rows.
EVALUATION = "eval"

_UNBOUNDED = 1 << 24
_IN_ANOTHER_WAY = ("offload", "reentrant", "kept")  # words of runs that keep other checkpoints, or none
_EVERY = re.compile(r"every\d+")
_EVAL = re.compile(r"eval\d+")
TRAINER = 5  # which of the words names the trainer
ALWAYS = 9  # words that every variant has, before those of its flags


@record
class ValidityRange:
    """Sequence lengths above `low` up to `high`, at batch 1, or at batches above 1 with more than `tokens` and at most
    `most_tokens` in all."""

    batched: bool
    low: int
    high: int
    tokens: int = 0
    most_tokens: int = 1 << 40

    def holds(self, batch_size: int, seq_len: int) -> bool:
        """Whether a run of these sizes lies in it."""
        inside = self.low < seq_len <= self.high and self.tokens < batch_size * seq_len <= self.most_tokens
        return inside and (batch_size > 1) == self.batched

    def within(self, other: ValidityRange) -> ValidityRange:
        """The sizes that lie in both, of two ranges of one kind of batch."""
        return ValidityRange(
            batched=self.batched, low=max(self.low, other.low), high=min(self.high, other.high),
            tokens=max(self.tokens, other.tokens), most_tokens=min(self.most_tokens, other.most_tokens),
        )  # fmt: skip

    def of_rows(self, rows: int) -> tuple[int, int]:
        """The lengths above the first and up to the second, of which so many rows at once lie in it."""
        return max(self.low, self.tokens // rows), min(self.high, self.most_tokens // rows)

    def inside(self, batch_size: Any, seq_len: Any) -> Any:
        """The same for arrays of runs."""
        tokens = batch_size * seq_len
        inside = (seq_len > self.low) & (seq_len <= self.high) & ((batch_size > 1) == self.batched)
        return inside & (tokens > self.tokens) & (tokens <= self.most_tokens)


def kernel_class(gpu: GpuSpec | None) -> str:
    """Cards whose kernels take the same bytes: sm90 or sm70.

    From compute capability 8.0 on attention is fused; FlashAttention-2's backward takes what cuDNN's takes, up to
    rounding of the length, and workspaces are put in for each card. An unknown card is taken as one of these.
    """
    if gpu is None or gpu.compute_capability is None or float(gpu.compute_capability) >= 8:
        return "sm90"
    return "sm70"


def accumulates_apart(run: RunConfig) -> bool:
    """Whether accumulation must be traced: elsewhere a micro-batch is the one before beside its gradients.

    A plain loop keeps the last micro-batch's outputs, and offloading its copies, into the next one. A trainer that
    generates for fewer micro-batches than one step has does so beside their gradients.
    """
    trainer = trainer_named(run.trainer)
    again = trainer.generation is not None and (run.steps_per_generation or run.grad_accum) < run.grad_accum
    return run.grad_accum > 1 and (trainer.micro_batches_stay or run.activation_offloading or again)


def scores_first(run: RunConfig) -> bool:
    """Whether completions are scored before they are trained on: where the policy may have moved since they were made.

    trl 1.16 grpo_trainer.py and rloo_trainer.py, _generate_and_score_completions.
    """
    generation = trainer_named(run.trainer).generation
    if generation is None:
        return False
    every = (run.steps_per_generation or run.grad_accum) * (run.num_iterations or 1)
    return generation.always_scores or uses_vllm(run) or run.grad_accum % every != 0


def uses_vllm(run: RunConfig) -> bool:
    """Whether vLLM generates, in another process or beside the trainer."""
    return run.vllm not in (None, "none")


def trace_key(run: RunConfig, stack: Mapping[str, str], gpu: GpuSpec | None) -> str:
    """One word per option that changes the graph; runs with equal keys differ in sizes alone."""
    trainer = trainer_named(run.trainer)
    newest, version = trainer.losses[0][0], version_of(trainer, stack)
    # Releases of one loss share its tapes; those before the first that is dated differ among each other too.
    since = next((first for first, _ in trainer.losses if version >= first and any(first)), version)
    four_bit = run.quant in FOUR_BIT
    joined = trainer.joins_rows
    words = [
        kernel_class(gpu), run.method, "nf4" if four_bit else run.quant or "none",
        "dq" if four_bit and run.double_quant else "flat",
        run.compute_dtype or "bfloat16", trainer.name, run.target_modules or "all-linear",
        "dropout" if run.lora_dropout else "plain", run.attention or "sdpa",
    ]  # fmt: skip
    flags = {
        "float16-weights": run.load_dtype == "float16", "upcast": run.upcast,
        "padding": run.padding or (run.packing and joined and run.batch_size > 1), "dora": run.dora, "liger": run.liger,
        "packing": run.packing and not joined,
        "offload": run.activation_offloading, "reentrant": run.use_reentrant, "accumulated": accumulates_apart(run),
        f"loss:{run.loss_kernel}": takes_place(run),
        "kept": not run.gradient_checkpointing, "host": run.checkpoint_offload,
        f"every{run.checkpoint_every}": (run.checkpoint_every or 1) > 1,
        f"save:{run.modules_to_save}": run.modules_to_save is not None,
        f"eval{run.eval_batch_size}": run.eval_batch_size is not None,
        f"{trainer.versioned_by}{since}": version < newest, f"labels{labels_of(run)}": labels_of(run) is not None,
        f"loss:{run.loss_type}": run.loss_type is not None, "precomputed": run.precompute_ref_log_probs,
        f"generated:{run.steps_per_generation}": trainer.generation is not None,
        "compared": trainer.generation is not None and bool(run.beta),
        "scored": scores_first(run), "vllm": uses_vllm(run),
        f"prompt:{run.prompt_len}": run.prompt_len is not None,
        # Where the prompt is known it decides, and what a completion could be is no other run.
        f"completion:{run.completion_len}": run.prompt_len is None and run.completion_len is not None,
        f"images:{run.images}x{run.image_size or run.image_tokens}": run.shows_images,
        f"exclude:{run.exclude_modules}": run.exclude_modules is not None,
        "small-card": trainer.patches_libraries and gpu is not None and gpu.memory_bytes <= SMALL_CARD_BYTES,
        "cudnn": trainer.patches_libraries and (gpu is None or gpu.compute_capability in CUDNN_CAPABILITIES),
    }  # fmt: skip
    return " ".join(words + sorted(word for word, on in flags.items() if on))


def variants_of_some_layers(variant: str) -> tuple[str, str, int] | None:
    """Of a run that checkpoints every n-th layer: the variants of the run that checkpoints every layer and of the one
    that keeps everything, and n. None of any other run, and where inputs go to the host or are recomputed re-entrantly.
    """
    words = variant.split()
    every = next((word for word in words if _EVERY.fullmatch(word)), None)
    if every is None or {"host", "offload", "reentrant"} & set(words):
        return None
    all_layers = [word for word in words if word != every]
    head, flags = all_layers[:ALWAYS], all_layers[ALWAYS:]
    return " ".join(all_layers), " ".join(head + sorted([*flags, "kept"])), int(every.removeprefix("every"))


def variants_on_card(variant: str) -> tuple[str, str] | None:
    """Of a run whose checkpoints lie on the host: the variant of the one whose lie on the card, and that of the run
    that checkpoints nothing. None of any other run, and where some layers alone are checkpointed.
    """
    words = [word for word in variant.split() if word != "host"]
    if words == variant.split() or any(_EVERY.fullmatch(word) or word in _IN_ANOTHER_WAY for word in words):
        return None
    return " ".join(words), " ".join(words[:ALWAYS] + sorted([*words[ALWAYS:], "kept"]))


def fuses_loss(variant: str) -> bool:
    """Whether Liger scores the tokens of a run some rows at a time, as its trainer leaves the loss to the model."""
    words = variant.split()
    if "loss:liger-fused" in words:
        return True
    by_model = "liger-fused" in trainer_named(words[TRAINER]).loss_kernels
    return by_model and "liger" in words and not any(word.startswith("loss:") for word in words)


def of_one_row(variant: str) -> str:
    """The variant of a run of single rows: none of them is padded, whatever was asked of several."""
    words = variant.split()
    trainer = trainer_named(words[TRAINER])
    if trainer.sequences_per_row > 1 or trainer.generation is not None:
        return variant
    return " ".join(word for word in words if word != "padding")


def variants_of_evaluation(variant: str) -> tuple[str, str, int] | None:
    """Of a run that evaluates: the variant of its training, that of an evaluation alone, and the rows of one.

    None of any other run, and where what evaluates is not one pass over texts. An evaluation drops out, checkpoints and
    keeps nothing, and a single row is not padded.
    """
    words = variant.split()
    held_out = next((word for word in words if _EVAL.fullmatch(word)), None)
    if held_out is None:
        return None
    training = [word for word in words if word != held_out]
    rows = int(held_out.removeprefix("eval"))
    head, flags = training[:ALWAYS], set(training[ALWAYS:])
    flags = {word for word in flags if not _EVERY.fullmatch(word)} - {"kept", "reentrant", "host", "offload"}
    if rows == 1:
        flags.discard("padding")
    head = ["dropout" if word == "plain" else word for word in head]
    return " ".join(training), " ".join([*head, *sorted([*flags, EVALUATION])]), rows


def last_within_window(profile: ModelProfile) -> int | None:
    """The longest row for which no sliding mask is made; None of a class without a sliding window.

    With SDPA transformers makes one from `window` tokens on (masking_utils.py: kv_length >= local_attention_size).
    Eager attention has one at every length: its window changes no size that is traced.
    """
    window = int(profile.dims.get("sliding_window") or 0)
    return window - (1 if profile.supports.get("sdpa") else 0) if window else None


def validity_ranges(profile: ModelProfile, batched: bool) -> tuple[ValidityRange, ...]:
    """Every range of sizes inside which no kernel, tile or mask switches, as far as is known, shortest first.

    At batch 1 they cover every length up to the end of the model's table of positions, past which nothing runs, or
    without one every length. At larger batches tokens decide which kernels multiply and how the head is tiled, and the
    sequence how a sliding mask is made; batches of short rows under a short window are left out.
    """
    rows, last = profile.dims.get("position_rows"), last_within_window(profile)
    end = int(rows) if rows else _UNBOUNDED
    windows = [last] if last is not None and 0 < last < end else []
    if not batched:
        edges = sorted({0, *windows, *(b for b in (LEAST_TOKENS, HEAD_TILE_TOKENS) if b < end), end})
        return tuple(ValidityRange(batched=False, low=low, high=high) for low, high in pairwise(edges))
    ranges = []
    for low, high in pairwise([0, *windows, end]):
        if high > LEAST_TOKENS and 2 * (low + 64) <= HEAD_TILE_TOKENS:
            ranges.append(
                ValidityRange(batched=True, low=low, high=high, tokens=LEAST_TOKENS, most_tokens=HEAD_TILE_TOKENS)
            )
        if high > LEAST_TOKENS:
            ranges.append(ValidityRange(batched=True, low=low, high=high, tokens=HEAD_TILE_TOKENS))
    return tuple(ranges)
