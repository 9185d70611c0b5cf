"""Counting with a tokenizer that can be read as it is imports none of the training packages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.data.conftest import Write

_TEXT = """
import sys
from qlora_planner.data import summarise
print(summarise(sys.argv[1], tokenizer=sys.argv[2]).tokens)
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


def test_imports(write: Write, tokenizer: Path) -> None:
    path = write("train.jsonl", [{"messages": [{"role": "user", "content": "the fox"}]}])
    done = subprocess.run([sys.executable, "-c", _TEXT, str(path), str(tokenizer)], capture_output=True, text=True)
    tokens, names = done.stdout.splitlines()
    assert int(tokens) > 0
    assert not {"torch", "transformers", "datasets", "pandas", "rich", "pyarrow", "click"} & set(names.split())
