"""What a run holds whatever its batch and sequence; everything else is arithmetic on top."""

from __future__ import annotations

from qlora_planner.catalog import LossMemory, TrainerRow, find_optimizer
from qlora_planner.catalog.cuda import ContextRow
from qlora_planner.evidence.calibration import OTHER_FORM, PROVED_FORM
from qlora_planner.memory.allocator.expandable import is_expandable, make_allocator
from qlora_planner.memory.allocator.native import native_memory
from qlora_planner.memory.closed_form import activations
from qlora_planner.memory.options.resolve import Resolution
from qlora_planner.memory.weights import loading
from qlora_planner.memory.weights.placement import Placement
from qlora_planner.memory.weights.static import StaticMemory, static_memory
from qlora_planner.memory.weights.trainable import TrainingState, training_state
from qlora_planner.record import record
from qlora_planner.spec.model import ModelProfile


@record
class StaticPeaks:
    """Figures that do not depend on batch and sequence: played once, reused over a sweep."""

    static: StaticMemory
    state: TrainingState
    shape: activations.ModelShape
    load: loading.PhasePeak
    prepare: loading.PhasePeak | None
    adapters: loading.PhasePeak
    workspace: int  # of one cuBLAS handle


@record
class MemoryTerms:
    """Everything that the phases and the components of one run are summed from."""

    static: StaticMemory
    state: TrainingState
    acts: activations.Activations
    load: loading.PhasePeak
    prepare: loading.PhasePeak | None
    adapters: loading.PhasePeak
    workspace: int
    context: ContextRow
    trainer: TrainerRow
    loss: LossMemory

    @property
    def method(self) -> str:
        """How the figures are had, which decides how far they may be off."""
        return PROVED_FORM if self.acts.exact else OTHER_FORM


def static_peaks_of(profile: ModelProfile, resolution: Resolution, workspace_bytes: int) -> StaticPeaks:
    """Play loading, preparing and adding adapters through the allocator; `workspace_bytes` is one cuBLAS handle's.

    Raises InputError when target modules or modules_to_save match nothing.
    """
    run = resolution.run
    placement = Placement(profile, run)
    static = static_memory(placement)
    optimizer = find_optimizer(run.optimizer)
    assert optimizer is not None
    memory = native_memory(None, expandable=is_expandable(run.alloc_conf)) or make_allocator(run.alloc_conf)
    memory.free(memory.malloc(512))  # the first tiny tensor that makes the context
    tensors, load = loading.load(memory, placement)
    prepare = loading.prepare(memory, tensors) if run.upcast else None
    _, adapters = loading.add_adapters(memory, placement, workspace_bytes)
    return StaticPeaks(
        static=static,
        state=training_state(static.trainable, run, resolution.trainer, optimizer),
        shape=activations.model_shape(placement),
        load=load,
        prepare=prepare,
        adapters=adapters,
        workspace=workspace_bytes,
    )


def memory_terms(ground: StaticPeaks, resolution: Resolution, context: ContextRow) -> MemoryTerms:
    """Add to the static peaks what batch and sequence decide; `context` is the CUDA context of the run."""
    trainer, loss = resolution.trainer, resolution.loss
    return MemoryTerms(
        static=ground.static,
        state=ground.state,
        acts=activations.activations(ground.shape, resolution.run, trainer, loss),
        load=ground.load,
        prepare=ground.prepare,
        adapters=ground.adapters,
        workspace=2 * ground.workspace,  # one handle for the forward thread, one for autograd's
        context=context,
        trainer=trainer,
        loss=loss,
    )
