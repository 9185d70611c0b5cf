"""The quick answers stay quick: what they must not import, shown by processes that list what they did import."""

from __future__ import annotations

import pytest

from tests.cli.conftest import Process

NEVER = ("torch", "transformers", "pandas", "textual", "peft", "bitsandbytes", "accelerate", "trl")
TALKATIVE = ("rich", "huggingface_hub", "pynvml", "requests", "httpx", "yaml")

_TEXT = """
import sys
from qlora_planner.cli.main import cli
try:
    cli.main({args!r}, prog_name="qlora-plan")
except SystemExit as done:
    print("CODE", done.code, file=sys.stderr)
print(" ".join(sorted({{name.partition(".")[0] for name in sys.modules}})), file=sys.stderr)
"""


@pytest.mark.parametrize(
    "args",
    [
        ["--version"],
        ["--help"],
        ["estimate", "llama-3.1-8b", "--gpu", "24GB", "--json"],
        ["estimate", "llama-3.1-8b", "--gpu", "rtx-4090"],
        ["llama-3.1-8b", "--gpu", "24GB"],
        ["--gpu", "24GB"],
        ["--gpu", "24GB", "--json"],
        ["audit", "falcon-7b"],
        ["models"],
        ["gpus"],
        ["train", "x"],
        ["explain-oom", "x"],
        ["merge", "x"],
        ["generate", "x", "--prompt", "x"],
    ],
    ids=" ".join,
)
def test_imports(python: Process, args: list[str]) -> None:
    done = python(_TEXT.format(args=args))
    lines = done.stderr.splitlines()
    assert "CODE" in done.stderr
    loaded = set(lines[-1].split())
    assert not loaded & {*NEVER, *TALKATIVE}


def test_importing_the_package(python: Process) -> None:
    done = python("import qlora_planner, sys; print(*{name.partition('.')[0] for name in sys.modules})")
    assert not set(done.stdout.split()) & {*NEVER, "rich", "click"}
