"""Records births and deaths of CUDA storages while model code runs on fake tensors."""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode

from qlora_planner.profiling.tracing.cuda.device import caller_frame, is_engine_frame
from qlora_planner.profiling.tracing.cuda.scratch import copied_input
from qlora_planner.profiling.tracing.cuda.semantics import ENGINE_IN_PLACE, LATE_RESULTS, grouped_mm
from qlora_planner.profiling.tracing.shadow import MASKED_INDEXING, MASKED_SELECT, Shadows, has_mask, masked_select
from qlora_planner.profiling.tracing.tape import Event
from qlora_planner.spec.trace import Segment

_DEVICE = torch.ops.prim.device.default
_ADD = torch.ops.aten.add.Tensor
_FACTORY_DEVICE_ARGUMENT = "device"

_GROUPED = torch.ops.aten._grouped_mm.default
_LINEAR = torch.ops.aten.linear.default
_RESIZE = torch.ops.aten.resize_.default
_BIASED = torch.ops.aten.addmm.default
MATRIX_PRODUCTS = frozenset(
    {
        torch.ops.aten.mm.default,
        torch.ops.aten.mm.out,
        torch.ops.aten.bmm.default,
        _BIASED,
        _LINEAR,
        torch.ops.aten.baddbmm.default,
        torch.ops.aten.addmv.default,
        torch.ops.aten.mv.default,
    }
)

# What a CUDA kernel allocates besides its result: (operator's arguments, result) -> sizes in bytes.
Scratch = Callable[[Sequence[Any], Mapping[str, Any], Any], Sequence[int]]
# An operator that CUDA runs as other code than its fake version: called with the operator's arguments.
Replacement = Callable[..., Any]


class Recorder(TorchDispatchMode):
    """A dispatch mode that turns storages into events; `mark` cuts the events into segments.

    Gradients that meet in autograd's input buffer are added in place on CUDA when nobody else holds one of them, but
    out of place for fake tensors: such a sum takes over the storage of the summand that dies with it.
    """

    def __init__(
        self, scratch: Mapping[Any, Scratch], replacements: Mapping[Any, Replacement], device: str = "cuda"
    ) -> None:
        super().__init__()
        self.events: list[Event] = []
        self.segments: list[Segment] = []
        self.shadows = Shadows()
        self._device = device
        self._scratch = scratch
        self._replacements = replacements
        self._counter = 0
        self._alive: dict[int, tuple[int, int]] = {}  # storage address -> (event id, bytes)
        self._watchers: dict[int, weakref.ref[Any]] = {}
        self._pending: tuple[int, tuple[int, ...], str] | None = None
        self._died_since: dict[int, tuple[int, int]] = {}
        self._dying_together: list[tuple[int, int]] | None = None
        self._open: tuple[str, str, int, int, int, int] | None = None
        self._frozen = False
        self.in_backward = False
        self.workspace_sizes: dict[str, int] = {}
        self._workspaces: set[tuple[str, str]] = set()
        self.side_stream = False  # whether what is born now belongs to a second stream's part of the cache
        self.streamed: set[int] = set()
        self.on_host: set[int] = set()

    def replace(self, replacements: Mapping[Any, Replacement]) -> None:
        """More operators that CUDA runs as other code than their fake versions."""
        self._replacements = {**self._replacements, **replacements}

    # -- segments ---------------------------------------------------------------------------------------------------
    def mark(self, stage: str, name: str, layer: int = -1, step: int = 0, micro_step: int = 0) -> None:
        """Close the open segment and begin another."""
        self.settle()
        self.close()
        self._open = (stage, name, layer, step, micro_step, len(self.events))

    def close(self) -> None:
        """Close the open segment."""
        self.settle()
        if self._open is not None:
            stage, name, layer, step, micro_step, start = self._open
            self.segments.append(
                Segment(
                    stage=stage,
                    name=name,
                    layer=layer,
                    step=step,
                    micro_step=micro_step,
                    start=start,
                    stop=len(self.events),
                )
            )
            self._open = None

    # -- storages ---------------------------------------------------------------------------------------------------
    def born(self, tensor: Any, op: str) -> None:
        """Note the storage of a fake CUDA tensor that was not seen before."""
        if not isinstance(tensor, FakeTensor) or tensor.fake_device.type != self._device:
            return
        storage = tensor.untyped_storage()
        address = storage._cdata
        if address in self._alive:
            return
        self._note(storage, address, op)
        if self.side_stream:
            self.streamed.add(self._counter)

    def born_on_host(self, tensor: Any, op: str) -> None:
        """Note the storage of a fake CPU tensor that holds what was moved off the device."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self._alive:
            self._note(storage, storage._cdata, op)
            self.on_host.add(self._counter)

    def _grown(self, tensor: Any) -> None:
        """A storage that was resized: the larger one is there before the old one goes (aten Resize.cpp)."""
        storage = tensor.untyped_storage()
        before = self._alive.get(storage._cdata)
        if before is None or storage.nbytes() <= before[1]:
            return
        self._counter += 1
        self._alive[storage._cdata] = (self._counter, storage.nbytes())
        self._append(self._counter, storage.nbytes(), "resize_")
        self._append(before[0], -before[1], "")

    def _note(self, storage: Any, address: int, op: str) -> None:
        size = storage.nbytes()
        self._counter += 1
        self._alive[address] = (self._counter, size)
        self._watchers[address] = weakref.ref(storage, functools.partial(self._gone, address))
        self._append(self._counter, size, op)

    def _append(self, storage: int, size: int, op: str) -> None:
        self.events.append(Event(storage=storage, size=size, op=op))

    def _gone(self, address: int, _reference: Any) -> None:
        self._died(address)

    def _died(self, address: int) -> None:
        self._watchers.pop(address, None)
        storage = self._alive.pop(address, None)
        if storage is None or self._frozen:
            return
        if self._pending is not None and address in self._pending[1]:
            self._died_since[address] = storage
            return
        if self._dying_together is not None:
            self._dying_together.append(storage)
            return
        identity, size = storage
        self._append(identity, -size, "")

    @contextlib.contextmanager
    def dying_in_order_of_birth(self) -> Iterator[None]:
        """What dies in this context dies at its end, oldest first, whatever order the code drops it in."""
        self._dying_together = []
        try:
            yield
        finally:
            together, self._dying_together = sorted(self._dying_together), None
            for identity, size in together:
                self._append(identity, -size, "")

    def settle(self) -> None:
        """Decide what the last sum made by the engine was: in place if a summand died with it, else a new storage."""
        if self._pending is None:
            return
        address, summands, op = self._pending
        self._pending = None
        result = self._alive.get(address)
        heirs = [key for key in summands if key in self._died_since]
        if result is not None:
            identity, size = result
            heir = next((key for key in heirs if self._died_since[key][1] == size), None)
            if heir is not None:
                self._alive[address] = self._died_since.pop(heir)
            else:
                self._append(identity, size, op)
        for identity, size in self._died_since.values():
            self._append(identity, -size, "")
        self._died_since.clear()

    def permanent_bytes(self, size: int, op: str) -> None:
        """A storage that lives until the process ends."""
        self._counter += 1
        self._append(self._counter, size, op)

    def _workspace(self, biased: bool) -> None:
        """cuBLAS's buffer, once per thread: forward runs on the caller's thread, backward on autograd's own."""
        thread = "backward" if self.in_backward else "forward"
        kind = "cublaslt" if biased else "cublas"
        if (kind, thread) not in self._workspaces:
            self._workspaces.add((kind, thread))
            self.permanent_bytes(self.workspace_sizes.get(kind, 0), f"{kind} workspace ({thread} thread)")

    def freeze(self) -> None:
        """Stop recording: what dies from here on is the tracer's own clearing up."""
        self.close()
        self._frozen = True

    # -- dispatch ---------------------------------------------------------------------------------------------------
    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        frame = caller_frame()
        by_engine = is_engine_frame(frame)
        for arg in args:
            # What a saved-tensor hook returns loses its device when autograd wraps it again.
            if isinstance(arg, FakeTensor) and arg.fake_device.type == "meta":
                arg.fake_device = torch.device(self._device, 0) if self._device == "cuda" else torch.device("cpu")
        if func is _DEVICE:
            return torch.device("cpu") if by_engine else args[0].fake_device
        self.settle()
        if by_engine and str(kwargs.get(_FACTORY_DEVICE_ARGUMENT)) == "cpu":
            kwargs[_FACTORY_DEVICE_ARGUMENT] = torch.device(
                self._device
            )  # a derivative formula that asked us for a device
        if by_engine:
            func = ENGINE_IN_PLACE.get(func, func)
        replacement = self._replacements.get(func)
        if replacement is not None:
            with self:
                return replacement(*args, **kwargs)
        if func is _GROUPED and (args[0].dtype is not torch.bfloat16 or self._device == "cpu"):
            with self:
                return grouped_mm(*args, **kwargs)
        if func in MASKED_INDEXING and has_mask(args):
            with self:
                return MASKED_INDEXING[func](*args, **kwargs)
        if func is MASKED_SELECT:
            with self:
                return masked_select(*args)
        if func in MATRIX_PRODUCTS and self.workspace_sizes:
            # Only products with a bias vector fused in go through cuBLASLt.
            self._workspace(func is _BIASED or (func is _LINEAR and len(args) > 2 and args[2] is not None))
        copied = copied_input(func, args) if self._device == "cuda" else 0
        if copied:
            self._counter += 1
            copy = self._counter
            self._append(copy, copied, f"{func._schema.name} (copy of its input)")
        answer = self.shadows.answer(func, args, kwargs)
        if answer is not None:
            result = answer.value
        else:
            result = func(*args, **kwargs)
            self.shadows.follow(func, args, kwargs, result)
        if by_engine and func is _ADD and self._take_over(result, args):
            return result
        if func is _RESIZE:
            self._grown(args[0])
        name = func._schema.name
        outputs = result if isinstance(result, (tuple, list)) else (result,)
        if func in LATE_RESULTS:
            outputs = tuple(reversed(outputs))
        for output in outputs:
            if isinstance(output, (tuple, list)):
                for inner in output:
                    self.born(inner, name)
            else:
                self.born(output, name)
        if copied:
            self._append(copy, -copied, "")
        scratch = self._scratch.get(func)
        if scratch is not None:
            sizes = scratch(args, kwargs, result)
            # Several scratch buffers of one call are alive together.
            ids = []
            for size in sizes:
                if size > 0:
                    self._counter += 1
                    ids.append((self._counter, size))
                    self._append(self._counter, size, f"{name} (scratch)")
            for identity, size in ids:
                self._append(identity, -size, "")
        return result

    def _take_over(self, result: Any, args: Sequence[Any]) -> bool:
        if not isinstance(result, FakeTensor) or result.fake_device.type != self._device:
            return False
        # Engine rule (input_buffer.cpp, can_accumulate_inplace): not into a summand with gaps between its elements.
        summands = tuple(arg.untyped_storage()._cdata for arg in args if isinstance(arg, FakeTensor) and _dense(arg))
        storage = result.untyped_storage()
        address = storage._cdata
        if address in self._alive:
            return False
        self._counter += 1
        self._alive[address] = (self._counter, storage.nbytes())
        self._watchers[address] = weakref.ref(storage, functools.partial(self._gone, address))
        self._pending = (address, summands, "autograd::accumulate")
        return True


def _dense(tensor: torch.Tensor) -> bool:
    """Whether the elements fill a stretch of memory, each place once, in whatever order of dimensions."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True
