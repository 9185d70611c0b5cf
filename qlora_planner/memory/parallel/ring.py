"""Ring attention, by which cards share a sequence: the most that one layer of it allocates beside plain attention.

Source: torch 2.13 distributed/tensor/experimental/_context_parallel/_attention.py (`_templated_ring_attention`, its
backward, `_SDPAMerger`, `_AllGatherRotater`); accelerate 1.15 gathers keys and values by default.
"""

from __future__ import annotations

from qlora_planner.spec.model import ModelProfile
from qlora_planner.spec.run import RunConfig

# Tensors as wide as all queries of a token, in bytes of an element, of one layer's backward, which holds more than its
# forward: keys and values made contiguous and joined (8, in 16 bits); gradients of queries, keys and values in float32
# (12), those of a block as they come and in float32 (18), the two that travel, sent and received (16), and updated in
# part (12).
_OF_EACH_TOKEN = 8 + 12 + 18 + 16 + 12
_GATHERED = 4  # keys and values of every card's tokens, in 16 bits


def ring_bytes(profile: ModelProfile, run: RunConfig, cards: int) -> int | None:
    """At the most so many bytes of `run`, whose `seq_len` is what each of `cards` holds of a sequence; None for a model
    whose heads are not known. Keys are counted as wide as queries, which they are where heads are repeated first."""
    heads, hidden = profile.dims.get("num_attention_heads"), profile.dims.get("hidden_size")
    if not heads or not hidden:
        return None
    width = int(heads) * int(profile.dims.get("head_dim") or int(hidden) // int(heads))
    return run.batch_size * run.seq_len * width * (_OF_EACH_TOKEN + _GATHERED * cards)
