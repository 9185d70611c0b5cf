"""Play a traced run as one rank of several that shard it by FSDP2: wrapping, gathers, reductions.

Sources: torch distributed/fsdp/_fully_shard (`FSDPParamGroup`: what is gathered when and kept until when;
`foreach_all_gather`, `foreach_reduce`: what each allocates, and on which stream), trl 1.16 trainer/sft_trainer.py (the
head's weight by `full_tensor`), accelerate 1.15 `fsdp2_prepare_model`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from qlora_planner.catalog import DTYPE_BYTES, OptimizerRow, TrainerRow
from qlora_planner.catalog.parallel import GLOO
from qlora_planner.memory.allocator.caching import Block, CachingAllocator
from qlora_planner.memory.parallel.fsdp2 import ShardedModel, ShardedTensor, Unit
from qlora_planner.memory.records import Component
from qlora_planner.memory.replay.events import BIRTH, DEATH, DEATH_ELSEWHERE, OUTSIDE, PreparedTrace
from qlora_planner.memory.replay.gathers import EMBEDDED, HEAD_BEGINS, HEAD_ENDS, SCORED, gradient_storages, marked
from qlora_planner.memory.replay.player import COMPONENTS, GRADIENTS, Adapter, TraceReplayer
from qlora_planner.memory.replay.walking import accumulated, walk
from qlora_planner.memory.weights.loading import Loaded
from qlora_planner.memory.weights.trainable import training_dtype
from qlora_planner.spec.run import RunConfig
from qlora_planner.spec.trace import Segment

# The streams that FSDP2 allocates on beside the main one: all-gathers' outputs, reduce-scatters', and the stream that
# all-gathers run on, where gloo alone allocates.
_GATHERS, _REDUCES, _GATHERING = 1, 2, 3
_GATHERED = COMPONENTS.index(Component.COMMUNICATION)
_PACKED = COMPONENTS.index(Component.QUANTIZED_WEIGHTS)
_CONSTANTS = COMPONENTS.index(Component.QUANTIZATION_CONSTANTS)
_UNQUANTIZED = COMPONENTS.index(Component.UNQUANTIZED_WEIGHTS)
_ADAPTERS = COMPONENTS.index(Component.ADAPTERS)

Held = list[tuple[Block | None, int]]  # blocks with their components


class ShardedReplayer(TraceReplayer):
    """One playing of rank 0; `whole_head` where the trainer takes the head's whole weight instead of calling it."""

    def __init__(
        self,
        memory: CachingAllocator,
        script: PreparedTrace,
        components: Sequence[int],
        model: ShardedModel,
        whole_head: bool,
        before: Sequence[PreparedTrace] = (),
    ) -> None:
        run = model.placement.run
        width = DTYPE_BYTES[run.load_dtype or "bfloat16"] * model.placement.profile.dim("hidden_size")
        casts = frozenset(t.gathered for u in model.units for t in u.tensors if t.trained and t.cast)
        widens = run.quant == "none"  # bitsandbytes' layers leave inputs to autocast
        super().__init__(memory, marked(script, width, casts, widens), components)
        self._first = [marked(other, width, casts, widens) for other in before]
        self.model = model
        self.world = model.sharding.world
        self.whole_head = whole_head
        self._gloo = run.ddp_backend == GLOO
        self._halved = bool(casts)  # gradients are as narrow as what was gathered
        self._gradients: frozenset[int] = frozenset()
        self._kinds = model.kinds
        self._forgets = model.sharding.reshard_after_forward
        self._gathered: dict[str, Held] = {}  # copied-out parameters by unit
        self._outputs: dict[str, Block | None] = {}  # all-gathers that nothing has waited for
        self._previous: Block | None = None  # the output that forward keeps until the next copy
        self._full_head: Block | None = None
        self._reduce_input: Block | None = None
        self._reduced: list[Block | None] = []
        self._last_micro_batch = True

    def cast(self, adapters: Sequence[Adapter], run: RunConfig, trainer: TrainerRow) -> list[Adapter]:
        """The trainer's casts, then the cache emptied: `Trainer` does so before it wraps the model."""
        self._begin()
        after = []
        for adapter in adapters:
            dtype = training_dtype(adapter.tensor.dtype, run, trainer, adapter.tensor.shape)
            if dtype != adapter.tensor.dtype:
                tensor = replace(adapter.tensor, dtype=dtype)
                block = self._malloc(tensor.size_bytes, _ADAPTERS)
                self._free(adapter.block, _ADAPTERS)
                adapter = Adapter(tensor=tensor, block=block)
            after.append(adapter)
        self.memory.empty_cache()
        self._note("adapters")
        return after

    # -- wrapping -----------------------------------------------------------------------------------------------------
    def wrap(self, tensors: Sequence[Loaded], adapters: Sequence[Adapter]) -> None:
        """Cut up a model that is on the card: nothing of it goes before all is cut."""
        self._begin()
        for unit in self.model.units:
            self._shards(unit)
        left = {id(placed) for unit in self.model.units for placed in unit.left_whole}
        for entry in tensors:
            if not entry.tensor.group.buffer and id(entry.tensor) not in left:
                self._free(entry.blocks[0], _PACKED if entry.tensor.scheme else _UNQUANTIZED)
        for adapter in adapters:
            self._free(adapter.block, _ADAPTERS)
        self._note("wrap")

    def wrap_from_host(self) -> None:
        """Cut up a model that is in the host's memory: a unit at a time is put on the card.

        Embedding and head stay whole to the end: locals of `fsdp2_prepare_model` name their weights.
        """
        self._begin()
        stays: Held = []
        named = (self.model.embedding, self.model.head)
        for unit in self.model.units:
            moved: Held = []
            for tensor in unit.tensors:
                if tensor.placed is not None:
                    for size in tensor.placed.constant_bytes:
                        self._malloc(size, _CONSTANTS)
                moved.append((self._malloc(tensor.whole, _part(tensor)), _part(tensor)))
            for placed in unit.buffers:
                self._malloc(placed.weight_bytes, _UNQUANTIZED)
            self._shards(unit)
            if unit in named:
                stays += moved
            else:
                self._let_go(moved)
        self._let_go(stays)
        self._note("wrap")

    def _shards(self, unit: Unit) -> None:
        for tensor in unit.tensors:
            self._malloc(tensor.shard, _part(tensor))

    # -- steps --------------------------------------------------------------------------------------------------------
    def play_steps(self, run: RunConfig, trainer: TrainerRow, optimizer: OptimizerRow) -> None:
        """Everything from the first forward to the end of the second step, and saving."""
        trained = self.model.trained
        own = self.script
        again = run.grad_accum > 1 and not any(segment.micro_step for segment in own.tape.segments)
        for index, script in enumerate((*self._first, own, own)):
            self.script = script
            self._gradients = gradient_storages(script)
            last = index == len(self._first) + 1
            order = accumulated(script.tape) if again and script is own else walk(script.tape)
            self._round(self._watched(order), trained, run, trainer, optimizer, first=index == 0, evaluates=last)
        # FULL_STATE_DICT: every parameter is gathered, one at a time, and goes to the host.
        self._begin()
        largest = max(tensor.whole for unit in self.model.units for tensor in unit.tensors)
        self._free(self._malloc(largest, _GATHERED), _GATHERED)
        self._note("save")

    def _watched(self, order: Iterable[tuple[Segment, int]]) -> Iterator[tuple[Segment, int]]:
        """The same, knowing which micro-batch is the last: gradients of the others are not reduced."""
        segments = list(order)
        starts = [at for at, (s, _) in enumerate(segments) if (s.stage, s.name) == ("forward", "embedding")]
        last = max(starts, default=0)
        for at, (segment, layer) in enumerate(segments):
            self._last_micro_batch = at >= last
            yield segment, layer

    def _segment(self, segment: Segment, layer: int) -> None:
        self._before(segment, layer)
        self._acts(segment, layer)
        self._after(segment, layer)

    def _acts(self, segment: Segment, layer: int) -> None:
        here: dict[int, tuple[Block | None, int]] = {}
        kept = self._alive.setdefault((segment.stage, segment.step, segment.micro_step, layer), {})
        for kind, storage, size, component in self.script.acts[segment]:
            if kind == BIRTH:
                if component == GRADIENTS and self._halved:
                    size //= 2
                if storage in kept:
                    if component == GRADIENTS:  # added to the gradient that is there, and gone
                        self._free(self._malloc(size, component), component)
                    continue
                here[storage] = (self._malloc(size, component), component)
            elif kind == DEATH:
                self._free(*here.pop(storage))
            elif kind == DEATH_ELSEWHERE:
                if storage not in self._gradients:
                    self._elsewhere(storage, segment, layer)
            else:
                self._at_mark(kind)
        kept.update(here)

    def _before(self, segment: Segment, layer: int) -> None:
        stage, name = segment.stage, segment.name
        forward = stage in ("forward", "eval")
        if forward and name == "embedding":
            for unit in ("root", "embedding"):
                self._unshard(unit)
                self._wait(unit, forward=True)
        elif forward and name == "layer":
            self._unshard(layer)
            self._wait(layer, forward=True)
        elif stage == "backward" and name == "head":
            if self.whole_head:
                self._unshard(len(self._kinds) - 1)  # the root's hook fetches the last layer ahead
        elif stage == "backward" and name == "layer":
            self._unshard(layer)
            self._wait(layer)
            if layer or not self.model.tied:
                self._unshard(layer - 1 if layer else "embedding")
        elif stage == "backward" and name == "embedding":
            # The trainer's checkpointing has the embedding's output require a gradient; accelerate's does not.
            if not self.model.sharding.plugin_checkpointing:
                self._wait("embedding")
        elif stage == "after":
            self._end_of_backward()
        elif stage == "zero_grad":
            for block in self._reduced:
                self._free(block, GRADIENTS)
            self._reduced.clear()

    def _after(self, segment: Segment, layer: int) -> None:
        stage, name = segment.stage, segment.name
        if stage in ("forward", "eval") and name == "layer" and self._forgets:
            self._reshard(layer)
        elif stage in ("forward", "eval") and name == "head":
            self._free(self._previous, _GATHERED)
            self._previous = None
            if stage == "eval":
                self._free(self._full_head, _GATHERED)
                self._full_head = None
        elif stage == "backward" and name == "layer":
            self._reshard(layer)
            self._reduce(self.model.layers[self._kinds[layer]], layer)

    def _at_mark(self, mark: int) -> None:
        if mark == EMBEDDED and self._forgets and not self.model.tied:
            self._reshard("embedding")
        elif mark == HEAD_BEGINS and self.model.head is not None:
            if self.whole_head:
                self._full_head = self._malloc(self.model.head.gathered_bytes, _GATHERED)
            else:
                self._unshard("head")
                self._wait("head", forward=True)
        elif mark == SCORED:
            if self.whole_head:
                self._free(self._full_head, _GATHERED)
                self._full_head = None
            else:
                self._unshard(len(self._kinds) - 1)  # the head's hook fetches the last layer ahead
        elif mark == HEAD_ENDS:
            self._reshard("head")

    # -- gathers ------------------------------------------------------------------------------------------------------
    def _unit(self, name: str | int) -> Unit:
        if isinstance(name, int):
            return self.model.layers[self._kinds[name]]
        unit = {"embedding": self.model.embedding, "root": self.model.root, "head": self.model.head}[name]
        assert unit is not None
        return unit

    def _unshard(self, name: str | int) -> None:
        """Start an all-gather, unless the unit is whole or on its way."""
        key = str(name)
        if key in self._gathered or key in self._outputs:
            return
        unit = self._unit(name)
        cast = self._malloc(unit.cast_bytes(self.world), _GATHERED, _GATHERS)
        self._outputs[key] = self._malloc(unit.gathered_bytes, _GATHERED, _GATHERS)
        if self._gloo:  # names what it fills by a new tensor as large (ProcessGroupGloo.cpp, getOutputTensors)
            self._free(self._malloc(unit.gathered_bytes, _GATHERED, _GATHERING), _GATHERED)
        self._free(cast, _GATHERED)

    def _wait(self, name: str | int, forward: bool = False) -> None:
        """Copy parameters out of an all-gather's output, which forward keeps until the next one's copy."""
        key = str(name)
        if key not in self._outputs:
            return
        output = self._outputs.pop(key)
        self._gathered[key] = [
            (self._malloc(tensor.gathered, _GATHERED), _GATHERED) for tensor in self._unit(name).tensors
        ]  # fmt: skip
        if forward:
            output, self._previous = self._previous, output
        self._free(output, _GATHERED)

    def _reshard(self, name: str | int) -> None:
        self._let_go(self._gathered.pop(str(name), []))

    def _reduce(self, unit: Unit, layer: int) -> None:
        """Gradients of a layer into the flat input of a reduce-scatter, of which one is alive at a time."""
        if not self._last_micro_batch:
            return
        self._free(self._reduce_input, GRADIENTS)
        size = unit.reduced_bytes()
        self._reduce_input = self._malloc(size, GRADIENTS)
        self._free_gradients(layer)
        output = self._malloc(size // self.world, GRADIENTS, _REDUCES)
        if self._gloo:  # gloo sums a clone of the input (ProcessGroupGloo.cpp, reduce_scatter_tensor_coalesced)
            self._free(self._malloc(size, GRADIENTS, _REDUCES), GRADIENTS)
        if any(tensor.trained and tensor.cast for tensor in unit.tensors):
            narrow = output
            wide = sum(tensor.shard for tensor in unit.tensors if tensor.trained)
            output = self._malloc(wide, GRADIENTS, _REDUCES)
            self._free(narrow, GRADIENTS)
        self._reduced.append(output)

    def _free_gradients(self, layer: int) -> None:
        for (stage, _, _, of), blocks in self._alive.items():
            if stage == "backward" and of == layer:
                for storage in [s for s, (_, component) in blocks.items() if component == GRADIENTS]:
                    self._free(*blocks.pop(storage))

    def _end_of_backward(self) -> None:
        """The root's last hook: what is whole is cut again, and gathers that nothing waited for are dropped."""
        for key in ("root", "embedding", "head"):
            unit = self._unit(key) if key != "head" or self.model.head is not None else None
            if unit is not None and any(tensor.trained for tensor in unit.tensors):
                self._reduce(unit, OUTSIDE)
            self._reshard(key)
        self._free(self._reduce_input, GRADIENTS)
        self._reduce_input = None
        for key in list(self._outputs):
            self._free(self._outputs.pop(key), _GATHERED)

    # -- blocks -------------------------------------------------------------------------------------------------------
    def _let_go(self, held: Held) -> None:
        for block, component in held:
            self._free(block, component)


def _part(tensor: ShardedTensor) -> int:
    if tensor.trained:
        return _ADAPTERS
    return _PACKED if tensor.packed else _UNQUANTIZED
