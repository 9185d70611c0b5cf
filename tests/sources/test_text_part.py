"""Configs of models that take images too: their text part is answered without torch, as torch takes it out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from qlora_planner.errors import InputError
from qlora_planner.sources.catalogue import ModelCatalogue
from qlora_planner.sources.configs import RawConfig
from qlora_planner.sources.text_part import WRAPPERS, light_text_part
from qlora_planner.sources.unbuilt import by_text

ROOT = Path(__file__).parents[2] / "profiles"
LAWS = [ROOT / "laws"]
CATALOGUE = ModelCatalogue([ROOT / "models"])


def config(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((ROOT / "configs" / f"{name}.json").read_text("utf-8"))
    return document


def raw_of(fields: Mapping[str, Any]) -> RawConfig:
    return RawConfig(id="org/own", config=fields, sha256="0" * 64, origin="file")


NESTED, FLAT = config("Qwen__Qwen3-VL-8B-Instruct"), config("Qwen__Qwen2.5-VL-7B-Instruct")
LLAVA, MISTRAL3 = config("llava-hf__llava-1.5-7b-hf"), config("mistralai__Mistral-Small-3.1-24B-Instruct-2503")


@pytest.mark.parametrize(
    ("fields", "model_type", "same_as"),
    [
        (NESTED, "qwen3", "Qwen/Qwen3-8B"),
        (FLAT, "qwen2", "Qwen/Qwen2-7B"),
        (MISTRAL3, "mistral", "mistralai/Mistral-Small-24B-Base-2501"),
    ],
)
def test_a_text_part_of_known_sizes_is_the_known_model(fields: dict[str, Any], model_type: str, same_as: str) -> None:
    profile, _ = by_text(raw_of(fields), CATALOGUE)
    assert profile is not None
    assert (profile.model_type, profile.text_part_of) == (model_type, fields["model_type"])
    assert profile.same_shape_as == same_as


def test_a_text_part_of_other_sizes_is_worked_out_by_its_law_and_has_a_family() -> None:
    larger = deepcopy(LLAVA)
    larger["text_config"] |= {"intermediate_size": 11264, "num_hidden_layers": 30}
    profile, _ = by_text(raw_of(larger), CATALOGUE)
    assert profile is not None
    assert (profile.text_part_of, profile.dims["intermediate_size"]) == ("llava", 11264)
    assert profile.family_sha256


def test_a_config_whose_every_size_is_a_known_models_is_that_model_though_it_spells_out_more() -> None:
    known = config("google__gemma-4-31B")
    fields = {name: value for name, value in known.items() if name not in ("architectures", "moe_intermediate_size")}
    unlike = {"expert_intermediate_size": None, "num_experts": None, "top_k_experts": None}
    whole = {"model_type": "gemma4", "text_config": fields | unlike, "vision_config": {}}
    profile, why = by_text(raw_of(whole), CATALOGUE)
    assert profile is not None, why
    assert (profile.same_shape_as, profile.text_part_of) == ("google/gemma-4-31B", "gemma4")


def test_layers_that_turn_positions_elsewhere_make_no_known_model() -> None:
    known = config("HuggingFaceTB__SmolLM3-3B")
    moved = known | {"no_rope_layers": [0, 1, 1, 1] * 9, "layer_types": ["full_attention"] * 36}
    profile, _ = by_text(raw_of(moved), CATALOGUE)
    assert profile is None or profile.same_shape_as is None


def test_a_field_that_the_text_class_lacks_is_refused() -> None:
    odd = deepcopy(NESTED)
    odd["text_config"]["use_second_attention"] = True
    profile, why = by_text(raw_of(odd), CATALOGUE)
    assert profile is None
    assert "use_second_attention" in str(why)
    assert "qwen3_vl" in str(why)


def test_a_text_part_without_a_law_is_named() -> None:
    profile, why = by_text(raw_of({"model_type": "aria", "text_config": {"hidden_size": 64}}), CATALOGUE)
    assert profile is None
    assert "aria_text" in str(why)


def test_whether_the_head_is_tied_is_said_by_the_whole_config_first() -> None:
    tied = {
        **NESTED,
        "tie_word_embeddings": True,
        "text_config": {**NESTED["text_config"], "tie_word_embeddings": False},
    }
    part, _ = light_text_part(raw_of(tied), LAWS)
    assert part.config["tie_word_embeddings"] is True


def test_a_config_of_text_alone_stays_as_it_is() -> None:
    raw = raw_of(config("Qwen__Qwen3-8B"))
    assert light_text_part(raw, LAWS) == (raw, None)


@pytest.mark.parametrize("said", [7, ["qwen3"], True])
def test_a_text_part_whose_model_type_is_no_text_is_refused(said: Any) -> None:
    odd = {**NESTED, "text_config": {**NESTED["text_config"], "model_type": said}}
    with pytest.raises(InputError, match=r"text_config\.model_type must be a text"):
        by_text(raw_of(odd), CATALOGUE)


def test_a_table_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / WRAPPERS).write_text("{")
    with pytest.raises(InputError, match=WRAPPERS):
        light_text_part(raw_of(NESTED), [tmp_path])


@pytest.mark.parametrize("fields", [NESTED, FLAT], ids=["qwen3_vl", "qwen2_5_vl"])
def test_the_law_of_a_text_part_gives_what_torch_builds(fields: dict[str, Any]) -> None:
    pytest.importorskip("torch")
    from qlora_planner.profiling.build import build_profile
    from tools.laws.tensors import facts_of

    small = deepcopy(fields)
    sizes = {"num_hidden_layers": 2, "intermediate_size": 1088}
    small.get("text_config", small).update(sizes)
    profile, why = by_text(raw_of(small), CATALOGUE)
    assert profile is not None, why
    assert facts_of(profile) == facts_of(build_profile(raw_of(small)))
