"""Small models of one class and structure whose dimensions share no factors: what a family is traced on.

A toy keeps every field of a real config but its dimensions, and as many layers as are needed for the same pattern of
kinds among the layers that a trace keeps.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from math import lcm
from typing import Any

from torch import nn
from transformers import AutoConfig

from qlora_planner.errors import InputError
from qlora_planner.profiling.tracing import layers
from qlora_planner.profiling.tracing.build import skeleton
from qlora_planner.record import record
from qlora_planner.spec.family import numbered
from qlora_planner.spec.tiles import TILE_SIZES, TRACED_TILES, VOCABULARY

# Fields of a config that say nothing of its tensors or of how it runs.
NOT_ARCHITECTURE = (
    "architectures", "auto_map", "dtype", "torch_dtype", "transformers_version", "quantization_config", "_name_or_path",
)  # fmt: skip
# Values for each dimension, one a toy; groups of heads and head sizes where the class leaves them free.
# Hidden sizes by head: most classes want a multiple of the number of heads, whatever the size of a head.
_HIDDEN_BY_HEAD = (56, 72, 40, 104, 88, 24, 136, 152)
# The same where a gate of one row makes its width a number of quantised blocks.
_BLOCKS_BY_HEAD = (64, 192, 128, 320, 448, 256, 576, 704)
_INTERMEDIATE = (960, 1472, 1088, 1856, 1216, 2176, 1664, 2432)
_VOCABULARY = (1984, 2368, 2624, 1856, 3008, 2752, 3392, 4288)
_POSITIONS = tuple(16384 + 64 * prime for prime in (7, 13, 29, 41, 53, 67, 79, 97))
_HEADS = (4, 12, 20, 8, 28, 16, 44, 36)
# Linear biases of attention are made otherwise for heads that are no power of two; models' own are.
_DOUBLED_HEADS = (4, 8, 16, 2, 32, 64, 4, 8)
_KV_HEADS, _GROUPS = (2, 3, 5, 4, 7, 6, 2, 9), (3, 2, 2, 5, 2, 3, 11, 2)
_HEAD_DIM = (64, 48, 80, 112, 96, 32, 16, 88)
_MAMBA_HEADS_BY_HEAD = (1, 2, 4, 2, 1, 4, 2, 1)
_ALIGNED = (64, 128) * 4
TOYS = len(_HIDDEN_BY_HEAD)
_MOST_LAYERS = 48
# Widths that no dimension of a profile names: a toy keeps what they are of its hidden size.
_OF_HIDDEN = ("ffn_dim", "n_inner", "ffn_hidden_size", "word_embed_proj_dim")
_WIDEST_FREE_HEAD = (
    128  # above, torch picks the kernel by the very size: sdp_utils.cpp, check_cudnn_d256_bprop_head_dim
)
_WIDEST_HEAD = 1 << 16  # of any model


@record
class Toys:
    """The toys of one structure: the configs, the dimensions by the names of the class's fields, the kinds kept."""

    configs: tuple[Mapping[str, Any], ...]
    dims: tuple[Mapping[str, int], ...]
    kinds: tuple[str, ...]
    refusals: Mapping[str, str] = field(default_factory=dict)  # of the model: what breaks there is not the default

    @property
    def symbols(self) -> tuple[str, ...]:
        """The dimensions that are free in this class."""
        return tuple(self.dims[0])


def toys_of(
    raw: Mapping[str, Any],
    window: Sequence[int] = (),
    tiled: bool = False,
    aligned: bool = False,
    any_head: bool = False,
) -> Toys:
    """Toys of the structure that `raw`, the config of a model of text, has; `window` gives their sliding windows,
    `tiled` ones have a vocabulary of three tiles, and `aligned` ones heads that efficient attention does not round up.
    A head's size is free up to what kernels take alike, with `any_head` above that too: tensors know no kernels.

    Raises InputError where the class refuses to be built small.
    """
    config = _config(raw)
    pattern = _pattern(config)
    free = dict(_free_dimensions(config))
    widest = _WIDEST_HEAD if any_head else _WIDEST_FREE_HEAD
    # Layers that attend to everything may share their keys among other groups of heads, whose number a toy keeps.
    shared = int(raw.get("num_global_key_value_heads") or 1)
    rows: list[dict[str, int]] = [
        _dimensions(free, config, at, _ALIGNED if aligned else _HEAD_DIM, widest, shared) for at in range(TOYS)
    ]
    if tiled:
        wider = (TRACED_TILES - 1) * TILE_SIZES[VOCABULARY]
        rows = [{**row, "vocab_size": wider + row["vocab_size"]} for row in rows]
    if window:
        rows = [{**row, "sliding_window": size} for row, size in zip(rows, window, strict=True)]
    depth = _depth(raw, config, rows[0], pattern)
    configs = tuple(_shrunk(raw, config, row, depth) for row in rows)
    for small in configs:
        if _pattern(_config(small)) != pattern:
            raise InputError("a toy of this structure keeps other layers than the model")
    return Toys(configs=configs, dims=tuple(_named(row, widest) for row in rows), kinds=pattern[0])


def _config(raw: Mapping[str, Any]) -> Any:
    fields = {key: copy.deepcopy(value) for key, value in raw.items() if key not in NOT_ARCHITECTURE}
    return AutoConfig.for_model(fields.pop("model_type"), **fields)


def _model(config: Any) -> nn.Module:
    return skeleton(_raw(config), None)


def _raw(config: Any) -> dict[str, Any]:
    fields = {key: value for key, value in config.to_dict().items() if key not in NOT_ARCHITECTURE}
    return {**fields, "model_type": config.model_type}


def _pattern(config: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The kind of each layer that a trace of this model keeps, numbered as they come, and how its config names it."""
    cut = layers.choose(_model(config))
    types = getattr(config.get_text_config(decoder=True), "layer_types", None) or ()
    named = tuple(str(types[index]) for index in cut.kept) if len(types) == len(cut.order) else ()
    return numbered(cut.kinds), named


def _shapes(config: Any) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, tuple(tensor.shape)) for name, tensor in _model(config).named_parameters()]


def _free_dimensions(config: Any) -> Iterator[tuple[str, int]]:
    """Each dimension that can be set by itself in this class, with the value that the config has."""
    names = (
        "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size", "vocab_size",
        "max_position_embeddings", "moe_intermediate_size", "shared_expert_intermediate_size",
    )  # fmt: skip
    small = copy.deepcopy(config)
    # The plain dictionary, because some configs refuse to answer for fields that differ from layer to layer.
    fields, aliases = config.to_dict(), getattr(config, "attribute_map", {})
    before = None
    for name in names:
        value = fields.get(aliases.get(name, name))
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            continue
        if name in ("hidden_size", "num_attention_heads", "vocab_size"):
            yield name, value
            continue
        if before is None:
            before = _shapes(small)
        turned = copy.deepcopy(config)
        try:
            setattr(turned, name, 2 * value if name != "num_key_value_heads" else _other_divisor(config, value))
            changed = _shapes(_config(_raw(turned))) != before
        except Exception:  # a class may refuse what it does not leave free
            continue
        if changed:
            yield name, value


def _kv_heads(config: Any) -> int:
    name = "num_key_value_heads"
    return int(config.to_dict().get(getattr(config, "attribute_map", {}).get(name, name)) or 0)


def _other_divisor(config: Any, value: int) -> int:
    heads = int(config.num_attention_heads)
    return next((k for k in (1, 2, 3, heads // 2, heads) if k and heads % k == 0 and k != value), value)


def _dimensions(
    free: Mapping[str, int], config: Any, at: int, head_dims: tuple[int, ...], widest: int, shared: int
) -> dict[str, int]:
    """The dimensions of toy number `at`."""
    heads, kv_heads = int(config.num_attention_heads), _kv_heads(config)
    row = {"vocab_size": _VOCABULARY[at]}
    alone = _DOUBLED_HEADS[at] if _biased(config) and heads & (heads - 1) == 0 else _HEADS[at]
    if "num_key_value_heads" in free and 1 < kv_heads < heads:
        row["num_key_value_heads"] = _KV_HEADS[at]
        row["num_attention_heads"] = _KV_HEADS[at] * _GROUPS[at]
    else:
        row["num_attention_heads"] = alone
        if "num_key_value_heads" in free:
            row["num_key_value_heads"] = 1 if kv_heads == 1 < heads else alone
    row["num_attention_heads"] = lcm(row["num_attention_heads"], shared)
    gated = "shared_expert_intermediate_size" in free
    sizes = _head_dims(_rotated(config), _ALIGNED if gated else head_dims)
    if "head_dim" in free:
        row["hidden_size"] = row["num_attention_heads"] * (_BLOCKS_BY_HEAD if gated else _HIDDEN_BY_HEAD)[at]
        row["head_dim"] = sizes[at] if free["head_dim"] <= widest else free["head_dim"]
    else:
        head_dim = int(config.hidden_size) // heads
        row["hidden_size"] = row["num_attention_heads"] * (sizes[at] if head_dim <= widest else head_dim)
    for name, values in (("intermediate_size", _INTERMEDIATE), ("max_position_embeddings", _POSITIONS)):
        if name in free:
            row[name] = values[at]
    if _is_expanded(config):  # free in a law alone: no profile names it, so a trace keeps what a model has a head
        by_head = _MAMBA_HEADS_BY_HEAD[at] if widest == _WIDEST_HEAD else int(config.mamba_n_heads) // heads or 1
        row["mamba_n_heads"] = by_head * row["num_attention_heads"]
    for offset, name in enumerate(("moe_intermediate_size", "shared_expert_intermediate_size"), start=3):
        # No profile names the width of shared experts, so a trace keeps what a model has.
        if name in free and (name == "moe_intermediate_size" or widest == _WIDEST_HEAD):
            row[name] = _INTERMEDIATE[(at + offset) % TOYS] + 64 * offset
    return row


def _is_expanded(config: Any) -> bool:
    """Whether the heads of state spaces have to share a multiple of the hidden size between them."""
    names = ("mamba_n_heads", "mamba_d_head", "mamba_expand")
    return all(isinstance(getattr(config, name, None), int) for name in names)


def _biased(config: Any) -> bool:
    """Whether attention is told of positions by linear biases."""
    inner = getattr(config, "attn_config", None)
    return config.model_type == "bloom" or bool(getattr(config, "alibi", False) or getattr(inner, "alibi", False))


def _rotated(config: Any) -> float:
    """The part of each head that positions rotate."""
    rope = getattr(config, "rope_parameters", None) or {}
    part = rope.get("partial_rotary_factor") if isinstance(rope, Mapping) else None
    return float(part or getattr(config, "partial_rotary_factor", None) or getattr(config, "rotary_pct", None) or 1.0)


def _head_dims(rotated: float, head_dims: tuple[int, ...]) -> tuple[int, ...]:
    """Head sizes of which the rotated part is whole and even."""
    whole = [size for size in head_dims if abs(size * rotated / 2 - round(size * rotated / 2)) < 1e-9]
    whole = whole or [size for size in range(8, 129, 8) if abs(size * rotated / 2 - round(size * rotated / 2)) < 1e-9]
    return tuple((whole * TOYS)[:TOYS]) if whole else head_dims


def _named(row: Mapping[str, int], widest: int) -> dict[str, int]:
    """With a derived head size, without what is no symbol: key-value heads that are one or all, a wide head's size."""
    kv_heads = row.get("num_key_value_heads")
    alone = kv_heads is not None and (kv_heads == 1 or kv_heads == row["num_attention_heads"])
    head_dim = row.get("head_dim", row["hidden_size"] // row["num_attention_heads"])
    left_out = {"num_key_value_heads"} if alone else set()
    if head_dim > widest:
        left_out |= {"head_dim"}
    if widest != _WIDEST_HEAD:
        left_out |= {"mamba_n_heads"}
    return {name: value for name, value in {**row, "head_dim": head_dim}.items() if name not in left_out}


def _depth(whole: Mapping[str, Any], config: Any, row: Mapping[str, int], pattern: Any) -> int:
    depth = int(config.num_hidden_layers)
    if whole.get("hidden_size_per_layer_input"):  # embeddings for all layers lie side by side
        return depth
    for fewer in range(1 if depth <= 4 else 5, min(depth, _MOST_LAYERS) + 1):
        try:
            if _pattern(_config(_shrunk(whole, config, row, fewer))) == pattern:
                return fewer
        except Exception:  # a depth that the class refuses
            continue
    raise InputError(f"no depth up to {_MOST_LAYERS} has the pattern of layers of this model")


def _shrunk(published: Mapping[str, Any], config: Any, row: Mapping[str, int], depth: int) -> dict[str, Any]:
    small = copy.deepcopy(config)
    whole = int(config.num_hidden_layers)
    names = getattr(config, "attribute_map", {})
    raw = _raw(small)
    by_number = [name for name, value in raw.items() if name not in published and names_layers(value, whole)]
    if by_number:  # worked out for the model's own depth, from fields that the class may have taken apart
        raw = {name: value for name, value in raw.items() if name not in by_number}
        others = {name for name in published if not name.startswith("rope_")} - {*NOT_ARCHITECTURE, *names}
        raw |= {name: published[name] for name in others - raw.keys()}
    for name, value in row.items():
        raw[names.get(name, name)] = value
    raw[names.get("num_hidden_layers", "num_hidden_layers")] = depth
    if "mamba_n_heads" in row:
        raw["mamba_d_head"] = int(config.mamba_expand) * row["hidden_size"] // row["mamba_n_heads"]
    for name in _OF_HIDDEN:
        width = raw.get(name)
        if isinstance(width, int) and width % int(config.hidden_size) == 0:
            raw[name] = width // int(config.hidden_size) * row["hidden_size"]
        elif isinstance(width, int) and width and int(config.hidden_size) % width == 0:
            raw[name] = row["hidden_size"] // (int(config.hidden_size) // width)
    if "max_position_embeddings" not in row:
        raw[names.get("max_position_embeddings", "max_position_embeddings")] = 1 << 17
    for key, value in raw.items():
        if isinstance(value, (list, tuple)) and len(value) == whole and depth < whole:
            raw[key] = [*value[: depth - 1], value[-1]]
        elif key.startswith("rope_") and isinstance(value, dict):
            raw[key] = _resized(value, config, row)
        elif key.endswith("_token_id") and isinstance(value, int):
            raw[key] = min(value, 3)  # one that the smaller vocabulary has
        elif key.endswith("_token_id") and isinstance(value, list):
            raw[key] = [min(token, 3) for token in value]
    return raw


def names_layers(value: Any, depth: int) -> bool:
    """Whether a field's value tells layers by their numbers: a rising list of them, or a table with them for keys."""
    if isinstance(value, Mapping):
        numbers = [int(key) for key in value if str(key).isdecimal()]
        tables = all(isinstance(part, Mapping) for part in value.values())
        return bool(value) and tables and len(numbers) == len(value) and max(numbers) < depth
    whole = isinstance(value, list) and len(value) > 1 and all(type(number) is int for number in value)
    return whole and value == sorted(set(value)) and value[-1] < depth


def _resized(rope: Mapping[str, Any], config: Any, row: Mapping[str, int]) -> dict[str, Any]:
    """Parameters of rotary positions with as many factors as the toy's heads have pairs."""
    heads, rotated = int(config.num_attention_heads), _rotated(config)
    before = int((config.to_dict().get("head_dim") or int(config.hidden_size) // heads) * rotated) // 2
    after = int(row.get("head_dim", row["hidden_size"] // row["num_attention_heads"]) * rotated) // 2
    return {
        name: ([value[0]] * after if isinstance(value, list) and len(value) == before else value)
        for name, value in rope.items()
    }
