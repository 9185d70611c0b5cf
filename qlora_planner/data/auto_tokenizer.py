"""A process of its own: what AutoTokenizer makes of a model, written down so that it can be read without transformers.

python -m qlora_planner.data.auto_tokenizer NAME FILE
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(name: str, out: str) -> int:
    """Write the backend, the special tokens and the chat template to `out`; the reason goes to stderr."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (ValueError, OSError, ImportError, KeyError, TypeError, AttributeError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        if "trust_remote_code" in str(error):
            lines = ["it has code of its own, which is never run here"]
        print(lines[0], file=sys.stderr)
        return 1
    backend = getattr(tokenizer, "_tokenizer", None)
    if backend is None:
        print(f"{type(tokenizer).__name__} has no fast form", file=sys.stderr)
        return 1
    document = {
        "tokenizer": backend.to_str(),
        "special_tokens": dict(tokenizer.special_tokens_map),
        "chat_template": tokenizer.chat_template,
        "split": bool(tokenizer.split_special_tokens),
    }
    Path(out).write_text(json.dumps(document), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
