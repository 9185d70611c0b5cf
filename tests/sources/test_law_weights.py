"""Weights beside a config are compared with the law of its class, and are right where they disagree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qlora_planner.errors import UnprofiledError
from qlora_planner.session import load_model, packages
from qlora_planner.sources.laws.stored import INDEX

ROOT = Path(__file__).parents[2] / "profiles"
CONFIG: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 2,
    "num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 1003,
}  # fmt: skip


def shapes(layers: int = 2) -> dict[str, list[int]]:
    found = {"model.embed_tokens.weight": [1003, 256], "model.norm.weight": [256], "lm_head.weight": [1003, 256]}
    for layer in range(layers):
        here = f"model.layers.{layer}"
        found |= {
            f"{here}.self_attn.q_proj.weight": [256, 256], f"{here}.self_attn.k_proj.weight": [64, 256],
            f"{here}.self_attn.v_proj.weight": [64, 256], f"{here}.self_attn.o_proj.weight": [256, 256],
            f"{here}.mlp.gate_proj.weight": [704, 256], f"{here}.mlp.up_proj.weight": [704, 256],
            f"{here}.mlp.down_proj.weight": [256, 704], f"{here}.input_layernorm.weight": [256],
            f"{here}.post_attention_layernorm.weight": [256],
        }  # fmt: skip
    return found


def folder_with(tmp_path: Path, tensors: dict[str, list[int]], dtype: str = "BF16", **config: Any) -> str:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | config))
    header = json.dumps({
        "__metadata__": {"format": "pt"},
        **{name: {"dtype": dtype, "shape": shape, "data_offsets": [0, 0]} for name, shape in tensors.items()},
    }).encode()  # fmt: skip
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    return str(tmp_path)


@pytest.fixture(autouse=True)
def _base_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "missing_packages", lambda *_: ["torch"])


def test_weights_that_are_what_the_config_makes_are_answered(tmp_path: Path) -> None:
    assert load_model(folder_with(tmp_path, shapes()), profiles=ROOT).source == "family"


@pytest.mark.parametrize(
    ("changes", "layers", "said"),
    [
        ({"model.layers.1.self_attn.k_proj.weight": [128, 256]}, 2, "'model.layers.1.self_attn.k_proj.weight' of"),
        ({"model.layers.0.self_attn.q_proj.bias": [256]}, 2, "q_proj.bias', which the config gives no model"),
        ({"model.embed_tokens.weight": [1008, 256]}, 2, r"\[1008, 256\] where the config makes it \[1003, 256\]"),
        ({}, 3, "3 of 'model.layers.\\*.self_attn.q_proj.weight' where the config makes it 2"),
    ],
)  # fmt: skip
def test_a_tensor_that_is_not_the_configs_is_named(
    changes: dict[str, list[int]], layers: int, said: str, tmp_path: Path
) -> None:
    with pytest.raises(UnprofiledError, match=said):
        load_model(folder_with(tmp_path, shapes(layers) | changes), profiles=ROOT)


def test_names_that_the_class_does_not_use_are_no_fault(tmp_path: Path) -> None:
    """A tied head is not stored, old checkpoints store rotary positions, and other programs name everything anew."""
    tensors = shapes() | {"model.layers.0.self_attn.rotary_emb.inv_freq": [16]}
    del tensors["lm_head.weight"]
    assert load_model(folder_with(tmp_path, tensors), profiles=ROOT).source == "family"
    assert load_model(folder_with(tmp_path, {"tok_embeddings.weight": [5, 5]}), profiles=ROOT).source == "family"


def test_weights_in_integers_need_a_config_that_says_how_they_are_quantised(tmp_path: Path) -> None:
    with pytest.raises(UnprofiledError, match="as 'U8', and the config names no quantization"):
        load_model(folder_with(tmp_path, shapes(), dtype="U8"), profiles=ROOT)
    stored = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    made = load_model(folder_with(tmp_path, shapes(), dtype="U8", quantization_config=stored), profiles=ROOT)
    assert made.checkpoint_quantization == "bitsandbytes-nf4"


def test_an_index_alone_tells_how_many_layers_there_are(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(shapes(3), "a.safetensors")}))
    with pytest.raises(UnprofiledError, match="where the config makes it 2"):
        load_model(str(tmp_path), profiles=ROOT)


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 8, b"\x02\x00\x00\x00\x00\x00\x00\x00[]", b"\x09" + b"\0" * 7 + b"{"]
)
def test_weights_that_cannot_be_read_are_said_to_be_so(content: bytes, tmp_path: Path) -> None:
    folder = folder_with(tmp_path, shapes())
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(UnprofiledError, match="its weights cannot be read"):
        load_model(folder, profiles=ROOT)


@pytest.mark.parametrize("held", [True, False])
def test_files_say_whether_they_hold_a_tied_head_too(tmp_path: Path, held: bool) -> None:
    tensors = shapes()
    if not held:
        del tensors["lm_head.weight"]
    folder = folder_with(tmp_path, tensors, tie_word_embeddings=True)
    assert load_model(folder, profiles=ROOT).tied_stored is held
