"""The shipped profiles: every count to the last parameter, and a sample rebuilt from its config."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qlora_planner.planner.survey.index import build_index
from qlora_planner.planner.sweeps import KeptSweep
from qlora_planner.session import Session
from qlora_planner.sources.catalogue import ModelCatalogue
from qlora_planner.sources.tapes import stored_sweep
from qlora_planner.spec.codec import profile_to_dict
from qlora_planner.spec.model import ModelProfile
from tests.wide import some
from tools.families.sweeps import full_sweep

ROOT = Path(__file__).parents[2]
NAMES = json.loads((ROOT / "profiles" / "names.json").read_text(encoding="utf-8"))
COUNTS = json.loads((ROOT / "tests" / "data" / "COUNTS.json").read_text(encoding="utf-8"))
# Their repositories bring their own model code, which is not run; transformers has no such class.
REMOTE_CODE = {
    "LGAI-EXAONE/EXAONE-3.5-7.8B-Instruct", "internlm/internlm2-7b", "internlm/internlm2-20b",
    "microsoft/Phi-3-small-8k-instruct",
}  # fmt: skip
# The index takes long to make, and workers share the parts.
PARTS = 12


@pytest.fixture(scope="module")
def shipped() -> dict[str, ModelProfile]:
    catalogue = ModelCatalogue([ROOT / "profiles" / "models"])
    return {name: catalogue.load(name) for name in catalogue.names()}


def test_all_that_can_be_built_are_there(shipped: dict[str, ModelProfile]) -> None:
    assert set(COUNTS) - set(shipped) == REMOTE_CODE
    assert set(shipped) <= set(COUNTS)


def test_parameter_counts_are_exact(shipped: dict[str, ModelProfile]) -> None:
    wrong = {
        name: (p.params, COUNTS[name]["params"]) for name, p in shipped.items() if p.params != COUNTS[name]["params"]
    }
    assert not wrong


def test_tensors_add_up_to_the_count(shipped: dict[str, ModelProfile]) -> None:
    for name, profile in shipped.items():
        assert sum(group.total_numel for group in profile.tensors if not group.buffer) == profile.params, name


def test_classes_are_the_real_ones(shipped: dict[str, ModelProfile]) -> None:
    for name, profile in shipped.items():
        assert profile.class_name == COUNTS[name]["class"], name


def test_what_is_not_quantised_says_why(shipped: dict[str, ModelProfile]) -> None:
    for name, profile in shipped.items():
        for group in profile.tensors:
            if not group.buffer:
                assert group.quantized or group.reason, (name, group.name)
            if group.quantized:
                assert group.role in ("linear", "router"), (name, group.name)


def test_known_surprises(shipped: dict[str, ModelProfile]) -> None:
    assert not any(group.quantized for group in shipped["tiiuae/falcon-7b"].tensors)
    for name in ("Qwen/Qwen3-30B-A3B", "mistralai/Mixtral-8x7B-v0.1", "openai/gpt-oss-20b"):
        experts = [group for group in shipped[name].tensors if group.role == "experts"]
        assert experts, name
        assert not any(group.quantized for group in experts)
    assert "lora_dropout" in shipped["mistralai/Mixtral-8x7B-v0.1"].refusals


def test_text_models_of_wrappers_say_so(shipped: dict[str, ModelProfile]) -> None:
    for name in ("google/gemma-3-4b", "Qwen/Qwen3.5-4B", "meta-llama/Llama-4-Scout-17B-16E"):
        assert shipped[name].note is not None
    assert shipped["meta-llama/Llama-3.1-8B"].note is None


def test_the_index_names_the_whole_of_a_text_part(shipped: dict[str, ModelProfile]) -> None:
    rows = json.loads((ROOT / "profiles" / "models.index.json").read_text(encoding="utf-8"))["models"]
    named = {row["id"]: row["part_of"] for row in rows if "part_of" in row}
    assert named == {name: p.text_part_of for name, p in shipped.items() if p.text_part_of is not None}
    assert named["Qwen/Qwen3-VL-8B-Instruct"] == "qwen3_vl"


def test_a_survey_cannot_say_whether_a_model_with_a_tower_fits() -> None:
    rows = {row.model_id: row for row in Session().on("24GB").survey(recommend=False).rows}
    assert rows["Qwen/Qwen3-VL-8B-Instruct"].verdict == "cannot-say"
    assert "images are not counted" in str(rows["Qwen/Qwen3-VL-8B-Instruct"].note)
    assert rows["Qwen/Qwen3-8B"].verdict == "fits"


def test_the_catalogue_holds_250_models_of_which_no_two_are_one(shipped: dict[str, ModelProfile]) -> None:
    assert len(shipped) >= 250
    derived = {name for group in NAMES["derived"] for name in group["ids"]}
    assert not derived & set(shipped)


@pytest.mark.parametrize("part", some(range(PARTS), PARTS))
def test_the_index_is_what_the_profiles_give(part: int, shipped: dict[str, ModelProfile]) -> None:
    index = json.loads((ROOT / "profiles" / "models.index.json").read_text(encoding="utf-8"))
    stored = {row["id"]: row for row in index["models"]}
    assert set(stored) == set(shipped)
    chosen = {name: shipped[name] for name in sorted(shipped)[part::PARTS]}
    fresh = json.loads(json.dumps(build_index(chosen.values(), sweeps_of(chosen))))
    assert {row["id"] for row in fresh["models"]} == set(chosen)
    for row in fresh["models"]:
        own = len(row["sweep"])  # what follows comes from its family
        assert stored[row["id"]] | {"sweep": stored[row["id"]]["sweep"][:own]} == row, row["id"]


@pytest.mark.parametrize("name", ["allenai/Llama-3.1-Tulu-3-8B", "Qwen/Qwen2-7B"])
def test_the_index_ranks_by_families_what_no_own_trace_holds(name: str, shipped: dict[str, ModelProfile]) -> None:
    """One ships no trace of its own, the other none of several rows."""
    index = json.loads((ROOT / "profiles" / "models.index.json").read_text(encoding="utf-8"))
    stored = next(row for row in index["models"] if row["id"] == name)
    sweep = full_sweep(shipped[name], ROOT / "profiles")
    assert sweep is not None
    fresh = json.loads(json.dumps(build_index([shipped[name]], {name: sweep})))
    assert fresh["models"] == [stored]


def sweeps_of(shipped: dict[str, ModelProfile]) -> dict[str, KeptSweep]:
    found = {name: stored_sweep(profile, [ROOT / "profiles" / "tapes"]) for name, profile in shipped.items()}
    return {name: sweep for name, sweep in found.items() if sweep is not None}


SAMPLE = (
    "meta-llama/Llama-3.1-8B", "google/gemma-4-E2B", "Qwen/Qwen3-30B-A3B", "openai-community/gpt2",
    "tiiuae/falcon-7b", "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", "LiquidAI/LFM2-350M",
)  # fmt: skip


@pytest.mark.parametrize("name", some(SAMPLE, 4))
def test_rebuilding_gives_the_same(name: str, shipped: dict[str, ModelProfile]) -> None:
    pytest.importorskip("torch")
    from tools.profiles import rebuild

    outcome = rebuild(ROOT / "profiles" / "configs" / (name.replace("/", "__") + ".json"))
    assert outcome.profile is not None
    fresh, stored = profile_to_dict(outcome.profile), profile_to_dict(shipped[name])
    fresh.pop("versions")
    stored.pop("versions")
    assert fresh == stored


@pytest.mark.parametrize("name", sorted(REMOTE_CODE))
def test_remote_code_is_refused_by_name(name: str) -> None:
    pytest.importorskip("torch")
    from tools.profiles import rebuild

    outcome = rebuild(ROOT / "profiles" / "configs" / (name.replace("/", "__") + ".json"))
    assert outcome.profile is None
    assert outcome.refusal is not None
    assert name in outcome.refusal
    assert "model_type" in outcome.refusal
