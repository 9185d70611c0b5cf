"""FSDP2: how `fully_shard` cuts a model on every rank, from the tensors' own shapes.

Sources, torch 2.11 to 2.13: distributed/fsdp/_fully_shard/_fsdp_param.py (`_init_sharded_param`: every parameter in
equal pieces of its first dimension, the last ones padded) and _fsdp_collectives.py (`foreach_all_gather`,
`foreach_reduce`). accelerate 1.15, utils/fsdp_utils.py `fsdp2_prepare_model`: each decoder layer is a unit, the
embedding, the head, and the rest; 4-bit weights stored as bytes are left out of it. transformers 5.17 loads the whole
model before that, on the card unless it is told to load on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from math import prod

from qlora_planner.catalog import DTYPE_BYTES, TrainerRow
from qlora_planner.catalog.trainers import trainer_named
from qlora_planner.memory.allocator.caching import block_bytes
from qlora_planner.memory.weights.placement import AddedTensor, PlacedTensor, Placement, module_of
from qlora_planner.memory.weights.trainable import Trainable, training_dtype
from qlora_planner.record import record
from qlora_planner.spec.run import RunConfig

BYTES = "uint8"  # bitsandbytes' own way to store 4-bit weights, which FSDP2 leaves whole


@record
class Sharding:
    """How a run is cut up: over `world` ranks, with 4-bit weights stored as `quant_storage`, loaded on `load_on`.

    `reshard_after_forward`: whether a unit's gathered weights go after forward and are gathered again for backward.
    `plugin_checkpointing`: layers are checkpointed by accelerate (`fsdp_activation_checkpointing`), not by the trainer.
    """

    world: int
    quant_storage: str = "bfloat16"
    load_on: str = "gpu"
    reshard_after_forward: bool = True
    plugin_checkpointing: bool = False

    @classmethod
    def of(cls, run: RunConfig, world: int) -> Sharding:
        """How a resolved run is cut up over so many ranks."""
        return cls(
            world=world,
            quant_storage=run.quant_storage or run.compute_dtype or "bfloat16",
            load_on=run.load_on or "cpu",
            reshard_after_forward=run.reshard_after_forward is not False,
        )


@record
class ShardedTensor:
    """One parameter on a rank. Bytes: `whole` as it was loaded, `shard` as it is kept, `gathered` for a layer's time.

    `placed` is the model's own tensor, `added` what PEFT put beside it; one of them is None. `cast`: whether it is
    stored in another dtype than the one it is gathered in. `local_shape` is what rank 0 keeps of it.
    """

    placed: PlacedTensor | None
    added: AddedTensor | None
    local_shape: tuple[int, ...]
    dtype: str
    whole: int
    shard: int
    gathered: int
    cast: bool

    @property
    def trained(self) -> bool:
        """Whether it has a gradient, which is reduced and cut up like itself."""
        return self.added is not None

    @property
    def packed(self) -> bool:
        """Whether it is a 4-bit weight."""
        return self.placed is not None and self.placed.scheme is not None


@record
class Unit:
    """What is gathered together, in the order of `named_parameters`; `buffers` and `left_whole` are not cut."""

    tensors: tuple[ShardedTensor, ...]
    left_whole: tuple[PlacedTensor, ...] = ()
    buffers: tuple[PlacedTensor, ...] = ()

    @property
    def shard_bytes(self) -> int:
        """What a rank keeps of it, as the allocator counts."""
        return sum(block_bytes(tensor.shard) for tensor in self.tensors)

    @property
    def gathered_bytes(self) -> int:
        """The flat output of its all-gather."""
        return sum(tensor.gathered for tensor in self.tensors)

    def cast_bytes(self, world: int) -> int:
        """The flat copy that casts shards to the dtype they are gathered in; 0 where all have it."""
        return sum(tensor.gathered for tensor in self.tensors if tensor.cast) // world

    def reduced_bytes(self) -> int:
        """The flat input of its reduce-scatter, in the dtype that weights are gathered in."""
        return sum(tensor.gathered for tensor in self.tensors if tensor.trained)


# Options that FSDP2 meets otherwise than one card does, or that nobody has traced under it.
_UNPLAYED = {
    "use_reentrant": (False, "reentrant checkpointing gathers at other times"),
    "dora": (False, "magnitudes have another dtype than the adapters in their unit"),
    "liger": (False, "its fused loss takes the head's weight, of which each card holds a share"),
    "activation_offloading": (False, "offloading and gathers share the copy engines"),
    "modules_to_save": (None, "trained copies of whole modules are units of their own"),
}


def unplayed(run: RunConfig, loss: str | None = None) -> str | None:
    """Why nobody can say what a resolved run takes of a card under FSDP2; None where it is played.

    `loss` is the kind of the trainer's loss, where it is known.
    """
    if run.method == "full" or run.quant == "int8":
        return "only adapters on 4-bit or 16-bit weights are simulated"
    trainer = trainer_named(run.trainer)
    if not trainer.shards or run.task is not None or run.images:
        return "only trl-sft and hf-trainer on text are simulated"
    if trainer.versioned_by is not None and loss not in (None, "fused"):
        return "trl before 1.15 takes the head's weight in another way"
    return next((why for name, (usual, why) in _UNPLAYED.items() if getattr(run, name) != usual), None)


class ShardedModel:
    """The units of one run's model. The run has to be resolved, on a model whose layers are known."""

    def __init__(self, placement: Placement, trainer: TrainerRow, sharding: Sharding) -> None:
        self.placement = placement
        self.trainer = trainer
        self.sharding = sharding
        self.compute_dtype = placement.run.compute_dtype or "bfloat16"
        # Weights are computed with, and gradients reduced, in the mixed-precision dtype.
        self._width = DTYPE_BYTES[self.compute_dtype]

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """The kind of every layer, from the first."""
        profile = self.placement.profile
        return tuple(profile.layer_kinds[index].name for index, length in profile.layer_order for _ in range(length))

    @cached_property
    def layers(self) -> dict[str, Unit]:
        """The unit of each kind of layer."""
        counts = {kind.name: kind.count for kind in self.placement.profile.layer_kinds}
        return {
            name: self._unit((w for w in self.placement.weights if w.group.layer_kind == name), counts[name])
            for name in dict.fromkeys(self.kinds)
        }

    @cached_property
    def embedding(self) -> Unit:
        """The input embedding; where the head is tied to it, both."""
        return self._unit(self._of_module(self._embedding_module))

    @cached_property
    def head(self) -> Unit | None:
        """The output head; None where it is tied to the embedding, in whose unit it then is."""
        return None if self.tied else self._unit(self._of_module(self._head_module))

    @cached_property
    def root(self) -> Unit:
        """What is in no other unit: the final norm, tables of positions."""
        taken = {self._embedding_module, self._head_module}
        return self._unit(
            w for w in self.placement.weights if w.group.layer_kind is None and module_of(w) not in taken
        )  # fmt: skip

    @cached_property
    def tied(self) -> bool:
        """Whether the head is the embedding's own weight."""
        return any(w.group.role == "output_head" and w.group.tied_with for w in self.placement.weights)

    @property
    def units(self) -> Iterator[Unit]:
        """Every unit, in the order in which accelerate wraps them."""
        for kind in self.kinds:
            yield self.layers[kind]
        yield self.embedding
        if self.head is not None:
            yield self.head
        yield self.root

    @property
    def trained(self) -> list[Trainable]:
        """What rank 0 trains: its shard of every trainable tensor, in the model's order."""
        return [
            Trainable(shape=tensor.local_shape, dtype=tensor.dtype)
            for unit in self.units for tensor in unit.tensors if tensor.trained
        ]  # fmt: skip

    @cached_property
    def constant_bytes(self) -> int:
        """Quantisation constants, which every rank keeps whole."""
        return sum(
            block_bytes(part) * weight.group.count
            for weight in self.placement.weights if not weight.group.tied_with for part in weight.constant_bytes
        )  # fmt: skip

    @cached_property
    def _embedding_module(self) -> str:
        weights = [w for w in self.placement.weights if w.group.role == "embedding" and not w.group.buffer]
        return module_of(weights[0]) if weights else ""

    @cached_property
    def _head_module(self) -> str:
        return next((module_of(w) for w in self.placement.weights if w.group.role == "output_head"), "")

    def _of_module(self, module: str) -> Iterator[PlacedTensor]:
        return (w for w in self.placement.weights if w.group.layer_kind is None and module_of(w) == module)

    def _unit(self, weights: Iterable[PlacedTensor], layers: int = 1) -> Unit:
        tensors: list[ShardedTensor] = []
        whole: list[PlacedTensor] = []
        buffers: list[PlacedTensor] = []
        weights = list(weights)
        lasts = {module_of(weight): weight for weight in weights}
        for weight in weights:
            copies = weight.group.count // layers
            if weight.group.tied_with:
                continue
            if weight.group.buffer:
                buffers += [weight] * copies
                continue
            if weight.scheme is not None and self.sharding.quant_storage == BYTES:
                whole += [weight] * copies
            else:
                tensors += [self._own(weight)] * copies
            for added in self.placement.added:
                beside = added.base
                if beside is None and added.adapter is not None:
                    # On bare parameters, as fused experts are: after all of their module's own.
                    beside = lasts.get(added.adapter.target)
                if beside is weight:
                    tensors += [self._added(added)] * (added.tensor.count // layers)
        return Unit(tensors=tuple(tensors), left_whole=tuple(whole), buffers=tuple(buffers))

    def _own(self, weight: PlacedTensor) -> ShardedTensor:
        shape, dtype = weight.shape, weight.dtype
        if weight.scheme is not None:
            # bitsandbytes functional.py, quantize_4bit: a column of the storage's own elements.
            dtype = self.sharding.quant_storage
            shape = ((weight.numel + 1) // (2 * DTYPE_BYTES[dtype]), 1)
        return self._cut(shape, dtype, placed=weight, added=None)

    def _added(self, added: AddedTensor) -> ShardedTensor:
        tensor = added.tensor
        dtype = training_dtype(tensor.dtype, self.placement.run, self.trainer, tensor.shape)
        return self._cut(tensor.shape, dtype, placed=None, added=added)

    def _cut(
        self, shape: tuple[int, ...], dtype: str, placed: PlacedTensor | None, added: AddedTensor | None
    ) -> ShardedTensor:
        world = self.sharding.world
        local = (-(-shape[0] // world), *shape[1:])
        return ShardedTensor(
            placed=placed, added=added, local_shape=local, dtype=dtype, whole=prod(shape) * DTYPE_BYTES[dtype],
            shard=prod(local) * DTYPE_BYTES[dtype], gathered=prod(local) * world * self._width,
            cast=dtype != self.compute_dtype,
        )  # fmt: skip
