"""Tapes of a whole model class: sizes are polynomials in the class's dimensions beside batch, sequence and rank."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from itertools import chain, repeat
from math import prod
from typing import Any

from qlora_planner.record import record
from qlora_planner.spec.layers import kept_positions, represent
from qlora_planner.spec.model import ModelProfile
from qlora_planner.spec.tiles import RESTS, TILE_SIZES, TOKENS, VOCABULARY, TileLoop, tile_count, unrolled
from qlora_planner.spec.trace import TOKENS as SINGLE_TOKENS
from qlora_planner.spec.trace import CompiledTape, Monomial, Term, ratio

# Letters beside a class's dimensions, of runs whose rows are prompts and completions: tokens of a completion and of a
# prompt, all rows that are generated together, and the labels of a classifier.
COMPLETION, PROMPT, ROWS, LABELS = "completion_len", "prompt_len", "generated_rows", "num_labels"
# What flash_attn's backward rounds up to: the width of a head, and the length of rows of one length.
HEAD_BLOCKS, ROW_BLOCKS = "flash_head_dim", "flash_seq_len"
_FLASH_WIDTH, FLASH_ROWS = 32, 128
# Each letter as a polynomial of batch, sequence and rank.
Letters = Mapping[str, tuple[Term, ...]]
# Numerator, denominator, powers of (batch, sequence, rank), and the dimensions that are multiplied, by their names.
FamilyTerm = tuple[int, int, Monomial, tuple[str, ...]]


def flash_sizes(dims: Mapping[str, int | float | None], seq_len: int) -> dict[str, int]:
    """The letters of FlashAttention-2 for rows of this length; none where the width of a head is not known.

    flash_attn 2.8, csrc/flash_attn/flash_api.cpp, mha_bwd: `seqlen_q_rounded`, `head_size_rounded`.
    """
    hidden, heads = int(dims.get("hidden_size") or 0), int(dims.get("num_attention_heads") or 0)
    width = int(dims.get("head_dim") or 0) or (hidden // heads if heads else 0)
    if not width:
        return {}
    return {HEAD_BLOCKS: _rounded(width, _FLASH_WIDTH), ROW_BLOCKS: _rounded(seq_len, FLASH_ROWS)}


def _rounded(size: int, unit: int) -> int:
    return -(-size // unit) * unit


@record
class FamilyTape:
    """A tape of one structure of a class: `kinds` numbers the kind of each layer that it holds, as they come."""

    kinds: tuple[str, ...]
    sizes: tuple[tuple[FamilyTerm, ...], ...]
    tape: CompiledTape  # its sizes are empty
    loops: tuple[TileLoop, ...] = ()  # traced with three tiles, inner loops before outer ones
    scored: tuple[Term, ...] = ()  # how many tokens the head scores, where it takes them in tiles

    def scored_tokens(self, batch_size: int, seq_len: int) -> int | None:
        """How many tokens the head scores in such a batch; None where it makes nothing tile by tile."""
        if not any(loop.over == TOKENS for loop in self.loops):
            return None
        return int(sum((Fraction(n, d) * batch_size**b * seq_len**s for n, d, (b, s, _) in self.scored), Fraction(0)))

    def of_model(
        self, profile: ModelProfile, batch_size: int, seq_len: int, letters: Letters | None = None
    ) -> CompiledTape | None:
        """The tape of one model for batches of about these sizes: with as many tiles of the head as they fill, and with
        `letters` for what a task has beside batch and sequence.

        None where the model's layers or dimensions are not this family's, or make sizes that are no whole numbers of
        bytes.
        """
        order = layer_kinds(profile)
        kept = kept_positions(order)
        if numbered(order[index] for index in kept) != self.kinds:
            return None
        if max(segment.layer for segment in self.tape.segments) + 1 != len(kept):
            return None  # a run that hangs on how many layers there are, and was traced with all of a toy's
        counts: dict[str, int] = {}
        dims = dict(profile.dims)
        if self.loops:
            rows = int(dims.get("vocab_size") or 0)
            counts = {VOCABULARY: tile_count(rows, VOCABULARY)}
            dims[RESTS[VOCABULARY]] = rows - (counts[VOCABULARY] - 1) * TILE_SIZES[VOCABULARY]
        scored = self.scored_tokens(batch_size, seq_len)
        rest = self.scored
        if scored is not None:
            counts[TOKENS] = tile_count(scored, TOKENS)
            rest = (*rest, ((1 - counts[TOKENS]) * TILE_SIZES[TOKENS], 1, (0, 0, 0)))
        written = {RESTS[TOKENS]: rest, **(letters or {})}
        sizes = []
        for terms in self.sizes:
            filled = with_dims(_written(terms, written), dims)
            if filled is None:
                return None
            sizes.append(filled)
        tape = self.tape
        tokens, last_sizes = self._single_tokens(written, seq_len, dims, sizes)
        events, segments = tape.events, tape.segments
        if self.loops:
            events, starts = unrolled(tape.events, self.loops, counts, {index + 1 for index in tape.workspace_sizes})
            segments = tuple(segment.at(starts[segment.start], starts[segment.stop]) for segment in tape.segments)
        return CompiledTape(
            variant=tape.variant, sizes=tuple(sizes), workspace_sizes=tape.workspace_sizes, events=events,
            segments=segments, places=represent(kept, order), kept=kept, tokens=tokens, last_sizes=last_sizes,
        )  # fmt: skip

    def _single_tokens(
        self, letters: Letters, seq_len: int, dims: Mapping[str, int | float | None], sizes: list[tuple[Term, ...]]
    ) -> tuple[int, tuple[tuple[int, int], ...]]:
        """How many tokens are generated one at a time, and the sizes that storages of the last traced one have at the
        last of all: those of a prompt that ends there. These are put at the end of `sizes`."""
        spans = [(each.start, each.stop) for each in self.tape.segments if each.stage == SINGLE_TOKENS[-1]]
        if not spans:
            return 0, ()
        # The prompts' pass gives the first token.
        tokens = _number(letters[COMPLETION], seq_len) - 1
        more = tokens - len(SINGLE_TOKENS)
        late = {**letters, PROMPT: (*letters[PROMPT], (more, 1, (0, 0, 0)))}
        numbers: dict[tuple[Term, ...], int] = {}
        last: list[tuple[int, int]] = []
        born = 0
        for at, code in enumerate(self.tape.events):
            if code <= 0:
                continue
            born += 1
            terms = self.sizes[code - 1]
            grows = more > 0 and any(PROMPT in product for _, _, _, product in terms)
            if not grows or not any(start <= at < stop for start, stop in spans):
                continue
            filled = with_dims(_written(terms, late), dims) or ()
            if filled not in numbers:
                numbers[filled] = len(sizes)
                sizes.append(filled)
            last.append((born, numbers[filled]))
        return tokens, tuple(last)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], symbols: tuple[str, ...], kinds: tuple[str, ...]) -> FamilyTape:
        """Read what `tools.families` wrote: a tape whose sizes name dimensions by their place in `symbols`, and a
        task's letters by their place after these."""
        symbols = (*raw.get("symbols", symbols), *raw.get("letters", ()))
        sizes = tuple(
            tuple((n, d, (b, s, r), tuple(symbols[index] for index in product)) for n, d, b, s, r, *product in terms)
            for terms in raw["sizes"]
        )
        return cls(
            kinds=kinds, sizes=sizes, tape=CompiledTape.from_dict({**raw, "sizes": [[] for _ in sizes]}),
            loops=tuple(TileLoop.of(*loop) for loop in raw.get("loops", ())),
            scored=tuple((n, d, (b, s, r)) for n, d, b, s, r in raw.get("scored", ())),
        )  # fmt: skip


def layer_kinds(profile: ModelProfile) -> tuple[str, ...]:
    """The kind of each layer of a model."""
    names = [kind.name for kind in profile.layer_kinds]
    return tuple(chain.from_iterable(repeat(names[index], count) for index, count in profile.layer_order))


def numbered(kinds: Any) -> tuple[str, ...]:
    """Kinds of layers by number, as they come."""
    numbers: dict[str, str] = {}
    return tuple(numbers.setdefault(kind, str(len(numbers))) for kind in kinds)


def _written(terms: tuple[FamilyTerm, ...], letters: Letters) -> tuple[FamilyTerm, ...]:
    """The terms with `letters` written out, as what the last tile of tokens holds."""
    if all(name not in product for _, _, _, product in terms for name in letters):
        return terms
    written: list[FamilyTerm] = []
    waiting = list(terms)
    while waiting:
        numerator, denominator, (b, s, r), product = waiting.pop()
        name = next((symbol for symbol in product if symbol in letters), None)
        if name is None:
            written.append((numerator, denominator, (b, s, r), product))
            continue
        at = product.index(name)
        others = product[:at] + product[at + 1 :]
        waiting += [
            (numerator * n, denominator * d, (b + by, s + sy, r + ry), others) for n, d, (by, sy, ry) in letters[name]
        ]
    return tuple(reversed(written))


def _number(terms: tuple[Term, ...], seq_len: int) -> int:
    """A letter that hangs on the sequence alone, as a number."""
    return int(sum((Fraction(n, d) * seq_len**s for n, d, (_, s, _) in terms), Fraction(0)))


def with_dims(terms: tuple[FamilyTerm, ...], dims: Mapping[str, int | float | None]) -> tuple[Term, ...] | None:
    """The terms with numbers for dimensions, those of one monomial added up; None where a dimension is not known, and
    where weights are no whole number of bytes: what the model's own code takes is then rounded somehow."""
    sums: dict[Monomial, int | Fraction] = {}
    of_weights: dict[Monomial, int | Fraction] = {}
    for numerator, denominator, monomial, product in terms:
        values = [dims.get(name) for name in product]
        if any(value is None for value in values):
            return None
        share = ratio(numerator * prod(int(value or 0) for value in values), denominator)
        sums[monomial] = sums.get(monomial, 0) + share
        if product and not any(monomial[:2]):
            of_weights[monomial] = of_weights.get(monomial, 0) + share
    if any(value.denominator != 1 for value in of_weights.values()):
        return None
    return tuple((value.numerator, value.denominator, monomial) for monomial, value in sums.items() if value)
