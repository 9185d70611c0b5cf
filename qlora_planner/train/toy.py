"""A toy size of an architecture: the same class and the same kinds of layers, small enough for a step on a CPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

HIDDEN, HEAD, VOCABULARY, EXPERTS = 128, 64, 512, 4
_POSITIONS = 4096

# By the names that configs use. Widths are multiples of 64, so that 4-bit blocks fill up.
_SIZES: dict[str, int] = {
    **dict.fromkeys(
        ("hidden_size", "n_embd", "n_embed", "d_model", "model_dim", "dim", "word_embed_proj_dim", "lru_width"), HIDDEN
    ),
    **dict.fromkeys(
        (
            "intermediate_size",
            "ffn_dim",
            "n_inner",
            "d_ff",
            "ff_intermediate_size",
            "ffn_hidden_size",
            "decoder_ffn_dim",
            "encoder_ffn_dim",
            "attention_hidden_size",
            "d_inner",
            "mamba_d_ssm",
        ),
        2 * HIDDEN,
    ),
    **dict.fromkeys(
        (
            "moe_intermediate_size",
            "shared_intermediate_size",
            "shared_expert_intermediate_size",
            "expert_ffn_hidden_size",
        ),
        HIDDEN,
    ),
    **dict.fromkeys(
        (
            "num_attention_heads",
            "n_head",
            "n_heads",
            "num_query_heads",
            "decoder_attention_heads",
            "encoder_attention_heads",
            "linear_num_heads",
        ),
        HIDDEN // HEAD,
    ),
    **dict.fromkeys(("head_dim", "global_head_dim", "v_head_dim", "qk_nope_head_dim", "linear_head_dim"), HEAD),
    **dict.fromkeys(("qk_rope_head_dim", "rotary_dim"), HEAD // 2),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank"), HEAD),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), HEAD),
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads"), 2),
    **dict.fromkeys(
        ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_routed_experts"), EXPERTS
    ),
    **dict.fromkeys(
        ("vocab_size", "padded_vocab_size", "vocab_size_per_layer_input", "decoder_vocab_size"), VOCABULARY
    ),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), _POSITIONS),
    "hidden_size_per_layer_input": HEAD,
    "out_hidden_size": HIDDEN,
    "sliding_window": 32,
}
_AT_MOST: dict[str, int] = {
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "num_global_key_value_heads"), 1),
    **dict.fromkeys(
        (
            "num_experts_per_tok",
            "num_experts_per_token",
            "moe_topk",
            "moe_k",
            "top_k_experts",
            "n_shared_experts",
            "zero_expert_num",
        ),
        2,
    ),
    **dict.fromkeys(("n_group", "topk_group", "first_k_dense_replace", "num_nextn_predict_layers"), 1),
    **dict.fromkeys(("depth", "vision_depth"), 1),
}
_LAYERS = (
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "num_transformer_layers",
    "decoder_layers",
    "encoder_layers",
    "num_decoder_layers",
    "num_encoder_layers",
)
# Where configs list the kind of each layer.
_KINDS = ("layer_types", "layers_block_type", "hybrid_override_pattern", "block_types", "_block_types")
_PERIODS = ("full_attention_interval", "sliding_window_pattern", "no_rope_layer_interval", "attn_layer_period")
# Fields of state-space layers: expansion, heads, width of a head, groups.
_STATE_SPACES = (
    ("mamba_expand", "mamba_n_heads", "mamba_d_head", "mamba_n_groups"),
    ("mamba_expand", "n_mamba_heads", "mamba_headdim", "mamba_ngroups"),
    ("expand", "num_heads", "head_dim", "n_groups"),
    ("expand", "mamba_num_heads", "mamba_head_dim", "n_groups"),
)
# A list with one entry per layer is cut to the layers that are kept.
_PER_LAYER_AT_LEAST = 3


def toy_config(raw: Mapping[str, Any], depth: int | None = None) -> dict[str, Any]:
    """`raw` (a parsed config.json) cut down: two layers of each kind at most, narrow, few experts, a small vocabulary.

    With `depth` the first layers stay in their own order, so many or as many as it takes to have each kind. Fields
    that the config leaves out stay out, so that the class still works them out.
    """
    layers = next((raw[name] for name in _LAYERS if isinstance(raw.get(name), int)), None)
    kept = _kept_layers(raw, layers, depth)
    equal_heads = _equal_heads(raw)
    toy: dict[str, Any] = {}
    for name, value in raw.items():
        if name.endswith("_config") and isinstance(value, Mapping) and name != "quantization_config":
            toy[name] = toy_config(value, depth)
        elif name in _LAYERS and isinstance(value, int):
            toy[name] = len(kept)
        elif isinstance(value, list) and layers is not None and len(value) == layers >= _PER_LAYER_AT_LEAST:
            toy[name] = [_size(name, value[index]) for index in kept]
        elif name in _AT_MOST and type(value) is int:
            toy[name] = HIDDEN // HEAD if name.endswith("heads") and equal_heads else min(value, _AT_MOST[name])
        else:
            toy[name] = _size(name, value)
    _settle(toy, raw, kept)
    if depth is None:
        _settle_periods(toy, raw, kept)
    return toy


def _size(name: str, value: Any) -> Any:
    if name == "partial_rotary_factor" and isinstance(value, float) and HEAD * value % 2:
        return 0.5  # the part of a toy's head that turns must have two halves
    if name in _SIZES and type(value) is int and value > 0:
        return min(value, _SIZES[name]) if name in ("sliding_window",) else _SIZES[name]
    return value


def _equal_heads(raw: Mapping[str, Any]) -> bool:
    """Whether every query head has its own key and value head."""
    heads = raw.get("num_attention_heads")
    return heads is not None and raw.get("num_key_value_heads") == heads


def _kept_layers(raw: Mapping[str, Any], layers: int | None, depth: int | None) -> list[int]:
    """One layer of each kind that the config lists, two where it lists none or one."""
    kinds = _listed_kinds(raw, layers)
    first = sorted({kinds.index(kind) for kind in kinds})
    if depth is not None:
        periods = [raw[name] for name in _PERIODS if isinstance(raw.get(name), int)]
        return list(range(min(layers or depth, max(depth, *(index + 1 for index in first), *periods, 0))))
    return first if len(first) > 1 else list(range(min(2, layers or 2)))


def _listed_kinds(raw: Mapping[str, Any], layers: int | None) -> list[Any]:
    """The kind of each layer, listed one by one or as a pattern that repeats; empty where the config lists none."""
    for name in _KINDS:
        kinds = raw.get(name)
        if isinstance(kinds, str) and len(kinds) == layers:
            return list(kinds)
        if isinstance(kinds, list) and kinds and layers and len(kinds) <= layers:
            return (kinds * layers)[:layers]
    return []


def _settle(toy: dict[str, Any], raw: Mapping[str, Any], kept: list[int]) -> None:
    """Fields that hang on the number of layers or on other fields."""
    # Layer indices: those of layers that are no more would be refused.
    for name in ("mlp_only_layers", "attn_layer_indices", "hybrid_layer_ids"):
        if isinstance(raw.get(name), list):
            toy[name] = [kept.index(index) for index in raw[name] if index in kept]
    pattern = raw.get("block_types")
    if isinstance(pattern, list) and pattern and "layer_types" not in raw:
        toy["block_types"] = [pattern[index % len(pattern)] for index in kept]
    if isinstance(raw.get("per_layer_config"), Mapping):
        places = {str(kept.index(index)): index for index in kept}
        own = {int(index): value for index, value in raw["per_layer_config"].items()}
        toy["per_layer_config"] = {
            position: {name: _size(name, value) for name, value in own[index].items()}
            for position, index in places.items()
            if index in own
        }
    if isinstance(raw.get("hybrid_override_pattern"), str) and len(raw["hybrid_override_pattern"]) > len(kept):
        toy["hybrid_override_pattern"] = "".join(raw["hybrid_override_pattern"][index] for index in kept)
    if "vocab_size" in raw:
        toy["pad_token_id"] = 0  # some classes have a default beyond a small vocabulary
    toy |= {name: number for name, number in (("bos_token_id", 1), ("eos_token_id", 2)) if name in raw}
    if isinstance(raw.get("num_kv_shared_layers"), int):
        toy["num_kv_shared_layers"] = 0
    rope = raw.get("rope_scaling")
    if isinstance(rope, Mapping) and "short_factor" in rope:
        toy.pop("rope_scaling")  # lists as long as the real head is wide
    _settle_images(toy, raw)
    _settle_heads(toy, raw)
    _settle_states(toy)


def _settle_images(toy: dict[str, Any], raw: Mapping[str, Any]) -> None:
    """What ties text and images together: the parts of a head that turn by each axis, the tower's width at its end,
    and tokens that stand for images, which have to be among a toy's words."""
    for name in ("rope_scaling", "rope_parameters"):
        rope = raw.get(name)
        if isinstance(rope, Mapping) and isinstance(rope.get("mrope_section"), list):
            whole = sum(rope["mrope_section"])
            toy[name] = {**rope, "mrope_section": [part * (HEAD // 2) // whole for part in rope["mrope_section"]]}
    if "vision_config" not in raw:
        return
    tokens = sorted({
        value for name, value in raw.items()
        if name.endswith(("_token_id", "_token_index")) and type(value) is int and value >= VOCABULARY
    })  # fmt: skip
    places = {value: VOCABULARY - len(tokens) + index for index, value in enumerate(tokens)}
    toy |= {name: places[value] for name, value in raw.items() if "_token_" in name and value in tokens}


def _settle_periods(toy: dict[str, Any], raw: Mapping[str, Any], kept: list[int]) -> None:
    """Every so many layers one is of another kind: with few layers, the last is."""
    for name in _PERIODS:
        if isinstance(raw.get(name), int) and raw[name] > 1:
            toy[name] = len(kept)
    if isinstance(raw.get("attn_layer_offset"), int):
        toy["attn_layer_offset"] = len(kept) - 1


def _settle_heads(toy: dict[str, Any], raw: Mapping[str, Any]) -> None:
    """Widths of heads that are made of other widths."""
    rotated = raw.get("qk_rope_head_dim")
    if isinstance(rotated, int):
        if raw.get("head_dim") == rotated:
            toy["head_dim"] = toy["qk_rope_head_dim"]
        if isinstance(raw.get("qk_head_dim"), int):
            toy["qk_head_dim"] = toy["qk_nope_head_dim"] + toy["qk_rope_head_dim"]
    if isinstance(raw.get("attention_head_dim"), int) and "attention_hidden_size" in toy:
        toy["attention_head_dim"] = toy["attention_hidden_size"] // toy["num_attention_heads"]


def _settle_states(toy: dict[str, Any]) -> None:
    """State-space layers: heads times head width must be the inner width, and groups must divide the heads."""
    for expand, heads, width, groups in _STATE_SPACES:
        if all(isinstance(toy.get(name), int) for name in (expand, heads, width)):
            toy[width] = HEAD // 2
            toy[heads] = toy[expand] * HIDDEN // toy[width]
            if groups in toy:
                toy[groups] = 1
