"""A whole run of one rank under FSDP2, played through the allocator: loading, wrapping, and the traced steps."""

from __future__ import annotations

from qlora_planner.catalog import find_optimizer
from qlora_planner.memory.allocator.expandable import make_allocator
from qlora_planner.memory.options.resolve import Resolution
from qlora_planner.memory.parallel.fsdp2 import ShardedModel, Sharding
from qlora_planner.memory.records import Component
from qlora_planner.memory.replay.events import prepare_trace
from qlora_planner.memory.replay.player import COMPONENTS, Adapter
from qlora_planner.memory.replay.sharded import ShardedReplayer
from qlora_planner.memory.replay.simulate import SimulatedRun, without_collection
from qlora_planner.memory.weights import loading
from qlora_planner.memory.weights.loading import PhasePeak
from qlora_planner.memory.weights.placement import Placement
from qlora_planner.memory.weights.static import StaticMemory, static_memory
from qlora_planner.memory.weights.trainable import training_state
from qlora_planner.spec.model import ModelProfile
from qlora_planner.spec.trace import Tape


def simulate_sharded(
    profile: ModelProfile,
    resolution: Resolution,
    tape: Tape,
    workspace_bytes: int,
    sharding: Sharding,
    limit_bytes: int | None = None,
) -> SimulatedRun:
    """Play `resolution.run` as one of the ranks that shard it; `training` has a phase `wrap` beside the usual.

    `tape` is the one-card trace of the run, which the optimizer does not change. Ranks are alike but for padding: rank
    0 is played, which has the most. Raises OutOfMemory as `simulate_run`.
    """
    with without_collection():
        return _play(profile, resolution, tape, workspace_bytes, sharding, limit_bytes)


def _play(
    profile: ModelProfile,
    resolution: Resolution,
    tape: Tape,
    workspace_bytes: int,
    sharding: Sharding,
    limit_bytes: int | None,
) -> SimulatedRun:
    run, trainer = resolution.run, resolution.trainer
    optimizer = find_optimizer(run.optimizer)
    assert optimizer is not None
    placement = Placement(profile, run)
    model = ShardedModel(placement, trainer, sharding)
    static = static_memory(placement)
    memory = make_allocator(run.alloc_conf, limit_bytes, apart=True)
    memory.free(memory.malloc(512))  # the first tiny tensor that makes the context
    script = prepare_trace(tape, run.gradient_checkpointing)
    whole_head = resolution.loss.kind == "fused"
    if sharding.load_on == "cpu":
        nothing = PhasePeak(live=memory.allocated, allocated=memory.peak_allocated, reserved=memory.peak_reserved)
        player = ShardedReplayer(memory, script, [0] * len(COMPONENTS), model, whole_head)
        load = adding = nothing
        prepare = nothing if run.upcast else None
        player.wrap_from_host()
    else:
        tensors, load = loading.load(memory, placement)
        prepare = loading.prepare(memory, tensors) if run.upcast else None
        added, adding = loading.add_adapters(memory, placement, workspace_bytes)
        memory.empty_cache()
        adapters = [Adapter(tensor=tensor, block=block) for tensor, block in added]
        player = ShardedReplayer(memory, script, _components(static, adapters), model, whole_head)
        player.wrap(tensors, player.cast(adapters, run, trainer))
    player.play_steps(run, trainer, optimizer)
    return SimulatedRun(
        static=static,
        state=training_state(model.trained, run, trainer, optimizer),
        load=load,
        prepare=prepare,
        adapters=adding,
        training=player.phases,
        non_releasable_bytes=player.non_releasable_bytes,
        lost=player.lost,
        offloaded=player.host_peak,
    )


def _components(static: StaticMemory, adapters: list[Adapter]) -> list[int]:
    sizes = {
        Component.QUANTIZED_WEIGHTS: static.packed_weights,
        Component.QUANTIZATION_CONSTANTS: static.constants,
        Component.UNQUANTIZED_WEIGHTS: static.buffers + static.unquantized_prepared,
        Component.ADAPTERS: sum(adapter.block.size for adapter in adapters if adapter.block is not None),
    }
    return [sizes.get(component, 0) for component in COMPONENTS]
