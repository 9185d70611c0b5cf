"""The text part of a config of a model that takes images or sound too, without torch.

`profiles/laws/wrappers.json` says of each such class what `profiling.text_part` says of it (tools/wrappers.py): the
model type of its text part where a config does not name it, whether its head is tied by default, what its text class
fills in otherwise than the class with the same tensors, and which of its fields are not the text's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from qlora_planner.bounded import small_json
from qlora_planner.errors import InputError
from qlora_planner.sources.configs import RawConfig
from qlora_planner.sources.same_shape import ROPE_TABLES
from qlora_planner.text import plain, quoted

WRAPPERS, WRAPPERS_SCHEMA = "wrappers.json", "qlora-plan/wrappers/1"
_TIED, _PART = "tie_word_embeddings", "text_config"
# Sections are for positions in pictures: text has one position a token.
_SECTIONS = "mrope"


def light_text_part(raw: RawConfig, laws: Sequence[Path]) -> tuple[RawConfig, str | None]:
    """`raw` with the config of its text part, and the model type that it is a part of; as it is and None for a config
    of text alone, or of a class that the folders `laws` do not know as one with other parts.

    Raises InputError naming a table that cannot be read, and for a text part whose model type is no text.
    """
    kind = raw.config.get("model_type")
    wrapper = _wrappers(laws).get(kind) if isinstance(kind, str) else None
    inner = raw.config.get(_PART)
    if wrapper is None or not (isinstance(inner, Mapping) or wrapper["flat"]):
        return raw, None
    own = dict(inner) if isinstance(inner, Mapping) else _flat(raw.config, wrapper)
    said = [part[_TIED] for part in (raw.config, own) if part.get(_TIED) is not None]
    own_type = own.get("model_type")
    if not isinstance(own_type, str | None):
        raise InputError(f"{plain(raw.id)}: {_PART}.model_type must be a text, not {quoted(own_type)}")
    text_type = wrapper["text"] if own_type in (None, kind) else own_type
    text_class = wrapper["texts"].get(text_type, {"law": text_type})
    if text_class["law"] != text_type:
        own = _filled(own, text_class)
    for name in ("architectures", "auto_map", "quantization_config"):
        own.pop(name, None)
    own |= {"model_type": text_class["law"], _TIED: said[0] if said else wrapper["tied"]}
    if raw.config.get("quantization_config") is not None:
        own["quantization_config"] = raw.config["quantization_config"]
    return replace(raw, config=own), str(kind)


def _flat(config: Mapping[str, Any], wrapper: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a config that has those of its text at the top."""
    return {
        name: value for name, value in config.items() if name not in wrapper["own"] and not name.endswith("_config")
    }


def _filled(fields: Mapping[str, Any], text_class: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a text part as the class with the same tensors takes them."""
    given = set(fields)
    for name, own in text_class["aliases"].items():
        given |= {name, own} if given & {name, own} else set()
    own = dict(fields) | {name: value for name, value in text_class["fills"].items() if name not in given}
    for name in ROPE_TABLES:
        rope = own.get(name)
        if not isinstance(rope, Mapping):
            continue
        kept = {key: value for key, value in rope.items() if not key.startswith(_SECTIONS)}
        kept = {key: "default" if value == _SECTIONS else value for key, value in kept.items()}
        own[name] = kept
    return own


def _wrappers(laws: Sequence[Path]) -> Mapping[str, Any]:
    path = next((path for folder in laws if (path := folder / WRAPPERS).is_file()), None)
    if path is None:
        return {}
    try:
        document = small_json(path)
        return document["classes"] if document["schema"] == WRAPPERS_SCHEMA else {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: not readable ({type(error).__name__}); `make laws` writes it anew") from error
