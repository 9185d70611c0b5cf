"""After memory ran out: what was held by what, and which component beat the plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qlora_planner.measure.meters import tensor_owners
from qlora_planner.memory.records import Component
from qlora_planner.spec.run import RunConfig
from qlora_planner.units import format_size

OTHERS = "other processes"
_LABELS = {
    "quantized_weights": "the quantised weights",
    "quantization_constants": "quantisation constants",
    "unquantized_weights": "the weights that stay 16-bit",
    "adapters": "the adapters",
    "gradients": "gradients",
    "optimizer_states": "optimizer states",
    "activations": "activations, logits and everything else of the step",
    "allocator_slack": "what the allocator keeps beyond them",
    "cuda_context": "the CUDA context",
}
# What a running step cannot be told apart by: one line for all of it.
_OF_THE_STEP = ("checkpoints", "activations", "logits_and_loss", "workspace")


def held(model: Any, optimizer: Any, device: str, process_bytes: int | None) -> dict[str, int]:
    """Bytes alive now by component name: what has an owner, and on a card the rest of what is allocated."""
    if model is None:
        return {}
    tensors = dict.fromkeys((c.value for c in Component), 0)
    owners = tensor_owners.model_owners(model, adapted=True) | tensor_owners.gradient_owners(model)
    if optimizer is not None:
        owners |= tensor_owners.optimizer_owners(optimizer)
    for address, size in _storages(model, optimizer).items():
        if address in owners:
            tensors[owners[address]] += size
    components = {name: size for name, size in tensors.items() if size}
    if device != "cuda":
        return components
    import torch

    allocated, reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    components["activations"] = max(0, allocated - sum(components.values()))
    components["allocator_slack"] = reserved - allocated
    if process_bytes is not None:
        # The process was largest when torch had reserved most; by now a failed allocation has given the cache back.
        components["cuda_context"] = max(0, process_bytes - torch.cuda.max_memory_reserved())
    return components


def _storages(model: Any, optimizer: Any) -> dict[int, int]:
    """Address of every storage that the model, its gradients and its optimizer hold -> its bytes."""
    import torch

    sizes: dict[int, int] = {}

    def put(tensor: Any) -> None:
        if isinstance(tensor, torch.Tensor) and tensor.device.type != "meta":
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()

    for parameter in model.parameters():
        put(parameter)
        put(parameter.grad)
        for constant in tensor_owners.constants(parameter):
            put(constant)
    for buffer in model.buffers():
        put(buffer)
    if optimizer is not None:
        for state in tensor_owners.states(optimizer):
            put(state)
    return sizes


def verdict(result: Mapping[str, Any], run: RunConfig, predicted: Mapping[str, Any] | None) -> str:
    """What ran out where, and why: predicted, or the component furthest above its plan; one line.

    `result` is what a child reported, `predicted` an estimate's document, None where there was no plan.
    """
    moment = {"rehearsal": "the longest batch", "training": "a training step", "load": "loading"}.get(
        str(result.get("phase")), str(result.get("phase"))
    )
    requested_bytes = result.get("requested_bytes")
    text = f"out of memory in {moment} ({run.batch_size} x {run.seq_len} tokens)"
    if requested_bytes:
        text += f", asking for {format_size(requested_bytes)}"
    fit = (predicted or {}).get("fit") or {}
    needed, usable = (predicted or {}).get("floor_bytes"), fit.get("usable_bytes")
    if fit.get("verdict") == "does-not-fit" and needed and usable:
        return text + f"; as predicted: it needs {format_size(needed)} and {format_size(usable)} can be used"
    alive = result.get("alive") or {}
    if predicted is None:
        name = max(alive, key=alive.__getitem__, default=None)
        return text + (
            "" if name is None else f"; most is held by {_LABELS.get(name, name)}: {format_size(alive[name])}"
        )
    over = beaten(alive, result.get("others_bytes"), predicted)
    if over is None:
        return text + "; no component is above its plan: memory is cut up, or the card is smaller"
    name, measured, planned = over
    return f"{text}; {name} beat the plan: {format_size(measured)} where {format_size(planned)} were planned"


def beaten(
    alive: Mapping[str, int], others_bytes: int | None, predicted: Mapping[str, Any] | None
) -> tuple[str, int, int] | None:
    """The component that is furthest above its plan: its name in words, bytes measured, bytes planned.

    Memory of other processes counts as a component that nobody planned. None where nothing is above, or nothing known.
    """
    if predicted is None:
        return None
    planned = dict(predicted.get("components") or {})
    planned["activations"] = sum(planned.pop(name, 0) for name in _OF_THE_STEP)
    rows = [(_LABELS.get(name, name), size, planned.get(name, 0)) for name, size in alive.items()]
    if others_bytes:
        rows.append((OTHERS, others_bytes, 0))
    worst = max(rows, key=lambda row: row[1] - row[2], default=None)
    return worst if worst is not None and worst[1] > worst[2] else None
