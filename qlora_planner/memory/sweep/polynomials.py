"""Allocated bytes of many runs at once, from one tape: live blocks counted by size, each size rounded on its own.

A moment of a step is how many blocks of each size polynomial are alive. Allocated bytes are the sum of count times size
rounded up to 512 bytes, which one run and an array of runs work out alike. Blocks that the cache hands out whole,
although larger than asked for, are the allocator simulation's business and not counted here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import TYPE_CHECKING, Any

from qlora_planner.catalog.trainers import trainer_named
from qlora_planner.errors import InputError
from qlora_planner.memory.allocator.caching import MIN_BLOCK_BYTES, block_bytes
from qlora_planner.memory.weights.trainable import TrainingState
from qlora_planner.record import record, replaced
from qlora_planner.spec.run import RunConfig
from qlora_planner.spec.trace import CompiledTape, Term

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PHASES = ("forward", "loss", "backward", "optimizer")
# Columns of a moment behind those of the tape's sizes: what the optimizer holds and makes.
STATES, SCRATCH, NORMS = -1, -2, -3
_EXACT_FLOAT = 1 << 53
_SMALL_WORKSPACE_BYTES = 1 << 20

Row = tuple[tuple[int, int], ...]  # (column, count) of what is alive; negative columns as above


@record
class FixedBytes:
    """Bytes that a rank decides and batch and sequence do not, each tensor rounded to blocks.

    `held`: weights and trained tensors. `states`: optimizer states. `scratch`: what one optimizer step makes.
    `norms`: gradient norms while clipping.
    """

    held: int
    states: int
    scratch: int
    norms: int

    @classmethod
    def of(cls, weights_bytes: int, state: TrainingState, tensors: int, run: RunConfig) -> FixedBytes:
        """From the bytes of weights that are not trained and the `tensors` that are."""
        clipped = tensors * MIN_BLOCK_BYTES + block_bytes(4 * tensors)
        return cls(
            held=weights_bytes + state.weights,
            states=state.optimizer,
            scratch=state.step_temporaries,
            norms=clipped if trainer_named(run.trainer).clips_gradients else 0,
        )


@record
class PeakPolynomials:
    """By phase, every moment that no other one reaches in every run: no run's peak can lie elsewhere.

    `workspaces` are the columns of cuBLAS handles, which differ by card: see `on`.
    """

    sizes: tuple[tuple[Term, ...], ...]
    rows: Mapping[str, tuple[Row, ...]]
    workspaces: tuple[int, ...] = ()
    # A search asks the same moments for many option sets: what does not depend on the run is worked out once.
    _known: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    def on(self, workspace_bytes: int) -> PeakPolynomials:
        """The same on a card where one cuBLAS handle takes `workspace_bytes`."""
        if workspace_bytes not in self._known:
            taken: tuple[Term, ...] = ((workspace_bytes, 1, (0, 0, 0)),)
            sizes = tuple(taken if column in self.workspaces else terms for column, terms in enumerate(self.sizes))
            self._known[workspace_bytes] = replaced(self, sizes=sizes, _known={})
        on_card: PeakPolynomials = self._known[workspace_bytes]
        return on_card

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, compact: a row is column, count, column, count and so on."""
        return {
            "sizes": [[[n, d, *m] for n, d, m in terms] for terms in self.sizes],
            "rows": {phase: [[x for pair in row for x in pair] for row in rows] for phase, rows in self.rows.items()},
            "workspaces": list(self.workspaces),
        }

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> PeakPolynomials:
        """Read back what `to_dict` wrote."""
        return cls(
            sizes=tuple(tuple((n, d, (b, s, r)) for n, d, b, s, r in terms) for terms in raw["sizes"]),
            rows={
                phase: tuple(tuple(zip(row[::2], row[1::2], strict=True)) for row in rows)
                for phase, rows in raw["rows"].items()
            },
            workspaces=tuple(raw["workspaces"]),
        )

    def allocated_phases(self, batch_size: int, seq_len: int, rank: int, fixed: FixedBytes) -> dict[str, int]:
        """The most bytes allocated in each training phase of one run."""
        values = self._values(batch_size, seq_len, rank, fixed)
        return {
            phase: fixed.held + max(sum(values[column] * count for column, count in row) for row in rows)
            for phase, rows in self.rows.items()
        }

    def leading(self, batch_size: Any, seq_len: Any, rank: int, fixed: FixedBytes) -> dict[str, list[int]]:
        """By phase, which of its moments are the highest of all phases in any of these runs, shape (runs,) each."""
        import numpy as np

        batch, seq = np.broadcast_arrays(np.asarray(batch_size, dtype=np.int64), np.asarray(seq_len, dtype=np.int64))
        table = np.empty((len(self.sizes) + 3, batch.size))
        table[: len(self.sizes)] = self._blocks(batch, seq, rank)
        for column, value in ((NORMS, fixed.norms), (SCRATCH, fixed.scratch), (STATES, fixed.states)):
            table[column] = value // MIN_BLOCK_BYTES
        owners = [(phase, at) for phase, rows in self.rows.items() for at in range(len(rows))]
        counts = np.zeros((len(owners), len(table)))
        for owner, (phase, at) in enumerate(owners):
            for column, count in self.rows[phase][at]:
                counts[owner, column] = count
        leading: dict[str, list[int]] = {}
        # A row per run, because the highest of a column takes four times as long to find.
        for owner in np.unique(np.argmax(table.T @ counts.T, axis=1)).tolist():
            leading.setdefault(owners[owner][0], []).append(owners[owner][1])
        return leading

    def only(self, chosen: Mapping[str, Sequence[int]]) -> PeakPolynomials:
        """The same with these moments of these phases alone, and the sizes that they count."""
        rows = {phase: [self.rows[phase][at] for at in places] for phase, places in chosen.items()}
        used = sorted({column for kept in rows.values() for row in kept for column, _ in row if column >= 0})
        new_column = {column: at for at, column in enumerate(used)} | {c: c for c in (STATES, SCRATCH, NORMS)}
        return PeakPolynomials(
            sizes=tuple(self.sizes[column] for column in used),
            rows={
                phase: tuple(tuple((new_column[column], count) for column, count in row) for row in kept)
                for phase, kept in rows.items()
            },
            workspaces=tuple(new_column[column] for column in self.workspaces if column in new_column),
        )

    def _values(self, batch_size: int, seq_len: int, rank: int, fixed: FixedBytes) -> list[int]:
        values = [rounded_bytes(terms, batch_size, seq_len, rank) for terms in self.sizes]
        return [*values, fixed.norms, fixed.scratch, fixed.states]  # columns -3, -2, -1

    def highest(
        self, batch_size: Any, seq_len: Any, rank: int, fixed: FixedBytes, accumulates: bool, gradients: int
    ) -> NDArray[np.int64]:
        """The most bytes allocated in any training phase, for arrays of runs, shape (runs,).

        Where a run `accumulates`, those of earlier micro-batches are taken to be there at every moment, which is at
        most their own bytes, `gradients`, too much.
        """
        import numpy as np

        table = self.table(batch_size, seq_len, rank, fixed)
        if "moments" not in self._known:
            self._known["moments"] = np.concatenate(list(self._counts().values())).T.copy()
        blocks = (table.T @ self._known["moments"]).max(axis=1)  # a row a run: the highest of a column takes longer
        level: NDArray[np.int64] = fixed.held + blocks.astype(np.int64) * MIN_BLOCK_BYTES
        return level + (gradients if accumulates else 0)

    def table(self, batch_size: Any, seq_len: Any, rank: int, fixed: FixedBytes) -> NDArray[np.float64]:
        """Every size, then norms, scratch and states, in blocks of 512 bytes: shape (sizes + 3, runs).

        Raises InputError for sizes beyond what 53 bits hold.
        """
        import numpy as np

        batch, seq = (np.asarray(sizes, dtype=np.int64) for sizes in (batch_size, seq_len))
        if batch.shape != seq.shape:
            batch, seq = np.broadcast_arrays(batch, seq)
        sizes = batch.tobytes(), seq.tobytes(), rank
        if sizes not in self._known:
            self._check_exact((int(batch.max()), int(seq.max()), rank))
            self._known[sizes] = self._blocks(batch, seq, rank)
        blocks = np.empty((len(self.sizes) + 3, batch.size))
        blocks[: len(self.sizes)] = self._known[sizes]
        for column, value in ((NORMS, fixed.norms), (SCRATCH, fixed.scratch), (STATES, fixed.states)):
            blocks[column] = value // MIN_BLOCK_BYTES
        return blocks

    def _check_exact(self, top: tuple[int, ...]) -> None:
        """Raise InputError where runs up to these sizes come to numbers that a float does not hold exactly."""
        if top not in self._known:
            monomials, factors, _ = self._factors()
            powers = [top[0] ** b * top[1] ** s * float(top[2] ** r) for b, s, r in monomials]
            roughly = abs(factors) @ powers  # to some parts in 10**15
            self._known[top] = bool((roughly < _EXACT_FLOAT / 2).all()) or all(
                _magnitude(whole, top) < _EXACT_FLOAT for whole, _ in self._wholes()
            )
        if not self._known[top]:
            raise InputError(f"runs up to batch, sequence, rank {top} are too large to sweep: use shorter sequences")

    def _blocks(self, batch: NDArray[np.int64], seq: NDArray[np.int64], rank: Any) -> NDArray[np.int64]:
        """Every size in blocks of 512 bytes, shape (sizes, runs). Below 2**53 float products add exactly."""
        import numpy as np

        monomials, factors, units = self._factors()
        of_batch, of_seq = ({n: x**n for n in {m[at] for m in monomials}} for at, x in enumerate((batch, seq)))
        powers = np.array([of_batch[b] * of_seq[s] * rank**r for b, s, r in monomials], dtype=np.float64)
        totals = (factors @ powers.reshape(len(monomials), batch.size)).astype(np.int64)
        blocks: NDArray[np.int64] = np.maximum(0, -(-totals // units))
        return blocks

    def _factors(self) -> tuple[list[tuple[int, int, int]], NDArray[np.float64], NDArray[np.int64]]:
        """The monomials of all sizes, how often each size has each of them, shape (sizes, monomials), and the sizes'
        units, shape (sizes, 1)."""
        import numpy as np

        if "factors" not in self._known:
            wholes = self._wholes()
            index_of = {m: at for at, m in enumerate(dict.fromkeys(m for whole, _ in wholes for _, m in whole))}
            factors = np.zeros((len(wholes), len(index_of)))
            for index, (whole, _) in enumerate(wholes):
                for n, m in whole:
                    factors[index, index_of[m]] += n
            units = np.array([unit for _, unit in wholes], dtype=np.int64).reshape(-1, 1)
            self._known["factors"] = list(index_of), factors, units
        kept: tuple[list[tuple[int, int, int]], NDArray[np.float64], NDArray[np.int64]] = self._known["factors"]
        return kept

    def _wholes(self) -> list[tuple[list[tuple[int, tuple[int, int, int]]], int]]:
        """Every size's terms over one denominator, and that denominator in blocks."""
        if "wholes" not in self._known:
            self._known["wholes"] = [
                (whole, denominator * MIN_BLOCK_BYTES) for whole, denominator in map(_common, self.sizes)
            ]
        wholes: list[tuple[list[tuple[int, tuple[int, int, int]]], int]] = self._known["wholes"]
        return wholes

    def _counts(self) -> dict[str, NDArray[np.float64]]:
        """By phase, how often each moment counts each size: shape (moments, sizes + 3)."""
        import numpy as np

        if "counts" not in self._known:
            self._known["counts"] = {}
            for phase, rows in self.rows.items():
                counts = self._known["counts"][phase] = np.zeros((len(rows), len(self.sizes) + 3))
                for at, row in enumerate(rows):
                    for column, count in row:
                        counts[at, column] = count
        by_phase: dict[str, NDArray[np.float64]] = self._known["counts"]
        return by_phase


def handles_of(tape: CompiledTape) -> set[int]:
    """Which sizes are cuBLAS handles'; the small buffer of fused bias kernels is the same on every card."""
    return {i for i in tape.workspace_sizes if tape.sizes[i][0][0] > _SMALL_WORKSPACE_BYTES}


def _common(terms: Sequence[Term]) -> tuple[list[tuple[int, tuple[int, int, int]]], int]:
    denominator = 1
    for _, d, _ in terms:
        denominator *= d
    return [(n * (denominator // d), m) for n, d, m in terms], denominator


def rounded_bytes(terms: Sequence[Term], batch: int, seq: int, rank: int) -> int:
    """A size polynomial at one run's numbers, rounded up to whole blocks."""
    whole, denominator = _common(terms)
    total: int = sum(n * batch ** m[0] * seq ** m[1] * rank ** m[2] for n, m in whole)
    return max(0, -(-total // (denominator * MIN_BLOCK_BYTES))) * MIN_BLOCK_BYTES


def _magnitude(whole: Sequence[tuple[int, tuple[int, int, int]]], top: tuple[int, ...]) -> int:
    return sum(abs(n) * top[0] ** b * top[1] ** s * top[2] ** r for n, (b, s, r) in whole)
