"""What a real training step of a toy model allocates on the CPU, from torch's own allocator events.

torch.profiler hands over every allocation and every free with its exact bytes, as leaves of a tree of the operators
that made them. No dispatch mode is active, so torch takes the same paths as for any user.

Two kinds of allocation are counted apart, because no tensor of the training step holds them:

* *scratch*: born and freed inside one kernel, e.g. a contiguous copy of its argument. A kernel is the outermost
  operator on the way that torch does not put together from others (is not CompositeImplicitAutograd);
* *host numbers*: the one-element tensors that Python numbers become on their way into an operator.
"""

from __future__ import annotations

import copy
import functools
import gc
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import peft
import torch
import transformers
from torch.profiler import ProfilerActivity, profile, record_function
from transformers import AutoConfig, AutoModelForCausalLM

PHASES = ("forward 0", "backward 0", "forward 1", "backward 1")
_MARK = "walk::"
_COMPOSITE = "CompositeImplicitAutograd"
_NUMBER_BYTES = 16  # a complex double, the widest


@dataclass(frozen=True, slots=True, kw_only=True)
class RealStep:
    """Bytes above the start of training: the highest of each phase, and what is alive when it ends."""

    peaks: dict[str, int]
    ends: dict[str, int]
    scratch: dict[str, int] = field(default_factory=dict)  # kernel -> the most scratch bytes that one call had at once


def real_model(raw: dict[str, Any], targets: str | list[str], rank: int, checkpointing: bool) -> Any:
    """The class with random bf16 weights on the CPU, LoRA added; raises whatever the libraries raise.

    transformers' own loader makes it, because some parameters stay in float32 when weights are loaded.
    """
    fields = copy.deepcopy(raw)  # some config classes take the dictionaries that they are given apart
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    torch.manual_seed(0)
    usual: dict[str, Any] = {"dtype": torch.bfloat16, "attn_implementation": "eager"}
    drawn = AutoModelForCausalLM.from_config(config, **usual)
    model = type(drawn).from_pretrained(None, config=drawn.config, state_dict=drawn.state_dict(), **usual)
    del drawn
    lora = peft.LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=targets, task_type="CAUSAL_LM")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = peft.get_peft_model(model, lora)
    if checkpointing:
        # Checkpoints would keep the state of the host's random generator, which nothing here draws from.
        model.gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
        model.enable_input_require_grads()
    wrapped.train()
    return wrapped


def batch(vocabulary: int, batch_size: int, seq_len: int) -> dict[str, torch.Tensor]:
    """Ids, mask and labels; the model is given the ids, twice."""
    ids = torch.arange(batch_size * seq_len).remainder(max(vocabulary - 8, 1)).add(3).view(batch_size, seq_len)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}


def train(model: Any, batch_size: int, seq_len: int, mark: Callable[[str], Any] = record_function) -> None:
    """Two steps of a plain loop without an optimizer: the outputs stay bound through the next forward pass."""
    vocabulary = model.get_base_model().get_input_embeddings().weight.shape[0]
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for step in range(2):
        with mark(f"{_MARK}forward {step}"):
            inputs = batch(vocabulary, batch_size, seq_len)
            outputs = model(input_ids=inputs["input_ids"], labels=inputs["input_ids"])
            loss = outputs.loss
        with mark(f"{_MARK}backward {step}"):
            loss.backward()
        loss = loss.detach()
        for parameter in parameters:
            parameter.grad = None
        del loss


def profiled(model: Any, batch_size: int, seq_len: int) -> list[Any]:
    """Two steps as the profiler's event tree; raises what the model raises."""
    gc.collect()
    gc.disable()
    try:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            train(model, batch_size, seq_len)
    finally:
        gc.enable()
    results: Any = profiler.profiler
    found: list[Any] = results.kineto_results.experimental_event_tree()
    return found


def read(roots: list[Any]) -> RealStep:
    """The bytes of an event tree."""
    events = list(_allocations(roots))
    births: dict[int, int] = {}
    left_out: set[int] = set()
    scratch: dict[str, int] = {}
    held: dict[int, tuple[int, int]] = {}  # kernel call -> scratch bytes alive, and their highest
    for index, (_, kernel, name, pointer, size) in enumerate(events):
        if size > 0:
            births[pointer] = index
            if kernel is None and size <= _NUMBER_BYTES and not name:
                left_out.add(index)
        elif pointer in births:
            born = births.pop(pointer)
            if kernel is not None and events[born][1] == kernel:
                left_out |= {born, index}
            elif born in left_out:
                left_out.add(index)
        else:
            left_out.add(index)  # was there before the first step
    for index, (_, kernel, name, _, size) in enumerate(events):
        if index in left_out and kernel is not None:
            alive, most = held.get(kernel, (0, 0))
            alive += size
            held[kernel] = (alive, max(alive, most))
            scratch[name] = max(scratch.get(name, 0), held[kernel][1])
    live, peaks, ends = 0, dict.fromkeys(PHASES, 0), dict.fromkeys(PHASES, 0)
    for index, (phase, _, _, _, size) in enumerate(events):
        if index not in left_out:
            live += size
            if phase:
                peaks[phase] = max(peaks[phase], live)
        if phase:
            ends[phase] = live
    return RealStep(peaks=peaks, ends=ends, scratch={name: size for name, size in scratch.items() if size > 0})


def _allocations(roots: list[Any]) -> Iterator[tuple[str, int | None, str, int, int]]:
    """(phase, kernel call, its name, address, bytes) in the order of time; bytes are negative where memory is freed."""
    stack: list[tuple[Any, str, int | None, str]] = [(root, "", None, "") for root in reversed(roots)]
    while stack:
        event, phase, kernel, name = stack.pop()
        extra = event.extra_fields
        if event.name == "[memory]":
            yield phase, kernel, name, extra.ptr, extra.alloc_size
            continue
        if event.name.startswith(_MARK):
            phase = event.name.removeprefix(_MARK)
        elif kernel is None and _is_kernel(event.name):
            kernel, name = event.id, event.name
        stack.extend((child, phase, kernel, name) for child in reversed(event.children))


@functools.cache
def _is_kernel(name: str) -> bool:
    space, _, operator = name.partition("::")
    packet = getattr(getattr(torch.ops, space, None), operator, None) if space == "aten" else None
    if packet is None or not hasattr(packet, "overloads"):
        return False
    usual = [each for each in packet.overloads() if not any(part in each.lower() for part in ("out", "name"))]
    full = [f"{name}.{overload}" if overload != "default" else name for overload in usual]
    dispatched = [each for each in full if torch._C._dispatch_has_kernel(each)]
    return not all(torch._C._dispatch_has_kernel_for_dispatch_key(each, _COMPOSITE) for each in dispatched)


def quiet() -> None:
    """No advice and no progress bars from transformers."""
    transformers.logging.set_verbosity(50)
    transformers.logging.disable_progress_bar()
