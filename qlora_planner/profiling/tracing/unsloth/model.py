"""A model as Unsloth's loader and adapters leave it, by its own functions: `FastLanguageModel` without weights."""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import bitsandbytes as bnb

from qlora_planner.errors import MissingError
from qlora_planner.profiling.tracing.spec import TraceSpec
from qlora_planner.profiling.tracing.unsloth.device import ready_device

# models/loader.py, by the config's model_type: the module and the class that patch it.
_PATCHERS = {
    "llama": ("llama", "FastLlamaModel"),
    "mistral": ("mistral", "FastMistralModel"),
    "qwen2": ("qwen2", "FastQwen2Model"),
    "qwen3": ("qwen3", "FastQwen3Model"),
    "gemma": ("gemma", "FastGemmaModel"),
    "gemma2": ("gemma2", "FastGemma2Model"),
}


def _patcher_of(model_type: str) -> Any:
    if model_type not in _PATCHERS:
        raise MissingError(
            f"Unsloth compiles {model_type} whole (its general path), and the compiler decides what is kept: traced are"
            f" {', '.join(_PATCHERS)}"
        )
    module, name = _PATCHERS[model_type]
    return getattr(importlib.import_module(f"unsloth.models.{module}"), name)


@contextlib.contextmanager
def making(model_type: str) -> Iterator[None]:
    """Its classes patched as its loader patches them before a model is made, and tables that wait for the device.

    Raises MissingError for a model type that it has no fast path for.
    """
    from unsloth.models import llama

    patcher = _patcher_of(model_type)
    with (
        ready_device(),
        mock.patch.object(llama, "DEVICE_COUNT", 1),
        mock.patch.object(llama, "get_current_device", lambda: "meta"),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        patcher.pre_patch()
        yield


def loaded(model: Any, spec: TraceSpec) -> Any:
    """What `from_pretrained` does with a loaded model (models/llama.py)."""
    from unsloth.models import llama
    from unsloth_zoo import gradient_checkpointing, patching_utils

    patcher = _patcher_of(model.config.model_type)
    if spec.run.gradient_checkpointing:
        # Their buffers are made on the device, when the trainer is prepared.
        with mock.patch.object(gradient_checkpointing, "initialize_unsloth_gradient_checkpointing", lambda *_: None):
            gradient_checkpointing.patch_unsloth_smart_gradient_checkpointing(dtype=spec.load_dtype)
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):  # its dtype is looked at; the state itself is made on the device
            module.weight.quant_state = SimpleNamespace(dtype=spec.load_dtype)
    llama.mark_unsloth_fast_path(model)
    # No tokenizer is here to grow the embedding for, and meta tensors have no addresses that tell a tied head.
    alone = functools.partial(patching_utils.patch_model_and_tokenizer, fix_embeddings=False)
    with contextlib.ExitStack() as stack:
        for module in {sys.modules[kind.__module__] for kind in patcher.__mro__[:-1]}:
            stack.enter_context(mock.patch.object(module, "patch_model_and_tokenizer", alone))
        model, _ = patcher.post_patch(model, None, correct_dtype=spec.load_dtype)
    for layer in model.model.layers:
        layer.self_attn.apply_qkv = llama.original_apply_qkv
        layer.self_attn.apply_o = llama.original_apply_o
        layer.self_attn.rotary_emb = model.model.rotary_emb
    for module in model.modules():
        module.max_seq_length = spec.run.seq_len
    return model


def adapted(model: Any, spec: TraceSpec) -> Any:
    """What `get_peft_model` does once PEFT has added the adapters (models/llama.py)."""
    from transformers import Trainer
    from unsloth.models.llama import FastLlamaModel

    def _fast_inner_training_loop() -> None:
        """By this name the loader's work on the training loop, which is not run here, is known."""

    kind = "unsloth" if spec.run.gradient_checkpointing else False
    with mock.patch.object(Trainer, "_inner_training_loop", _fast_inner_training_loop):
        return FastLlamaModel.patch_peft_model(model, use_gradient_checkpointing=kind)
