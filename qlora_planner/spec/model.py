"""The model profile: every tensor of a model, what loading does to it, and where adapters attach."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from math import prod

from qlora_planner.record import record

ROLES = (
    "linear", "output_head", "embedding", "norm", "bias", "experts", "router", "convolution", "rotary", "other",
)  # fmt: skip


@record
class LayerKind:
    """One kind of decoder layer: layers that hold tensors of the same names and shapes and act alike."""

    name: str  # e.g. full_attention, sliding_attention+experts
    class_name: str
    count: int


@record
class TensorGroup:
    """Tensors that differ only in their layer index.

    `name` has `*` where the layer index stands. `dtype` is the one after loading in bfloat16,
    `dtype_float16` after loading in float16 (some classes keep parts in float32).
    `quantized` says that transformers' own rule puts a bitsandbytes module in its place; `reason` says why not.
    `tied_with` names the tensor whose storage this one shares: it then has no bytes of its own.
    """

    name: str
    layer_kind: str | None
    count: int
    shape: tuple[int, ...]
    dtype: str
    dtype_float16: str
    role: str
    module_class: str
    buffer: bool = False
    quantized: bool = False
    reason: str | None = None
    tied_with: str | None = None

    @property
    def numel(self) -> int:
        """Elements of one tensor."""
        return prod(self.shape)

    @property
    def total_numel(self) -> int:
        """Elements of the whole group, tied copies counted as none."""
        return 0 if self.tied_with else self.numel * self.count


@record
class AdapterTensor:
    """One tensor that PEFT adds, for a group of like modules.

    Each dimension is `(constant, per_rank)`: its size at rank r is `constant + per_rank * r`, read off two
    injections at different ranks.
    """

    module: str  # the wrapped module, `*` for the layer index
    name: str  # lora_A, lora_B, lora_embedding_A, lora_magnitude_vector, modules_to_save
    layer_kind: str | None
    count: int
    dims: tuple[tuple[int, int], ...]
    dtype: str  # as PEFT creates it on a base loaded in bfloat16
    on_parameter: bool = False  # wraps a bare parameter (fused experts, a router): PEFT adds these after the modules

    @property
    def target(self) -> str:
        """The module without PEFT's `.base_layer`, which tells several adapters of one module apart."""
        return self.module.replace(".base_layer", "")

    def shape(self, rank: int) -> tuple[int, ...]:
        """Its shape at LoRA rank `rank`."""
        return tuple(constant + per_rank * rank for constant, per_rank in self.dims)


@record
class ModelProfile:
    """Facts of one model. Nothing in it depends on a run, a trainer or a card."""

    id: str
    model_type: str
    class_name: str
    config_sha256: str
    params: int
    versions: Mapping[str, str]
    dims: Mapping[str, int | float | None]  # hidden_size, num_hidden_layers, vocab_size, head_dim, ...
    supports: Mapping[str, bool]  # sdpa, eager, flash_attention_2, gradient_checkpointing
    layer_kinds: tuple[LayerKind, ...]
    layer_order: tuple[tuple[int, int], ...]  # runs of (index into layer_kinds, how many)
    tensors: tuple[TensorGroup, ...]
    adapters: Mapping[str, tuple[AdapterTensor, ...]]  # by target_modules value
    refusals: Mapping[str, str] = field(default_factory=dict)  # what PEFT refused while profiling, by option
    checkpoint_quantization: str | None = None  # how the published weights are already quantised, e.g. mxfp4, fp8
    note: str | None = None  # e.g. that the row is the text model of a multimodal repository
    text_part_of: str | None = None  # the model type of a config with towers for images or sound, not counted here
    tied_stored: bool | None = None  # whether its files hold tied tensors too; None: there are no files to ask
    tower: str | None = None  # the module that reads images, of a model that is profiled with it
    source: str = "built"  # catalogue, cache, family or built: where this copy came from
    same_shape_as: str | None = None  # the catalogue model whose facts and traces these are, where it is another one
    same_shape_sha256: str | None = None  # the hash of that model's config, which its traces carry
    family_sha256: str | None = (
        None  # the hash of a catalogue model's config whose family of traces is this model's too
    )
    drawn_dims: tuple[str, ...] = ()  # the dimensions in which the two differ: a family has to have them as letters
    resolved_from: str | None = None  # what was typed, where that is not the id
    installed: Mapping[str, str] = field(default_factory=dict)  # versions here, which count instead of the profile's

    @property
    def counted(self) -> dict[str, str]:
        """The versions that figures hold for where none is named: those installed here, else the profile's."""
        return {**self.versions, **self.installed}

    @property
    def layers(self) -> int:
        """Decoder layers in all."""
        return sum(kind.count for kind in self.layer_kinds)

    def modules_of(self, role: str) -> tuple[str, ...]:
        """Names of the modules that hold tensors of this role, `*` for the layer index."""
        return tuple(dict.fromkeys(group.name.rpartition(".")[0] for group in self.tensors if group.role == role))

    def dim(self, name: str) -> int:
        """A whole-number dimension that must be known; raises KeyError naming it."""
        value = self.dims.get(name)
        if value is None:
            raise KeyError(f"{self.id}: profile has no {name}")
        return int(value)
