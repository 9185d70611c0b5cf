"""Read a `config.json`, alone or in a model folder, and refuse what no model can be built from."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qlora_planner.record import record
from qlora_planner.sources.json_files import read_object
from qlora_planner.spec.faults import refuse
from qlora_planner.text import quoted

# Who wrote the file, not what it describes: two configs that differ only in these are the same model.
VOLATILE_KEYS = frozenset({"transformers_version", "_name_or_path", "_commit_hash", "_attn_implementation_autoset"})

# Eight times the deepest model there is: every layer is built once, which takes a minute for a thousand.
_LAYERS = 1_000
_WIDTH, _VOCABULARY, _HEADS, _POSITIONS = 10**7, 10**8, 10**5, 10**10


def _sized(names: str, least: int, most: int) -> dict[str, tuple[int, int]]:
    return dict.fromkeys(names.split(), (least, most))


# Sizes as they are called by one class or another, with the least and the most that is no mistake.
SIZES: dict[str, tuple[int, int]] = {
    **_sized("hidden_size n_embd n_embed d_model model_dim dim word_embed_proj_dim", 1, _WIDTH),
    **_sized("intermediate_size ffn_dim n_inner d_ff ff_intermediate_size", 1, _WIDTH),
    **_sized("head_dim global_head_dim v_head_dim d_kv", 1, _WIDTH),
    **_sized("qk_nope_head_dim qk_rope_head_dim rotary_dim kv_lora_rank q_lora_rank ssm_state_size", 0, _WIDTH),
    **_sized("moe_intermediate_size shared_intermediate_size shared_expert_intermediate_size", 0, _WIDTH),
    **_sized("hidden_size_per_layer_input", 0, _WIDTH),
    **_sized("num_hidden_layers n_layer n_layers num_layers num_transformer_layers", 1, _LAYERS),
    **_sized("decoder_layers encoder_layers num_nextn_predict_layers num_kv_shared_layers", 0, _LAYERS),
    **_sized("vocab_size padded_vocab_size", 1, _VOCABULARY),
    **_sized("num_attention_heads n_head n_heads num_key_value_heads num_kv_heads num_query_heads", 1, _HEADS),
    **_sized("num_global_key_value_heads linear_num_key_heads linear_num_value_heads mamba_num_heads", 0, _HEADS),
    **_sized("num_experts num_local_experts n_routed_experts moe_num_experts num_experts_per_tok", 0, _HEADS),
    **_sized("max_position_embeddings n_positions", 1, _POSITIONS),
    **_sized("max_window_layers", 0, _WIDTH),
}
# Of these no class has one for each layer.
_ONE_SIZE = frozenset({"head_dim", "max_position_embeddings", "n_positions", "max_window_layers"})

# Numbers that may be fractions, with the least that is no mistake: None for any, 0 for none below it.
NUMBERS: dict[str, float | None] = {
    **dict.fromkeys((
        "rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "layernorm_epsilon", "initializer_range",
        "attention_dropout", "attn_pdrop", "resid_pdrop", "embd_pdrop", "hidden_dropout", "rotary_pct",
        "partial_rotary_factor",
    ), 0.0),
    **dict.fromkeys((
        "logits_scaling", "attention_multiplier", "embedding_multiplier", "residual_multiplier",
        "final_logit_softcapping", "attn_logit_softcapping", "query_pre_attn_scalar",
    )),
}  # fmt: skip
# The base of an angle: nothing turns by none, or by less.
_BASES = frozenset({"rope_theta", "rotary_emb_base", "rope_local_base_freq"})
# What is on or off; null is left to the class.
FLAGS = frozenset({
    "tie_word_embeddings", "attention_bias", "mlp_bias", "use_bias", "qkv_bias", "use_cache", "use_sliding_window",
    "use_parallel_residual", "parallel_attn", "new_decoder_architecture", "multi_query", "alibi", "norm_topk_prob",
    "use_qk_norm", "qk_layernorm",
})  # fmt: skip
TEXTS = frozenset({"hidden_act", "hidden_activation", "activation_function"})
OBJECTS = frozenset({"rope_scaling", "rope_parameters"})

# Without one name of each row, transformers would fill in some default model instead of the one that was meant.
_NEEDED = {
    "hidden_size": ("hidden_size", "n_embd", "n_embed", "d_model", "model_dim", "dim"),
    "num_hidden_layers": (
        "num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_transformer_layers", "decoder_layers",
    ),
    "vocab_size": ("vocab_size", "padded_vocab_size"),
}  # fmt: skip
_ESSENTIAL = frozenset(name for names in _NEEDED.values() for name in names)

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.\-]*(?:/[A-Za-z0-9][\w.\-]*)?")


@record
class RawConfig:
    """One parsed config.json. `origin` is file, folder, hub or cache (the local cache of Hub files)."""

    id: str
    config: Mapping[str, Any]
    sha256: str  # of the canonical JSON without VOLATILE_KEYS
    origin: str
    path: Path | None = None
    weights_present: bool = False  # safetensors files lie beside it


def read_config(path: str | os.PathLike[str], *, model_id: str | None = None, origin: str | None = None) -> RawConfig:
    """The config in `path`, a config.json or a folder that holds one.

    `model_id` names the model; else the folder does, or the file where it is not called config.json (`org__name.json`
    is org/name). Raises InputError, one line with the path and every fault, for what is not there, is not JSON or
    describes no model: see `config_faults`.
    """
    try:
        given = Path(path).expanduser()
        folder = given.is_dir()
        file = given / "config.json" if folder else given
        if not os.path.lexists(file):
            absent = "no such file" if given.suffix == ".json" else "no such file or folder"
            refuse([_no_config_in(given) if folder else absent], str(given))
        weights = folder and any(given.glob("*.safetensors"))
    except (OSError, RuntimeError, ValueError) as error:  # an unknown ~user, no permission, a name that no disk takes
        refuse([f"cannot be read: {error}"], str(path))
    raw = read_object(file, constants=True)
    if faults := config_faults(raw):
        refuse(faults, str(file))
    return RawConfig(
        id=model_id or _name_of(file),
        config=raw,
        sha256=config_sha256(raw, str(file)),
        origin=origin or ("folder" if folder else "file"),
        path=file,
        weights_present=weights,
    )


def config_faults(raw: Mapping[str, Any]) -> list[str]:
    """What is wrong with a config: no model type, missing sizes, sizes that are no whole numbers or out of bounds.

    The parts of a multimodal config (`text_config`, `vision_config`) are checked alike. They may leave sizes out, as
    published ones do, because their classes know them.
    """
    faults = _part_faults(raw, "", 0)
    model_type = raw.get("model_type")
    if model_type is None:
        faults.insert(0, "lacks model_type")
    elif type(model_type) is not str or not model_type.strip():
        faults.insert(0, f"model_type must be a text, not {quoted(model_type)}")
    if not any(type(value) is dict and _is_part(name) for name, value in raw.items()):
        faults.extend(f"lacks {size}" for size, names in _NEEDED.items() if not any(name in raw for name in names))
    named = raw.get("architectures")
    if named is not None and not (type(named) is list and all(type(name) is str for name in named)):
        faults.append(f"architectures must be a list of class names, not {quoted(named)}")
    quantization = raw.get("quantization_config")
    if quantization is not None and type(quantization) is not dict:
        faults.append(f"quantization_config must be an object, not {quoted(quantization)}")
    return faults


def _is_part(name: str) -> bool:
    return name.endswith("_config") and name not in ("quantization_config", "attn_config", "ffn_config")


def _part_faults(raw: Mapping[str, Any], prefix: str, depth: int) -> list[str]:
    faults: list[str] = []
    for name, value in raw.items():
        if name in SIZES:
            if value is None and not (name in _ESSENTIAL and not prefix):
                continue  # null: the class works it out
            # Some classes have a size per layer, as a list.
            single = name in _ONE_SIZE or (name in _ESSENTIAL and not prefix)
            for item in value if type(value) is list and value and not single else [value]:
                if fault := _size_fault(item, *SIZES[name]):
                    faults.append(f"{prefix}{name} {fault}")
                    break
        elif value is not None and (fault := _value_fault(name, value)):
            faults.append(f"{prefix}{name} must be {fault}, not {quoted(value)}")
        elif _is_part(name) and type(value) is dict and depth < 3:
            faults.extend(_part_faults(value, f"{prefix}{name}.", depth + 1))
    return faults


def _value_fault(name: str, value: Any) -> str | None:
    """What a field has to be that is no size, where it is something else."""
    if name in FLAGS:
        return None if type(value) is bool else "true or false"
    if name in TEXTS:
        return None if type(value) is str else "a text"
    if name in OBJECTS:
        return None if type(value) is dict else "an object"
    if name == "sliding_window":  # false in some, and a list in others
        return "a number" if type(value) is str else None
    if name not in NUMBERS and name not in _BASES:
        return None
    if type(value) not in (int, float):
        return "a number"
    if name in _BASES:
        return None if value > 0 else "more than 0"
    least = NUMBERS[name]
    return None if least is None or value >= least else f"{least:g} or more"


def _size_fault(value: Any, least: int, most: int) -> str | None:
    if type(value) is not int:
        return f"must be a whole number, not {quoted(value)}"
    if not least <= value <= most:
        return f"must be from {least} to {most:,}, not {quoted(value)}"
    return None


def config_sha256(raw: Mapping[str, Any], location: str = "config") -> str:
    """SHA-256 of the canonical JSON: sorted keys, no spaces, without VOLATILE_KEYS at any depth.

    Raises InputError naming `location` when it is nested too deeply to be written.
    """
    try:
        text = json.dumps(_lasting(raw), sort_keys=True, separators=(",", ":"))
    except RecursionError:
        refuse(["is nested too deeply"], location)
    import hashlib  # late, as it loads OpenSSL: a model of the catalogue needs none

    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _lasting(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _lasting(item) for key, item in value.items() if key not in VOLATILE_KEYS}
    return [_lasting(item) for item in value] if isinstance(value, list) else value


def written_as_path(text: str) -> bool:
    """Whether `text` can only be meant as a path: `./x`, `../x`, `/x`, `~/x`, `x/`, `x.json`."""
    return text.startswith((".", "/", "~", os.sep)) or text.endswith((".json", "/", os.sep))


def is_hub_id(text: str) -> bool:
    """Whether a Hub repository could be called so: `name` or `org/name` of letters, digits, `-`, `_` and `.`."""
    usable = len(text) <= 96 and _HUB_ID.fullmatch(text) and "--" not in text and ".." not in text
    return bool(usable) and text[-1] not in "-." and not text.endswith(".git")


def _no_config_in(folder: Path) -> str:
    """Says what a folder without config.json is instead, when that can be seen."""
    if (folder / "adapter_config.json").exists():
        return "holds a PEFT adapter and no config.json; give the model that the adapter was trained on"
    if any(folder.glob("*.gguf")):
        return "holds GGUF files and no config.json; give the original model"
    return "a folder without config.json"


def _name_of(file: Path) -> str:
    if file.name == "config.json":
        return file.absolute().parent.name or "config.json"
    return file.stem.replace("__", "/", 1)
