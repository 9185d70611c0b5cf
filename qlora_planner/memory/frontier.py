"""The few moments of a traced step that can be its highest, as polynomials: what a sweep evaluates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qlora_planner.catalog import OPTIMIZERS, TRAINER_ROWS
from qlora_planner.memory.allocator import Block, CachingAllocator, Segment
from qlora_planner.memory.replay import COMPONENTS, Player
from qlora_planner.memory.script import write_script
from qlora_planner.profile.tape import CompiledTape, Monomial
from qlora_planner.run import RunConfig

# Sizes at which moments compete; one that leads at none of them is dropped.
_SEQS = (64, 256, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 16384, 32768, 131072)
_BATCHES, _RANKS = (1, 2, 3, 4, 8, 16, 64), (4, 16, 64, 256)


@dataclass(frozen=True, slots=True, kw_only=True)
class Frontier:
    """Bytes alive beside weights, adapters and optimizer states at the moments that can be the highest.

    Each row gives a coefficient per monomial of (batch, sequence, rank). Sizes are not rounded to blocks.
    """

    monomials: tuple[Monomial, ...]
    rows: tuple[tuple[float, ...], ...]

    def at(self, batch_size: int, seq_len: int, rank: int) -> int:
        """The highest of the moments, in bytes."""
        values = [batch_size**b * seq_len**s * rank**r for b, s, r in self.monomials]
        return int(max(sum(c * v for c, v in zip(row, values, strict=True)) for row in self.rows))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"monomials": [list(m) for m in self.monomials], "rows": [list(row) for row in self.rows]}

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Frontier:
        """Read back what `to_dict` wrote."""
        return cls(
            monomials=tuple((m[0], m[1], m[2]) for m in raw["monomials"]),
            rows=tuple(tuple(row) for row in raw["rows"]),
        )


class _Counter(CachingAllocator):
    """An allocator that only adds up, and keeps the level after every allocation."""

    def __init__(self) -> None:
        super().__init__()
        self.levels: list[int] = []
        self._segment = Segment(0)

    def malloc(self, size_bytes: int) -> Block | None:
        self.allocated += size_bytes
        self.levels.append(self.allocated)
        return Block(0, size_bytes, False, self._segment)

    def free(self, block: Block | None) -> None:
        if block is not None:
            self.allocated -= block.size


def frontier_of(tape: CompiledTape, gradient_checkpointing: bool) -> Frontier:
    """Play one step of the whole model at a few sizes, read every moment's polynomial off, keep those that lead."""
    import numpy as np  # late: only tapes that are being made need it

    monomials = tuple(dict.fromkeys(m for terms in tape.sizes for _, _, m in terms)) or ((0, 0, 0),)
    points = _points(monomials)
    levels = np.array([_levels(tape, point, gradient_checkpointing) for point in points], dtype=float).T
    matrix = np.array([_values(monomials, point) for point in points], dtype=float)
    scale = np.abs(matrix).max(axis=0)
    rows = np.linalg.lstsq(matrix / scale, levels.T, rcond=None)[0].T / scale
    grid = np.array([_values(monomials, (b, s, r)) for b in _BATCHES for s in _SEQS for r in _RANKS], dtype=float).T
    leaders = sorted(set(np.argmax(rows @ grid, axis=0).tolist()))
    return Frontier(
        monomials=monomials, rows=tuple(tuple(round(float(c), 6) for c in rows[leader]) for leader in leaders)
    )


def _values(monomials: Sequence[Monomial], point: tuple[int, int, int]) -> list[int]:
    batch, seq, rank = point
    return [batch**b * seq**s * rank**r for b, s, r in monomials]


def _points(monomials: Sequence[Monomial]) -> list[tuple[int, int, int]]:
    """As many generic sizes as there are monomials, and two more."""
    base = [(2, 1664, 8), (3, 2176, 24), (2, 3008, 56), (5, 1920, 40), (4, 2624, 16), (3, 3392, 72), (7, 1792, 32)]
    base += [(6, 2304, 88), (5, 2752, 48), (8, 1856, 104), (9, 3136, 120), (4, 3584, 136)]
    if all(m[0] == m[1] or m[1] == 2 for m in monomials):
        base = [(1, s, r) for _, s, r in base]
    return base[: len(monomials) + 2]


def _levels(tape: CompiledTape, point: tuple[int, int, int], gradient_checkpointing: bool) -> list[int]:
    counter = _Counter()
    player = Player(counter, write_script(tape.at(*point), gradient_checkpointing), [0] * len(COMPONENTS))
    player.play([], RunConfig(trainer="loop"), TRAINER_ROWS["loop"], OPTIMIZERS["sgd"])
    return counter.levels
