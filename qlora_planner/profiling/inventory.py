"""Every tensor of a model on the meta device: role, shape, dtype, quantised or not and why not, tied with what."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from qlora_planner.catalog.classifiers import SCORE
from qlora_planner.profiling.meta_model import decoder_list
from qlora_planner.spec.model import LayerKind, TensorGroup

_INDEX = re.compile(r"(?<=\.)\d+(?=\.|$)")


def pattern(name: str) -> str:
    """`model.layers.3.mlp.up_proj` as `model.layers.*.mlp.up_proj`."""
    return _INDEX.sub("*", name)


def short_dtype(dtype: torch.dtype) -> str:
    """`bfloat16` for `torch.bfloat16`."""
    return str(dtype).removeprefix("torch.")


class Layers:
    """The decoder layers sorted into kinds: same class, same declared type, same tensors."""

    def __init__(self, model: PreTrainedModel, replaced: frozenset[str]) -> None:
        self.prefix, modules = decoder_list(model)
        declared = _declared_types(model, len(modules))
        signatures: list[tuple[Any, ...]] = []
        for index, layer in enumerate(modules):
            tensors = tuple(
                (name, tuple(tensor.shape), f"{self.prefix}.{index}.{name.rsplit('.', 1)[0]}" in replaced)
                for name, tensor in layer.named_parameters(remove_duplicate=False)
            )
            signatures.append((type(layer).__name__, declared[index], tensors))
        distinct = list(dict.fromkeys(signatures))
        self.names = _kind_names(distinct)
        self.of_layer = [distinct.index(signature) for signature in signatures]
        counts = Counter(self.of_layer)
        self.kinds = tuple(
            LayerKind(name=self.names[i], class_name=signature[0], count=counts[i])
            for i, signature in enumerate(distinct)
        )

    def kind_of(self, tensor_name: str) -> str | None:
        """The kind of the layer that a tensor belongs to; None outside the decoder layers."""
        if not tensor_name.startswith(self.prefix + "."):
            return None
        index = tensor_name[len(self.prefix) + 1 :].split(".", 1)[0]
        return self.names[self.of_layer[int(index)]] if index.isdigit() else None

    def order(self) -> tuple[tuple[int, int], ...]:
        """Runs of (kind, how many), first layer first."""
        runs: list[list[int]] = []
        for kind in self.of_layer:
            if runs and runs[-1][0] == kind:
                runs[-1][1] += 1
            else:
                runs.append([kind, 1])
        return tuple((kind, length) for kind, length in runs)


def _declared_types(model: PreTrainedModel, layers: int) -> list[str | None]:
    text = model.config.get_text_config(decoder=True)
    types = getattr(text, "layer_types", None) or getattr(text, "layers_block_type", None)
    if isinstance(types, (list, tuple)) and len(types) == layers:
        return [str(kind) for kind in types]
    return [None] * layers


def _kind_names(signatures: list[tuple[Any, ...]]) -> list[str]:
    names: list[str] = []
    for class_name, declared, tensors in signatures:
        experts = any("experts." in name and "shared" not in name for name, *_ in tensors)
        name = (declared or class_name) + ("+experts" if experts else "")
        taken = sum(1 for other in names if other.partition("#")[0] == name)
        names.append(f"{name}#{taken + 1}" if taken else name)
    return names


def tensor_groups(
    model: PreTrainedModel,
    layers: Layers,
    replaced: frozenset[str],
    skipped: frozenset[str],
    dtype_plans: Mapping[str, Mapping[str, torch.dtype]],
) -> tuple[TensorGroup, ...]:
    """Group the parameters and buffers of `model` (before replacement, on meta) by all that can be said of them.

    `replaced` are the module names that became bitsandbytes modules, `skipped` those that transformers protects,
    `dtype_plans` what loading in bfloat16 and float16 keeps in another dtype, by name pattern.
    """
    first_name: dict[int, str] = {}
    groups: dict[tuple[Any, ...], int] = {}
    for name, tensor in model.named_parameters(remove_duplicate=False):
        tied = first_name.setdefault(id(tensor), name)
        key = _describe(model, layers, name, tensor, replaced, skipped, dtype_plans, tied if tied != name else None)
        groups[key] = groups.get(key, 0) + 1
    for name, tensor in model.named_buffers():
        dtype = short_dtype(tensor.dtype)
        module = type(model.get_submodule(name.rpartition(".")[0])).__name__
        role = "rotary" if "inv_freq" in name else "other"
        key = (
            pattern(name),
            layers.kind_of(name),
            tuple(tensor.shape),
            dtype,
            dtype,
            role,
            module,
            True,
            False,
            None,
            None,
        )
        groups[key] = groups.get(key, 0) + 1
    fields = (
        "name", "layer_kind", "shape", "dtype", "dtype_float16", "role", "module_class",
        "buffer", "quantized", "reason", "tied_with",
    )  # fmt: skip
    return tuple(TensorGroup(count=count, **dict(zip(fields, key, strict=True))) for key, count in groups.items())


def _describe(
    model: PreTrainedModel,
    layers: Layers,
    name: str,
    tensor: torch.Tensor,
    replaced: frozenset[str],
    skipped: frozenset[str],
    dtype_plans: Mapping[str, Mapping[str, torch.dtype]],
    tied_with: str | None,
) -> tuple[Any, ...]:
    module_name, _, leaf = name.rpartition(".")
    module = model.get_submodule(module_name)
    quantized = leaf == "weight" and module_name in replaced
    role = _role(model, module, name, leaf, tensor)
    reason = None if quantized else _why_not(module, module_name, leaf, role, tied_with, skipped, model)
    return (
        pattern(name), layers.kind_of(name), tuple(tensor.shape),
        _loaded_dtype(name, tensor, dtype_plans["bfloat16"], torch.bfloat16),
        _loaded_dtype(name, tensor, dtype_plans["float16"], torch.float16),
        role, type(module).__name__, False, quantized, reason, pattern(tied_with) if tied_with else None,
    )  # fmt: skip


def _loaded_dtype(name: str, tensor: torch.Tensor, plan: Mapping[str, torch.dtype], wanted: torch.dtype) -> str:
    """Loading casts every floating tensor to the wanted dtype, except the names that the class keeps in float32."""
    if not tensor.is_floating_point():
        return short_dtype(tensor.dtype)
    for key, dtype in plan.items():
        if re.search(rf"(?:^|\.){re.escape(key)}(?:\.|$)".replace(r"\*", r".*"), name):
            return short_dtype(dtype)
    return short_dtype(wanted)


def _role(model: PreTrainedModel, module: nn.Module, name: str, leaf: str, tensor: torch.Tensor) -> str:
    class_name = type(module).__name__.lower()
    if module is (model.get_output_embeddings() or getattr(model, SCORE, None)):
        return "output_head"
    if isinstance(module, nn.Embedding):
        return "embedding"
    if isinstance(module, nn.Linear | Conv1D):
        router = ".gate." in name or "router" in class_name or "router" in name
        return "bias" if leaf == "bias" else ("router" if router else "linear")
    if "norm" in class_name:
        return "norm"
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return "convolution"
    if "router" in class_name or "gate" in class_name:
        return "router"
    if tensor.dim() == 3 and "expert" in (class_name + name):
        return "experts"
    return "other"


def _why_not(
    module: nn.Module,
    module_name: str,
    leaf: str,
    role: str,
    tied_with: str | None,
    skipped: frozenset[str],
    model: PreTrainedModel,
) -> str:
    """Why loading leaves this tensor alone, as a word that the audit explains."""
    if isinstance(module, nn.Linear | Conv1D) and leaf == "weight":
        if tied_with:
            return "tied"
        if module is model.get_output_embeddings():
            return "output_head"
        if any(part in module_name for part in model._keep_in_fp32_modules or ()):
            return "kept_in_float32"
        if type(module) is not nn.Linear and not isinstance(module, Conv1D):
            return f"linear_subclass:{type(module).__name__}"
        return "protected" if any(module_name.endswith(skip) for skip in skipped) else "not_replaced"
    if role == "experts":
        return "fused_experts"
    return "tied" if tied_with else "not_linear"
