"""Trace two training steps of a cut-down model on fake CUDA tensors and hand back the tape."""

from __future__ import annotations

import contextlib
import gc
import logging
from collections.abc import Iterator, Mapping
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from qlora_planner.profiling.tracing import build, cuda_semantics, optimizers, trainers
from qlora_planner.profiling.tracing.adapters_on_meta import dora_on_meta
from qlora_planner.profiling.tracing.cuda_device import fake_cuda
from qlora_planner.profiling.tracing.extrapolate import represent
from qlora_planner.profiling.tracing.offloading import activation_offloading
from qlora_planner.profiling.tracing.recorder import Recorder
from qlora_planner.profiling.tracing.segments import SegmentMarker
from qlora_planner.profiling.tracing.spec import TraceSpec
from qlora_planner.profiling.tracing.tape import Tape, WholeStage, rounded

STEPS = 2  # the optimizer's states are born after the first backward pass


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Deaths by reference count only, so that the same code gives the same tape."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextlib.contextmanager
def _quiet_loggers(*names: str) -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def recording(spec: TraceSpec) -> Iterator[Recorder]:
    """Fake CUDA, with a recorder on top, and the functions patched whose choice a CPU would make differently."""
    traits = spec.device
    with contextlib.ExitStack() as stack:
        stack.enter_context(_no_garbage_collection())
        stack.enter_context(
            fake_cuda(bfloat16=traits.bfloat16, capability=traits.capability, multiprocessors=traits.multiprocessors)
        )
        stack.enter_context(
            mock.patch.object(
                torch.nn.functional, "scaled_dot_product_attention", cuda_semantics.attention_function(traits)
            )
        )
        # Fake tensors here carry the values that masking code looks at, so nothing is "being traced" for it.
        stack.enter_context(mock.patch("transformers.utils.import_utils.is_fake_tensor", lambda _tensor: False))
        stack.enter_context(dora_on_meta())
        stack.enter_context(trainers.fused_head_on_cuda(spec))
        stack.enter_context(_quiet_loggers("bitsandbytes", "transformers", "peft"))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        recorder = Recorder(cuda_semantics.SCRATCH, cuda_semantics.bitsandbytes_replacements(traits))
        recorder.workspace_sizes = {
            "cublas": traits.cublas_workspace,
            "cublaslt": traits.cublaslt_workspace,
        }
        stack.enter_context(recorder)
        yield recorder


def trace(raw: Mapping[str, Any], spec: TraceSpec) -> Tape:
    """The tape of one run of the model with this config.json."""
    meta = build.build(raw, spec)
    whole = _whole_stages(meta)
    with recording(spec) as recorder, trainers.module_kept(meta.base):
        build.materialise(meta)
        static = tuple(recorder.events)
        recorder.events = []
        by_layer = _static_by_layer(meta)
        _, layer_list = _layers_of(meta)
        marker = SegmentMarker(recorder, layer_list)
        _run(meta, marker)
        recorder.freeze()
        return Tape(
            static=static,
            events=tuple(recorder.events),
            segments=tuple(recorder.segments),
            layer_kinds=meta.cut.kinds,
            layer_order=meta.cut.order,
            kept=meta.cut.kept,
            static_by_layer=by_layer,
            whole=whole,
            notes=tuple(sorted(set(recorder.shadows.guesses))),
        )


def _layers_of(meta: build.MetaModel) -> tuple[str, nn.ModuleList]:
    found = meta.base.get_submodule(meta.cut.list_name)
    assert isinstance(found, nn.ModuleList)
    return meta.cut.list_name, found


def _tensors_of(module: nn.Module) -> Iterator[torch.Tensor]:
    """Weights, buffers and quantisation constants of a module and all it contains."""
    for child in module.modules():
        for parameter in child._parameters.values():
            if parameter is not None:
                yield parameter
                state = getattr(parameter, "quant_state", None)
                if state is not None:
                    yield from (t for t in (state.absmax, state.code, getattr(state, "offset", None)) if t is not None)
                    if state.state2 is not None:
                        yield from (state.state2.absmax, state.state2.code)
        yield from (buffer for buffer in child._buffers.values() if buffer is not None)
        state8 = getattr(child, "state", None)
        if state8 is not None and getattr(state8, "SCB", None) is not None:
            yield state8.SCB


def _static_by_layer(meta: build.MetaModel) -> tuple[int, ...]:
    sizes = []
    for layer in _layers_of(meta)[1]:
        seen: dict[int, int] = {}
        for tensor in _tensors_of(layer):
            storage = tensor.untyped_storage()
            seen[storage._cdata] = rounded(storage.nbytes())
        sizes.append(sum(seen.values()))
    return tuple(sizes)


def _run(meta: build.MetaModel, marker: SegmentMarker) -> None:
    spec, model, base = meta.spec, meta.model, meta.base
    anybase: Any = base
    if spec.gradient_checkpointing:
        anybase.gradient_checkpointing_enable({"use_reentrant": spec.use_reentrant})
        if spec.method != "full":
            anybase.enable_input_require_grads()
    trainers.prepare_head(base, spec)
    model.train()
    marker.mark("prepare", "all")
    _cast_adapters(model, spec)
    forward = trainers.wrap_forward(model, spec)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer: Any = None
    vocabulary = anybase.get_input_embeddings().weight.shape[0]
    micro_steps = min(spec.grad_accum, 2)
    with marker.watching(), activation_offloading(model, spec) as offload:
        for step in range(STEPS):
            marker.step = step
            for micro_step in range(micro_steps):
                marker.micro_step = micro_step
                marker.mark("forward", "embedding")
                inputs = trainers.batch(spec, vocabulary)
                with offload:
                    loss, kept = trainers.loss_of(forward, model, inputs, spec)
                    if spec.trainer != "loop":
                        del inputs
                    marker.mark("backward", "head")
                    loss.backward()
                    marker.mark("after", "all")
                loss = loss.detach()
            marker.mark("optimizer", "all")
            if spec.trainer != "loop":
                torch.nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
            if optimizer is None:
                optimizer = optimizers.make(spec.optimizer, parameters)
            optimizer.step()
            marker.mark("zero_grad", "all")
            for parameter in parameters:
                parameter.grad = None
            del loss
    del kept


def casts_adapters(spec: TraceSpec) -> bool:
    """Whether the trainer casts adapters to bf16: SFTTrainer does, for a quantised model."""
    return spec.trainer == "trl-sft" and spec.quant != "none" and spec.method != "full"


def _cast_adapters(model: nn.Module, spec: TraceSpec) -> None:
    """SFTTrainer's cast of a quantised model's adapters to bf16, one parameter after the other."""
    if not casts_adapters(spec):
        return
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_magnitude_vector" not in name:
            parameter.data = parameter.data.to(torch.bfloat16)


def _whole_stages(meta: build.MetaModel) -> tuple[WholeStage, ...]:
    """Stages whose temporaries grow with all adapters together, run on the whole model's trainable parameters."""
    spec = meta.spec
    cast = casts_adapters(spec)
    keeps = {id(p) for name, p in meta.model.named_parameters() if "lora_magnitude_vector" in name}
    layers = _layers_of(meta)[1]
    inside: dict[int, int] = {}
    for index, layer in enumerate(layers):
        for parameter in layer.parameters():
            inside[id(parameter)] = index
    by_layer: dict[int, list[nn.Parameter]] = {index: [] for index in range(len(layers))}
    outside: list[nn.Parameter] = []
    for parameter in meta.model.parameters():
        if parameter.requires_grad:
            by_layer[inside[id(parameter)]].append(parameter) if id(parameter) in inside else outside.append(parameter)

    def describe(found: list[nn.Parameter]) -> list[tuple[Any, torch.dtype]]:
        return [(tuple(p.shape), torch.bfloat16 if cast and id(p) not in keeps else p.dtype) for p in found]

    shapes = describe(outside)
    for place in represent(meta.cut.kept, meta.cut.order):
        shapes += describe(by_layer[place])
    with recording(spec) as recorder:
        return _measure_whole(spec, shapes, recorder)


def _measure_whole(
    spec: TraceSpec, shapes: list[tuple[Any, torch.dtype]], recorder: Recorder
) -> tuple[WholeStage, ...]:
    found: list[WholeStage] = []
    cast = casts_adapters(spec)

    def close(stage: str, step: int, start: int) -> None:
        recorder.settle()
        now = top = 0
        for event in recorder.events[start:]:
            now += rounded(event.size) if event.size > 0 else -rounded(-event.size)
            top = max(top, now)
        found.append(WholeStage(stage=stage, step=step, rise=top, delta=now))

    parameters = [nn.Parameter(torch.empty(shape, dtype=dtype, device="cuda")) for shape, dtype in shapes]
    if cast:
        # The parameters handed in are already bf16; before the cast they are fp32.
        now = top = 0
        for parameter in parameters:
            if parameter.dtype is not torch.bfloat16:
                continue
            small, large = rounded(2 * parameter.numel()), rounded(4 * parameter.numel())
            top = max(top, now + small)
            now += small - large
        found.append(WholeStage(stage="prepare", step=0, rise=top, delta=now))
    optimizer = optimizers.make(spec.optimizer, parameters)
    for step in range(STEPS):
        for parameter in parameters:
            parameter.grad = torch.empty_like(parameter)
        recorder.settle()
        start = len(recorder.events)
        if spec.trainer != "loop":
            torch.nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
        optimizer.step()
        close("optimizer", step, start)
        start = len(recorder.events)
        for parameter in parameters:
            parameter.grad = None
        close("zero_grad", step, start)
    return tuple(found)
