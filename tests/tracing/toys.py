"""A toy config of every causal language model that the installed transformers has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from qlora_planner.train.toy import HEAD, HIDDEN, toy_config

MODEL_TYPES = tuple(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
# What a config says about how its model is run or was stored, which some classes do not take back.
_NOT_SIZES = frozenset(
    (
        "transformers_version", "architectures", "dtype", "torch_dtype", "_name_or_path", "output_attentions",
        "output_hidden_states", "return_dict", "chunk_size_feed_forward", "is_encoder_decoder", "id2label", "label2id",
        "problem_type", "tie_encoder_decoder", "_attn_implementation", "_experts_implementation",
    )
)  # fmt: skip
_ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [12, 10, 10]}
_INDEXER = {
    "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": HEAD, "indexer_budget": 16,
    "indexer_compress_ratio": 4,
}  # fmt: skip
_SOUND = {"text_encoder": "t5", "audio_encoder": "encodec"}
# Parts without which a config cannot be made: their model types.
_PARTS: dict[str, dict[str, str]] = {
    "musicgen": {**_SOUND, "decoder": "musicgen_decoder"},
    "musicgen_melody": {**_SOUND, "decoder": "musicgen_melody_decoder"},
}
# Fields that a class needs and its own defaults lack.
_MISSING: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "cohere_compass_text": {"rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE}},
    "dbrx": {"attn_config": {"rope_theta": 1e4, "kv_n_heads": 1, "clip_qkv": 8.0}},
    "deepseek_v2": {"num_experts_per_tok": 2, "topk_method": "greedy", "n_group": 1, "topk_group": 1},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "hunyuan_v1_dense": {"head_dim": HEAD},
    "hunyuan_v1_moe": {"head_dim": HEAD, "num_experts": 4, "moe_topk": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "ministral": {"head_dim": HEAD},
    "nemotron": {"num_key_value_heads": 1},
    "qwen4_exp": {"text_config": _INDEXER},
    "qwen4_exp_text": _INDEXER,
    "reformer": {"is_decoder": True},
    "xmod": {"default_language": "en_XX"},
}
# Sizes that only this class has, or that hang together in it alone.
_OWN_SIZES: dict[str, dict[str, Any]] = {
    "codegen": {"n_head": 4},  # its heads are laid out in four groups
    "deepseek_v4": {"o_groups": 2, "o_lora_rank": HEAD, "index_n_heads": 2, "index_head_dim": HEAD, "index_topk": 8},
    "hrm_text": {"num_hidden_layers": 2, "num_layers_per_stack": None},
    "mamba2": {"chunk_size": 16},  # sequences are padded to whole chunks, 256 tokens by default
    "reformer": {
        "axial_pos_embds": False, "feed_forward_size": 2 * HIDDEN,
        "attn_layers": ["local", "lsh"], "attention_head_size": HEAD,
    },
    "blt": {"encoder_hash_byte_group_vocab": 512},
    "xlstm": {"embedding_dim": HIDDEN, "num_heads": 2, "num_blocks": 2},
    "zamba": {"num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid"] * 2},
    "xlm": {"emb_dim": HIDDEN, "n_langs": 1, "n_words": 512},
}  # fmt: skip


# Where the fields above list layers: the same for six of them.
_DEEP: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1, 4]},
    "granitemoehybrid": {"layer_types": ["linear_attention", "linear_attention", "full_attention"] * 2},
    "hrm_text": {"num_hidden_layers": 6},
    "lfm2_moe": {"layer_types": ["conv", "conv", "full_attention"] * 2},
    "reformer": {"attn_layers": ["local", "lsh"] * 3},
    "xlstm": {"num_blocks": 6},
    "zamba": {"num_hidden_layers": 6, "layers_block_type": ["linear_attention", "hybrid", "linear_attention"] * 2},
}


def toy_of(model_type: str, depth: int | None = None) -> dict[str, Any]:
    """The toy of one model type: its config class's own defaults, cut down; with `depth`, to so many layers.

    Raises what a config class raises that cannot be made without arguments.
    """
    parts = {name: {"model_type": kind} for name, kind in _PARTS.get(model_type, {}).items()}
    toy = toy_config(_sizes(CONFIG_MAPPING[model_type](**parts).to_dict()), depth)
    own = {**_MISSING.get(model_type, {}), **_OWN_SIZES.get(model_type, {})}
    if depth is not None:
        own |= _DEEP.get(model_type, {})
    return {**_merged(toy, own), "model_type": model_type}


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    inner = {
        name: _merged(below[name], value)
        for name, value in above.items()
        if name.endswith("_config") and isinstance(below.get(name), Mapping)
    }
    return {**below, **above, **inner}


def _sizes(raw: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in raw.items() if name not in _NOT_SIZES}
    return {name: _sizes(value) if isinstance(value, Mapping) else value for name, value in kept.items()}
