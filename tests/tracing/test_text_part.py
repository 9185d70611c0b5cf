"""Models that take images or sound too: what is planned of them is their own text part, tensor for tensor."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch")

from qlora_planner.errors import InputError
from qlora_planner.memory.estimate import estimate
from qlora_planner.memory.options.resolve import resolve
from qlora_planner.profiling.meta_model import build_on_meta
from qlora_planner.profiling.tapes import trace_run
from qlora_planner.profiling.text_part import text_part
from qlora_planner.spec.codec import profile_from_dict, profile_to_json
from qlora_planner.spec.machine import GpuSpec
from qlora_planner.spec.run import RunConfig
from tests.profiles import toy_profile
from tests.tracing.test_images import CUT

_TEXT: dict[str, Any] = {
    "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 512, "max_position_embeddings": 1024, "head_dim": 32,
}  # fmt: skip
_MROPE = {"rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]}, "bos_token_id": 1, "eos_token_id": 2}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
_SIGHT: dict[str, Any] = {
    "depth": 2, "hidden_size": 64, "num_heads": 2, "intermediate_size": 128, "out_hidden_size": 128, "embed_dim": 64,
}  # fmt: skip

CONFIGS: dict[str, dict[str, Any]] = {
    # Older files have the sizes of the text at the top, newer ones in a part of its own.
    "qwen2_5_vl": {**_TEXT, **_MROPE, "vision_config": _SIGHT, "tie_word_embeddings": False},
    "qwen2_vl": {**_TEXT, **_MROPE, "vision_config": {**_SIGHT, "hidden_size": 128}, "tie_word_embeddings": True},
    "qwen3_vl": {"text_config": {**_TEXT, **_MROPE}, "vision_config": _SIGHT, "tie_word_embeddings": True},
    "qwen3_vl_moe": {"text_config": {**_TEXT, **_MROPE, **_EXPERTS}, "vision_config": _SIGHT},
    "gemma3": {
        "text_config": {**_TEXT, "sliding_window": 64},
        "vision_config": {"hidden_size": 64, "num_attention_heads": 2},
    },
    "llava": {"text_config": {**_TEXT, "model_type": "llama"}, "vision_config": {"model_type": "clip_vision_model"}},
}
for name, config in CONFIGS.items():
    config["model_type"] = name


@pytest.mark.parametrize(
    ("model_type", "whole"),
    [
        ("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration"),
        ("qwen2_vl", "Qwen2VLForConditionalGeneration"),
        ("qwen3_vl", "Qwen3VLForConditionalGeneration"),
        ("qwen3_vl_moe", "Qwen3VLMoeForConditionalGeneration"),
        ("gemma3", "Gemma3ForConditionalGeneration"),
        ("llava", "LlavaForConditionalGeneration"),
    ],
)
def test_the_text_part_has_the_tensors_that_the_whole_model_has_for_text(model_type: str, whole: str) -> None:
    raw = CONFIGS[model_type]
    all_of_it, _ = build_on_meta({**raw, "architectures": [whole]}, "whole")
    part, _ = build_on_meta(text_part(raw, "part")[0], "part")
    text = {
        name.replace("model.language_model.", "model."): tuple(tensor.shape)
        for name, tensor in all_of_it.named_parameters()
        if "language_model" in name or name.startswith("lm_head")
    }
    assert {name: tuple(tensor.shape) for name, tensor in part.named_parameters()} == text
    towers = {name for name, _ in all_of_it.named_parameters()} - {
        name for name, _ in all_of_it.named_parameters() if "language_model" in name or "lm_head" in name
    }
    assert towers


def test_llama_3_2_vision_s_text_has_the_layers_that_look_at_images() -> None:
    raw = {**CUT["mllama"], "model_type": "mllama"}
    part, whole = text_part(raw, "part")
    model, _ = build_on_meta(part, "part")
    assert (whole, type(model).__name__) == ("mllama", "MllamaForCausalLM")
    assert sum("cross_attn.q_proj" in name for name, _ in model.named_parameters()) == 3


def test_a_model_of_text_alone_stays_as_it_is() -> None:
    raw = {**_TEXT, "model_type": "llama", "quantization_config": {"quant_method": "awq"}}
    assert text_part(raw, "llama") == (raw, None)


def test_the_profile_says_of_what_it_is_the_text_part() -> None:
    profile = toy_profile({**CONFIGS["qwen2_5_vl"], "quantization_config": {"quant_method": "awq"}})
    profile = replace(profile, config_sha256="0" * 64)
    assert (profile.class_name, profile.text_part_of) == ("Qwen2ForCausalLM", "qwen2_5_vl")
    assert profile.checkpoint_quantization == "awq"
    assert profile_from_dict(json.loads(profile_to_json(profile)), "here") == profile


def test_an_answer_gives_the_figures_and_cannot_say_whether_it_fits() -> None:
    profile = toy_profile(CONFIGS["qwen3_vl"])
    card = GpuSpec(name="big", label="big", memory_bytes=80 << 30)
    answer = estimate(profile, RunConfig(seq_len=64), card)
    assert answer.verdict == "cannot-say"
    assert answer.fit is not None
    assert "vision-language model (qwen3_vl)" in answer.fit.reasons[0]
    assert "its text part alone is planned, images are not counted" in answer.fit.reasons[0]
    assert answer.to_dict()["model"]["text_part_of"] == "qwen3_vl"
    assert answer.to_dict()["partial"] is True
    tiny = GpuSpec(name="tiny", label="tiny", memory_bytes=256 << 20)
    assert estimate(profile, RunConfig(seq_len=64), tiny).verdict == "does-not-fit"


def test_the_text_part_is_traced() -> None:
    source: Any = SimpleNamespace(config=CONFIGS["qwen2_5_vl"], id="toy", sha256="")
    profile = toy_profile(CONFIGS["qwen2_5_vl"])
    tape = trace_run(source, resolve(profile, RunConfig(seq_len=64, trainer="hf-trainer")), None)
    assert estimate(profile, RunConfig(seq_len=64, trainer="hf-trainer"), tape=tape).method == "traced"


def test_a_text_part_without_a_class_is_one_clear_line() -> None:
    raw = {"model_type": "glm4v", "text_config": dict(_TEXT), "vision_config": dict(_SIGHT)}
    with pytest.raises(InputError, match=r"^mine: glm4v takes images or sound too, and transformers has no causal"):
        text_part(raw, "mine")
