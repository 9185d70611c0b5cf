"""Names of target modules: those that match are adapted, the others are named, on every way to an answer."""

from __future__ import annotations

import pytest

from qlora_planner import RunConfig, estimate, load_gpu, load_model, plan
from qlora_planner.errors import InputError, MissingError
from qlora_planner.memory.weights.targets import matches, targeted, targets_of
from qlora_planner.spec.model import ModelProfile

CARD = load_gpu("24GB")


@pytest.fixture(scope="module")
def llama() -> ModelProfile:
    return load_model("llama-3.2-1b")


@pytest.mark.parametrize(
    ("name", "matched"),
    [
        ("q_proj", True),
        ("self_attn.q_proj", True),
        ("layers.3.self_attn.q_proj", True),
        ("model.layers.3.self_attn.q_proj", True),
        ("layers.99.self_attn.q_proj", False),  # no such layer
        ("layers.3.q_proj", False),  # not the end of a full name
        ("_proj", False),  # from a dot on
        ("proj", False),
    ],
)
def test_names_match_by_the_end_of_a_full_name_from_a_dot_on(name: str, matched: bool) -> None:
    assert matches("model.layers.*.self_attn.q_proj", name, 16) is matched


def test_names_that_match_nothing_are_passed_over(llama: ModelProfile) -> None:
    both = targeted(llama, RunConfig(target_modules="q_proj,no_such_proj"))
    alone = targeted(llama, RunConfig(target_modules="q_proj"))
    assert both == alone
    assert len(alone) == 2


def test_when_none_matches_it_is_said_what_there_is(llama: ModelProfile) -> None:
    with pytest.raises(InputError, match=r"'wq,wk' matches nothing in .*; it has down_proj, gate_proj, k_proj"):
        targets_of(llama, "wq,wk")


def test_a_pattern_is_recognised(llama: ModelProfile) -> None:
    with pytest.raises(InputError, match="is a pattern, and names are taken here"):
        targets_of(llama, r".*\.(q|v)_proj")


def test_a_module_that_only_peft_knows_about_is_missing_not_unknown(llama: ModelProfile) -> None:
    with pytest.raises(MissingError, match="has 'embed_tokens', and its profile holds no adapters"):
        targeted(llama, RunConfig(target_modules="q_proj,embed_tokens"))


@pytest.mark.parametrize("size", ["24GB", "2GiB"])
def test_an_estimate_and_a_plan_name_what_matches_nothing(llama: ModelProfile, size: str) -> None:
    run = RunConfig(target_modules="o_proj,no_such_proj,wq")
    card = load_gpu(size)
    for problems in (estimate(llama, run, card).problems, plan(llama, card, run).estimate.problems):
        said = next(problem for problem in problems if problem.code == "targets-unmatched")
        assert not said.blocking
        assert said.message.startswith("no_such_proj, wq match nothing in")
        assert said.fix == "--target-modules o_proj"


def test_adapters_on_one_layer_are_counted_on_all_and_said_to_be(llama: ModelProfile) -> None:
    one = estimate(llama, RunConfig(target_modules="layers.3.self_attn.q_proj"), CARD)
    every = estimate(llama, RunConfig(target_modules="self_attn.q_proj"), CARD)
    assert one.peak == every.peak
    assert one.unmodelled[0].direction == "down"
    assert one.verdict == "fits"  # what takes less than said still fits
    small = estimate(llama, RunConfig(target_modules="layers.3.self_attn.q_proj"), load_gpu("1200MiB"))
    assert small.verdict == "cannot-say"
