"""Configs that were spoilt: one line that names the field, and never the figures of a model that they are near to.

Without the training packages, where a config is answered by the tables of its class.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click.testing
import pytest
import yaml

from qlora_planner.cli.main import cli
from qlora_planner.session import packages
from qlora_planner.sources.configs import config_faults

CONFIGS = Path(__file__).parents[2] / "profiles" / "configs"
NAMES = {
    "llama": "meta-llama__Llama-3.2-1B", "qwen2": "Qwen__Qwen2.5-0.5B", "gemma2": "google__gemma-2-2b",
    "gpt_neox": "EleutherAI__pythia-160m",
}  # fmt: skip
BASES: dict[str, dict[str, Any]] = {
    kind: json.loads((CONFIGS / f"{name}.json").read_text(encoding="utf-8")) for kind, name in NAMES.items()
}
# Class, field, value, what the line must say: nothing can be built from these.
WRONG: list[tuple[str, str, Any, str]] = [
    *(
        (kind, field, value, "must be")
        for kind in BASES
        for field, values in (
            ("hidden_size", (None, "many", [2048, 2048], 2048.5, -1, 0, 10**12, True)),
            ("num_hidden_layers", ("12", [12], 1.5, -1, 0, 10**12)),
            ("vocab_size", (None, {"size": 9}, -1, 10**12)),
            ("num_attention_heads", ("x", 2.5, 0, -8, 10**12)),
        )
        for value in values
    ),
    ("llama", "num_key_value_heads", "8", "must be"),
    ("llama", "head_dim", [64, 64], "must be a whole number"),
    ("llama", "rms_norm_eps", "1e-5", "must be a number"),
    ("llama", "rms_norm_eps", [1e-5], "must be a number"),
    ("llama", "rms_norm_eps", True, "must be a number"),
    ("llama", "rms_norm_eps", -1e-5, "must be 0 or more"),
    ("llama", "rope_theta", True, "must be a number"),
    ("llama", "rope_theta", 0, "must be more than 0"),
    ("llama", "rope_theta", -10000.0, "must be more than 0"),
    ("llama", "rope_theta", "10000", "must be a number"),
    ("llama", "rope_scaling", "linear", "must be an object"),
    ("llama", "rope_scaling", 0, "must be an object"),
    ("llama", "hidden_act", 5, "must be a text"),
    ("llama", "tie_word_embeddings", "yes", "must be true or false"),
    ("llama", "tie_word_embeddings", 0, "must be true or false"),
    ("llama", "architectures", "LlamaForCausalLM", "must be a list"),
    ("llama", "quantization_config", "nf4", "must be an object"),
    ("llama", "model_type", None, "model_type"),
    ("llama", "model_type", 5, "model_type must be a text"),
    ("qwen2", "max_window_layers", -1, "must be from 0"),
    ("qwen2", "max_window_layers", 10**12, "must be from 0"),
    ("qwen2", "use_sliding_window", 1, "must be true or false"),
    ("gemma2", "hidden_activation", [1], "must be a text"),
    ("gemma2", "hidden_act", {"a": 1}, "must be a text"),
    ("gemma2", "final_logit_softcapping", "30", "must be a number"),
    ("gemma2", "query_pre_attn_scalar", [256], "must be a number"),
    ("gpt_neox", "rotary_emb_base", 0, "must be more than 0"),
    ("gpt_neox", "rotary_pct", "a quarter", "must be a number"),
    ("gpt_neox", "use_parallel_residual", "true", "must be true or false"),
]
AXOLOTL = {"adapter": "qlora", "lora_r": 16, "micro_batch_size": 1, "gradient_accumulation_steps": 4}
# Class, changes, words of which one must be said: nothing is wrong by itself, and nobody here knows what it makes.
UNKNOWN: list[tuple[str, dict[str, Any]]] = [
    *((kind, {"surprise_layers": 3}) for kind in BASES),
    *((kind, {"model_type": "nonesuch"}) for kind in BASES),
    *((kind, {"hidden_size": 2047}) for kind in BASES if kind != "gemma2"),  # whose heads are no part of it
    *((kind, {"num_attention_heads": 7}) for kind in BASES),
    ("llama", {"num_key_value_heads": 5}),
    ("llama", {"hidden_act": "swoosh"}),
    ("llama", {"rope_scaling": {"rope_type": "nonesuch", "factor": 2.0}}),
    ("llama", {"layer_types": ["full_attention", "no_attention"]}),
    ("qwen2", {"num_key_value_heads": 3}),
    ("qwen2", {"use_sliding_window": True, "layer_types": [1, 2]}),
    ("gemma2", {"head_dim": 0.5}),
    ("gpt_neox", {"rotary_pct": 7.5}),
    ("gpt_neox", {"hidden_act": "swoosh"}),
]


@pytest.fixture(autouse=True)
def without_training_packages(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path_factory.mktemp("home")
    for variable, folder in (("HOME", ""), ("XDG_DATA_HOME", "data"), ("XDG_CACHE_HOME", "cache"), ("HF_HOME", "hf")):
        monkeypatch.setenv(variable, str(home / folder))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(packages, "missing_packages", lambda *_: ["torch", "transformers"])


Spoil = Callable[..., Path]


@pytest.fixture
def spoil(tmp_path: Path) -> Iterator[Spoil]:
    def make(kind: str, **changes: Any) -> Path:
        (tmp_path / "config.json").write_text(json.dumps({**BASES[kind], **changes}), encoding="utf-8")
        return tmp_path

    yield make


def run(*args: str) -> click.testing.Result:
    return click.testing.CliRunner().invoke(cli, list(args), prog_name="qlora-plan")


def one_line(result: click.testing.Result, *codes: int) -> str:
    """The line that was said, on stderr alone and beside a note that the model is looked at."""
    lines = [line for line in result.stderr.splitlines() if not ("is new here" in line or ": profiling " in line)]
    assert result.exit_code in codes, (result.stderr, result.stdout[:300])
    assert result.stdout == ""
    assert len(lines) == 1, result.stderr
    assert "a bug in" not in lines[0] and "Traceback" not in lines[0]
    assert len(lines[0]) < 700
    return lines[0]


@pytest.mark.parametrize("kind", BASES)
def test_a_config_that_is_not_spoilt_is_answered(spoil: Spoil, kind: str) -> None:
    result = run("estimate", str(spoil(kind)), "--gpu", "24GB")
    assert result.exit_code == 0, result.stderr


@pytest.mark.parametrize(("kind", "field", "value", "says"), WRONG, ids=[f"{k}-{f}-{v}"[:60] for k, f, v, _ in WRONG])
def test_a_field_that_no_model_has_so_is_named(spoil: Spoil, kind: str, field: str, value: Any, says: str) -> None:
    line = one_line(run("estimate", str(spoil(kind, **{field: value})), "--gpu", "24GB"), 2)
    assert field in line and says in line and "config.json" in line


@pytest.mark.parametrize(("kind", "changes"), UNKNOWN, ids=[f"{k}-{c}"[:60] for k, c in UNKNOWN])
def test_what_nobody_here_knows_is_no_neighbour(spoil: Spoil, kind: str, changes: dict[str, Any]) -> None:
    line = one_line(run("estimate", str(spoil(kind, **changes)), "--gpu", "24GB", "--json"), 2, 3)
    assert str(spoil(kind, **changes)) in line
    # Positions and widths may also be told by what else makes the nearest known structure another.
    assert "rope_scaling" in changes or any(name in line for name in changes) or "no whole number" in line


@pytest.mark.parametrize("given", ["file", "folder"])
@pytest.mark.parametrize(
    ("changes", "code"), [({"hidden_size": "x"}, 2), ({"rms_norm_eps": []}, 2), ({"surprise_layers": 3}, 3)]
)
@pytest.mark.parametrize("verb", ["estimate", "plan", "audit", "profile", "check"])
def test_every_verb_says_the_same(
    spoil: Spoil, tmp_path: Path, verb: str, changes: dict[str, Any], code: int, given: str
) -> None:
    folder = spoil("llama", **changes)
    model = str(folder / "config.json" if given == "file" else folder)
    card = [] if verb in ("audit", "profile") else ["--gpu", "24GB"]
    if verb == "check":
        config = tmp_path / "axolotl.yml"
        config.write_text(yaml.safe_dump({"base_model": model, "load_in_4bit": True, **AXOLOTL}))
        model = str(config)
    line = one_line(run(verb, model, *card), code)
    assert next(iter(changes)) in line or code == 3


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ({"hidden_size": "x"}, "text_config.hidden_size must be a whole number"),
        ({"rope_theta": -1}, "text_config.rope_theta must be more than 0"),
        ({"tie_word_embeddings": "no"}, "text_config.tie_word_embeddings must be true or false"),
        ({"num_hidden_layers": 10**12}, "text_config.num_hidden_layers must be from 1"),
    ],
)
def test_the_text_part_of_a_multimodal_config_is_looked_at_too(part: dict[str, Any], says: str) -> None:
    nested = {"model_type": "gemma3", "text_config": {**BASES["llama"], **part}}
    assert any(says in fault for fault in config_faults(nested))


def test_what_published_configs_say_is_no_fault() -> None:
    for path in sorted(CONFIGS.glob("*.json")):
        assert config_faults(json.loads(path.read_text(encoding="utf-8"))) == [], path.name
