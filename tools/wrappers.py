"""`make laws`, its beginning: which classes hold a text part beside others, and what of its config is the text's.

python -m tools.wrappers ROOT. Writes ROOT/laws/wrappers.json from transformers' own config classes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from qlora_planner.profiling.text_part import _SAME_TENSORS
from qlora_planner.sources.text_part import WRAPPERS, WRAPPERS_SCHEMA
from tools.families.make import quieten

_TIED = "tie_word_embeddings"


def wrapper(kind: str) -> dict[str, Any] | None:
    """What the file says of a model type; None for one without other parts than text, or whose text part has no causal
    language model."""
    cls = CONFIG_MAPPING[kind]
    if not any("vision" in name or "audio" in name for name in getattr(cls, "sub_configs", {})):
        return None
    config = cls()
    text = config.get_text_config(decoder=True)
    if text is config or not (type(text) in AutoModelForCausalLM._model_mapping or text.model_type in _SAME_TENSORS):
        return None
    own = set(config.to_dict()) - set(text.to_dict())
    return {
        "text": text.model_type,
        "tied": bool(getattr(config, _TIED, False)),
        "flat": _is_flat(cls),
        "own": sorted(own),
        "texts": {text.model_type: _same_tensors(text)} if text.model_type in _SAME_TENSORS else {},
    }


def _is_flat(cls: Any) -> bool:
    """Whether a config of this class may have the fields of its text at the top."""
    marked = 7 * 1024
    try:
        return bool(cls(hidden_size=marked).get_text_config(decoder=True).hidden_size == marked)
    except Exception:  # a class that does not take it
        return False


def _same_tensors(text: Any) -> dict[str, Any]:
    """The class with the same tensors, and the plain fields that the text's own class fills in otherwise."""
    law = _SAME_TENSORS[text.model_type]
    given, usual = text.to_dict(), CONFIG_MAPPING[law]().to_dict()
    plain = (int, float, str, bool)
    fills = {
        name: value
        for name, value in given.items()
        if isinstance(value, plain) and name in usual and usual[name] != value and name not in ("model_type", _TIED)
    }
    aliases = {**CONFIG_MAPPING[law].attribute_map, **type(text).attribute_map}
    return {
        "law": law,
        "fills": {name: value for name, value in fills.items() if not name.endswith("_token_id")},
        "aliases": {name: own for name, own in aliases.items() if name in fills or own in fills},
    }


def main(root: Path) -> int:
    """Write the table."""
    quieten()
    classes = {}
    for kind in sorted(CONFIG_MAPPING.keys()):
        try:
            classes[kind] = wrapper(kind)
        except Exception as error:  # a class that cannot be made without another package or the network
            print(f"  not {kind}: {type(error).__name__}: {str(error)[:100]}", flush=True)
    known = {kind: facts for kind, facts in classes.items() if facts is not None}
    lines = ",\n".join(f" {json.dumps(kind)}: {json.dumps(facts)}" for kind, facts in known.items())
    text = f'{{"schema": "{WRAPPERS_SCHEMA}", "classes": {{\n{lines}\n}}}}\n'
    (root / "laws" / WRAPPERS).write_text(text, "utf-8")
    print(f"{len(known)} classes with other parts than text")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
