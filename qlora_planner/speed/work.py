"""Work of a card, as sums over the kernels that PyTorch launches: operations, bytes moved, launches.

Every quantity is a polynomial in the sizes of a micro-batch (`BASIS`), so that a layer, a model and a whole step are
sums of coefficients, and one candidate or a million are evaluated alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qlora_planner.record import record

# What the coefficients belong to; tokens = batch x sequence, tiles = tiles of the fused head (trl), rounded up.
BASIS = ("one", "rank", "tokens", "tokens_rank", "tokens_seq", "seq", "tiles", "experts_tokens")
Vector = NDArray[np.float64]


def terms(**coefficients: float) -> Vector:
    """A polynomial by the names of `BASIS`; raises KeyError for another name."""
    vector = np.zeros(len(BASIS))
    for name, value in coefficients.items():
        vector[_PLACE[name]] += value
    return vector


_PLACE = {name: index for index, name in enumerate(BASIS)}


QUANTITIES = (
    "half_flops", "float_flops", "int8_flops", "attention_flops", "traffic", "launches", "engine_launches",
)  # fmt: skip
_ROW = {name: index for index, name in enumerate(QUANTITIES)}


class Work:
    """What a stretch of a step costs, each of `QUANTITIES` a polynomial.

    `half_flops`, `float_flops`, `int8_flops` are multiply-adds counted twice, by the unit that runs them;
    `attention_flops` those of fused attention kernels, which reach less of the peak; `traffic` bytes read and written
    by all kernels that move data rather than multiply; `launches` kernels launched from Python, `engine_launches` those
    launched by C++ alone: by autograd's engine, or by autocast on the way.
    """

    __slots__ = ("table",)

    def __init__(self, table: Vector | None = None, **quantities: Vector) -> None:
        # One table for all: works are added up by the thousand. Shape (quantities, terms of `BASIS`).
        self.table = np.zeros((len(QUANTITIES), len(BASIS))) if table is None else table
        for name, vector in quantities.items():
            self.table[_ROW[name]] = vector

    def __getattr__(self, name: str) -> Vector:
        if name not in _ROW:
            raise AttributeError(name)
        row: Vector = self.table[_ROW[name]]
        return row

    def __add__(self, other: Work) -> Work:
        return Work(self.table + other.table)

    def __mul__(self, factor: float) -> Work:
        return Work(self.table * factor)


NOTHING = Work()


@record
class Pass:
    """One stretch forwards and backwards."""

    forward: Work = NOTHING
    backward: Work = NOTHING

    def __add__(self, other: Pass) -> Pass:
        return Pass(forward=self.forward + other.forward, backward=self.backward + other.backward)

    def __mul__(self, factor: float) -> Pass:
        return Pass(forward=self.forward * factor, backward=self.backward * factor)


def moves(kernels: float, per_token: float = 0.0, *, engine: bool = False, **more: float) -> Work:
    """Kernels that move `per_token` bytes a token in all, and `more` by the names of `BASIS`."""
    count = terms(one=kernels)
    traffic = terms(tokens=per_token, **more)
    return Work(traffic=traffic, engine_launches=count) if engine else Work(traffic=traffic, launches=count)


def multiplies(rate: str, flops: Vector) -> Work:
    """A product's operations, without its launch or traffic; `rate` is half, float, int8 or attention."""
    return Work(**{f"{rate}_flops": flops})


def values(batch: Any, seq: Any, rank: Any, tile_tokens: int, experts: int) -> tuple[Any, ...]:
    """What `BASIS` stands for, for sizes that are numbers or arrays of one shape.

    `experts_tokens` is how many of `experts` a micro-batch reaches at most, which bounds the expert weights read.
    """
    tokens = batch * seq
    tiles = np.ceil(tokens / tile_tokens)
    reached = np.minimum(tokens, experts) if experts else 0 * tokens
    return (1.0, rank, tokens, tokens * rank, tokens * seq, seq, tiles, reached)


def evaluator(vector: Vector) -> Callable[[tuple[Any, ...]], Any]:
    """The polynomial as a function of `values`; terms that are zero cost nothing."""
    used = [(index, float(value)) for index, value in enumerate(vector) if value]

    def at(sizes: tuple[Any, ...]) -> Any:
        total: Any = 0.0
        for index, value in used:
            total = total + value * sizes[index]
        return total

    return at
