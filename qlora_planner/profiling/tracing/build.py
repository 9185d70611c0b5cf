"""The model as it stands when training starts: built on meta, cut down, quantised, adapted, then put on fake CUDA."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import bitsandbytes as bnb
import peft
import torch
import transformers
from bitsandbytes.functional import QuantState
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
    initialization,
)
from transformers.integrations.bitsandbytes import replace_with_bnb_linear

from qlora_planner.catalog.classifiers import labels_of
from qlora_planner.profiling.meta_model import remember_skipped, skipped_modules
from qlora_planner.profiling.tracing import layers
from qlora_planner.profiling.tracing.adapters_on_meta import dora_on_meta
from qlora_planner.profiling.tracing.spec import TraceSpec
from qlora_planner.profiling.tracing.trainers import patching_tracer_of
from qlora_planner.profiling.tracing.trainers.protocol import PatchingTrainer
from qlora_planner.profiling.whole import sees
from qlora_planner.train.adapters import attention_modules
from qlora_planner.train.model import with_labels
from qlora_planner.train.options import lora_options, quantization_config

_NOT_ARCHITECTURE = ("architectures", "auto_map", "dtype", "torch_dtype", "transformers_version", "quantization_config")


@dataclass(frozen=True, slots=True, kw_only=True)
class MetaModel:
    """A cut-down PEFT model without storage, and how to put it on the device."""

    model: nn.Module
    base: nn.Module
    cut: layers.Cut
    spec: TraceSpec


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No advice from transformers and PEFT while models are built."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(50)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.logging.set_verbosity(level)


def skeleton(
    raw: Mapping[str, Any], attention: str | None, dtype: torch.dtype = torch.bfloat16, labels: int | None = None
) -> nn.Module:
    """The whole model on the meta device, as it is loaded in `dtype`, not yet cut; with `labels` its classifier."""
    fields = {key: copy.deepcopy(value) for key, value in raw.items() if key not in _NOT_ARCHITECTURE}
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    if labels is not None:
        config = with_labels(config, labels)
    options = {} if attention is None else {"attn_implementation": attention}
    with quiet(), torch.device("meta"), initialization.no_init_weights(), initialization.no_tie_weights():
        wanted: Any = AutoModelForImageTextToText if sees(config) else AutoModelForCausalLM
        if labels is not None:
            wanted = AutoModelForSequenceClassification
        model = wanted.from_config(config, dtype=dtype, **options)
    keep = set(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    if dtype is torch.float16:
        keep |= set(getattr(model, "_keep_in_fp32_modules", None) or ())
    for name, parameter in model.named_parameters():
        if any(part in name.split(".") for part in keep):
            parameter.data = parameter.data.float()
    remember_skipped(model)
    model.tie_weights()
    return model


def build(raw: Mapping[str, Any], spec: TraceSpec) -> MetaModel:
    """Build, cut, quantise and adapt; everything still on meta."""
    own = patching_tracer_of(spec)
    with contextlib.nullcontext() if own is None else own.making(str(raw["model_type"])):
        return _build(raw, spec, own)


def _build(raw: Mapping[str, Any], spec: TraceSpec, own: PatchingTrainer | None) -> MetaModel:
    run = spec.run
    model: Any = skeleton(raw, run.attention, spec.load_dtype, labels_of(run))
    if run.gradient_checkpointing and run.checkpoint_every is not None and run.checkpoint_every > 1:
        layers.mark_checkpointed(model, run.checkpoint_every)
    if own is not None and run.gradient_checkpointing:
        layers.mark_last_kept(model)
    # Offloading keeps a layer's tensors on the device until a number of others has followed.
    cut = layers.choose_all(model) if run.activation_offloading else layers.choose(model)
    layers.apply(model, cut)
    if spec.quantized:
        quantization, skipped = quantization_config(run), skipped_modules(model)
        with quiet():
            model = replace_with_bnb_linear(model, modules_to_not_convert=skipped, quantization_config=quantization)
        for module in model.modules():
            bias = getattr(module, "bias", None)
            if isinstance(module, (bnb.nn.Linear4bit, bnb.nn.Linear8bitLt)) and bias is not None:
                module.bias = nn.Parameter(bias.data.to(spec.load_dtype), requires_grad=False)
        model.is_loaded_in_8bit = run.quant == "int8"
        model.is_loaded_in_4bit = not model.is_loaded_in_8bit
        model.is_quantized = True
    model.tie_weights()
    if own is not None:
        model = own.loaded(model, spec)
    base = model
    if run.method != "full":
        for parameter in model.parameters():
            parameter.requires_grad = False
        names = attention_modules(model) if run.target_modules == "attention" else None
        lora = peft.LoraConfig(**lora_options(run, names))
        with quiet(), dora_on_meta():
            model = peft.get_peft_model(model, lora, low_cpu_mem_usage=True)
        if own is not None:
            model = own.adapted(model, spec)
    return MetaModel(model=model, base=base, cut=cut, spec=spec)


def _quant_state(module: Any, spec: TraceSpec) -> QuantState:
    """The constants that bitsandbytes keeps beside a 4-bit weight (functional.py, quantize_4bit)."""
    blocks = -(-module.in_features * module.out_features // 64)
    empty = _empty
    common: dict[str, Any] = {
        "shape": torch.Size((module.out_features, module.in_features)),
        "code": empty((16,), torch.float32),
        "blocksize": 64,
        "quant_type": spec.run.quant,
        "dtype": spec.load_dtype,
    }
    if not spec.run.double_quant:
        return QuantState(absmax=empty((blocks,), torch.float32), **common)
    second = QuantState(
        absmax=empty((-(-blocks // 256),), torch.float32),
        code=empty((256,), torch.float32),
        blocksize=256,
        dtype=torch.float32,
    )
    return QuantState(absmax=empty((blocks,), torch.uint8), offset=empty((), torch.float32), state2=second, **common)


def _empty(shape: Any, dtype: torch.dtype, device: str = "cuda") -> torch.Tensor:
    return torch.empty(tuple(shape), dtype=dtype, device=device)


def materialise(meta: MetaModel) -> None:
    """Replace every meta tensor by a fake CUDA one, of the dtype it has just after the adapters were added."""
    spec = meta.spec
    twins: dict[int, nn.Parameter] = {}
    for module in list(meta.model.modules()):
        for key, parameter in list(module._parameters.items()):
            if parameter is None:
                continue
            if id(parameter) in twins:
                module._parameters[key] = twins[id(parameter)]
                continue
            if isinstance(module, bnb.nn.Linear4bit) and key == "weight":
                packed: Any = nn.Parameter(_empty(((parameter.numel() + 1) // 2, 1), torch.uint8), requires_grad=False)
                packed.quant_state = module.quant_state = _quant_state(module, spec)
                packed.bnb_quantized = True
                module._parameters[key] = packed
            elif isinstance(module, bnb.nn.Linear8bitLt) and key == "weight":
                weight: Any = nn.Parameter(_empty(parameter.shape, torch.int8), requires_grad=False)
                weight.CB = weight.SCB = None
                module._parameters[key] = weight
                module.state.CB = weight.data
                module.state.SCB = _empty((parameter.shape[0],), torch.float32)
            else:
                half = parameter.dtype in (torch.bfloat16, torch.float16)
                # Trained copies of whole modules are made after the cast of what they copy.
                dtype = torch.float32 if spec.run.upcast and half else parameter.dtype
                empty = _empty(parameter.shape, dtype, spec.device_name)
                fresh = nn.Parameter(empty, requires_grad=parameter.requires_grad)
                twins[id(parameter)] = module._parameters[key] = fresh
        for key, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[key] = _empty(buffer.shape, buffer.dtype, spec.device_name)
