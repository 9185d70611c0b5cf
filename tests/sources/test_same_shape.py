"""A config that differs from a catalogue model's in nothing that shapes it is answered from that model's profile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qlora_planner.sources.catalogue import ModelCatalogue
from qlora_planner.sources.configs import RawConfig, config_sha256, read_config
from qlora_planner.sources.same_shape import same_shape
from qlora_planner.sources.unbuilt import with_shape
from qlora_planner.spec.model import ModelProfile

ROOT = Path(__file__).parents[2] / "profiles"
FIELDS = [ROOT / "fields"]
CATALOGUE = ModelCatalogue([ROOT / "models"])
TABLES = sorted(path.stem for path in FIELDS[0].glob("*.json"))

# As the repository publishes it, but for what the catalogue's own copy leaves out.
LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009], "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
    "intermediate_size": 14336, "max_position_embeddings": 131072, "mlp_bias": False, "model_type": "llama",
    "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8, "pretraining_tp": 1,
    "rms_norm_eps": 1e-05, "rope_scaling": {
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": "4.42.3",
    "use_cache": True, "vocab_size": 128256,
}  # fmt: skip
QWEN: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151645,
    "hidden_act": "silu", "hidden_size": 3584, "initializer_range": 0.02, "intermediate_size": 18944,
    "max_position_embeddings": 32768, "max_window_layers": 28, "model_type": "qwen2", "num_attention_heads": 28,
    "num_hidden_layers": 28, "num_key_value_heads": 4, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
    "sliding_window": 131072, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_cache": True,
    "use_sliding_window": False, "vocab_size": 152064,
}  # fmt: skip


def shapes(raw: dict[str, Any]) -> set[str]:
    return {one.model_id for one in same_shape(raw, FIELDS)}


def given(raw: dict[str, Any]) -> RawConfig:
    return RawConfig(id="mine/model", config=raw, sha256=config_sha256(raw), origin="folder")


def test_a_published_config_is_the_catalogue_model_it_came_with() -> None:
    assert "meta-llama/Llama-3.1-8B" in shapes(LLAMA)
    assert "Qwen/Qwen2.5-7B" in shapes(QWEN)


@pytest.mark.parametrize(
    "changes",
    [
        {"eos_token_id": 2, "pad_token_id": 128004}, {"use_cache": False}, {"rms_norm_eps": 1e-6}, {"head_dim": 128},
        {"head_dim": None}, {"max_position_embeddings": 8192}, {"rope_theta": 10000}, {"rope_scaling": None},
        {"rope_scaling": {"type": "linear", "factor": 2.0}}, {"unsloth_fixed": True, "unsloth_version": "2026.1"},
        {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6}}, {"tokenizer_class": "X"},
        {"dtype": "float16", "auto_map": {"AutoModel": "x.Y"}, "_name_or_path": "/home/me/model"},
    ],
)  # fmt: skip
def test_fields_that_change_no_byte_may_have_any_value(changes: dict[str, Any]) -> None:
    assert "meta-llama/Llama-3.1-8B" in shapes(LLAMA | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": 4160}, {"num_hidden_layers": 31}, {"vocab_size": 128257}, {"num_key_value_heads": 4},
        {"num_key_value_heads": None}, {"attention_bias": True}, {"mlp_bias": True}, {"tie_word_embeddings": True},
        {"tie_word_embeddings": 0}, {"hidden_act": "gelu"}, {"attention_dropout": 0.1}, {"head_dim": 64},
        {"nobody_knows_this": 1}, {"use_cache": "yes"}, {"rms_norm_eps": "1e-5"}, {"eos_token_id": "x"},
        {"pad_token_id": 200000}, {"rope_theta": "x"}, {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}},
        {"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, {"rope_scaling": {"factor": "x"}},
        {"rope_scaling": [1]}, {"rope_scaling": {"factor": 2.0, "unheard_of": 3}}, {"model_type": "mistral"},
        {"model_type": "../llama"}, {"model_type": 7}, {"output_hidden_states": True},
    ],
)  # fmt: skip
def test_anything_else_is_another_model(changes: dict[str, Any]) -> None:
    assert "meta-llama/Llama-3.1-8B" not in shapes(LLAMA | changes)


def test_a_field_that_shapes_the_class_may_be_left_out_only_where_the_class_works_it_out() -> None:
    for name in ("attention_bias", "mlp_bias", "hidden_act", "initializer_range", "use_cache", "rope_scaling"):
        assert "meta-llama/Llama-3.1-8B" in shapes({key: value for key, value in LLAMA.items() if key != name})
    for name in ("num_key_value_heads", "vocab_size", "intermediate_size"):
        assert not shapes({key: value for key, value in LLAMA.items() if key != name})


def test_a_window_that_is_switched_off_may_be_of_any_length() -> None:
    assert "Qwen/Qwen2.5-7B" in shapes(QWEN | {"sliding_window": 4096, "max_window_layers": 21})
    assert not shapes(QWEN | {"use_sliding_window": True})
    assert not shapes(QWEN | {"sliding_window": "wide"})


@pytest.mark.parametrize("kind", TABLES)
def test_a_table_knows_the_models_of_its_class_and_takes_none_for_another(kind: str) -> None:
    table = json.loads((FIELDS[0] / f"{kind}.json").read_text("utf-8"))
    names = {name for structure in table["structures"] for name in structure["models"]}
    assert names <= set(CATALOGUE.names())
    for name in names:
        raw = read_config(ROOT / "configs" / (name.replace("/", "__") + ".json")).config
        known = facts(CATALOGUE.load(name))
        for found in same_shape(raw, FIELDS):
            assert facts(CATALOGUE.load(found.model_id)) == known, f"{name} taken for {found.model_id}"


def facts(profile: ModelProfile) -> Any:
    dims = {name: size for name, size in profile.dims.items() if name != "max_position_embeddings"}
    return profile.class_name, dims, profile.tensors, profile.layer_order, profile.adapters, profile.supports


def test_the_profile_keeps_its_own_name_hash_and_length_and_says_whose_shape_it_has() -> None:
    raw = given(LLAMA | {"max_position_embeddings": 16384})
    found = with_shape(raw, CATALOGUE, ROOT)
    assert found is not None
    assert (found.id, found.config_sha256) == ("mine/model", raw.sha256)
    assert (found.source, found.same_shape_as) == ("catalogue", "meta-llama/Llama-3.1-8B")
    assert found.same_shape_sha256 == CATALOGUE.load("meta-llama/Llama-3.1-8B").config_sha256
    assert found.dim("max_position_embeddings") == 16384
    assert facts(found) == facts(CATALOGUE.load("meta-llama/Llama-3.1-8B"))


def test_of_several_models_of_one_shape_the_one_that_agrees_in_most_is_named() -> None:
    older = LLAMA | {"max_position_embeddings": 8192, "rope_scaling": None, "eos_token_id": 128009}
    found = with_shape(given(older), CATALOGUE, ROOT)
    assert found is not None and found.same_shape_as == "meta-llama/Meta-Llama-3-8B"


def test_weights_that_are_stored_quantised_stay_so() -> None:
    stored = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    found = with_shape(given(LLAMA | {"quantization_config": stored}), CATALOGUE, ROOT)
    assert found is not None and found.checkpoint_quantization == "bitsandbytes-nf4"
    usual = with_shape(
        given(LLAMA | {"quantization_config": stored | {"llm_int8_skip_modules": ["lm_head"]}}), CATALOGUE, ROOT
    )
    assert usual is not None
    spared = stored | {"llm_int8_skip_modules": ["lm_head", "model.layers.3.mlp"]}
    assert with_shape(given(LLAMA | {"quantization_config": spared}), CATALOGUE, ROOT) is None


def test_a_config_of_another_head_is_not_taken_for_the_language_model() -> None:
    raw = LLAMA | {"architectures": ["LlamaForSequenceClassification"]}
    assert with_shape(given(raw), CATALOGUE, ROOT) is None


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"schema":"qlora-plan/fields/1"}', '{"schema":"other"}'])
def test_a_table_that_cannot_be_used_knows_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "llama.json").write_text(text)
    assert list(same_shape(LLAMA, [tmp_path])) == []
