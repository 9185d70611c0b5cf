"""The bytes of the peak by component, each with its basis and one line of arithmetic."""

from __future__ import annotations

from qlora_planner.memory.allocator.expandable import is_expandable
from qlora_planner.memory.closed_form.static_peaks import MemoryTerms
from qlora_planner.memory.explanations import BEFORE_TRAINING, before_training, communication_words, counted_words
from qlora_planner.memory.records import WRAP, Basis, Component, ComponentLine, Phase
from qlora_planner.spec.run import RunConfig
from qlora_planner.spec.trace import PREFILL


def component_sizes(run: RunConfig, parts: MemoryTerms, peak: Phase, communication: int = 0) -> dict[Component, int]:
    """What is alive at the peak phase, with `communication` bytes of a strategy; they add up to its device bytes."""
    sizes = before_training(parts.static, peak) if peak.name in BEFORE_TRAINING else _training(run, parts, peak)
    context = parts.context.first_tensor_bytes
    if peak.name not in BEFORE_TRAINING:
        context += parts.context.kernels_bytes
    sizes[Component.CUDA_CONTEXT] = context - parts.context.communication_bytes
    if communication or parts.context.communication_bytes:
        sizes[Component.COMMUNICATION] = communication + parts.context.communication_bytes
        if peak.name == WRAP:  # what passes is no workspace
            sizes[Component.WORKSPACE] = max(0, sizes[Component.WORKSPACE] - communication)
    explained = sum(sizes.values())
    sizes[Component.ALLOCATOR_SLACK] = (peak.device_bytes or 0) - explained
    return sizes


def component_lines(
    run: RunConfig, parts: MemoryTerms, peak: Phase, communication: int = 0
) -> tuple[ComponentLine, ...]:
    """The same, each with where it comes from."""
    sizes = component_sizes(run, parts, peak, communication)
    return tuple(
        ComponentLine(
            component=part, size_bytes=sizes.get(part, 0), basis=_basis(part, parts), why=_why(part, run, parts)
        )
        for part in Component
        if part is not Component.COMMUNICATION or part in sizes
    )


def _training(run: RunConfig, parts: MemoryTerms, peak: Phase) -> dict[Component, int]:
    static, state, acts = parts.static, parts.state, parts.acts
    sizes = {
        Component.QUANTIZED_WEIGHTS: static.packed_weights,
        Component.QUANTIZATION_CONSTANTS: static.constants,
        Component.UNQUANTIZED_WEIGHTS: static.buffers + static.unquantized_kept - (
            state.weights if run.method == "full" else 0
        ),
        Component.ADAPTERS: state.weights,
        Component.GRADIENTS: state.gradients if peak.name in ("backward", "optimizer") else 0,
        Component.OPTIMIZER_STATES: state.optimizer,
        Component.CHECKPOINTS: acts.checkpoints if peak.name in ("forward", "loss", "backward") else 0,
        Component.WORKSPACE: parts.workspace + (state.step_temporaries if peak.name == "optimizer" else 0),
    }  # fmt: skip
    earlier = state.gradients if run.grad_accum > 1 else 0
    logits_lead = peak.name == "loss" or (
        peak.name == "backward" and acts.logits + earlier >= acts.layer + state.gradients
    )
    if peak.name == PREFILL:
        sizes[Component.ACTIVATIONS] = acts.generation
    if peak.name in ("forward", "loss", "backward"):
        sizes[Component.LOGITS_AND_LOSS] = acts.logits if logits_lead else 0
        layer = acts.layer // 2 if peak.name == "forward" else acts.layer
        if logits_lead:
            sizes[Component.GRADIENTS] = earlier
        sizes[Component.ACTIVATIONS] = acts.all_layers + (0 if logits_lead else layer)
    return sizes


def _basis(part: Component, parts: MemoryTerms) -> Basis:
    counted = (
        Component.QUANTIZED_WEIGHTS, Component.QUANTIZATION_CONSTANTS, Component.UNQUANTIZED_WEIGHTS,
        Component.ADAPTERS, Component.GRADIENTS, Component.OPTIMIZER_STATES,
    )  # fmt: skip
    if part in counted:
        return Basis.COUNTED
    if part in (Component.CHECKPOINTS, Component.ACTIVATIONS, Component.LOGITS_AND_LOSS):
        return Basis.DERIVED if parts.acts.exact else Basis.ASSUMED
    if part is Component.COMMUNICATION:
        return Basis.CALIBRATED if parts.context.communication_measured else Basis.ASSUMED
    if part is Component.CUDA_CONTEXT:
        return Basis.CALIBRATED if parts.context.measured else Basis.ASSUMED
    return Basis.DERIVED if part is Component.WORKSPACE else Basis.CALIBRATED


def _why(part: Component, run: RunConfig, parts: MemoryTerms) -> str:
    acts = parts.acts
    stream = "float32" if run.upcast else "16-bit"
    texts = counted_words(run, parts.static, parts.state) | {
        Component.CHECKPOINTS: f"the {stream} input of every layer for {run.tokens:,} tokens"
        if run.gradient_checkpointing
        else "gradient checkpointing is off",
        Component.ACTIVATIONS: (
            "one layer's forward and backward" if run.gradient_checkpointing else "what every layer keeps for backward"
        )
        + ("" if acts.exact else "; this layer is unlike those the formulas were proved on"),
        Component.LOGITS_AND_LOSS: parts.loss.why,
        Component.WORKSPACE: "cuBLAS takes a workspace for the forward and for the backward thread"
        + "; or, before training, a tensor beside its cast or quantised form",
        Component.ALLOCATOR_SLACK: "reserved over allocated: median 1.06 over 66 measured runs"
        if not is_expandable(run.alloc_conf)
        else "expandable segments: 1.02 x allocated was enough in each case tried",
        Component.CUDA_CONTEXT: parts.context.why,
        Component.COMMUNICATION: communication_words(parts.context),
    }
    return texts[part]
