"""Tapes of a whole model class: sizes are polynomials in the class's dimensions beside batch, sequence and rank."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import field, replace
from fractions import Fraction
from itertools import chain, repeat
from math import prod
from typing import Any

from qlora_planner.record import record
from qlora_planner.spec.layers import bridged, kept_positions, represent
from qlora_planner.spec.model import ModelProfile
from qlora_planner.spec.scans import ScanLoop, fewest_chunks, place_after, rescanned
from qlora_planner.spec.tiles import RESTS, TILE_SIZES, TOKENS, VOCABULARY, TileLoop, tile_count, unrolled
from qlora_planner.spec.trace import TOKENS as SINGLE_TOKENS
from qlora_planner.spec.trace import CompiledTape, Monomial, Term, ratio

# Letters beside a class's dimensions, of runs whose rows are prompts and completions: tokens of a completion and of a
# prompt, all rows that are generated together, and the labels of a classifier.
COMPLETION, PROMPT, ROWS, LABELS = "completion_len", "prompt_len", "generated_rows", "num_labels"
# Twice what padding leaves out of a completion that is half as long as the others, rounded down.
LEFT_OUT = "left_out_len"
# What flash_attn's backward rounds up to: the width of a head, and the length of rows of one length.
HEAD_BLOCKS, ROW_BLOCKS = "flash_head_dim", "flash_seq_len"
_FLASH_WIDTH, FLASH_ROWS = 32, 128
# Lengths of rows that are taken in blocks, the last one filled up: by the scan of a state space, which goes on with one
# state more than there are blocks; and by efficient attention on wide heads.
SCANNED, SCAN_STATES = "scanned_len", "scan_states"
# Tokens that Liger's fused loss scores at a time.
LIGER_ROWS = "liger_rows"
FILLED_QUERIES, FILLED_KEYS, FILLED_SUMS = "filled_queries", "filled_keys", "filled_sums"
# Efficient attention copies a mask whose rows are no multiple of this (attention.cpp, pad_bias).
_MASK_STEP = 16
# Each letter as a polynomial of batch, sequence and rank.
Letters = Mapping[str, tuple[Term, ...]]
# The layers of a model that a trace keeps, and for each layer of the model which of these stands for it.
Cut = tuple[tuple[int, ...], tuple[int, ...]]
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
    return {HEAD_BLOCKS: rounded(width, _FLASH_WIDTH), ROW_BLOCKS: rounded(seq_len, FLASH_ROWS)}


def liger_rows(hidden: int, vocabulary: int, tokens: int) -> int:
    """Tokens that Liger scores at a time: so many that their logits take about what goes into the head, up to the next
    power of two (liger-kernel 0.8.5, ops/fused_linear_cross_entropy.py)."""
    rows = -(-tokens // -(-vocabulary // hidden))
    return min(1 << max(rows - 1, 0).bit_length(), tokens)


def rounded(size: int, unit: int) -> int:
    """The next multiple of `unit`."""
    return -(-size // unit) * unit


def block_sizes(blocks: Mapping[str, int], seq_len: int) -> dict[str, int]:
    """The letters of rows of this length that are taken in blocks of so many tokens each."""
    sizes = {letter: rounded(seq_len, unit) for letter, unit in blocks.items()}
    return sizes | ({SCAN_STATES: sizes[SCANNED] // blocks[SCANNED] + 1} if SCANNED in blocks else {})


def filled_lengths(seq_len: int, unit: int) -> tuple[int, int]:
    """The lengths above the first and up to the second, which round up to the same one."""
    last = rounded(seq_len, unit)
    return last - unit, last


@record
class FamilyTape:
    """A tape of one structure of a class: `kinds` numbers the kind of each layer that it holds, as they come.

    `cuts` gives the layers that are traced by the hash of a model's config, where layers of the same tensors run
    otherwise, so that no profile tells them apart: then no other config is this family's.
    """

    kinds: tuple[str, ...]
    sizes: tuple[tuple[FamilyTerm, ...], ...]
    tape: CompiledTape  # its sizes are empty
    loops: tuple[TileLoop, ...] = ()  # traced with three tiles, inner loops before outer ones
    scored: tuple[Term, ...] = ()  # how many tokens the head scores, where it takes them in tiles
    cuts: Mapping[str, Cut] = field(default_factory=dict)
    blocks: Mapping[str, int] = field(default_factory=dict)  # tokens of a block, by the letter of the length
    whole: bool | None = None  # holds for lengths that fill a whole number of scans alone, or for all others alone
    scans: tuple[ScanLoop, ...] = ()  # loops over the chunks of a row, traced with `chunks` of them
    chunks: int = 0
    last_apart: bool = False  # the last layer is not checkpointed, so that the one before it is traced as well

    def scored_tokens(self, batch_size: int, seq_len: int) -> int | None:
        """How many tokens the head scores in such a batch; None where it makes nothing tile by tile."""
        if not any(loop.over == TOKENS for loop in self.loops):
            return None
        return int(sum((Fraction(n, d) * batch_size**b * seq_len**s for n, d, (b, s, _) in self.scored), Fraction(0)))

    def lengths_alike(self, seq_len: int) -> tuple[int, int] | None:
        """The lengths above the first and up to the second that take what this one does, as far as blocks are
        concerned; None where the tape is not for this length."""
        if SCANNED not in self.blocks:
            alone = not self.blocks or seq_len % _MASK_STEP == 0
            return (seq_len - 1 if self.blocks else 0, seq_len if self.blocks else sys.maxsize) if alone else None
        unit = self.blocks[SCANNED]
        low, high = filled_lengths(seq_len, unit)
        if self.whole is None:
            return low, high
        if self.whole != (seq_len == high):
            return None
        return (high - 1, high) if self.whole else (low, high - 1)

    def of_model(
        self, profile: ModelProfile, batch_size: int, seq_len: int, letters: Letters | None = None
    ) -> CompiledTape | None:
        """The tape of one model for batches of about these sizes: with as many tiles of the head as they fill, and with
        `letters` for what a task has beside batch and sequence.

        None where the model's layers or dimensions are not this family's, or make sizes that are no whole numbers of
        bytes, or a row has too few chunks for a loop over them.
        """
        cut = self._cut(profile)
        more = rounded(seq_len, self.blocks[SCANNED]) // self.blocks[SCANNED] - self.chunks if self.scans else 0
        if self.scans and self.chunks + more < fewest_chunks(self.scans, self.chunks):
            return None
        if cut is None or max(segment.layer for segment in self.tape.segments) + 1 != len(cut[0]):
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
        written: dict[str, tuple[Term, ...]] = {RESTS[TOKENS]: rest, **(letters or {})}
        written |= {name: ((size, 1, (0, 0, 0)),) for name, size in block_sizes(self.blocks, seq_len).items()}
        sizes = []
        for terms in self.sizes:
            filled = with_dims(_written(terms, written), dims)
            if filled is None:
                return None
            sizes.append(filled)
        tape = self.tape
        tokens, last_sizes = self._single_tokens(written, seq_len, dims, sizes)
        events, segments, scans = tape.events, tape.segments, self.scans
        if self.loops:
            events, starts = unrolled(tape.events, self.loops, counts, {index + 1 for index in tape.workspace_sizes})
            segments = tuple(segment.at(starts[segment.start], starts[segment.stop]) for segment in tape.segments)
            scans = tuple(loop.moved(starts[loop.start]) for loop in scans)
        if more:
            events = rescanned(events, scans, more)
            segments = tuple(
                each.at(place_after(each.start, scans, more), place_after(each.stop, scans, more)) for each in segments
            )
        return CompiledTape(
            variant=tape.variant, sizes=tuple(sizes), workspace_sizes=tape.workspace_sizes, events=events,
            segments=segments, places=cut[1], kept=cut[0], host_sizes=tape.host_sizes,
            streamed_sizes=tape.streamed_sizes, tokens=tokens, last_sizes=last_sizes,
        )  # fmt: skip

    def _cut(self, profile: ModelProfile) -> Cut | None:
        """The layers of a model that are traced; None where they are not this family's."""
        if self.cuts:
            return self.cuts.get(profile.same_shape_sha256 or profile.config_sha256)
        order, cut = layer_kinds(profile), cut_by_kinds(profile)
        if self.last_apart:
            every = [*[True] * (len(order) - 1), False]
            kept = bridged(kept_positions(order, most=len(order)), every)
            alone = len(set(order)) == 1
            return (kept, represent(kept, order)) if alone else None
        return cut if numbered(order[index] for index in cut[0]) == self.kinds else None

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

    def with_left_out(self) -> FamilyTape:
        """A task's tape of padded rows, traced with even completions, for odd ones too: what a size lacks by the tokens
        of one completion, whatever the batch, are those that padding leaves out."""

        def of(term: FamilyTerm) -> FamilyTerm:
            numerator, denominator, monomial, product = term
            if numerator > 0 or monomial[:2] != (0, 0) or COMPLETION not in product:
                return term
            return numerator, denominator, monomial, tuple(LEFT_OUT if s == COMPLETION else s for s in product)

        return replace(self, sizes=tuple(tuple(map(of, terms)) for terms in self.sizes))

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], header: Mapping[str, Any]) -> FamilyTape:
        """Read what `tools.families` wrote: a tape whose sizes name dimensions by their place in its header's symbols,
        and a task's letters by their place after these."""
        symbols = (*raw.get("symbols", header["symbols"]), *raw.get("letters", ()))
        sizes = tuple(
            tuple((n, d, (b, s, r), tuple(symbols[index] for index in product)) for n, d, b, s, r, *product in terms)
            for terms in raw["sizes"]
        )
        return cls(
            kinds=tuple(header["kinds"]), sizes=sizes,
            tape=CompiledTape.from_dict({**raw, "sizes": [[] for _ in sizes]}),
            loops=tuple(TileLoop.of(*loop) for loop in raw.get("loops", ())),
            scored=tuple((n, d, (b, s, r)) for n, d, b, s, r in raw.get("scored", ())),
            cuts={sha: (tuple(kept), tuple(places)) for sha, (kept, places) in header.get("cuts", {}).items()},
            blocks=raw.get("blocks", {}), whole=raw.get("whole"),
            scans=tuple(ScanLoop.of(*loop) for loop in raw.get("scans", ())), chunks=raw.get("chunks", 0),
            last_apart=raw.get("last_apart", False),
        )  # fmt: skip


def layer_kinds(profile: ModelProfile) -> tuple[str, ...]:
    """The kind of each layer of a model."""
    names = [kind.name for kind in profile.layer_kinds]
    return tuple(chain.from_iterable(repeat(names[index], count) for index, count in profile.layer_order))


def cut_by_kinds(profile: ModelProfile) -> Cut:
    """The layers that a trace keeps of a model whose layers of one kind run alike."""
    order = layer_kinds(profile)
    kept = kept_positions(order)
    return kept, represent(kept, order)


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
