"""The law of a class gives a config's profile without building it, and refuses in words what it does not know."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qlora_planner.errors import InputError, UnprofiledError
from qlora_planner.memory.options.resolve import resolve
from qlora_planner.memory.sweep.validity import trace_key
from qlora_planner.session import load_model, packages
from qlora_planner.sources.catalogue import ModelCatalogue, file_name
from qlora_planner.sources.configs import RawConfig, config_sha256, read_config
from qlora_planner.sources.families import family_tape, known_configs
from qlora_planner.sources.laws.layers import layer_kinds
from qlora_planner.sources.laws.lookup import Refused, profile_by_law
from qlora_planner.sources.laws.unlike import Unlike
from qlora_planner.spec.model import ModelProfile
from qlora_planner.spec.run import RunConfig

ROOT = Path(__file__).parents[2] / "profiles"
LAWS, FIELDS, FAMILIES = [ROOT / "laws"], [ROOT / "fields"], [ROOT / "families"]
CATALOGUE = ModelCatalogue([ROOT / "models"])
CLASSES = sorted(path.name.partition(".")[0] for path in LAWS[0].glob("*.json.gz"))
# Nobody published it.
LLAMA: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 3200, "intermediate_size": 8640, "num_hidden_layers": 20,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 96, "vocab_size": 32001,
}  # fmt: skip


def given(raw: dict[str, Any]) -> RawConfig:
    return RawConfig(id="mine/model", config=raw, sha256=config_sha256(raw), origin="folder")


def profile_of(raw: dict[str, Any]) -> ModelProfile:
    made = profile_by_law(given(raw), LAWS, FIELDS, known_configs(FAMILIES))
    assert isinstance(made, ModelProfile), made
    return made


def reason(raw: dict[str, Any]) -> str:
    refused = profile_by_law(given(raw), LAWS, FIELDS)
    assert isinstance(refused, Refused), refused
    return refused.reason


def law_of(name: str) -> dict[str, Any]:
    law: dict[str, Any] = json.loads(gzip.decompress((LAWS[0] / f"{name}.json.gz").read_bytes()))
    return law


def test_the_classes_used_most_have_a_law() -> None:
    assert {
        "llama",
        "qwen2",
        "qwen3",
        "mistral",
        "gemma2",
        "gemma3_text",
        "phi3",
        "gpt_neox",
        "gpt2",
        "opt",
        "falcon",
        "qwen3_5_text",
        "olmo3",
        "exaone4",
        "glm4",
        "lfm2",
        "ernie4_5",
        "deepseek_v2",
        "deepseek_v3",
        "stablelm",
        "gpt_bigcode",
        "bloom",
        "arcee",
        "apertus",
    } <= set(CLASSES)


@pytest.mark.parametrize("model_type", CLASSES)
def test_the_law_of_a_class_gives_its_catalogue_models_to_the_last_field(model_type: str) -> None:
    for structure in law_of(model_type)["structures"]:
        for name in structure["models"]:
            shipped = CATALOGUE.load(name)
            made = profile_by_law(read_config(ROOT / "configs" / file_name(name), model_id=name), LAWS, FIELDS)
            assert isinstance(made, ModelProfile), (name, made)
            beside = ("versions", "note", "text_part_of", "source", "dims", "same_shape_as", "same_shape_sha256")
            assert made.dims == shipped.dims, name
            same = replace(made, **{field: getattr(shipped, field) for field in beside})
            assert same == shipped, name


def test_a_model_that_nobody_published_is_counted_by_hand() -> None:
    made = profile_of(LLAMA)
    attention = 3200 * 96 * (32 + 8 + 8 + 32)
    layer = attention + 3 * 3200 * 8640 + 2 * 3200
    assert made.params == 20 * layer + 2 * 32001 * 3200 + 3200
    assert (made.layers, made.dims["max_position_embeddings"], made.source) == (20, 2048, "family")
    quantized = sum(tensor.total_numel for tensor in made.tensors if tensor.quantized)
    assert quantized == 20 * (layer - 2 * 3200)
    assert made.note == "worked out from the config by the law of the llama class"


def test_what_a_config_leaves_out_is_worked_out_as_its_class_does() -> None:
    bare = {name: value for name, value in LLAMA.items() if name not in ("head_dim", "intermediate_size")}
    assert profile_of(bare).dims["head_dim"] == 100
    assert profile_of(bare).dims["intermediate_size"] == 11008
    whole = profile_of({**LLAMA, "num_key_value_heads": None})
    assert whole.dims["num_key_value_heads"] == 32


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"warp_factor": 9}, "have no field 'warp_factor'"),
        ({"hidden_size": 3201}, "hidden_size 3201 is no multiple of num_attention_heads 32"),
        ({"num_key_value_heads": 5}, "num_attention_heads 32 is no multiple of num_key_value_heads 5"),
        ({"num_key_value_heads": 64}, "num_key_value_heads is 64 where the llama models that are known have 32"),
        ({"head_dim": 97}, "head_dim 97 is no multiple of 2"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'; the llama models that are known have 'silu'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"mlp_bias": 1}, "mlp_bias is 1"),
        ({"attention_dropout": 0.1}, "attention_dropout is 0.1"),
        ({"intermediate_size": "8640"}, "intermediate_size must be a whole number from 1 on, not '8640'"),
        ({"intermediate_size": True}, "intermediate_size must be a whole number from 1 on, not True"),
        ({"vocab_size": 0}, "vocab_size must be a whole number from 1 on, not 0"),
        ({"num_hidden_layers": -2}, "num_hidden_layers must be a whole number from 1 on, not -2"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps is '1e-5'"),
        ({"pad_token_id": 40000}, "pad_token_id is 40000"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_scaling is of another kind than the known"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
    ],
)
def test_what_is_not_known_is_refused_by_name(changes: dict[str, Any], said: str) -> None:
    words = reason(LLAMA | changes)
    assert said in words
    assert "\n" not in words


@pytest.mark.parametrize("model_type", CLASSES)
def test_a_refusal_names_the_field_that_is_wrong(model_type: str) -> None:
    for structure in law_of(model_type)["structures"]:
        raw = dict(read_config(ROOT / "configs" / file_name(next(iter(structure["models"])))).config)
        for name in raw.keys() - {"model_type", "architectures"}:
            for value in ("x", -1, None):
                made = profile_by_law(given({**raw, name: value}), LAWS, FIELDS)
                assert not isinstance(made, Refused) or name in made.reason, (name, value, made.reason)


def test_a_size_is_called_as_the_config_calls_it() -> None:
    gpt2 = {"model_type": "gpt2", "n_embd": 1281, "n_head": 20, "n_layer": 4}
    assert "n_embd / n_head" in reason(gpt2)
    falcon = dict(read_config(ROOT / "configs" / "tiiuae__falcon-7b.json").config)
    assert "num_hidden_layers must be a whole number" in reason({**falcon, "num_hidden_layers": "x"})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hybrid_override_pattern": "M-*"}, "hybrid_override_pattern must be a text of 52 letters"),
        ({"hybrid_override_pattern": "Q" * 52}, "hybrid_override_pattern has 'Q'"),
        ({"layers_block_type": ["mlp"] * 52}, "hybrid_override_pattern"),
    ],
)
def test_layers_named_by_letters_are_read_or_refused(changes: dict[str, Any], said: str) -> None:
    raw = dict(read_config(ROOT / "configs" / "nvidia__Nemotron-H-8B-Base-8K.json").config)
    assert raw["num_hidden_layers"] == 52
    assert said in reason({**raw, **changes})
    deeper = {**raw, "num_hidden_layers": 53, "hybrid_override_pattern": raw["hybrid_override_pattern"] + "*"}
    counts = [{kind.name: kind.count for kind in profile_of(one).layer_kinds} for one in (raw, deeper)]
    assert sum(counts[1].values()) == 53
    assert sum(abs(counts[1][name] - count) for name, count in counts[0].items()) == 1


def test_what_may_be_either_of_two_faults_is_told_as_both() -> None:
    """One field of each of two known structures."""
    opt = dict(read_config(ROOT / "configs" / "facebook__opt-350m.json").config)
    words = reason({**opt, "do_layer_norm_before": True})
    assert "do_layer_norm_before" in words and "; or " in words and "word_embed_proj_dim" in words


@pytest.mark.parametrize("name", ["google__gemma-2-2b", "google__gemma-2-27b"])
def test_a_window_that_the_class_breaks_without_is_asked_for(name: str, tmp_path: Path) -> None:
    """transformers makes no sliding mask of a window that is null: masking_utils.py raises."""
    config = dict(read_config(ROOT / "configs" / f"{name}.json").config) | {"sliding_window": None}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="sliding_window is null, without which the class breaks") as caught:
        load_model(str(tmp_path), profiles=ROOT)
    assert type(caught.value) is InputError


@pytest.mark.parametrize("model_type", CLASSES)
def test_no_field_that_shapes_a_class_is_passed_over(model_type: str) -> None:
    """Another value in place of one that every known model has, is never taken for it."""
    structures = law_of(model_type)["structures"]
    for name, rule in structures[0]["fields"].items():
        if "value" not in rule or "any" in rule:
            continue
        model = next(iter(structures[0]["models"]))
        raw = dict(read_config(ROOT / "configs" / file_name(model)).config)
        made = profile_by_law(given({**raw, name: "another"}), LAWS, FIELDS)
        assert not isinstance(made, ModelProfile), name


def test_a_class_without_a_law_and_a_model_type_that_is_a_path_are_nobodys() -> None:
    assert profile_by_law(given({**LLAMA, "model_type": "unheard_of"}), LAWS, FIELDS) is None
    assert profile_by_law(given({**LLAMA, "model_type": "../fields/llama"}), LAWS, FIELDS) is None


def test_its_runs_are_answered_by_the_family_of_the_nearest_known_model() -> None:
    made = profile_of(LLAMA)
    resolution = resolve(made, RunConfig())
    variant = trace_key(resolution.run, resolution.stack, None)
    assert family_tape(made, variant, FAMILIES) is not None
    assert "head_dim" in made.drawn_dims
    # A family whose tapes hold that dimension as a number answers for no other.
    assert family_tape(replace(made, drawn_dims=("no_such_letter",)), variant, FAMILIES) is None


@pytest.mark.parametrize("width", [64, 80, 96, 128])
def test_a_family_with_heads_of_one_size_is_passed_over_for_another(width: int) -> None:
    """Falcon3's heads are 256 wide: its family holds that as a number, and fewer sizes may differ from it."""
    made = profile_of({**LLAMA, "head_dim": width, "num_key_value_heads": 4, "num_attention_heads": 8})
    resolution = resolve(made, RunConfig())
    assert family_tape(made, trace_key(resolution.run, resolution.stack, None), FAMILIES) is not None


@pytest.mark.parametrize("changes", [{"head_dim": 160}, {"head_dim": 100}, {"hidden_size": 3232, "head_dim": 8}])
def test_heads_that_take_other_kernels_and_blocks_that_do_not_fill_up_are_no_familys(changes: dict[str, Any]) -> None:
    made = profile_of({**LLAMA, **changes, "intermediate_size": 8641})
    resolution = resolve(made, RunConfig())
    assert family_tape(made, trace_key(resolution.run, resolution.stack, None), FAMILIES) is None


def test_a_base_install_says_what_keeps_a_config_from_being_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "missing_packages", lambda *_: ["torch"])
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    assert load_model(str(tmp_path), profiles=ROOT).layers == 20
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA, "warp_factor": 9}))
    with pytest.raises(UnprofiledError, match="is not profiled: the llama models that are known have no field"):
        load_model(str(tmp_path), profiles=ROOT)


@pytest.mark.parametrize("content", [b"no gzip", gzip.compress(b"[1", mtime=0), gzip.compress(b"{}", mtime=0)])
def test_a_damaged_law_is_named_with_what_makes_it_anew(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "llama.json.gz").write_bytes(content)
    with pytest.raises(InputError, match=r"llama\.json\.gz: not a readable law .*make laws"):
        profile_by_law(given(LLAMA), [tmp_path], FIELDS)


def test_a_law_of_another_schema_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "llama.json.gz").write_bytes(gzip.compress(json.dumps({"schema": "qlora-plan/law/0"}).encode()))
    assert profile_by_law(given(LLAMA), [tmp_path], FIELDS) is None


def test_a_last_layer_that_the_class_forces_is_taken_whatever_the_config_says() -> None:
    layers = {
        "fields": ["layer_types"], "kinds": {'["sliding"]': 0, '["full"]': 1}, "touched_by": {},
        "absent": {"layer_types": ["sliding"] * 9}, "last": {"layer_types": "full"},
    }  # fmt: skip
    assert layer_kinds({"layer_types": ["sliding"] * 3}, layers, 3, "models") == (0, 0, 1)
    assert layer_kinds({}, layers, 4, "models") == (0, 0, 0, 1)


def test_first_layers_that_no_list_tells_from_the_others_have_kinds_of_their_own() -> None:
    kinds = {'["conv", true]': 0, '["conv", false]': 1, '["full", false]': 2}
    layers = {"fields": ["layer_types"], "kinds": kinds, "absent": {}, "touched_by": {}, "first": 2}
    assert layer_kinds({"layer_types": ["conv", "conv", "conv", "full"]}, layers, 4, "models") == (0, 0, 1, 2)
    with pytest.raises(Unlike, match="layer_types has 'full'"):
        layer_kinds({"layer_types": ["full", "conv", "conv"]}, layers, 3, "models")
