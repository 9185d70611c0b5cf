"""A recorder that adds up the kernels of a step, segment by segment, while the real model code runs on fake tensors.

It hooks in beside the tracer: the same code runs, and no event of a tape is another one. Bytes are what each kernel
reads plus what it writes, except of wide products (`classes.WIDE`). A kernel is launched by C++ alone where autograd's
engine dispatched it, or where it follows another one inside the same call from Python, as autocast's casts do.
"""

from __future__ import annotations

import contextlib
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

from torch._subclasses.fake_tensor import FakeTensor

from qlora_planner.profiling.tracing.cuda.device import caller_frame, is_engine_frame
from qlora_planner.profiling.tracing.cuda.one_pass_scores import IdleKernel
from qlora_planner.profiling.tracing.cuda.scratch import copied_input
from qlora_planner.profiling.tracing.recorder import Recorder
from qlora_planner.speed.kernels import TRITON_LAUNCHES
from tools.kernels.classes import (
    EMPTY,
    Kernel,
    Tally,
    bound_to,
    bytes_of,
    kernel_of,
    name_of,
    product,
    tensors_in,
)

Place = tuple[str, str, int]  # stage, name, layer
_BLOCK, _OUTER_BLOCK = 64, 256  # of bitsandbytes' constants, and of the constants of those
_NO_LAYER: Place = ("", "", -1)
_FAKE_ATTENTION = "attention.py"  # the stand-in for torch's C++ that casts its inputs itself
_WEIGHTS_AGAIN = frozenset({"dequantize_4bit", "int8_vectorwise_dequant"})


class KernelCounter(Recorder):
    """Counts by segment and kind of kernel; operators inside another one count as that one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tallies: dict[Place, dict[str, Tally]] = defaultdict(lambda: defaultdict(Tally))
        self._depth = 0
        self._inside: list[str] = []
        self._weights: set[int] = set()
        self._call: tuple[int, int] | None = None

    def keep_weights(self, tensors: Sequence[Any]) -> None:
        """Note which storages are the model's weights."""
        self._weights |= {self._identity(one) for one in tensors}

    def _identity(self, tensor: Any) -> int:
        return self._alive.get(tensor.untyped_storage()._cdata, (-1, 0))[0]

    def is_weight(self, tensor: Any) -> bool:
        """Whether a tensor is a weight, or one dequantised, cast or changed."""
        return self._identity(tensor) in self._weights

    def place(self) -> Place:
        """The open segment."""
        return _NO_LAYER if self._open is None else self._open[:3]

    def tally(self, kernel: Kernel, engine: int = 0) -> None:
        """Add an operator to the open segment; `engine` of its kernels were launched by C++ alone."""
        self.tallies[self.place()][kernel.kind].add(kernel, kernel.kernels, engine)

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if self._depth:
            self._inside.append(name_of(func))
            return super().__torch_dispatch__(func, types, args, kwargs)
        frame = caller_frame()
        call = (id(frame), frame.f_lasti)
        follows = call == self._call or is_engine_frame(frame) or frame.f_code.co_filename.endswith(_FAKE_ATTENTION)
        self._depth, self._inside = 1, []
        copied = copied_input(func, args) if self._device == "cuda" else 0
        try:
            result = super().__torch_dispatch__(func, types, args, kwargs)
        finally:
            self._depth = 0
        if self._runs_kernels(func, args, kwargs or {}, result):
            kernel = self._kernel(func, args, kwargs or {}, result)
            if copied:
                self.tally(Kernel(kind="copy", read=copied, written=copied), 1)
            self.tally(kernel, kernel.kernels if is_engine_frame(frame) else int(follows))
            self._call = call
        return result

    def _runs_kernels(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> bool:
        """Whether an operator does more than allocate or look at what is there."""
        name = name_of(func)
        inputs, outputs = list(tensors_in((args, kwargs))), list(tensors_in(result))
        here = [one for one in (*inputs, *outputs) if isinstance(one, FakeTensor)]
        if name in EMPTY or name == "device" or not any(one.fake_device.type == self._device for one in here):
            return False
        known = {one.untyped_storage()._cdata for one in inputs}
        writes = any(one.alias_info is not None and one.alias_info.is_write for one in func._schema.arguments)
        return writes or any(one.untyped_storage()._cdata not in known for one in outputs) or not outputs

    def _kernel(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> Kernel:
        name = name_of(func)
        special = _SPECIAL.get(name)
        if special is not None:
            return special(self, bound_to(func, args, kwargs), result)
        if name in _WEIGHTS_AGAIN or self._is_weight_again(args, result):
            self._weights.add(self._identity(result))
        return kernel_of(func, args, kwargs, result, self.is_weight)

    def _is_weight_again(self, args: Sequence[Any], result: Any) -> bool:
        """Whether a result is a matrix made of one as large: cast, or with an adapter's product added."""
        return isinstance(result, FakeTensor) and any(
            one.dim() >= 2 and one.numel() == result.numel() and self.is_weight(one) for one in tensors_in(args)
        )

    def gemm_4bit(self, given: Mapping[str, Any], result: Any) -> Kernel:
        """A 4-bit layer: constants, their offset and the matrix are read out, then multiplied; or all in one kernel."""
        rows, packed, (outer, inner) = given["A"], given["B"], given["shapeB"]
        flops = 2.0 * rows.numel() * outer
        if "empty" not in self._inside[1:] and not {"linear", "mm", "addmm"} & set(self._inside):
            moved = bytes_of(rows) + bytes_of(packed)
            return Kernel(kind="product", read=moved, written=bytes_of(result), flops=flops)
        count, size = outer * inner, rows.element_size()
        constants, doubled = count // _BLOCK, given.get("absmax_8bit") is not None
        read = constants * (1 + 4 + 4) + constants // _OUTER_BLOCK * 4 if doubled else 4 * constants
        written = 8 * constants if doubled else 0
        self.tally(
            Kernel(kind="dequantise", kernels=3 if doubled else 1, read=read + count // 2,
                   written=written + count * size),
            2 if doubled else 0,
        )  # fmt: skip
        return Kernel(kind="product", read=count * size, flops=flops)

    def int8_vectorwise_quant(self, given: Mapping[str, Any], result: Any) -> Kernel:
        """Halves to bytes by rows, after a look for outliers: abs, compare, any."""
        count, threshold = given["A"].numel(), given.get("threshold", 0.0)
        looked = 8 * count if threshold else 0
        return Kernel(kind="elementwise", kernels=4 if threshold else 1, read=2 * count + looked, written=count)

    def int8_scaled_mm(self, given: Mapping[str, Any], result: Any) -> Kernel:
        """A product of bytes, its sums scaled to halves, and those cast where another dtype is asked for."""
        out = next(tensors_in(result))
        a, b = (given["CA"], given["CB"]) if "CA" in given else (given["A"], given["B"])
        self.tally(Kernel(kind="elementwise", kernels=2, read=6 * out.numel(), written=4 * out.numel()), 2)
        return product(a, b, out, int(a.shape[-1]), [b])

    def triton(self, *args: Any, **kwargs: Any) -> None:
        """A Triton kernel, which passes through as much Python as several operators: each tensor that it is given is
        read or written once."""
        given = {one.untyped_storage()._cdata: one for one in tensors_in((args, kwargs))}
        moved = sum(map(bytes_of, given.values()))
        self.tally(Kernel(kind="triton", kernels=TRITON_LAUNCHES, read=moved - moved // 2, written=moved // 2))


_SPECIAL: dict[str, Any] = {
    "gemm_4bit": KernelCounter.gemm_4bit,
    "int8_vectorwise_quant": KernelCounter.int8_vectorwise_quant,
    "int8_scaled_mm": KernelCounter.int8_scaled_mm,
    "int8_mixed_scaled_mm": KernelCounter.int8_scaled_mm,
}


@contextlib.contextmanager
def launched_kernels(counter: KernelCounter) -> Iterator[None]:
    """Count what no operator announces: Triton's kernels, and those of trl's head, whose stand-ins do nothing."""

    def run(_self: Any, *args: Any, **kwargs: Any) -> None:
        counter.triton(*args, **kwargs)

    with contextlib.ExitStack() as stack:
        try:
            from triton.runtime import autotuner, jit
        except ImportError:
            pass
        else:
            for launcher in (jit.JITFunction, autotuner.Autotuner, autotuner.Heuristics):
                stack.enter_context(mock.patch.object(launcher, "run", run))
        stack.enter_context(mock.patch.object(IdleKernel, "run", run))
        head = sys.modules.get("trl.kernels.chunked_logprob")
        if head is not None:

            def fold(tile: Any, *_args: Any, **_kwargs: Any) -> None:
                counter.tally(Kernel(kind="triton", read=bytes_of(tile)))

            def turn(tile: Any, *_args: Any, **_kwargs: Any) -> None:
                counter.tally(Kernel(kind="triton", read=bytes_of(tile), written=bytes_of(tile)))

            def accumulate(acc: Any, a: Any, b: Any) -> None:
                weights = [one for one in (a, b) if counter.is_weight(one)]
                counter.tally(product(a, b, acc, int(a.shape[-1]), weights))

            for name, stand_in in (("_forward_tile", fold), ("_backward_tile", turn), ("_addmm_fp32", accumulate)):
                if hasattr(head, name):
                    stack.enter_context(mock.patch.object(head, name, stand_in))
        yield
