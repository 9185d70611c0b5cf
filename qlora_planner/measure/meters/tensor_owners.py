"""Who owns which address: the model's tensors, its gradients and the optimizer's states, without holding on to any."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from qlora_planner.measure.meters.timeline import HEAD, LAYER, Timeline
from qlora_planner.memory.records import Component


def model_owners(model: Any, *, adapted: bool) -> dict[int, str]:
    """Address of every weight, constant and buffer -> component name.

    Parameters that train are adapters where the model is `adapted`; before that, and in a full fine-tune, they are
    weights like the others.
    """
    owners: dict[int, str] = {}
    for parameter in model.parameters():
        quantized = type(parameter).__name__ in ("Params4bit", "Int8Params")
        if quantized:
            part = Component.QUANTIZED_WEIGHTS
        elif parameter.requires_grad and adapted:
            part = Component.ADAPTERS
        else:
            part = Component.UNQUANTIZED_WEIGHTS
        _put(owners, [parameter], part)
        if quantized:
            _put(owners, constants(parameter), Component.QUANTIZATION_CONSTANTS)
    for module in model.modules():
        state: Any = getattr(module, "state", None)
        if type(state).__name__ == "MatmulLtState":
            _put(owners, [state.CB], Component.QUANTIZED_WEIGHTS)
            _put(owners, [state.SCB], Component.QUANTIZATION_CONSTANTS)
    _put(owners, model.buffers(), Component.UNQUANTIZED_WEIGHTS)
    return owners


def gradient_owners(model: Any) -> dict[int, str]:
    """Address of every gradient."""
    owners: dict[int, str] = {}
    _put(owners, (parameter.grad for parameter in model.parameters()), Component.GRADIENTS)
    return owners


def optimizer_owners(optimizer: Any) -> dict[int, str]:
    """Address of every state tensor that torch's allocator counts."""
    owners: dict[int, str] = {}
    _put(owners, (tensor for tensor in states(optimizer) if not is_paged(tensor)), Component.OPTIMIZER_STATES)
    return owners


def paged_bytes(optimizer: Any) -> int:
    """Bytes of states in managed memory, which torch's counters do not see."""
    return sum(tensor.numel() * tensor.element_size() for tensor in states(optimizer) if is_paged(tensor))


def is_paged(tensor: Any) -> bool:
    """Whether bitsandbytes keeps this state in managed memory."""
    return bool(getattr(tensor, "is_paged", False))


def watch_layers(layers: list[Any], timeline: Timeline, in_backward: Callable[[], bool]) -> Callable[[], None]:
    """Mark where each layer and the head begin, and where the head's backward ends. Returns what takes the hooks off.

    A layer that is recomputed in backward is marked as a layer too; the first such ends the head's backward.
    """

    def layer_begins(*_: Any) -> None:
        if in_backward() and timeline.stages and timeline.stages[-1][1] == HEAD:
            timeline.mark("backward")
        timeline.mark(LAYER)

    def last_layer_ended(_module: Any, _inputs: Any, output: Any) -> None:
        if in_backward():
            return
        timeline.mark(HEAD)
        hidden = output[0] if isinstance(output, tuple) else output
        if getattr(hidden, "requires_grad", False):
            hidden.register_hook(head_backward_ended)

    def head_backward_ended(_gradient: Any) -> None:
        timeline.mark("backward")

    handles = [layer.register_forward_pre_hook(layer_begins) for layer in layers]
    if layers:
        handles.append(layers[-1].register_forward_hook(last_layer_ended))

    def remove() -> None:
        for handle in handles:
            handle.remove()

    return remove


def _put(owners: dict[int, str], tensors: Iterable[Any], part: Component) -> None:
    for tensor in tensors:
        if tensor is not None and tensor.device.type != "meta":
            owners.setdefault(tensor.untyped_storage().data_ptr(), part.value)
    owners.pop(0, None)  # an empty tensor has no address


def constants(parameter: Any) -> Iterator[Any]:
    """What stands beside a quantised weight, down to the second level."""
    state = getattr(parameter, "quant_state", None)
    while state is not None:
        yield from (getattr(state, name, None) for name in ("absmax", "code", "offset"))
        state = getattr(state, "state2", None)
    yield getattr(parameter, "SCB", None)


def states(optimizer: Any) -> Iterator[Any]:
    import torch

    for state in optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, torch.Tensor))
    yield from getattr(optimizer, "name2qmap", {}).values()  # bitsandbytes: code tables shared by all states
