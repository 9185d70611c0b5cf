"""A whole run of one rank under FSDP2, played through the allocator: loading, wrapping, and the traced steps."""

from __future__ import annotations

from qlora_planner.catalog import find_optimizer
from qlora_planner.memory.allocator.expandable import is_expandable, make_allocator
from qlora_planner.memory.allocator.native import native_memory
from qlora_planner.memory.parallel.fsdp2 import ShardedModel, Sharding
from qlora_planner.memory.replay.player import COMPONENTS, Adapter
from qlora_planner.memory.replay.sharded import ShardedReplayer
from qlora_planner.memory.replay.sharded_compiled import NativeShardedReplayer
from qlora_planner.memory.replay.simulate import SimulatedRun, Stage
from qlora_planner.memory.weights import loading
from qlora_planner.memory.weights.loading import PhasePeak
from qlora_planner.memory.weights.trainable import training_state


class ShardedStage(Stage):
    """Playings of a run as one of the ranks that shard it; `training` gets a phase `wrap` and one `save`.

    The tape is the run's on one card, which the optimizer does not change. Ranks are alike but for padding: rank 0 is
    played, which has the most.
    """

    shards = True

    def play(self, limit_bytes: int | None) -> SimulatedRun:
        """One playing from an empty device."""
        return self.play_as(Sharding.of(self.run, self.world), limit_bytes)

    def play_as(self, sharding: Sharding, limit_bytes: int | None = None) -> SimulatedRun:
        """The same, cut up as is said."""
        run, trainer = self.run, self.trainer
        optimizer = find_optimizer(run.optimizer)
        assert optimizer is not None
        model = ShardedModel(self.placement, trainer, sharding)
        native = native_memory(limit_bytes, expandable=is_expandable(run.alloc_conf), apart=True)
        memory = native or make_allocator(run.alloc_conf, limit_bytes, apart=True)
        replayer = ShardedReplayer if native is None else NativeShardedReplayer
        memory.free(memory.malloc(512))  # the first tiny tensor that makes the context
        whole_head = self.resolution.loss.kind == "fused"
        prepare = None
        if sharding.load_on == "cpu":
            load = adding = PhasePeak(
                live=memory.allocated, allocated=memory.peak_allocated, reserved=memory.peak_reserved
            )
            player = replayer(memory, self.script, [0] * len(COMPONENTS), model, whole_head, self.before)
            player.cast([], run, trainer)
            player.wrap_from_host()
        else:
            tensors, load = loading.load(memory, self.placement, sharding.world)
            prepare = loading.prepare(memory, tensors) if run.upcast else None
            added, adding = loading.add_adapters(memory, self.placement, self.workspace_bytes)
            memory.empty_cache()
            adapters = [Adapter(tensor=tensor, block=block) for tensor, block in added]
            player = replayer(
                memory, self.script, self._components(adapters), model, whole_head, self.before
            )  # fmt: skip
            player.wrap(tensors, player.cast(adapters, run, trainer))
        player.play_steps(run, trainer, optimizer)
        return SimulatedRun(
            static=self.static,
            state=training_state(self.static.trainable, run, trainer, optimizer),
            load=load,
            prepare=prepare,
            adapters=adding,
            training=player.phases,
            non_releasable_bytes=player.non_releasable_bytes,
            lost=player.lost,
            offloaded=player.host_peak,
        )
