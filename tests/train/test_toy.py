"""Toy sizes keep what makes an architecture itself."""

from __future__ import annotations

from qlora_planner.train.toy import toy_config


def test_one_layer_of_each_kind_stays() -> None:
    raw = {
        "model_type": "x", "hidden_size": 2048, "num_hidden_layers": 6, "num_attention_heads": 16,
        "layer_types": ["linear_attention", "linear_attention", "full_attention"] * 2, "vocab_size": 150000,
    }  # fmt: skip
    toy = toy_config(raw)
    assert toy["layer_types"] == ["linear_attention", "full_attention"]
    assert toy["num_hidden_layers"] == 2
    assert raw["num_hidden_layers"] == 6


def test_two_layers_where_all_are_alike() -> None:
    assert toy_config({"num_hidden_layers": 80})["num_hidden_layers"] == 2
    assert toy_config({"num_hidden_layers": 1})["num_hidden_layers"] == 1


def test_equal_and_grouped_heads_stay_so() -> None:
    equal = toy_config({"num_attention_heads": 32, "num_key_value_heads": 32})
    grouped = toy_config({"num_attention_heads": 32, "num_key_value_heads": 8})
    assert equal["num_key_value_heads"] == equal["num_attention_heads"]
    assert grouped["num_key_value_heads"] < grouped["num_attention_heads"]


def test_what_is_left_out_stays_out() -> None:
    assert toy_config({"model_type": "gpt2", "n_inner": None}) == {"model_type": "gpt2", "n_inner": None}


def test_parts_of_a_multimodal_config_shrink_too() -> None:
    toy = toy_config({"text_config": {"hidden_size": 4096, "num_hidden_layers": 40}, "quantization_config": {"a": 1}})
    assert toy["text_config"] == {"hidden_size": 128, "num_hidden_layers": 2}
    assert toy["quantization_config"] == {"a": 1}
