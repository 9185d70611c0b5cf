"""Trace two training steps of a cut-down model on fake CUDA tensors and hand back the tape."""

from __future__ import annotations

import contextlib
import gc
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from qlora_planner.memory.replay.simulate import without_collection
from qlora_planner.memory.sweep.validity import accumulates_apart
from qlora_planner.memory.weights.placement import cast_back
from qlora_planner.profiling.tracing import build, layers
from qlora_planner.profiling.tracing.adapters_on_meta import dora_on_meta
from qlora_planner.profiling.tracing.cuda import semantics
from qlora_planner.profiling.tracing.cuda.device import fake_cuda
from qlora_planner.profiling.tracing.cuda.flash_attention import flash_attention_2
from qlora_planner.profiling.tracing.images import with_images
from qlora_planner.profiling.tracing.last_token import with_last_token
from qlora_planner.profiling.tracing.offloading import activation_offloading, inputs_on_host
from qlora_planner.profiling.tracing.recorder import Recorder
from qlora_planner.profiling.tracing.segments import SegmentMarker
from qlora_planner.profiling.tracing.shadow import tensor_of
from qlora_planner.profiling.tracing.spec import TraceSpec
from qlora_planner.profiling.tracing.trainers import (
    evaluate,
    generating_tracer_of,
    patching_tracer_of,
    precomputer_of,
    tracer_of,
)
from qlora_planner.profiling.tracing.trainers.common import module_kept, wrap_forward
from qlora_planner.spec.layers import represent
from qlora_planner.spec.trace import Tape
from qlora_planner.train.options import checkpointed_layers, checkpointing_options


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Deaths by reference count only, so that the same code gives the same tape."""
    gc.collect()
    with without_collection():
        yield


@contextlib.contextmanager
def _ordered_autocast_cache(recorder: Recorder) -> Iterator[None]:
    """Casts of float32 weights that leaving autocast drops die oldest first.

    torch keeps them in a hash map by address (autocast_mode.cpp, cached_casts), so that the order is another one in
    every run.
    """
    clear = torch.clear_autocast_cache

    def clear_in_order() -> None:
        with recorder.dying_in_order_of_birth():
            clear()

    with mock.patch.object(torch, "clear_autocast_cache", clear_in_order):
        yield


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
def _cuda(traits: semantics.CudaTraits) -> Iterator[None]:
    attention = semantics.attention_function(traits)
    with (
        fake_cuda(bfloat16=traits.bfloat16, capability=traits.capability, multiprocessors=traits.multiprocessors),
        mock.patch.object(torch.nn.functional, "scaled_dot_product_attention", attention),
    ):
        yield


@contextlib.contextmanager
def recording(spec: TraceSpec) -> Iterator[Recorder]:
    """Fake CUDA (a fake CPU where the spec says so) with a recorder on top.

    Functions are patched whose choice a CPU would make differently.
    """
    traits = spec.device
    with contextlib.ExitStack() as stack:
        stack.enter_context(_no_garbage_collection())
        if spec.on_cpu:
            recorder = Recorder({}, {}, device="cpu")
        else:
            stack.enter_context(_cuda(traits))
            recorder = Recorder(semantics.SCRATCH, semantics.bitsandbytes_replacements(traits))
            recorder.workspace_sizes = {"cublas": traits.cublas_workspace, "cublaslt": traits.cublaslt_workspace}
        # Fake tensors here carry the values that masking code looks at, so nothing is "being traced" for it.
        stack.enter_context(mock.patch("transformers.utils.import_utils.is_fake_tensor", lambda _tensor: False))
        stack.enter_context(mock.patch.object(torch, "tensor", tensor_of))
        stack.enter_context(dora_on_meta())
        stack.enter_context(tracer_of(spec).patches(spec))
        own = patching_tracer_of(spec)
        if own is not None:
            stack.enter_context(own.watched(recorder))
        if spec.run.checkpoint_offload:
            stack.enter_context(inputs_on_host(recorder))
        stack.enter_context(_quiet_loggers("bitsandbytes", "transformers", "peft", "torch._subclasses.fake_tensor"))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(_ordered_autocast_cache(recorder))
        stack.enter_context(recorder)
        yield recorder


def trace(raw: Mapping[str, Any], spec: TraceSpec) -> Tape:
    """The tape of one run of the model with this config.json.

    One step is traced (two for a plain loop, whose outputs live on into the next forward), and the first evaluation
    where there is one; optimizers are left out.
    """
    with flash_attention_2(spec):
        return _trace(raw, spec)


def _trace(raw: Mapping[str, Any], spec: TraceSpec) -> Tape:
    meta = build.build(raw, spec)
    with recording(spec) as recorder, module_kept(meta.base):
        build.materialise(meta)
        recorder.events = []
        last = _run(meta, marker_of(meta, recorder))
        recorder.freeze()
        del last
        tape = _plain(recorder, meta.cut)
    return tape if spec.trainer.generation is None else with_last_token(tape, spec, lambda late: _generation(raw, late))


def _generation(raw: Mapping[str, Any], spec: TraceSpec) -> Tape:
    """The tape of generating alone."""
    meta = build.build(raw, spec)
    with recording(spec) as recorder, module_kept(meta.base):
        build.materialise(meta)
        recorder.events = []
        marker = marker_of(meta, recorder)
        _, _, vocabulary = _prepare(meta, marker)
        with marker.watching():
            generating_tracer_of(spec).generate(meta.model, spec, marker, vocabulary, spec.run.prompt_len or 1)
        recorder.freeze()
        return _plain(recorder, meta.cut)


def _plain(recorder: Recorder, cut: layers.Cut) -> Tape:
    """The recorder's events without those of storages that were there before, and of the trainer's casts."""
    cast: set[int] = set()
    for segment in recorder.segments:
        if segment.stage == "prepare":
            cast |= {event.storage for event in recorder.events[segment.start : segment.stop]}
    born: set[int] = set()
    workspaces: set[int] = set()
    events: list[tuple[int, int]] = []
    positions = [0]
    for event in recorder.events:
        if event.storage not in cast and (event.size > 0 or event.storage in born):
            born.add(event.storage)
            events.append((event.storage, max(event.size, 0)))
            if "workspace" in event.op:
                workspaces.add(event.storage)
        positions.append(len(events))
    return Tape(
        events=tuple(events),
        segments=tuple(
            replace(segment, start=positions[segment.start], stop=positions[segment.stop])
            for segment in recorder.segments
        ),
        places=represent(cut.kept, cut.order),
        kept=cut.kept,
        workspaces=frozenset(workspaces),
        on_host=frozenset(recorder.on_host & born),
        streamed=frozenset(recorder.streamed & born),
    )


def marker_of(meta: build.MetaModel, recorder: Recorder) -> SegmentMarker:
    """What marks the segments of this model's passes."""
    base: Any = meta.base
    layer_list = base.get_submodule(meta.cut.list_name)
    assert isinstance(layer_list, nn.ModuleList)
    return SegmentMarker(recorder, layer_list, base.get_input_embeddings(), meta.spec.trainer.passes)


def _prepare(meta: build.MetaModel, marker: SegmentMarker) -> tuple[Callable[..., Any], list[nn.Parameter], int]:
    """The model as its trainer prepares it: what is called in a step, what is trained, and its vocabulary's size."""
    spec, model, base = meta.spec, meta.model, meta.base
    run, anybase = spec.run, base
    if run.gradient_checkpointing and not spec.trainer.patches_libraries:
        anybase.gradient_checkpointing_enable(checkpointing_options(run), **checkpointed_layers(run))
        layers.restore_checkpointed(base)
        if run.method != "full":
            anybase.enable_input_require_grads()
    tracer_of(spec).prepare(base, spec)
    model.train()
    marker.mark("prepare", "all")
    _cast_adapters(model, spec)
    _cast_back(model, spec)
    parameters = [p for p in model.parameters() if p.requires_grad]
    return wrap_forward(model, spec), parameters, anybase.get_input_embeddings().weight.shape[0]


def _run(meta: build.MetaModel, marker: SegmentMarker) -> Any:
    """Take the steps; returns what outlives the last one."""
    spec, model, run = meta.spec, meta.model, meta.spec.run
    base: Any = meta.base
    tracer, stay = tracer_of(spec), spec.trainer.micro_batches_stay
    forward, parameters, vocabulary = _prepare(meta, marker)
    generates = spec.trainer.generation is not None
    micro_steps = min(run.grad_accum, 2) if not generates or accumulates_apart(run) else 1
    drawn: list[Any] = []
    with marker.watching(), activation_offloading(model, spec, marker.recorder) as offload:
        if run.precompute_ref_log_probs:
            marker.mark("precompute", "embedding")
            precomputer_of(spec).precompute(model, tracer.inputs(spec, vocabulary), spec)
        for step in range(2 if stay or spec.trainer.first_step_differs else 1):
            marker.step = step
            for micro_step in range(micro_steps):
                marker.micro_step = micro_step
                if generates and micro_step % (run.steps_per_generation or 1) == 0:
                    drawn = generating_tracer_of(spec).rollout(forward, model, spec, marker, vocabulary)
                marker.mark("forward", "embedding")
                inputs = drawn[micro_step % len(drawn)] if drawn else tracer.inputs(spec, vocabulary)
                inputs = with_images(inputs, spec, base.config)
                with offload:
                    loss, kept = tracer.loss(forward, model, inputs, spec)
                    # transformers' loop holds the batch on the device until the next one is there: with images that
                    # is more than some kilobytes.
                    if not (stay or run.images):
                        del inputs
                    marker.mark("backward", "head")
                    loss.backward()
                    marker.mark("after", "all")
                loss = loss.detach()
            marker.mark("optimizer", "all")
            marker.mark("zero_grad", "all")
            for parameter in parameters:
                parameter.grad = None
            del loss
        if run.eval_batch_size is not None:
            kept = None  # a function of its own evaluates: what the training loop's body held is gone
            model.eval()
            marker.mark("eval", "embedding")
            evaluate(tracer, forward, model, spec, vocabulary)
    del kept, drawn
    return inputs if run.images else None


def casts_adapters(spec: TraceSpec) -> bool:
    """Whether the trainer casts adapters to bf16, as SFTTrainer does for a quantised model."""
    return spec.trainer.adapters_bfloat16 and spec.quantized and spec.run.method != "full"


def _cast_adapters(model: nn.Module, spec: TraceSpec) -> None:
    """SFTTrainer's cast of a quantised model's adapters to bf16, one parameter after the other."""
    if not casts_adapters(spec):
        return
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_magnitude_vector" not in name:
            parameter.data = parameter.data.to(torch.bfloat16)


def _cast_back(model: nn.Module, spec: TraceSpec) -> None:
    """ORPOTrainer's cast of a prepared model's embeddings and head back to bf16."""
    if spec.trainer.casts_back(spec.run):
        for name, parameter in model.named_parameters():
            if parameter.dtype is torch.float32 and cast_back(name):
                parameter.data = parameter.data.to(torch.bfloat16)
