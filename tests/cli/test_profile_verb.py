"""profile builds and keeps; the other verbs find what was kept, and say when they had to build."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Invoke

pytest.importorskip("torch")

CONFIG = json.dumps({
    "model_type": "llama", "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 1024,
    "intermediate_size": 256, "num_key_value_heads": 2, "max_position_embeddings": 512,
})  # fmt: skip
# Which no law knows, so that it is profiled.
UNKNOWN = json.dumps({**json.loads(CONFIG), "hidden_act": "relu"})


def test_profile_then_estimate(invoke: Invoke, bad_config: Callable[[str], str]) -> None:
    path = bad_config(UNKNOWN)
    built = invoke("profile", path)
    assert built.exit_code == 0, built.stderr
    assert "LlamaForCausalLM" in built.stdout
    assert "2 x" in built.stdout
    assert max(map(len, built.stdout.splitlines())) <= 80
    assert "profiling" in built.stderr
    assert json.loads(invoke("profile", path, "--json", "--quiet").stdout)["params"] > 0
    kept = invoke("estimate", path, "--gpu", "6GB", "--seq-len", "9999", "--json")
    assert kept.exit_code == 0, kept.stderr
    document = json.loads(kept.stdout)
    assert document["model"]["profile"]["source"] == "cache"
    assert any("512 positions" in problem["message"] for problem in document["problems"])


def test_a_damaged_cache_is_rebuilt_and_said_once(invoke: Invoke, bad_config: Callable[[str], str]) -> None:
    path = bad_config(UNKNOWN)
    first = invoke("estimate", path, "--json")
    assert json.loads(first.stdout)["model"]["profile"]["source"] == "built"
    assert "profiled in" in first.stderr
    (kept,) = Path(os.environ["XDG_CACHE_HOME"]).rglob("profiles/*.json")
    kept.write_text("{")
    again = invoke("estimate", path, "--json")
    assert again.exit_code == 0
    assert json.loads(again.stdout)["model"]["profile"]["source"] == "built"
    assert len([line for line in again.stderr.splitlines() if str(kept) in line or kept.name in line]) == 1
    assert invoke("estimate", path, "--json").stderr == ""
