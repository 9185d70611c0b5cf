"""GGUF by llama.cpp's converters: found by name, run before anything is merged in vain, whole files or none."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.after.test_generate import cache, run, trained

__all__ = ("cache", "trained")

# Stands for llama.cpp's scripts, whose options are these.
CONVERTER = """
import argparse, pathlib
parser = argparse.ArgumentParser()
parser.add_argument("source", type=pathlib.Path)
parser.add_argument("--outfile", type=pathlib.Path)
parser.add_argument("--outtype", choices=["f16", "bf16"])
parser.add_argument("--base", type=pathlib.Path)
given = parser.parse_args()
print("writing")
if FAILS:
    given.outfile.write_bytes(b"half")
    raise SystemExit("Model XyzForCausalLM is not supported")
config = given.base or given.source
given.outfile.write_bytes(b"GGUF" + (config / "config.json").read_bytes()[:4] + given.outtype.encode())
"""


def converter(folder: Path, *, fails: bool = False) -> Path:
    for name in ("convert_hf_to_gguf.py", "convert_lora_to_gguf.py"):
        script = folder / name
        script.write_text(f"#!{sys.executable}\nFAILS = {fails}\n{CONVERTER}")
        script.chmod(0o755)
    return folder


def test_gguf_by_the_converter_of_the_folder_or_of_path(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = tmp_path / "llama.cpp"
    there.mkdir()
    monkeypatch.setenv("LLAMA_CPP_DIR", str(converter(there)))
    made = run("merge", trained, "--gguf", "adapter", "--json")
    assert made.exit_code == 0, made.stderr
    document = json.loads(made.stdout)
    assert Path(document["path"]) == tmp_path / "run-adapter.gguf"
    assert (tmp_path / "run-adapter.gguf").read_bytes().startswith(b"GGUF{")
    assert not (tmp_path / "run-merged").exists()
    monkeypatch.delenv("LLAMA_CPP_DIR")
    monkeypatch.setenv("PATH", str(there))
    made = run("merge", trained, "--gguf", "model", "--dtype", "float16")
    assert made.exit_code == 0, made.stderr
    assert (tmp_path / "run-merged.gguf").read_bytes().endswith(b"f16")
    assert (tmp_path / "run-merged" / "config.json").is_file()
    again = run("merge", trained, "--gguf", "adapter")
    assert (again.exit_code, "--force writes over it" in again.stderr) == (2, True)


def test_gguf_without_a_converter_or_with_one_that_fails_is_one_line(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LLAMA_CPP_DIR", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    result: Any = run("merge", trained, "--gguf", "model")
    assert (result.exit_code, result.stdout) == (3, "")
    assert "LLAMA_CPP_DIR" in result.stderr
    assert not (tmp_path / "run-merged").exists(), "it is said before anything is merged"
    there = tmp_path / "llama.cpp"
    there.mkdir()
    monkeypatch.setenv("LLAMA_CPP_DIR", str(converter(there, fails=True)))
    result = run("merge", trained, "--gguf", "adapter")
    assert (result.exit_code, result.stdout) == (4, "")
    assert "Model XyzForCausalLM is not supported" in result.stderr
    assert [path.name for path in tmp_path.glob("*.gguf*")] == []
