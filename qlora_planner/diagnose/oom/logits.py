"""How many tokens a tensor of logits of a given size is, for vocabularies that people train with."""

from __future__ import annotations

from qlora_planner.diagnose.oom.moments import LOGITS, LOGITS_TO_FLOAT32
from qlora_planner.diagnose.oom.records import OomReport

# Rows of the embedding, from the configs of the catalogue's most used families.
VOCABULARIES = {"Llama 3": 128_256, "Qwen 2.5 and 3": 151_936, "Llama 2 and Mistral 7B": 32_000, "Gemma": 262_144}
# Below this a tensor of logits is not told apart from others.
_NOTICED_BYTES = 64 << 20
_FLOAT32_BYTES = 4


def logits_tokens(report: OomReport) -> dict[str, int]:
    """Family -> tokens whose float32 logits take what was asked for; empty where the failure was no logits tensor."""
    requested_bytes = report.requested_bytes
    if (
        report.doing not in LOGITS[:3]
        or requested_bytes is None
        or requested_bytes < _NOTICED_BYTES
        or report.senseless
    ):
        return {}
    return {name: round(requested_bytes / (rows * _FLOAT32_BYTES)) for name, rows in VOCABULARIES.items()}


def are_whole_logits(report: OomReport) -> bool:
    """Whether the failure was a cast or a loss over logits of the whole batch."""
    return report.doing in LOGITS or report.doing == LOGITS_TO_FLOAT32
