"""What is said of an out-of-memory failure: its headline, its figures with labels, and what helps."""

from __future__ import annotations

from collections.abc import Iterator

from qlora_planner.diagnose.oom import OomReport
from qlora_planner.diagnose.oom.logits import are_whole_logits, logits_tokens
from qlora_planner.diagnose.oom.moments import ATTENTION_SCORES
from qlora_planner.diagnose.oom.wordings import wording
from qlora_planner.units import GIB, format_gib, format_size

WHEN = {
    "load": "while loading the model",
    "prepare": "in prepare_model_for_kbit_training, which casts 16-bit weights to float32",
    "adapters": "while adding the adapters",
    "forward": "in a forward pass",
    "loss": "while computing the loss",
    "backward": "in a backward pass",
    "optimizer": "in the optimizer's step",
    "eval": "during an evaluation",
    "save": "while saving",
    "merge": "while merging adapters",
    "generate": "while generating",
    "data": "in the data loader",
}
_HINTS = {
    "load": "before training: only a smaller base, a 4-bit base or a larger card helps. A model that is loaded in"
    " 16 bits first and quantised on the card needs both; transformers 5.4 and newer quantise layer by layer.",
    "prepare": "leave prepare_model_for_kbit_training out, or --no-upcast: embeddings and head stay in 16 bits.",
    "loss": "logits are batch x sequence x vocabulary: a smaller batch with more accumulation steps, a shorter"
    " sequence, or --liger, which never holds all of them.",
    "optimizer": "--optimizer paged_adamw_8bit; optimizer states are made in the first step, so a run that passes it"
    " is past the worst.",
    "eval": "an evaluation has a batch size of its own: --eval-batch-size 1; with prediction_loss_only its logits are"
    " not kept.",
    "save": "saving gathers adapters only; a whole model is saved from the host after moving it there.",
    "merge": "merge on the host, one file of weights at a time: qlora-plan merge RUN.",
    "generate": "a shorter prompt or fewer new tokens: each takes a key and a value in every layer.",
}
# Held by others: less is the driver's own.
_NOTICED_BYTES = GIB
_IDLE_NOTICED_BYTES = GIB // 2


_LOGITS = (
    "a loss that never makes whole logits: trl >= 1.15 chunks them, --liger fuses them, axolotl and Unsloth have cut"
    " cross-entropy; else fewer tokens at once, a shorter sequence or a smaller batch with more accumulation steps."
)
_CARDS = {None: "the card", "MPS": "Apple's GPU", "HIP": "the AMD card", "XPU": "the Intel card"}
_ALLOCATOR_SETTING = {
    "HIP": "PYTORCH_HIP_ALLOC_CONF=expandable_segments:True",
    "XPU": "PYTORCH_ALLOC_CONF=expandable_segments:True (torch 2.9 and newer)",
}
_ALLOCATOR_SETTING_CUDA = "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True (PYTORCH_ALLOC_CONF since torch 2.9)"
_WHO = {"HIP": "rocm-smi --showpids", "XPU": "xpu-smi ps"}


def headline(report: OomReport) -> str:
    """What ran out and when, in one line."""
    if report.times == 0:
        return "no failure in this snapshot; what torch held when it was made"
    row = wording(report.cause)
    card = _CARDS.get(report.backend) or _CARDS[None]
    if report.backend in (None, "CUDA") and report.device is not None:
        card = f"card {report.device}"
    what = row.headline if row is not None else f"{card} ran out of memory"
    if report.senseless:
        requested = format_size(report.requested_bytes)
        what = (
            f"no shortage of memory but a fault of shapes: {requested} for one tensor, which no run on this card needs"
        )
    return what + (f", {WHEN[report.phase]}" if report.phase else "")


def facts(report: OomReport, *, planned: bool = False) -> Iterator[tuple[str, str]]:
    """Every figure that the failure tells, with its label; `planned`: what the tensor was, a plan tells better."""
    if report.doing or report.recomputing:
        again = "gradient checkpointing computed a layer's forward again; " if report.recomputing else ""
        yield "doing", f"{again}{report.doing or 'what exactly, the traceback does not tell'}"
    if report.frame is not None:
        code = f": {report.frame.code}" if report.frame.code else ""
        line = f":{report.frame.line}" if report.frame.line else ""
        short = "/".join(report.frame.file.replace("\\", "/").split("/")[-3:])
        yield "where", f"{short}{line} in {report.frame.function}{code}"
    if report.step is not None:
        yield "step", f"{report.step:,} of {report.steps:,} steps were made before it"
    if report.requested_bytes is not None:
        free = "" if report.free_bytes is None else f", {format_size(report.free_bytes)} was free"
        size = "" if report.capacity_bytes is None else f" of {format_size(report.capacity_bytes)}"
        yield "asked", f"{format_size(report.requested_bytes)}{free}{size}"
    tokens = {} if planned else logits_tokens(report)
    if tokens:
        (first, count), *rest = tokens.items()
        others = "; ".join(f"{number:,} of {name}'s" for name, number in rest)
        yield "tensor", f"in float32, logits of about {count:,} tokens of {first}'s vocabulary (128,256); {others}"
    yield from _held(report)
    if report.times > 1:
        yield "times", f"{report.times} such messages; this is the first"
    if report.kind not in ("torch",):
        yield "message", report.message[:300]


def _held(report: OomReport) -> Iterator[tuple[str, str]]:
    """Who held what of the card."""
    if report.allocated_bytes is not None and report.backend == "MPS":
        metal = "" if report.metal_bytes is None else f", {format_size(report.metal_bytes)} by Metal beside it"
        yield "held", f"{format_size(report.allocated_bytes)} by torch, its cache with it{metal}"
    elif report.allocated_bytes is not None:
        idle = "" if report.idle_bytes is None else f", {format_size(report.idle_bytes)} more reserved and idle"
        share = "" if report.idle_share is None else f" ({100 * report.idle_share:.0f} % of what torch held)"
        yield "held", f"{format_size(report.allocated_bytes)} in tensors{idle}{share}"
    if report.private_pools_bytes:
        yield "pools", f"{format_size(report.private_pools_bytes)} of it in private pools, as of CUDA graphs"
    if report.own_pid is not None:
        text = (
            f"process {report.own_pid} of the message, {format_size(report.process_bytes)}, is this run by the sums:"
            " what torch held and CUDA's context. In a container torch does not know its own id."
        )
        yield "process", text
    if report.allowed_bytes is not None:
        by = "Metal's watermark" if report.backend == "MPS" else "set_per_process_memory_fraction"
        yield "limit", f"torch may take {format_size(report.allowed_bytes)} ({by})"
    if report.others_bytes is not None:
        named = ", ".join(f"process {pid}: {format_size(size)}" for pid, size in (report.processes or {}).items())
        rest = f"{format_size(report.others_bytes)} of the card{f' ({named})' if named else ''}"
        yield "others", rest if report.others_bytes else "none: this run and what is free are the whole card"
    if report.unexplained_bytes:
        text = f"{format_size(report.unexplained_bytes)}: CUDA's context and others, which the message does not part"
        yield "rest", text


def advice(report: OomReport, *, general: bool = True) -> Iterator[str]:
    """What helps in such a case, from the failure alone; `general` also what helps in that phase of any run."""
    row = wording(report.cause)
    if report.senseless:
        yield from _shapes(report)
        return
    if report.backend == "MPS":
        yield from _apple(report)
        return
    if row is not None and row.kind in ("host", "engine", "kernel"):
        yield from row.advice
        return
    others = report.others_bytes
    if others is not None and others >= _NOTICED_BYTES:
        who = _WHO.get(report.backend or "", "nvidia-smi")
        yield f"{format_size(others)} of the card was not this process's: {who} shows whose; plan with --reserve."
    idle = report.idle_bytes
    if idle is not None and report.fragmented and idle >= _IDLE_NOTICED_BYTES:
        setting = _ALLOCATOR_SETTING.get(report.backend or "", _ALLOCATOR_SETTING_CUDA)
        yield f"{format_gib(idle)} was reserved and idle, in pieces: {setting} before Python starts can win most back."
    if report.allowed_bytes is not None and (report.free_bytes or 0) >= (report.requested_bytes or 1):
        yield "the card had room: torch's own limit was reached. Raise set_per_process_memory_fraction."
    if row is not None:
        yield from row.advice
    if are_whole_logits(report):
        yield _LOGITS
        return
    if not general:
        return
    if report.step and report.phase in (None, "forward", "backward"):
        yield (
            f"{report.step:,} steps went well, so the longest samples decide, or something that grows: `qlora-plan plan"
            " MODEL --data FILE` plans for the longest, a shorter max_length cuts them."
        )
    yield _HINTS.get(report.phase or "") or (
        "in the order of harm: gradient checkpointing on, batch size 1 with more accumulation, a paged 8-bit optimizer,"
        " then a shorter sequence. `qlora-plan check` or --plan finds the smallest change for this very run."
    )


def _apple(report: OomReport) -> Iterator[str]:
    """Apple's GPU: another limit and other libraries than a card of NVIDIA's."""
    row = wording(report.cause)
    if row is not None:
        yield from row.advice
    yield (
        "the limit is Metal's watermark, by default 1.7 times what macOS recommends for the GPU's working set, and the"
        " memory is the Mac's own: close other programs. PYTORCH_MPS_HIGH_WATERMARK_RATIO=0.0 lifts the limit; macOS"
        " then swaps and can stop answering."
    )
    yield (
        "bitsandbytes brings no 4-bit training kernels and no paged or 8-bit optimizers to Apple's GPU, so the usual"
        " ladder does not apply: LoRA on a smaller 16-bit model, batch size 1, a shorter sequence, gradient"
        " checkpointing; or mlx-lm, which trains LoRA on its own 4-bit weights."
    )


def _shapes(report: OomReport) -> Iterator[str]:
    """A request beyond all sense: what makes one, the likeliest first."""
    if report.doing == ATTENTION_SCORES:
        yield "attention scores grow with the square of the length: --attention sdpa never makes them, eager does."
    yield (
        "a sample that was never cut (a whole book in one row: set max_length, and look at the longest row with"
        " `qlora-plan plan MODEL --data FILE`); a length or a token id that is no number of tokens; two tensors"
        " broadcast against each other, as [N] against [N, 1]; a negative or overflowed size."
    )
    yield "no smaller batch and no larger card helps; the traceback's last line of your own code names the tensor."
