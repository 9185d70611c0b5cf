"""Attention kernels that a model's class has lost or gained between versions of transformers."""

from __future__ import annotations

from collections.abc import Mapping

from qlora_planner.catalog.trainers import parse_version
from qlora_planner.record import record

# By model type, from which version of transformers its class answers otherwise about SDPA: facts read from the
# `_supports_sdpa` of released wheels 5.17 to 5.24. SDPA cannot cap attention logits softly, which gemma 2 does.
_SDPA_SINCE: dict[str, tuple[tuple[int, int], bool, str]] = dict.fromkeys(
    ("gemma2", "t5gemma", "vaultgemma"), ((5, 21), False, "SDPA cannot cap logits softly")
)


def sdpa_changed(model_type: str, versions: Mapping[str, str]) -> tuple[bool, str] | None:
    """Whether the class has SDPA in this transformers, and why, where that differs from older versions; else None."""
    row = _SDPA_SINCE.get(model_type)
    if row is None or "transformers" not in versions or parse_version(versions["transformers"]) < row[0]:
        return None
    since = ".".join(map(str, row[0]))
    return row[1], f"from transformers {since} on: {row[2]}"


@record
class Nearest:
    """The kernel that is modelled in place of another, how far a peak may be off, None where nobody knows, and why."""

    kernel: str
    at_most: float | None
    why: str


_SAME = Nearest(kernel="flash_attention_2", at_most=0.0, why="the same code, built for the Hub")
# Each keeps queries, keys, values, its output and one float32 sum for each head and row (flex_attention a largest score
# beside it: torch 2.13, _higher_order_ops/flex_attention.py), and nothing that grows with the square of the sequence;
# their temporaries in backward differ, of one layer alone.
_ALIKE = Nearest(
    kernel="flash_attention_2", at_most=0.05,
    why="keeps what FlashAttention-2 keeps for backward; taken as that, and its temporaries may differ",
)  # fmt: skip
_UNKNOWN = Nearest(
    kernel="flash_attention_2", at_most=None, why="a kernel of which nothing here knows what it keeps; taken as"
    " FlashAttention-2",
)  # fmt: skip
_NEAREST: Mapping[str, Nearest] = {
    **dict.fromkeys(("kernels-community/flash-attn", "kernels-community/flash-attn2"), _SAME),
    **dict.fromkeys(
        ("flash_attention_3", "flash_attention_4", "flex_attention", "xformers", "kernels-community/flash-attn3",
         "kernels-community/vllm-flash-attn3"),
        _ALIKE,
    ),
    "sage": _UNKNOWN,
}  # fmt: skip
# As people and other tools write them.
KERNEL_NAMES: Mapping[str, str] = {
    "fa3": "flash_attention_3", "flash3": "flash_attention_3", "flash-attn-3": "flash_attention_3",
    "fa4": "flash_attention_4", "flex": "flex_attention", "sage_attention": "sage", "xformers_attention": "xformers",
}  # fmt: skip


def nearest_kernel(name: str | None) -> Nearest | None:
    """What stands in for an attention kernel that is not modelled itself: one with a name of its own, or `owner/name`
    on the Hub. None for those that are modelled, and for words that name no kernel."""
    if name is None:
        return None
    repository = name.partition(":")[0].partition("@")[0]
    return _NEAREST.get(repository) or (_UNKNOWN if repository.count("/") == 1 else None)
