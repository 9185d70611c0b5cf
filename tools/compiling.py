"""From tapes traced at a few points to one tape whose sizes are polynomials in batch, sequence and rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import combinations, pairwise

from qlora_planner.errors import PlannerError
from qlora_planner.memory.sweep.validity import ValidityRange
from qlora_planner.spec.trace import CompiledTape, Monomial, Tape, Term

# What sizes are made of, likeliest first: constants, tokens, rank, scores, and their products.
BASIS: tuple[Monomial, ...] = (
    (0, 0, 0), (1, 1, 0), (0, 0, 1), (1, 1, 1), (0, 1, 0), (1, 2, 0), (0, 2, 0), (1, 0, 0), (0, 1, 1), (1, 0, 1),
)  # fmt: skip
MOST_TERMS = 3
# Up to some dozens of tokens bitsandbytes multiplies by a fused kernel that dequantises nothing (backends/cuda/ops.py):
# tapes are traced above, and bound such short runs from above.
_SHORTEST = 48
Point = tuple[int, int, int]


class NotPolynomialError(PlannerError):
    """Tapes at different points differ in more than sizes: a kernel switches or a loop grows between them."""


def points_in(region: ValidityRange) -> list[Point]:
    """Generic sizes (batch, sequence, rank) inside `region`: those to fit at, and the last to prove the fit at.

    Sequences are multiples of 64, or 16 in narrow regions; at larger batches there are two points more, because the
    batch makes a third unknown.
    """
    top = min(region.high, max(2 * region.low, 4096))
    if not region.batched:
        seqs = [_part(max(region.low, _SHORTEST), top, part) for part in (3, 7, 11, 15)]
        return list(zip((1, 1, 1, 1), seqs, (8, 24, 56, 40), strict=True))
    ranks = (8, 24, 56, 40, 16, 72)
    if region.most_tokens < 1 << 20:
        most = region.most_tokens
        batches = [min(batch, most // (region.low + 64)) for batch in (2, 3, 5, 4, 3, 2)]
        spans = [(max(region.low, region.tokens // batch), min(top, most // batch)) for batch in batches]
        seqs = [_part(low, high, part) for (low, high), part in zip(spans, (5, 14, 12, 9, 7, 15), strict=True)]
        return list(zip(batches, seqs, ranks, strict=True))
    # Large batches, so that no tile is left half full.
    seqs = [_part(region.low, top, part) for part in (3, 7, 11, 15, 3, 11)]
    least = [region.tokens // seq + 1 + extra for seq, extra in zip(seqs, (2, 3, 5, 4, 3, 2), strict=True)]
    batches = [max(pair) for pair in zip((8, 9, 11, 10, 9, 8), least, strict=True)]
    return list(zip(batches, seqs, ranks, strict=True))


def _part(low: int, high: int, part: int) -> int:
    """So many sixteenths of the way from `low` to `high`, on a grid."""
    grid = 64 if high - low >= 1024 else 16
    return min(high // grid, -(-(low * 16 + (high - low) * part) // 16 // grid)) * grid


def compile_tapes(trace: Callable[[Point], Tape], points: Sequence[Point], check: Point, variant: str) -> CompiledTape:
    """Trace at `points` (batch, sequence, rank), fit every size, and prove the fit at `check` to the byte.

    Raises NotPolynomialError when the tapes' events differ or a size is no sum of a few monomials.
    """
    tapes = [trace(point) for point in (*points, check)]
    codes = aligned_codes(tapes, (*points, check))
    fits: dict[tuple[int, ...], tuple[Term, ...]] = {}
    sizes: dict[tuple[tuple[Term, ...], str], int] = {}
    events: list[int] = []
    columns = zip(*(tape.events for tape in tapes), strict=True)
    for column, code in zip(columns, codes, strict=True):
        if code < 0:
            events.append(code)
            continue
        observed = tuple(size for _, size in column)
        if observed not in fits:
            fits[observed] = _fit(observed, (*points, check))
        storage = column[0][0]
        kind = "workspace" if storage in tapes[0].workspaces else "host" if storage in tapes[0].on_host else ""
        key = (fits[observed], kind)
        events.append(sizes.setdefault(key, len(sizes)) + 1)
    first = tapes[0]
    return CompiledTape(
        variant=variant,
        sizes=tuple(terms for terms, _ in sizes),
        workspace_sizes=tuple(index for index, (_, kind) in enumerate(sizes) if kind == "workspace"),
        events=tuple(events),
        segments=first.segments,
        places=first.places,
        kept=first.kept,
        host_sizes=tuple(index for index, (_, kind) in enumerate(sizes) if kind == "host"),
    )


def aligned_codes(tapes: Sequence[Tape], points: Sequence[Point]) -> list[int]:
    """Events as codes (0 for a birth, -n for the death of the n-th born), the same in every tape."""
    lengths = dict(sorted((seq, len(tape.events)) for (_, seq, _), tape in zip(points, tapes, strict=True)))
    counts = list(lengths.values())
    if len(counts) > 1 and all(a < b for a, b in pairwise(counts)):
        raise NotPolynomialError(
            f"a loop in the model's code grows with the sequence ({counts[0]} events at {min(lengths)} tokens,"
            f" {counts[-1]} at {max(lengths)}): such runs are traced one by one"
        )
    coded = [_codes(tape) for tape in tapes]
    for tape, codes in zip(tapes[1:], coded[1:], strict=True):
        if codes != coded[0] or tape.segments != tapes[0].segments:
            at = next(
                (i for i, (a, b) in enumerate(zip(codes, coded[0], strict=False)) if a != b), min(map(len, coded))
            )
            raise NotPolynomialError(f"the traced runs differ in their events at event {at}")
    return coded[0]


def _codes(tape: Tape) -> list[int]:
    number: dict[int, int] = {}
    codes = []
    for storage, size in tape.events:
        if size:
            number[storage] = len(number) + 1
            codes.append(0)
        else:
            codes.append(-number[storage])
    return codes


def _fit(observed: tuple[int, ...], points: Sequence[Point]) -> tuple[Term, ...]:
    """The shortest sum of monomials that gives exactly `observed` at `points`, with non-negative leading terms."""
    if len(set(observed)) == 1:
        return ((observed[0], 1, (0, 0, 0)),)
    values = {m: [b ** m[0] * s ** m[1] * r ** m[2] for b, s, r in points] for m in BASIS}
    for count in range(1, MOST_TERMS + 1):
        for chosen in combinations(BASIS, count):
            solved = solve([values[m] for m in chosen], observed)
            if solved is not None and all(solved):
                return tuple((c.numerator, c.denominator, m) for c, m in zip(solved, chosen, strict=True))
    raise NotPolynomialError(f"a size of {observed} bytes at {tuple(points)} is no sum of {MOST_TERMS} monomials")


def solve(columns: Sequence[Sequence[int]], observed: Sequence[int] | Sequence[Fraction]) -> list[Fraction] | None:
    """Coefficients that reproduce every observation exactly, or None."""
    count = len(columns)
    rows = [[Fraction(column[i]) for column in columns] + [Fraction(observed[i])] for i in range(len(observed))]
    for pivot in range(count):
        chosen = next((i for i in range(pivot, len(rows)) if rows[i][pivot]), None)
        if chosen is None:
            return None
        rows[pivot], rows[chosen] = rows[chosen], rows[pivot]
        scale = rows[pivot][pivot]
        rows[pivot] = [value / scale for value in rows[pivot]]
        for i, row in enumerate(rows):
            if i != pivot and row[pivot]:
                factor = row[pivot]
                rows[i] = [a - factor * b for a, b in zip(row, rows[pivot], strict=True)]
    if any(row[count] for row in rows[count:]):
        return None
    return [rows[i][count] for i in range(count)]
