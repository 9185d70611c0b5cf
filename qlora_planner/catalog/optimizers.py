"""What each optimizer keeps per trainable tensor, under transformers' names."""

from __future__ import annotations

from math import prod

from qlora_planner.catalog.dtypes import DTYPE_BYTES
from qlora_planner.record import record

# bitsandbytes optim/optimizer.py (0.50.2): smaller tensors get 32-bit states; smaller ones are never paged.
MIN_8BIT_ELEMENTS = 4096
MIN_PAGED_ELEMENTS = 100_000
STATE_BLOCK = 256


@record
class StateTensor:
    """One state tensor: its bytes, and whether it lives in managed (paged) memory outside torch's allocator."""

    size_bytes: int
    paged: bool = False


@record
class OptimizerRow:
    """How an optimizer's state grows.

    `kind` picks the rule: `torch` (states in the parameter's dtype), `bnb` (bitsandbytes, 32 or 8 bit),
    `adafactor`, `none`. `moments` state tensors, of which the first spans `first_copies` copies of the parameter.
    `step_temporaries` is how many parameter-sized tensors one step makes for all parameters at once (foreach), and
    `step_on_gpu` whether each parameter has a scalar step tensor on the GPU.
    """

    name: str
    kind: str
    moments: int
    bits: int | None = None
    paged: bool = False
    first_copies: int = 1
    step_temporaries: int = 0
    step_on_gpu: bool = False
    package: str | None = None  # needed beside torch
    bfloat16_gradients: bool = True  # whether its 32-bit step takes them (8-bit ones use it for small tensors)

    def in_8_bits(self, shape: tuple[int, ...], forced_32bit: bool = False) -> bool:
        """Whether the states of a parameter are 8-bit ones; `forced_32bit` where a trainer overrides the optimizer."""
        return self.kind == "bnb" and self.bits == 8 and prod(shape) >= MIN_8BIT_ELEMENTS and not forced_32bit

    def states(self, shape: tuple[int, ...], dtype: str, forced_32bit: bool = False) -> list[StateTensor]:
        """State tensors of one parameter of `shape` and `dtype` after the first step; see `in_8_bits`."""
        numel = prod(shape)
        if self.kind == "none":
            return []
        if self.kind == "adafactor":
            return _adafactor_states(shape, numel)
        if self.kind == "torch":
            sizes = [numel * DTYPE_BYTES[dtype]] * self.moments
            return [StateTensor(size_bytes=size) for size in sizes] + (
                [StateTensor(size_bytes=4)] if self.step_on_gpu else []
            )
        return self._bitsandbytes_states(numel, self.in_8_bits(shape, forced_32bit))

    def _bitsandbytes_states(self, numel: int, eight_bit: bool) -> list[StateTensor]:
        paged = self.paged and numel >= MIN_PAGED_ELEMENTS
        width = 1 if eight_bit else 4
        blocks = -(-numel // STATE_BLOCK)
        spans = [self.first_copies if moment == 0 else 1 for moment in range(self.moments)]
        # In the order in which they are made: the states, then their block constants.
        states = [StateTensor(size_bytes=span * numel * width, paged=paged) for span in spans]
        if eight_bit:
            states += [StateTensor(size_bytes=span * blocks * 4) for span in spans]
        return states

    def shared_bytes(self, any_8bit: bool) -> list[int]:
        """Tensors kept once per optimizer: bitsandbytes' 256-entry quantisation maps."""
        return [1024] * min(self.moments, 2) if self.kind == "bnb" and self.bits == 8 and any_8bit else []


def _adafactor_states(shape: tuple[int, ...], numel: int) -> list[StateTensor]:
    # transformers/optimization.py Adafactor: factored in float32 for two dimensions and more, beta1=None.
    # One scalar more: the parameter's root mean square.
    scale = StateTensor(size_bytes=4)
    if len(shape) < 2:
        return [StateTensor(size_bytes=4 * numel), scale]
    return [StateTensor(size_bytes=4 * numel // shape[-1]), StateTensor(size_bytes=4 * numel // shape[-2]), scale]


def _bnb(
    name: str, moments: int, bits: int, *, paged: bool = False, first_copies: int = 1, bfloat16_gradients: bool = True
) -> OptimizerRow:
    return OptimizerRow(
        name=name,
        kind="bnb",
        moments=moments,
        bits=bits,
        paged=paged,
        first_copies=first_copies,
        package="bitsandbytes",
        bfloat16_gradients=bfloat16_gradients,
    )


_ROWS = (
    # torch 2.13: plain AdamW, SGD, RMSprop and Adagrad take the foreach path on CUDA, with one parameter-sized
    # temporary list per step; fused AdamW takes none and keeps its step counters on the GPU.
    OptimizerRow(name="adamw_torch", kind="torch", moments=2, step_temporaries=1),
    OptimizerRow(name="adamw_torch_fused", kind="torch", moments=2, step_on_gpu=True),
    OptimizerRow(name="sgd", kind="none", moments=0),
    OptimizerRow(name="rmsprop", kind="torch", moments=1, step_temporaries=1),
    OptimizerRow(name="adagrad", kind="torch", moments=1, step_temporaries=1),
    OptimizerRow(name="adafactor", kind="adafactor", moments=1),
    _bnb("adamw_bnb_8bit", 2, 8),
    _bnb("adamw_8bit", 2, 8),
    _bnb("paged_adamw_8bit", 2, 8, paged=True),
    _bnb("paged_adamw_32bit", 2, 32, paged=True),
    _bnb("ademamix", 2, 32, first_copies=2),
    _bnb("ademamix_8bit", 2, 8, first_copies=2),
    _bnb("paged_ademamix_32bit", 2, 32, paged=True, first_copies=2),
    _bnb("paged_ademamix_8bit", 2, 8, paged=True, first_copies=2),
    _bnb("lion_32bit", 1, 32),
    _bnb("lion_8bit", 1, 8),
    _bnb("paged_lion_32bit", 1, 32, paged=True),
    _bnb("paged_lion_8bit", 1, 8, paged=True),
    # bitsandbytes 0.50 backends/cuda/ops.py, str2optimizer32bit: RMSprop has no kernel for bfloat16 gradients.
    _bnb("rmsprop_bnb", 1, 32, bfloat16_gradients=False),
    _bnb("rmsprop_bnb_8bit", 1, 8, bfloat16_gradients=False),
    _bnb("rmsprop_bnb_32bit", 1, 32, bfloat16_gradients=False),
)

OPTIMIZERS: dict[str, OptimizerRow] = {row.name: row for row in _ROWS}


def find_optimizer(name: str) -> OptimizerRow | None:
    """The row of a transformers optimizer name, or None when its memory is not known here."""
    return OPTIMIZERS.get(name)
