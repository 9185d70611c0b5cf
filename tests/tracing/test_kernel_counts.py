"""What the counter says of kernels, by operators whose work is known, and by torch's own counter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("bitsandbytes")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from tools.kernels.classes import Kernel, kernel_of  # noqa: E402


def is_wide_weight(tensor: Any) -> bool:
    """Whether a tensor lies in the storage of the wide weight below."""
    return bool(tensor.untyped_storage().data_ptr() == WIDE.untyped_storage().data_ptr())


class Last(TorchDispatchMode):
    """Keeps what the last operator was counted as."""

    kernel: Kernel

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.kernel = kernel_of(func, args, kwargs or {}, result, is_wide_weight)
        return result


def last(run: Callable[[], Any]) -> Kernel:
    """What the last operator of `run` is counted as."""
    with torch.no_grad(), Last() as mode:
        run()
    return mode.kernel


A, B = torch.zeros(6, 10), torch.zeros(6, 10)
ROWS = torch.tensor([1, 2, 3])
TABLE, WIDE = torch.zeros(1000, 16), torch.zeros(1024, 768)


@pytest.mark.parametrize(
    ("run", "kind", "read", "written"),
    [
        (lambda: A + B, "elementwise", 2 * 240, 240),
        (lambda: A + torch.zeros(1, 10).expand(6, 10), "elementwise", 240 + 40, 240),  # each place once
        (lambda: A.to(torch.bfloat16), "copy", 240, 120),
        (lambda: A.sum(), "reduction", 240, 4),
        (lambda: torch.zeros_like(A), "fill", 0, 240),
        (lambda: torch.nn.functional.embedding(ROWS, TABLE), "gather", 3 * 64, 3 * 64),  # not the whole table
        (lambda: torch.zeros(6, 10).copy_(A), "copy", 240, 240),
        (lambda: torch.mm(A, B.t()), "product", 2 * 240, 144),
        (lambda: torch.mm(torch.zeros(2048, 768), WIDE.t()), "product", 4 * 1024 * 768, 0),  # its weight alone
    ],
)
def test_a_kernel_reads_its_inputs_and_writes_its_result(
    run: Callable[[], Any], kind: str, read: int, written: int
) -> None:
    kernel = last(run)
    assert (kernel.kind, kernel.read, kernel.written) == (kind, read, written)


def test_the_gradient_of_a_slice_is_a_fill_and_a_copy() -> None:
    kernel = last(lambda: torch.ops.aten.slice_backward(A, [6, 40], 1, 0, 10, 1))
    assert kernel.kernels == 2
    assert (kernel.read, kernel.written) == (240, 960 + 240)


def attention(mask: Any, causal: bool) -> Kernel:
    """Fused attention of 2 rows, 3 heads, 8 positions, 16 wide."""
    query, key, value = (torch.zeros(2, 3, 8, 16, device="meta", dtype=torch.bfloat16) for _ in range(3))
    attend = torch.ops.aten._scaled_dot_product_efficient_attention
    return last(lambda: attend(query, key, value, mask, True, 0.0, causal))


def test_a_causal_kernel_skips_half_of_the_square_and_one_with_a_mask_does_not() -> None:
    whole = 2 * 2 * 3 * 8 * 8 * (16 + 16)
    mask = torch.zeros(2, 3, 8, 8, device="meta", dtype=torch.bfloat16)
    assert attention(None, True).flops == whole / 2
    assert attention(mask, False).flops == whole


@pytest.mark.parametrize("method", ["full", "lora"])
def test_products_of_a_traced_step_are_those_that_torch_counts(method: str) -> None:
    from qlora_planner.memory.options.resolve import resolve
    from qlora_planner.profiling.tracing.spec import TraceSpec
    from qlora_planner.spec.run import RunConfig
    from tests.planner import test_speed_flops as real
    from tools.kernels.step import count_run

    run = RunConfig(
        method=method, quant="none", trainer="loop", compute_dtype="float32", attention="eager",
        batch_size=real.BATCH, seq_len=real.SEQ, rank=real.RANK, lora_dropout=0.0, padding=False,
        optimizer="adamw_torch", gradient_checkpointing=True, use_reentrant=False,
        target_modules="all-linear" if method == "lora" else None,
    )  # fmt: skip
    resolution = resolve(real.profile_of("llama"), run)
    work = count_run(real.CONFIGS["llama"], TraceSpec(resolution=resolution)).work()
    products = float(work.half_flops[0] + work.float_flops[0])
    assert products == pytest.approx(real.counted(real.CONFIGS["llama"], resolution.run), rel=0.001)
