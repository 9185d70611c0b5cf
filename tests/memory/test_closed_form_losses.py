"""What the head and the loss hold by closed forms, by the size of the pieces that each version of trl takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qlora_planner.memory.closed_form.activations import ModelShape, activations, model_shape
from qlora_planner.memory.options.resolve import resolve
from qlora_planner.memory.weights.placement import Placement
from qlora_planner.sources.catalogue import ModelCatalogue
from qlora_planner.spec.run import RunConfig

LLAMA = ModelCatalogue([Path(__file__).parents[2] / "profiles" / "models"]).load("meta-llama/Llama-3.1-8B")
HIDDEN, WORDS = 4096, 1000


def head_bytes(trl: str, tokens: int, more_words: int = 0, fewer: int = 0) -> int:
    """Of a row of `tokens` with `more_words` in the vocabulary than Llama's 128,256."""
    resolution = resolve(LLAMA, RunConfig(seq_len=tokens, trainer="trl-sft", stack={"trl": trl}))
    shape = model_shape(Placement(LLAMA, resolution.run))
    wider: ModelShape = replace(shape, vocab=shape.vocab + more_words - fewer)
    return int(activations(wider, resolution.run, resolution.trainer, resolution.loss).logits)


@pytest.mark.parametrize(
    ("trl", "bytes_per_word"),
    [
        ("1.14.0", 18 * 256),  # a chunk of 256 rows, 18 bytes a logit
        ("1.7.0", 7 * 256 + 4 * HIDDEN),  # and before it a float32 copy of the head, whose chunks take 7 bytes a logit
        ("1.13.0", 7 * 256 + 4 * HIDDEN),
    ],
)
def test_a_loss_in_chunks_holds_one_chunk_however_long_the_row(trl: str, bytes_per_word: int) -> None:
    for tokens in (512, 4096):
        assert head_bytes(trl, tokens, WORDS) - head_bytes(trl, tokens) == bytes_per_word * WORDS
    # Beside the chunk there is the last norm's float32 output.
    assert head_bytes(trl, 4096) - head_bytes(trl, 512) == 4 * HIDDEN * (4096 - 512)
    assert head_bytes(trl, 512) > bytes_per_word * 128_256


def test_a_loss_in_tiles_holds_no_tile_over_4096_tokens_and_32768_words() -> None:
    """trl 1.15, trainer/utils.py, add_fused_lm_head."""
    trl, narrow = "1.16.0", 128_256 - 32_768
    for tokens in (512, 4096, 8192):
        assert head_bytes(trl, tokens, WORDS) == head_bytes(trl, tokens)
        # A vocabulary below one tile makes it narrower, and the last of its rows counts.
        tile = min(tokens, 4096)
        assert head_bytes(trl, tokens) - head_bytes(trl, tokens, fewer=narrow + WORDS) == 2 * tile * WORDS
    grown = [head_bytes(trl, tokens + 1) - head_bytes(trl, tokens) for tokens in (4095, 4096)]
    assert grown[0] - grown[1] == 2 * 32_768


def test_whole_logits_take_12_bytes_for_every_token_and_word() -> None:
    short, short_wide, long, long_wide = (
        head_bytes("0.12.1", tokens, words) for tokens in (512, 1024) for words in (0, WORDS)
    )
    assert (long_wide - long) - (short_wide - short) == 12 * 512 * WORDS
