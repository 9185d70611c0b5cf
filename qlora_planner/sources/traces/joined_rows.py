"""Families of a trainer that joins rows end to end: for which sizes a tape holds, and its letters there."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from qlora_planner.memory.sweep.joined import (
    FLASH_BLOCK,
    JoinedSizes,
    joined_letters,
    joined_region,
    joined_sizes,
    joined_terms,
    kept_tokens,
)
from qlora_planner.memory.sweep.validity import ValidityRange
from qlora_planner.record import replaced
from qlora_planner.sources.tapes import StoredTape
from qlora_planner.spec.family import FamilyTape, Letters
from qlora_planner.spec.model import ModelProfile

# Sizes of heads that the toys have, and the shortest rows: before compute capability 8.0 all are rounded up to that.
_HEADS, _SHORTEST = (64, 128), 64

# What ships for a variant and a region, and the versions it was made with.
Held = Callable[[str, str], tuple[FamilyTape, Mapping[str, str]] | None]


def joined_tape(profile: ModelProfile, variant: str, batch_size: int, seq_len: int, held_of: Held) -> StoredTape | None:
    """The tape of a model for such a trainer, whatever a batch would be padded to; None where no family holds it."""
    words, dims = variant.split(), profile.dims
    # Tables of rotary positions grow with the tokens of all rows together; weights are unpacked into one buffer, which
    # grows with the first that is larger.
    wide = int(dims.get("num_attention_heads") or 0) * int(dims.get("head_dim") or 0)
    grows = batch_size * seq_len > _positions(profile) or wide >= int(dims.get("intermediate_size") or 0)
    uneven = "sm70" in words and seq_len % _SHORTEST
    if grows or uneven or dims.get("sliding_window") or dims.get("head_dim") not in _HEADS:
        return None
    region = joined_region(words, dims, batch_size, seq_len)
    held = None if region is None else held_of(" ".join(word for word in words if word != "padding"), region)
    if held is None:
        return None
    family, versions = held
    sizes = joined_sizes(words, dims, batch_size, seq_len)
    range_ = None if seq_len % FLASH_BLOCK else _of_one_rule(profile, sizes, batch_size, seq_len)
    letters: Letters
    if range_ is None:
        tokens = batch_size * seq_len
        range_ = ValidityRange(
            batched=batch_size > 1, low=seq_len - 1, high=seq_len, tokens=tokens - 1, most_tokens=tokens
        )
        own = joined_letters(words, dims, batch_size, seq_len)
        letters = {letter: ((size, 1, (0, 0, 0)),) for letter, size in own.items()}
    else:
        letters = joined_terms(sizes, dims)
    tape = family.of_model(profile, batch_size, seq_len, letters)
    return None if tape is None else StoredTape(tape=replaced(tape, variant=variant), region=range_, versions=versions)


def _positions(profile: ModelProfile) -> int:
    return int(profile.dims.get("max_position_embeddings") or 0)


def _of_one_rule(profile: ModelProfile, sizes: JoinedSizes, batch_size: int, seq_len: int) -> ValidityRange | None:
    """The sizes of one rule beside these; None where these lie too near to where it ends to say so by tokens alone."""
    last, kept = min(sizes.last, _positions(profile)), kept_tokens(profile.dims)
    if batch_size == 1:
        here = ValidityRange(batched=False, low=sizes.first, high=min(last + 1, _positions(profile)))
    else:  # of each row all tokens but one are scored
        least = -(-sizes.first * _SHORTEST // (_SHORTEST - 1)) - 1
        here = ValidityRange(batched=True, low=_SHORTEST - 1, high=_positions(profile), tokens=least, most_tokens=last)
    if batch_size * seq_len > kept:
        here = replaced(here, tokens=max(here.tokens, kept))
    else:
        here = replaced(here, most_tokens=min(here.most_tokens, kept))
    return here if here.holds(batch_size, seq_len) else None
