"""Runs whose rows are joined end to end into one: which of them share a tape, and what their fused loss has at a time.

Facts of unsloth_zoo 2026.10.9. Its loss (fused_losses/fused_linear.py) has the logits of some rows at a time, or, where
the head is frozen and the card multiplies bfloat16, of some rows by SPLIT_WORDS words; inputs of layers go to the
host's memory from a size on (gradient_checkpointing.py).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from qlora_planner.record import record
from qlora_planner.spec.trace import Term

# fused_linear.py: _SPLIT_COLS, _MAX_ROWS, 512 and _MIN_LOGITS, _CHUNK_GB; kernels of words in tiles take more than two.
SPLIT_WORDS = 16384
MOST_ROWS = 4096
_FEWEST_ROWS, _FEWEST_LOGITS = 512, 512 * 151936
_LOGITS_BYTES = 2 << 30
_FLOAT32 = 4
# gradient_checkpointing.py, MINIMUM_SIZE, of two bytes an element.
KEPT_BYTES = 2 << 20
_WIDTH = 2
# Rows of the head are padded to so many words, in a product of their own where some are left.
_EVEN_WORDS = 8
# unsloth/models/llama.py: _rope_build_chunk_rows, of which longer rotary tables are made, and what they round up to.
TABLE_PART = 32768
TABLE_STEP = 8192

LOSS_ROWS, LOSS_SPLITS = "loss_rows", "loss_splits"
TABLE_ROWS, TABLE_REST = "table_rows", "table_rest"
FILLED_ROWS, FILLED_TOKENS = "filled_rows", "filled_tokens"
FLASH_BLOCK = 128  # torch 2.13, flash_api.cpp: sums of the backward are of so many queries
JOINED = "joined"
_UNBOUNDED = 1 << 40
_SMALL_CARD, _CUDNN, _KEPT = "small-card", "cudnn", "kept"


Dims = Mapping[str, int | float | None]


def scored(batch_size: int, seq_len: int) -> int:
    """The tokens that are scored: of each row all but the first."""
    return batch_size * (seq_len - 1)


def tiles_words(words: Collection[str], vocabulary: int, rows: int) -> bool:
    """Whether the loss of so many scored tokens goes over the words in tiles; `words` are those of a variant."""
    several = -(-vocabulary // SPLIT_WORDS) > 2
    return several and "sm70" not in words and (_SMALL_CARD in words or rows >= MOST_ROWS)


def loss_rows(hidden: int, vocabulary: int, rows: int, most: int) -> int:
    """Of `rows` scored tokens how many have all their logits at a time, `most` at the most, on a card with 4 GiB free
    (fused_linear_rows)."""
    at_least = min(max(_power_below(_FEWEST_LOGITS, vocabulary), _FEWEST_ROWS), MOST_ROWS)
    chosen = min(max(_power_below(rows * hidden, vocabulary), at_least), MOST_ROWS)
    return max(min(chosen, max(_LOGITS_BYTES // (vocabulary * _FLOAT32), 2), most), 1)


def _power_below(numerator: int, denominator: int) -> int:
    """The largest power of two up to a fraction, 1 for what is smaller."""
    return 1 << max((numerator // denominator).bit_length() - 1, 0)


@record
class JoinedSizes:
    """Runs that go by one rule: those with `first` to `last` scored tokens, of which `at_a_time` are there at a time
    with their logits, or all where it is None."""

    first: int
    last: int
    at_a_time: int | None


def joined_sizes(words: Collection[str], dims: Dims, batch_size: int, seq_len: int) -> JoinedSizes:
    """The rule of a run's loss, and for how many scored tokens it holds."""
    hidden, vocabulary, rows = *_widths(dims), scored(batch_size, seq_len)
    if tiles_words(words, vocabulary, rows):
        first = 1 if _SMALL_CARD in words else MOST_ROWS
        few = JoinedSizes(first=first, last=MOST_ROWS - 1, at_a_time=None)
        return few if rows < MOST_ROWS else JoinedSizes(first=MOST_ROWS, last=_UNBOUNDED, at_a_time=MOST_ROWS)
    last = _UNBOUNDED if not tiles_words(words, vocabulary, _UNBOUNDED) else MOST_ROWS - 1
    at_least = loss_rows(hidden, vocabulary, 1, _UNBOUNDED)
    if rows <= at_least:
        return JoinedSizes(first=1, last=min(at_least, last), at_a_time=None)
    at_a_time = loss_rows(hidden, vocabulary, rows, rows)
    grown = -(-at_a_time * vocabulary // hidden) if at_a_time > at_least else 0
    widest = loss_rows(hidden, vocabulary, _UNBOUNDED, _UNBOUNDED)
    until = 2 * at_a_time * vocabulary // hidden if at_a_time < widest else _UNBOUNDED
    return JoinedSizes(first=max(at_least + 1, grown), last=min(until - 1, last), at_a_time=at_a_time)


def joined_letters(words: Collection[str], dims: Dims, batch_size: int, seq_len: int) -> dict[str, int]:
    """The letters of a joined run: rows of its loss at a time, parts that its words are split into, rotary positions,
    and what attention's backward rounds up."""
    rows = joined_sizes(words, dims, batch_size, seq_len).at_a_time or scored(batch_size, seq_len)
    filled, tokens = (-(-size // FLASH_BLOCK) * FLASH_BLOCK for size in (seq_len, batch_size * seq_len))
    return {**_of_model(dims), LOSS_ROWS: rows, FILLED_ROWS: filled, FILLED_TOKENS: tokens}


def joined_terms(sizes: JoinedSizes, dims: Dims) -> dict[str, tuple[Term, ...]]:
    """The same as polynomials of batch and sequence, for rows of whole blocks and all sizes of one rule."""
    all_scored = ((1, 1, (1, 1, 0)), (-1, 1, (1, 0, 0)))
    rows = all_scored if sizes.at_a_time is None else ((sizes.at_a_time, 1, (0, 0, 0)),)
    of_model: dict[str, tuple[Term, ...]] = {name: ((size, 1, (0, 0, 0)),) for name, size in _of_model(dims).items()}
    return {**of_model, LOSS_ROWS: rows, FILLED_ROWS: ((1, 1, (0, 1, 0)),), FILLED_TOKENS: ((1, 1, (1, 1, 0)),)}


def _of_model(dims: Dims) -> dict[str, int]:
    rest = table_rows(dims) - TABLE_PART * (tables(dims) - 1)
    return {LOSS_SPLITS: -(-_widths(dims)[1] // SPLIT_WORDS), TABLE_ROWS: table_rows(dims), TABLE_REST: rest}


def _widths(dims: Dims) -> tuple[int, int]:
    return int(dims.get("hidden_size") or 1), int(dims.get("vocab_size") or 1)


def kept_tokens(dims: Dims) -> int:
    """Up to how many tokens the inputs of layers stay on the card."""
    return KEPT_BYTES // (_WIDTH * _widths(dims)[0])


def joined_region(words: Collection[str], dims: Dims, batch_size: int, seq_len: int) -> str | None:
    """The region of a joined run, as families name it; None where its head has no whole number of eight words."""
    vocabulary = _widths(dims)[1]
    if vocabulary % _EVEN_WORDS:
        return None
    rows = ("batched" if batch_size > 1 else "single") if _CUDNN in words else JOINED
    large = batch_size * seq_len > kept_tokens(dims)
    inputs = "recomputed" if _KEPT in words else "offloaded" if large else "kept"
    # Of chunks of rows, too, the words are gone through in parts, and these put together, where they are more than two.
    chunked = "split" if -(-vocabulary // SPLIT_WORDS) > 2 else "chunked"
    loss = "tiled" if tiles_words(words, vocabulary, scored(batch_size, seq_len)) else chunked
    return f"{rows} {inputs} {loss} {tables(dims)}"


def table_rows(dims: Dims) -> int:
    """Rows of the tables of rotary positions."""
    positions = int(dims.get("max_position_embeddings") or 1)
    return positions if positions <= TABLE_PART else -(-positions // TABLE_STEP) * TABLE_STEP


def tables(dims: Dims) -> int:
    """In how many parts these tables are made."""
    return -(-table_rows(dims) // TABLE_PART)
