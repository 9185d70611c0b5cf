"""Attention kernels that a model's class has lost or gained between versions of transformers."""

from __future__ import annotations

from collections.abc import Mapping

from qlora_planner.catalog.trainers import parse_version

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
