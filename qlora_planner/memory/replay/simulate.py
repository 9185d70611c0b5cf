"""A whole run played through the allocator: loading, preparing, adapters, and the traced training steps."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import field
from typing import cast

from qlora_planner.catalog import find_optimizer
from qlora_planner.catalog.parallel import FSDP2
from qlora_planner.memory.allocator.caching import CachingAllocator, OutOfMemory
from qlora_planner.memory.allocator.expandable import is_expandable, make_allocator
from qlora_planner.memory.allocator.native import NativeMemory, native_memory, native_module
from qlora_planner.memory.options.resolve import Resolution
from qlora_planner.memory.parallel.ddp import ddp_wrapping
from qlora_planner.memory.parallel.fsdp2 import unplayed
from qlora_planner.memory.records import Component
from qlora_planner.memory.replay.compiled import NativeReplayer
from qlora_planner.memory.replay.events import PreparedTrace, prepare_trace
from qlora_planner.memory.replay.outputs import with_cloned_outputs
from qlora_planner.memory.replay.packed import Packed, PackedReplayer, pack
from qlora_planner.memory.replay.player import COMPONENTS, Adapter, ReplayedPhase, TraceReplayer
from qlora_planner.memory.replay.wrapping import WrappedNativeReplayer, WrappedReplayer
from qlora_planner.memory.weights import loading
from qlora_planner.memory.weights.loading import PhasePeak
from qlora_planner.memory.weights.placement import Placement, bill_key
from qlora_planner.memory.weights.static import StaticMemory, static_memory
from qlora_planner.memory.weights.trainable import TrainingState, training_state
from qlora_planner.record import record, replaced
from qlora_planner.spec.model import ModelProfile
from qlora_planner.spec.run import RunConfig
from qlora_planner.spec.trace import Tape

# The player goes through a micro-batch twice before the optimizer's step, however many there are.
_PLAYED_ACCUMULATION = 2
_MOST_REMEMBERED = 128
# With the profile that is meant: its address is no one else's while it is kept here.
_remembered: dict[tuple[Hashable, ...], tuple[ModelProfile, SimulatedRun]] = {}
# Devices with a model loaded and its adapters added, by all that decides how, with the profile that is meant.
_loaded_devices: dict[tuple[Hashable, ...], tuple[ModelProfile, Loaded]] = {}
_MOST_LOADED = 16


@record
class Loaded:
    """A device on which nothing was trained yet, and what torch's counters showed on the way there."""

    memory: CachingAllocator
    load: PhasePeak
    prepare: PhasePeak | None
    adapters: PhasePeak
    added: list[Adapter]
    non_releasable_bytes: int

    @property
    def reserved(self) -> int:
        """The most that torch reserved on the way."""
        return max(phase.reserved for phase in (self.load, self.prepare, self.adapters) if phase is not None)


@record
class SimulatedRun:
    """What torch's counters show in every phase, and the bytes by component when each phase has most allocated."""

    static: StaticMemory
    state: TrainingState
    load: PhasePeak
    prepare: PhasePeak | None
    adapters: PhasePeak
    training: dict[str, ReplayedPhase]
    non_releasable_bytes: int  # the most that segments holding something came to: what a full cache release would leave
    lost: int
    offloaded: int  # the most that activations took on the host
    # By limits on what torch reserves under which it was played again, what it reserved; None where that failed.
    within: dict[int, int | None] = field(default_factory=dict, compare=False, repr=False)

    @property
    def reserved(self) -> int:
        """The most that torch reserves over the run."""
        before = [self.load.reserved, self.adapters.reserved, self.prepare.reserved if self.prepare else 0]
        return max(*before, *(phase.peak.reserved for phase in self.training.values()))

    @property
    def allocated(self) -> int:
        """The most that is live over the run."""
        before = [self.load.allocated, self.adapters.allocated, self.prepare.allocated if self.prepare else 0]
        return max(*before, *(phase.peak.allocated for phase in self.training.values()))


def simulate_run(
    profile: ModelProfile,
    resolution: Resolution,
    tape: Tape,
    workspace_bytes: int,
    limit_bytes: int | None = None,
    before: Sequence[Tape] = (),
    world: int = 1,
) -> SimulatedRun:
    """Play `resolution.run`; `workspace_bytes` is one cuBLAS handle's.

    `before` are traces of the same run at other widths, a step each that comes first: what they leave in the cache is
    cut for their widths, so a wider batch cannot use all of it. The very widths of 168 steps on an H200, 346 to 2,001
    tokens, give what torch reserved there to 0.5 %; the widest alone gives an eighth less.
    On one of `world` cards the model is wrapped as the run's strategy has it.
    Raises OutOfMemory when torch's limit is `limit_bytes` and does not suffice.
    """
    with without_collection():
        return stage_of(profile, resolution, tape, workspace_bytes, before, world).play(limit_bytes)


def remembered_run(
    profile: ModelProfile,
    resolution: Resolution,
    tape: Tape,
    workspace_bytes: int,
    limit_bytes: int | None = None,
    before: Sequence[Tape] = (),
    world: int = 1,
) -> SimulatedRun:
    """As `simulate_run`, but what was played a moment ago is not played again.

    A plan asks for the same run under several roles. How often gradients accumulate makes no difference beyond twice,
    and of how many completions a group has, the trace says all there is.
    """
    run = resolution.run
    alike = run.with_(grad_accum=min(run.grad_accum, _PLAYED_ACCUMULATION), num_generations=None)
    traced = tuple((hash(each), len(each.events)) for each in (tape, *before))
    key = (id(profile), repr(alike), repr(resolution.trainer), traced, workspace_bytes, limit_bytes, world)
    known = _remembered.get(key)
    if known is None:
        if len(_remembered) >= _MOST_REMEMBERED:
            _remembered.clear()
        known = profile, simulate_run(profile, resolution, tape, workspace_bytes, limit_bytes, before, world)
        _remembered[key] = known
    return known[1]


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
    """Tens of thousands of small records are made and none is garbage: collecting between them costs a third more."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def stage_of(
    profile: ModelProfile,
    resolution: Resolution,
    tape: Tape,
    workspace_bytes: int,
    before: Sequence[Tape] = (),
    world: int = 1,
) -> Stage:
    """What plays a run by the way it is spread over cards."""
    if resolution.run.parallel == FSDP2 and not unplayed(resolution.run, resolution.loss.kind):
        from qlora_planner.memory.replay.sharded_run import ShardedStage

        return ShardedStage(profile, resolution, tape, workspace_bytes, before, world)
    return Stage(profile, resolution, tape, workspace_bytes, before, world)


class Stage:
    """Everything that one run's playings share."""

    shards = False  # whether acts of a strategy's come between those of the trace

    def __init__(
        self,
        profile: ModelProfile,
        resolution: Resolution,
        tape: Tape,
        workspace_bytes: int,
        before: Sequence[Tape] = (),
        world: int = 1,
    ) -> None:
        self.run: RunConfig = resolution.run
        self.profile = profile
        self.resolution = resolution
        # The trainer's import, or PEFT's own products for DoRA's magnitudes, made cuBLAS take its workspace already.
        self.taken = resolution.trainer.multiplies_at_import or (self.run.dora and self.run.method != "full")
        every = self.run.checkpoint_every
        options = self.run.gradient_checkpointing, self.taken, None if every == 1 else every
        # What is wrapped, sharded or grows from token to token is not just the trace's acts.
        plain = self.run.parallel is None and not self.shards and not tape.tokens and native_module() is not None
        self.packed: list[tuple[PreparedTrace, Packed]] = []
        tapes = (tape, *before)
        if plain:
            scripts = [PreparedTrace(tape=traced, acts={}, origins={}) for traced in tapes]
            self.packed = [(script, pack(script.tape, *options, among=tapes)) for script in scripts]
        else:
            scripts = [prepare_trace(traced, *options) for traced in tapes]
        self.script, self.before = scripts[0], scripts[1:]
        self.workspace_bytes = workspace_bytes
        self.trainer = resolution.trainer
        self.placement = Placement(profile, self.run)
        self.world = world
        self.wrapping = None
        if self.run.parallel == "ddp":
            self.wrapping = ddp_wrapping(self.placement, self.trainer)
            if vocabulary := profile.dims.get("vocab_size"):
                self.script, *self.before = (with_cloned_outputs(script, 4 * int(vocabulary)) for script in scripts)
        self.static = static_memory(self.placement)

    def reserved_within(self, limit_bytes: int) -> int | None:
        """The most that torch reserves under this limit; None where the run does not get through."""
        try:
            return self.play(limit_bytes).reserved
        except OutOfMemory:
            return None

    def play(self, limit_bytes: int | None) -> SimulatedRun:
        """One playing from an empty device."""
        run, loaded = self.run, self._loaded(limit_bytes)
        optimizer = find_optimizer(run.optimizer)
        assert optimizer is not None
        player = self._player(loaded.memory, self._components(loaded.added))
        player.play(loaded.added, run, self.trainer, optimizer, self.before)
        return SimulatedRun(
            static=self.static,
            state=training_state(self.static.trainable, run, self.trainer, optimizer),
            load=loaded.load,
            prepare=loaded.prepare,
            adapters=loaded.adapters,
            training=player.phases,
            non_releasable_bytes=max(loaded.non_releasable_bytes, player.non_releasable_bytes),
            lost=player.lost,
            offloaded=player.host_peak,
        )

    def _loaded(self, limit_bytes: int | None) -> Loaded:
        """A device of this run's own with everything loaded: a copy of the one of another run that loads alike.

        A limit that loading never comes near decides nothing before training.
        """
        expandable = is_expandable(self.run.alloc_conf)
        native = native_memory(None, expandable=expandable)
        if native is None:
            return self._load(make_allocator(self.run.alloc_conf, limit_bytes))
        early = self.trainer.multiplies_at_import
        key = id(self.profile), bill_key(self.run), self.workspace_bytes, expandable, self.world, early
        kept = _loaded_devices.get(key)
        if kept is None:
            if len(_loaded_devices) >= _MOST_LOADED:
                _loaded_devices.clear()
            kept = _loaded_devices[key] = self.profile, self._load(native)
        loaded = kept[1]
        memory = cast("NativeMemory", loaded.memory)
        if limit_bytes is None:
            return replaced(loaded, memory=memory.copy())
        if loaded.reserved > limit_bytes:
            limited = native_memory(limit_bytes, expandable=expandable)
            assert limited is not None, "there was one without a limit"
            return self._load(limited)
        return replaced(loaded, memory=memory.copy(limit_bytes))

    def _load(self, memory: CachingAllocator) -> Loaded:
        """Play everything before training on an empty device."""
        memory.free(memory.malloc(512))  # the first tiny tensor that makes the context
        early = self.trainer.multiplies_at_import
        if early:
            memory.malloc(self.workspace_bytes)
        tensors, load = loading.load(memory, self.placement, self.world)
        non_releasable = memory.peak_non_releasable_bytes
        prepare = loading.prepare(memory, tensors) if self.run.upcast else None
        non_releasable = max(non_releasable, memory.peak_non_releasable_bytes)
        added, adding = loading.add_adapters(memory, self.placement, 0 if early else self.workspace_bytes)
        adding = loading.cast_back(memory, tensors, adding)
        own = [(entry.tensor.trained, entry.blocks[0]) for entry in tensors if entry.tensor.trained]
        adapters = [Adapter(tensor=tensor, block=block) for tensor, block in own + added]
        non_releasable = max(non_releasable, memory.peak_non_releasable_bytes)
        memory.empty_cache()
        return Loaded(
            memory=memory, load=load, prepare=prepare, adapters=adding, added=adapters,
            non_releasable_bytes=non_releasable,
        )  # fmt: skip

    def _player(self, memory: CachingAllocator, components: list[int]) -> TraceReplayer:
        script, before = self.script, self.before
        compiled = not isinstance(memory, CachingAllocator)
        if self.packed:
            return PackedReplayer(memory, script, components, self.packed)
        if self.wrapping is not None and compiled:
            return WrappedNativeReplayer(memory, script, components, self.wrapping, before)
        if self.wrapping is not None:
            return WrappedReplayer(memory, script, components, self.wrapping)
        return (
            NativeReplayer(memory, script, components, before)
            if compiled
            else TraceReplayer(memory, script, components)
        )

    def _components(self, adapters: list[Adapter]) -> list[int]:
        static = self.static
        full = self.run.method == "full"
        sizes = {
            Component.QUANTIZED_WEIGHTS: static.packed_weights,
            Component.QUANTIZATION_CONSTANTS: static.constants,
            Component.UNQUANTIZED_WEIGHTS: static.buffers + static.unquantized_kept,
            Component.ADAPTERS: 0 if full else sum(a.block.size for a in adapters if a.block is not None),
            Component.WORKSPACE: self.workspace_bytes if self.taken else 0,
        }
        return [sizes.get(component, 0) for component in COMPONENTS]
