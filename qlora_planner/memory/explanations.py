"""One line of why per component, and what is alive before training: shared by every way to an estimate."""

from __future__ import annotations

from qlora_planner.catalog.cuda import ContextRow
from qlora_planner.catalog.parallel import FSDP2
from qlora_planner.memory.records import WRAP, Component, Phase
from qlora_planner.memory.weights.static import StaticMemory
from qlora_planner.memory.weights.trainable import TrainingState
from qlora_planner.spec.run import RunConfig
from qlora_planner.units import format_mib

BEFORE_TRAINING = ("load", "prepare", "adapters", WRAP)


def before_training(static: StaticMemory, peak: Phase) -> dict[Component, int]:
    """Bytes by component at the peak of loading, preparing or adding adapters."""
    prepared = peak.name != "load" and static.unquantized_prepared != static.unquantized_loaded
    sizes = {
        Component.QUANTIZED_WEIGHTS: static.packed_weights,
        Component.QUANTIZATION_CONSTANTS: static.constants,
        Component.UNQUANTIZED_WEIGHTS: static.buffers
        + (static.unquantized_prepared if prepared else static.unquantized_loaded),
        Component.ADAPTERS: static.adapters if peak.name in ("adapters", WRAP) else 0,
    }
    # The 16-bit tensor beside its quantised or cast form, and the compared copy of a tied head.
    sizes[Component.WORKSPACE] = max(0, (peak.allocated_bytes or 0) - sum(sizes.values()))
    return sizes


def communication_words(context: ContextRow, strategy: str | None = None) -> str:
    """The why-line of what several cards take beside what one does."""
    if strategy == FSDP2:
        return (
            "weights gathered for as long as a layer needs them: the all-gather's flat output and the copies out of it;"
            f" {context.communication_why}"
        )
    return f"a flat copy of all gradients to reduce them in, or what wrapping broadcasts; {context.communication_why}"


def counted_words(run: RunConfig, static: StaticMemory, state: TrainingState) -> dict[Component, str]:
    """Why-lines of everything that is counted."""
    return {
        Component.QUANTIZED_WEIGHTS: f"packed {run.quant} weights" if static.packed_weights else "nothing is quantised",
        Component.QUANTIZATION_CONSTANTS: "one constant per 64 weights"
        + (", themselves in 8 bits with one float32 per 256" if run.double_quant else ", in float32"),
        Component.UNQUANTIZED_WEIGHTS: f"embeddings, head, norms: {format_mib(static.unquantized_loaded)} as loaded"
        + (f", {format_mib(static.unquantized_prepared)} after the cast to float32" if run.upcast else ""),
        Component.ADAPTERS: f"{state.count:,} trainable parameters as they train",
        Component.GRADIENTS: f"one per trainable parameter, {state.count:,}, as far as alive at the peak",
        Component.OPTIMIZER_STATES: f"{run.optimizer}"
        + (f"; {format_mib(state.paged)} more in managed memory" if state.paged else ""),
    }
