"""A step of Unsloth's SFTTrainer: trl's, with the model's own loss, on batches without padding.

Its packages are called as they are installed (2026.10.9), in a process of their own: see `tracing/apart.py`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes

from qlora_planner.profiling.tracing.recorder import Recorder
from qlora_planner.profiling.tracing.spec import TraceSpec
from qlora_planner.profiling.tracing.trainers import hf
from qlora_planner.profiling.tracing.trainers.common import IGNORED, Batch, fake
from qlora_planner.profiling.tracing.unsloth import device, kernels, model

loss, evaluated = hf.loss, hf.evaluated
making, loaded, adapted = model.making, model.loaded, model.adapted


def inputs(spec: TraceSpec, vocabulary: int) -> Batch:
    """All rows end to end with where each begins: what it makes of any batch while its layers are not compiled
    (utils/padding_choice.py), and of packed rows always, of which no more than the lengths tells them apart."""
    count, length = spec.sequences, spec.run.seq_len
    with _disable_current_modes():
        ids = torch.arange(count * length).remainder(max(vocabulary - 8, 1)).add(3).view(1, -1)
        positions = torch.arange(length).repeat(count).view(1, -1)
        labels = ids.masked_fill(positions == 0, IGNORED)
        lengths = torch.full((count,), length, dtype=torch.int32)
    named = (("input_ids", ids), ("labels", labels), ("position_ids", positions), ("packed_seq_lengths", lengths))
    return {name: fake(value, spec.device_name) for name, value in named}


@contextlib.contextmanager
def patches(spec: TraceSpec) -> Iterator[None]:
    """A device that is never behind, and kernels that are launched one by one, which does nothing here."""
    with device.ready_device(), device.chosen_attention(spec.device), kernels.launched_plainly(spec.device):
        yield


@contextlib.contextmanager
def watched(recorder: Recorder) -> Iterator[None]:
    """See PatchingTrainer."""
    recorder.replace(kernels.replacements())
    with kernels.norms_announced(), kernels.buffers_on_host(recorder):
        yield


def prepare(base: nn.Module, spec: TraceSpec) -> None:
    """The buffers of its checkpoints, which the loader makes."""
    from unsloth_zoo import gradient_checkpointing

    if spec.run.gradient_checkpointing:
        gradient_checkpointing.initialize_unsloth_gradient_checkpointing(spec.load_dtype)
