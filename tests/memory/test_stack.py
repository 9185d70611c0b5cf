"""Versions that are named: those that figures hold for are listed, the others are said to be unknown."""

from __future__ import annotations

import pytest

from qlora_planner import RunConfig, estimate, load_gpu, load_model, plan
from qlora_planner.catalog.stack import changes, stack_of
from qlora_planner.spec.model import ModelProfile

COUNTED = {"torch": "2.13.0+cpu", "transformers": "5.17.0", "peft": "0.21.0", "trl": "1.16.0"}
CARD = load_gpu("a100-40gb")


@pytest.fixture(scope="module")
def llama() -> ModelProfile:
    return load_model("llama-3.2-1b")


@pytest.mark.parametrize(
    ("package", "version", "instead"),
    [
        ("transformers", "5.17.0", None),
        ("transformers", "5.17.2", None),
        ("transformers", "5.24", None),
        ("transformers", "4.46.3", "5.17.0"),
        ("transformers", "5.16", "5.17.0"),
        ("transformers", "5.25", "5.24"),  # the nearest that somebody looked at
        ("torch", "2.11", None),
        ("torch", "2.6.0", "2.13.0+cpu"),
        ("trl", "0.12.1", None),
        ("trl", "1.17", "1.16.0"),
        ("peft", "0.18", "0.21.0"),
        ("liger-kernel", "0.5", "0.8"),
    ],
)
def test_a_version_counts_only_where_somebody_looked_at_it(package: str, version: str, instead: str | None) -> None:
    found = stack_of(COUNTED, {package: version})
    (named,) = found.named
    assert named.instead == instead
    assert found.versions[package] == (instead or version)


def test_the_profile_s_own_version_counts_whatever_it_is() -> None:
    assert stack_of({"transformers": "6.1.0"}, {"transformers": "6.1"}).unmodelled == ()


def test_what_a_version_of_trl_changes_is_said() -> None:
    assert changes("trl", "1.16.0", "1.16.0", "trl-sft") is None
    assert "chunk the loss" in str(changes("trl", "1.13", "1.16.0", "trl-sft"))
    assert "casts 16-bit weights to float32" in str(changes("trl", "0.12.1", "1.16.0", "trl-sft"))
    assert changes("trl", "0.12.1", "1.16.0", "hf-trainer") is None


@pytest.mark.parametrize("version", ["4.46.3", "4.47.0"])
def test_no_unmodelled_version_is_listed_and_no_verdict_hangs_on_it(llama: ModelProfile, version: str) -> None:
    answer = estimate(llama, RunConfig(stack={"transformers": version, "trl": "0.12.1"}), CARD)
    assert answer.stack["transformers"] == llama.versions["transformers"]
    assert answer.stack["trl"] == "0.12.1"
    assert answer.verdict == "cannot-say"
    assert [thing.key for thing in answer.unmodelled] == [f"transformers {version}"]
    said = next(problem.message for problem in answer.problems if problem.code == "stack")
    assert "trl 0.12.1 changes them" in said
    assert f"transformers {version} is not modelled, they are those of 5.17.0" in said


def test_modelled_versions_leave_the_verdict_alone(llama: ModelProfile) -> None:
    answer = estimate(llama, RunConfig(stack={"transformers": "5.24.0", "torch": "2.11.0"}), CARD)
    assert (answer.verdict, answer.unmodelled) == ("fits", ())
    assert answer.stack["transformers"] == "5.24.0"


def test_a_plan_is_searched_for_and_then_qualified(llama: ModelProfile) -> None:
    found = plan(llama, CARD, RunConfig(stack={"transformers": "4.46.3"}))
    assert found.estimate.verdict == "cannot-say"
    assert found.stack["transformers"] == "5.17.0"
    assert found.prices


def test_libraries_that_a_run_does_not_use_take_nothing_away(llama: ModelProfile) -> None:
    run = RunConfig(trainer="hf-trainer", stack={"trl": "1.99", "liger-kernel": "0.1"})
    assert estimate(llama, run, CARD).verdict == "fits"


def test_experts_were_four_bit_before_transformers_5() -> None:
    answer = estimate(load_model("qwen3-30b-a3b"), RunConfig(stack={"transformers": "4.57"}), CARD)
    assert answer.verdict == "cannot-say"  # 62 GiB would not fit, 20 would
    assert "before 5 experts are linear layers" in answer.unmodelled[0].what
