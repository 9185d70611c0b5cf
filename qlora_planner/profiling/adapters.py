"""Let PEFT itself say where adapters go and how large they are, on the meta device."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import peft
import torch
from peft.tuners.lora.layer import ParamWrapper
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from qlora_planner.errors import InputError, RefusedError
from qlora_planner.profiling.inventory import Layers, pattern, short_dtype
from qlora_planner.profiling.tracing.adapters_on_meta import dora_on_meta
from qlora_planner.spec.model import AdapterTensor
from qlora_planner.text import listed, quoted

# Two ranks tell a dimension that grows with the rank from one that does not.
_RANKS = (8, 24)
_WRAPPER = re.compile(r"^base_model\.model\.(?P<module>.+)\.(?P<name>lora_\w+|modules_to_save)\.default(?:\.weight)?$")

_PLAIN_MODULES = ("torch.", "bitsandbytes.", "transformers.pytorch_utils")

Builder = Callable[[], PreTrainedModel]
# module:tensor -> shape, dtype, and whether the adapter wraps a bare parameter
Added = dict[str, tuple[tuple[int, ...], torch.dtype, bool]]


def inject(
    model: PreTrainedModel,
    targets: str | list[str],
    rank: int,
    dropout: float = 0.0,
    task_type: str = "CAUSAL_LM",
    **more: Any,
) -> nn.Module:
    """PEFT's own `get_peft_model` on a meta model; raises whatever PEFT raises."""
    config = peft.LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules=targets, lora_dropout=dropout, task_type=task_type, **more
    )
    with warnings.catch_warnings(), dora_on_meta():
        warnings.simplefilter("ignore")
        return peft.get_peft_model(model, config, low_cpu_mem_usage=True)


def added_tensors(peft_model: nn.Module) -> Added:
    """All adapter tensors in the order of the model, by full name without PEFT's prefix.

    A module with several wrapped parameters (fused experts) is wrapped several times over: `.base_layer` in the name
    tells its adapters apart.
    """
    added: Added = {}
    wrappers = {name for name, module in peft_model.named_modules() if isinstance(module, ParamWrapper)}
    for name, tensor in peft_model.named_parameters():
        match = _WRAPPER.match(name)
        if match:
            on_parameter = f"base_model.model.{match['module']}" in wrappers
            added[f"{match['module']}:{match['name']}"] = (tuple(tensor.shape), tensor.dtype, on_parameter)
    return added


def adapter_groups(low: Added, high: Added, layers: Layers) -> tuple[AdapterTensor, ...]:
    """Group what two injections at `_RANKS` added, each dimension as constant + per_rank x rank."""
    groups: dict[tuple[Any, ...], int] = {}
    for name, (shape, dtype, on_parameter) in low.items():
        module, _, kind = name.rpartition(":")
        dims = tuple(_line(a, b) for a, b in zip(shape, high[name][0], strict=True))
        key = (pattern(module), kind, layers.kind_of(module + "."), dims, short_dtype(dtype), on_parameter)
        groups[key] = groups.get(key, 0) + 1
    return tuple(
        AdapterTensor(
            module=key[0], name=key[1], layer_kind=key[2], count=count, dims=key[3], dtype=key[4], on_parameter=key[5]
        )
        for key, count in groups.items()
    )


def _line(at_low: int, at_high: int) -> tuple[int, int]:
    per_rank, rest = divmod(at_high - at_low, _RANKS[1] - _RANKS[0])
    if rest:
        raise InputError(f"an adapter dimension is not linear in the rank: {at_low} and {at_high} at ranks {_RANKS}")
    return at_low - per_rank * _RANKS[0], per_rank


def linear_leaves(model: PreTrainedModel, plain: bool = False) -> list[str]:
    """Distinct last names of all linear modules except the output head, in the order of the model.

    With `plain`, without names that subclasses with a forward of their own bear anywhere.
    """
    head = model.get_output_embeddings()
    linear = [
        (name.rpartition(".")[2], type(module))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    ]
    own = {name for name, kind in linear if plain and not kind.__module__.startswith(_PLAIN_MODULES)}
    return list(dict.fromkeys(name for name, _ in linear if name not in own))


def widest_target(
    build: Builder, layers: Layers, breaks: Callable[[str | list[str]], str | None] = lambda _targets: None
) -> tuple[str, tuple[AdapterTensor, ...], dict[str, str]]:
    """The widest target that PEFT accepts here and that trains, what it adds, and what was refused, in its own words.

    `build` gives a fresh quantised meta model each time, because injection changes it. `breaks` says why a training
    step with a target fails, or None: PEFT takes routers whose output it then cannot handle.
    Keys of the refusals: `lora_dropout` (dropout other than 0) and `dora`, both with the accepted target, and
    `all-linear`.
    """
    refusals: dict[str, str] = {}
    target: str | list[str] = "all-linear"
    low = _try(build, target, 0.05)
    if isinstance(low, str):
        refused_with_dropout, low = low, _try(build, target, 0.0)
        if isinstance(low, str):
            refusals["all-linear"] = low
            target = [leaf for leaf in linear_leaves(build()) if not isinstance(_try(build, [leaf], 0.0), str)]
            low = _try(build, target, 0.05) if target else low
        else:
            refusals["lora_dropout"] = refused_with_dropout
    broken = breaks(target) if target == "all-linear" else None
    if broken is not None:
        refusals = {"all-linear": broken}
        plain = [leaf for leaf in linear_leaves(build(), plain=True) if not isinstance(_try(build, [leaf], 0.0), str)]
        target = plain
        low = _try(build, target, 0.05) if target else broken
        if isinstance(low, str) and target:
            refusals["lora_dropout"], low = low, _try(build, target, 0.0)
    if isinstance(low, str):
        raise InputError(f"PEFT accepts adapters on none of its linear modules: {low}")
    with_dora = _try(build, target, 0.0, use_dora=True)
    if isinstance(with_dora, str):
        refusals["dora"] = with_dora
    high = added_tensors(inject(build(), target, _RANKS[1]))
    name = target if isinstance(target, str) else ",".join(target)
    return name, adapter_groups(low, high, layers), refusals


def single_target(build: Builder, targets: str | list[str], layers: Layers, **more: Any) -> tuple[AdapterTensor, ...]:
    """What PEFT adds for the named modules; `more` goes to `inject`.

    Raises InputError when none of them is there, RefusedError in PEFT's own words when it refuses them.
    """
    names = [targets] if isinstance(targets, str) else targets
    low = _try(build, targets, 0.0, **more)
    if isinstance(low, str):
        if "not found in the base model" in low:
            leaves = listed(sorted(linear_leaves(build())), 40)
            raise InputError(
                f"--target-modules: {quoted(','.join(names))} matches nothing; the linear modules are {leaves}"
            )
        raise RefusedError(f"target_modules {listed(names)}: {low}")
    return adapter_groups(low, added_tensors(inject(build(), targets, _RANKS[1], **more)), layers)


def _try(build: Builder, targets: str | list[str], dropout: float, **more: Any) -> Added | str:
    """What was added, or PEFT's refusal as one line."""
    model = build()
    try:
        return added_tensors(inject(model, targets, _RANKS[0], dropout, **more))
    except (ValueError, TypeError, NotImplementedError, RuntimeError, AttributeError, KeyError) as error:
        return _refusal_text(error)


def _refusal_text(error: Exception) -> str:
    """PEFT's words on one line; sets in them are sorted, because their order changes from process to process."""
    text = " ".join(str(error).split())[:300] or type(error).__name__
    return re.sub(r"\{([^{}:]*)\}", lambda braces: "{" + ", ".join(sorted(braces[1].split(", "))) + "}", text)
