"""The model with its adapters loaded and its base without storage: what PEFT would wrap where, before any weight."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlora_planner.errors import InputError
from qlora_planner.text import plain

if TYPE_CHECKING:
    import torch

NamedKeys = Callable[[list[str]], Iterator[tuple[str, str, bool]]]
_NAME = "default"
# Keys of PEFT's config whose adapters are no plain addition to one weight, or changed the base when they were made.
_REFUSED: Mapping[str, str] = {
    "target_parameters": "LoRA on parameters (fused experts)",
    "trainable_token_indices": "trainable tokens",
    "layer_replication": "replicated layers",
    "lora_bias": "biases in the adapter (lora_bias)",
    "alora_invocation_tokens": "activated LoRA, which depends on the prompt",
    "use_qalora": "QALoRA",
    "arrow_config": "Arrow routing",
}
_CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(slots=True)
class WeightlessModel:
    """A PEFT model whose base weights are views of one number, so that it takes no memory but the adapters'.

    `merges` maps a parameter of the plain model to PEFT's layer around it, `replaced` to what was trained in its
    place. `tied` are groups of names that share one tensor. `named` gives for the keys of a checkpoint (key,
    parameter, whether it is stored as the class has it).
    """

    model: Any
    peft_model: Any
    named: NamedKeys
    merges: dict[str, Any] = field(default_factory=dict)
    replaced: dict[str, Any] = field(default_factory=dict)
    tied: tuple[frozenset[str], ...] = ()

    @property
    def adapter_bytes(self) -> int:
        """What the adapters and replaced weights take."""
        trained = [p for name, p in self.peft_model.named_parameters() if "lora_" in name]
        return sum(p.numel() * p.element_size() for p in [*trained, *self.replaced.values()])

    def merged(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """The weight of parameter `name` with its adapter added by PEFT's own `merge`; `weight` is used up.

        Raises InputError for an adapter that does not fit the weight, that PEFT cannot merge, or that is not finite.
        """
        from torch import nn

        layer = self.merges[name]
        inner = layer.get_base_layer()
        hollow = inner.weight
        if tuple(weight.shape) != tuple(hollow.shape):
            raise InputError(f"{name}: the base holds {tuple(weight.shape)}, its config says {tuple(hollow.shape)}")
        inner.weight = nn.Parameter(weight, requires_grad=False)
        try:
            layer.merge()
            merged = inner.weight.data
        except (NotImplementedError, RuntimeError) as error:
            raise InputError(f"{name}: PEFT cannot merge it: {plain(error)}") from None
        finally:
            inner.weight = hollow
            layer.merged_adapters.clear()
        if not bool(merged.isfinite().all()):
            raise InputError(
                f"{name}: not finite after merging, so the adapter is broken, as after a diverged training"
            )
        return merged


def refuse_adapter(config: Mapping[str, Any], folder: Path) -> None:
    """Raises InputError for an adapter that cannot be merged shard by shard, naming what it is."""
    kind = config.get("peft_type")
    if kind != "LORA":
        raise InputError(f"{plain(folder)}: a {plain(kind)} adapter; merging is built for LoRA alone")
    started = str(config.get("init_lora_weights")).lower()
    if started.startswith(_CHANGED_BASE):
        raise InputError(
            f"{plain(folder)}: started as {plain(started)}, which changes the base too; save it from PEFT with"
            " path_initial_model_for_weight_conversion, which makes it a plain LoRA"
        )
    for key, what in _REFUSED.items():
        if config.get(key):
            raise InputError(f"{plain(folder)}: {what} cannot be merged shard by shard; use PEFT's merge_and_unload")


def weightless_model(raw: Mapping[str, Any], adapter: Path) -> WeightlessModel:
    """The class that `raw` describes with the adapters in folder `adapter`, as PEFT itself loads them.

    Raises InputError where PEFT refuses, where the adapter lacks a weight, and for experts in one parameter.
    """
    import peft
    import torch
    from safetensors import SafetensorError

    from qlora_planner.train.model import model_class, model_config
    from qlora_planner.train.weights import skeleton

    config = model_config(raw)
    # In float32, because PEFT rounds adapters that it loads so to the dtype of what they are put on.
    model = skeleton(model_class(raw, config), config, torch.float32)
    model.tie_weights()
    named = _names_of_keys(model)  # before PEFT changes the names
    zero = torch.zeros(1)
    tied = _hollow_out(model, zero)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what matters of it (missing weights, tied layers) is looked at below
        try:
            # Weights that an adapter starts from are made without storage, and the file's are put in their place.
            wrapped = peft.PeftModel.from_pretrained(
                model, str(adapter), low_cpu_mem_usage=True, torch_device="cpu", local_files_only=True
            )
        except (SafetensorError, ValueError, RuntimeError, KeyError, TypeError, OSError) as error:
            raise InputError(f"{plain(adapter)}: PEFT cannot load it on this base: {_first(error)}") from None
    weightless = WeightlessModel(model=model, peft_model=wrapped, named=named, tied=tied)
    _look(weightless, adapter, zero.untyped_storage().data_ptr())
    if weightless.merges.keys() & weightless.replaced.keys():
        # PEFT stores adapted embeddings whole beside their adapters, and rounded those to the embeddings' dtype above.
        peft.set_peft_model_state_dict(wrapped, peft.load_peft_weights(str(adapter), device="cpu"))
    return weightless


def _hollow_out(model: Any, number: torch.Tensor) -> tuple[frozenset[str], ...]:
    """Put views of one number in place of meta tensors, so that PEFT takes the model for one on the host.

    Gives the groups of names that share a parameter.
    """
    from torch import nn

    made: dict[int, Any] = {}
    names: dict[int, set[str]] = {}
    for path, module in model.named_modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is None:
                continue
            key = id(parameter)
            if key not in made:
                # The old parameter is kept too: its id must not be given to another one.
                made[key] = (nn.Parameter(number.expand(parameter.shape), requires_grad=False), parameter)
            module._parameters[name] = made[key][0]
            names.setdefault(key, set()).add(f"{path}.{name}" if path else name)
    return tuple(frozenset(group) for group in names.values() if len(group) > 1)


def _look(weightless: WeightlessModel, adapter: Path, hollow: int) -> None:
    """Fill in which parameters the adapter changes."""
    from peft.tuners.lora import layer as kinds
    from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper

    base = weightless.peft_model.get_base_model()
    lacking = [name for name, p in weightless.peft_model.named_parameters() if p.is_meta]
    if lacking:
        raise InputError(f"{plain(adapter)}: lacks weights, as {plain(lacking[0])}")
    for name, module in base.named_modules():
        if isinstance(module, kinds.Linear | kinds.Embedding):
            weightless.merges[f"{name}.weight"] = module
        elif isinstance(module, kinds.LoraLayer):
            raise InputError(
                f"{plain(adapter)}: {name} is adapted as {type(module).__name__} (fused experts, convolutions), which"
                " cannot be merged shard by shard; use PEFT's merge_and_unload"
            )
        elif isinstance(module, ModulesToSaveWrapper):
            for part, tensor in module.modules_to_save[_NAME].state_dict().items():
                weightless.replaced[f"{name}.{part}"] = tensor
        elif isinstance(module, AuxiliaryTrainingWrapper):
            raise InputError(f"{plain(adapter)}: {name} is a {type(module).__name__}, which cannot be merged by shards")
    for name, parameter in base.named_parameters():
        if "lora_" in name or ".modules_to_save." in name or ".original_module." in name:
            continue
        if parameter.untyped_storage().data_ptr() != hollow:
            weightless.replaced[name.replace(".base_layer.", ".")] = parameter.data  # a bias that was trained whole


def _names_of_keys(model: Any) -> NamedKeys:
    """The names are transformers' own: what its loader would do with each key, prefixes and renamings included."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    parameters = dict.fromkeys(model.state_dict(), True)
    prefix = model.base_model_prefix

    def named(keys: list[str]) -> Iterator[tuple[str, str, bool]]:
        for key in sorted(keys, key=dot_natural_key):
            name, pattern = rename_source_key(key, renamings, converters, prefix, parameters)
            if name not in parameters and key in parameters:
                name, pattern = rename_source_key(key, [], [], prefix, parameters)
            yield key, name, pattern is None

    return named


def _first(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return plain(" ".join(lines[:2]))[:240] or type(error).__name__
