"""An out-of-memory failure as a colleague would tell it: what ran out, when, who held the card, what to change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from qlora_planner.evidence.oom import OomReport
from qlora_planner.report.check import Fix
from qlora_planner.report.theme import Line, Theme
from qlora_planner.report.words import change
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


class Compared(Protocol):
    """The failure beside its plan."""

    @property
    def tensors(self) -> tuple[str, ...]:
        """What a tensor of the size that was asked for can be."""

    @property
    def planned_bytes(self) -> int:
        """The most that the plan lets tensors hold."""

    @property
    def tried_bytes(self) -> int | None:
        """What they would have come to."""

    @property
    def excess_bytes(self) -> int | None:
        """How much more, where that is noticeable."""


def render_oom(
    report: OomReport, theme: Theme, compared: Compared | None = None, fixes: Sequence[Fix] = (), verdict: str = ""
) -> str:
    """The whole screen. `verdict` is what the plan's estimate says on the card, `fixes` the least harmful first."""
    lines: list[Line] = [[(headline(report), "bold red")], []]
    for label, text in facts(report):
        lines += theme.wrap(text, 10, label, first_style="dim")
    if compared is not None:
        lines.append([])
        for label, text in _beside(report, compared, verdict):
            lines += theme.wrap(text, 10, label, first_style="dim")
    told = list(advice(report, general=not fixes))
    if told or fixes:
        lines += [[], [("what to do", "bold")]]
    for fix in fixes:
        text = f"{change(_changes(fix))}: works from {format_gib(fix.estimate.floor_bytes)} on; {fix.costs}"
        lines += theme.wrap(text, 2, "  ", style="cyan")
    for one in told:
        lines += theme.wrap(one, 4, "  - ")
    return theme.render(lines)


def _changes(fix: Fix) -> Mapping[str, Any]:
    found: Mapping[str, Any] = getattr(fix, "changes", {})
    return found


def headline(report: OomReport) -> str:
    """What ran out and when, in one line."""
    what = {
        "torch": f"{'the card' if report.device is None else f'card {report.device}'} ran out of memory",
        "cuda": "the card ran out of memory outside torch's allocator",
        "cublas": "a CUDA library could not get its workspace, as on a full card",
        "bitsandbytes": "bitsandbytes could not allocate on the card (its paged memory or its workspace)",
        "host": "the host ran out of memory, and the system killed the process",
    }[report.kind]
    if report.times == 0:
        return "no failure in this snapshot; what torch held when it was made"
    return what + (f", {WHEN[report.phase]}" if report.phase else "")


def facts(report: OomReport) -> Iterator[tuple[str, str]]:
    """Every figure that the failure tells, with its label."""
    if report.doing or report.recomputing:
        again = "gradient checkpointing computed a layer's forward again; " if report.recomputing else ""
        yield "doing", f"{again}{report.doing or 'what exactly, the traceback does not tell'}"
    if report.frame is not None:
        code = f": {report.frame.code}" if report.frame.code else ""
        short = "/".join(report.frame.file.replace("\\", "/").split("/")[-3:])
        yield "where", f"{short}:{report.frame.line} in {report.frame.function}{code}"
    if report.requested_bytes is not None:
        free = "" if report.free_bytes is None else f", {format_size(report.free_bytes)} was free"
        size = "" if report.capacity_bytes is None else f" of {format_size(report.capacity_bytes)}"
        yield "asked", f"{format_size(report.requested_bytes)}{free}{size}"
    if report.allocated_bytes is not None:
        idle = "" if report.idle_bytes is None else f", {format_size(report.idle_bytes)} more reserved and idle"
        share = "" if report.idle_share is None else f" ({100 * report.idle_share:.0f} % of what torch held)"
        yield "held", f"{format_size(report.allocated_bytes)} in tensors{idle}{share}"
    if report.private_pools_bytes:
        yield "pools", f"{format_size(report.private_pools_bytes)} of it in private pools, as of CUDA graphs"
    if report.allowed_bytes is not None:
        yield "limit", f"torch may take {format_size(report.allowed_bytes)} (set_per_process_memory_fraction)"
    if report.others_bytes is not None:
        named = ", ".join(f"process {pid}: {format_size(size)}" for pid, size in (report.processes or {}).items())
        yield "others", f"{format_size(report.others_bytes)} of the card{f' ({named})' if named else ''}"
    if report.times > 1:
        yield "times", f"{report.times} such messages; this is the first"
    if report.kind not in ("torch",):
        yield "message", report.message[:300]


def _beside(report: OomReport, compared: Compared, verdict: str) -> Iterator[tuple[str, str]]:
    for words in compared.tensors:
        yield "tensor", f"that is {words}"
    planned = format_size(compared.planned_bytes)
    tried = format_size(compared.tried_bytes)
    if compared.tried_bytes is None:
        yield "plan", f"tensors hold {planned} at the most; the message does not tell what they held"
    elif compared.excess_bytes is not None:
        text = (
            f"tensors hold {planned} at the most; here they would have come to {tried},"
            f" {format_size(compared.excess_bytes)} more: another run than the plan's (longer samples, a larger"
            " batch, no checkpointing), tensors that are kept from step to step, or a prediction that is too low"
        )
        yield "plan", text
    else:
        text = (
            f"tensors were within it: {tried} of {planned}; what beat the plan is not the run itself but the room:"
            " others on the card, idle memory in pieces, or a plan for a larger card"
        )
        yield "plan", text
    if verdict:
        yield "verdict", f"the plan's run on this card as it was: {verdict.replace('-', ' ')}"


def advice(report: OomReport, *, general: bool = True) -> Iterator[str]:
    """What helps in such a case, from the failure alone; `general` also what helps in that phase of any run."""
    if report.kind == "host":
        yield (
            "more host memory, or less of it: fewer dataloader workers, a streamed dataset, weights as safetensors,"
            " no offloading to the host. `dmesg` shows who was killed."
        )
        return
    others = report.others_bytes
    if others is not None and others >= _NOTICED_BYTES:
        yield f"{format_size(others)} of the card was not this process's: nvidia-smi shows whose; plan with --reserve."
    idle = report.idle_bytes
    if idle is not None and report.fragmented and idle >= _IDLE_NOTICED_BYTES:
        yield (
            f"{format_gib(idle)} was reserved and idle, in pieces: PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"
            " (PYTORCH_ALLOC_CONF since torch 2.9) before Python starts can win most of it back."
        )
    if report.allowed_bytes is not None and (report.free_bytes or 0) >= (report.requested_bytes or 1):
        yield "the card had room: torch's own limit was reached. Raise set_per_process_memory_fraction."
    if report.kind == "cublas":
        yield (
            "CUBLAS_STATUS_NOT_INITIALIZED can also come of a token id beyond the vocabulary or of a broken driver;"
            " CUDA_LAUNCH_BLOCKING=1 tells them apart."
        )
    if report.kind == "bitsandbytes":
        yield "a paged optimizer needs host memory that can be pinned: see `ulimit -l` and the host's free memory."
    if not general:
        return
    yield _HINTS.get(report.phase or "") or (
        "in the order of harm: gradient checkpointing on, batch size 1 with more accumulation, a paged 8-bit optimizer,"
        " then a shorter sequence. `qlora-plan check` or --plan finds the smallest change for this very run."
    )
