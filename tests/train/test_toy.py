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


def test_a_deep_toy_keeps_the_first_layers_in_order() -> None:
    kinds = ["sliding_attention"] * 5 + ["full_attention"]
    raw = {"num_hidden_layers": 12, "layer_types": kinds * 2, "full_attention_interval": 6}
    assert toy_config(raw, depth=4) == {"num_hidden_layers": 6, "layer_types": kinds, "full_attention_interval": 6}
    assert toy_config({"num_hidden_layers": 2}, depth=4)["num_hidden_layers"] == 2


def test_a_repeating_pattern_of_kinds_is_cut_with_its_layers() -> None:
    toy = toy_config({"num_hidden_layers": 9, "block_types": ["recurrent", "recurrent", "attention"]})
    assert (toy["num_hidden_layers"], toy["block_types"]) == (2, ["recurrent", "attention"])


def test_state_space_heads_fill_the_inner_width() -> None:
    toy = toy_config(
        {"hidden_size": 4096, "mamba_expand": 2, "mamba_n_heads": 128, "mamba_d_head": 64, "mamba_n_groups": 8}
    )
    assert toy["mamba_n_heads"] * toy["mamba_d_head"] == 2 * toy["hidden_size"]
    assert toy["mamba_n_groups"] == 1


def test_settings_of_single_layers_follow_their_layers() -> None:
    raw = {
        "num_hidden_layers": 4, "layer_types": ["sliding", "sliding", "full", "sliding"],
        "per_layer_config": {"2": {"head_dim": 512}},
    }  # fmt: skip
    assert toy_config(raw)["per_layer_config"] == {"1": {"head_dim": 64}}
