"""Which classes have a tensor-parallel plan, which loading asks for even where nothing is split by it."""

from __future__ import annotations

# Model types of the catalogue whose config has no `base_model_tp_plan`, read from transformers 5.17.
_WITHOUT_PLAN = frozenset((
    "bloom", "falcon", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_oss", "gptj", "granitemoe", "granitemoehybrid", "jamba",
    "lfm2", "lfm2_moe", "mpt", "nemotron", "nemotron_h", "opt", "phimoe", "recurrent_gemma", "stablelm",
))  # fmt: skip
_PLANNED_ROLES = frozenset(("output_head", "experts"))


def has_plan(model_type: str) -> bool:
    """Whether the class has a plan; nearly all classes since Llama do."""
    return model_type not in _WITHOUT_PLAN


def planned(role: str, *, quantized: bool, tied: bool) -> bool:
    """Whether a plan splits tensors of this role: linear layers, fused experts, the head, and an embedding that is
    `tied` to it."""
    return quantized or tied or role in _PLANNED_ROLES
