"""Runs of `--task classification`: what they resolve to, and what is refused in words."""

from __future__ import annotations

from pathlib import Path

import pytest

from qlora_planner.catalog.gpus import GpuCatalogue, parse_gpu
from qlora_planner.errors import InputError
from qlora_planner.memory.budget import Budget
from qlora_planner.memory.estimate import estimate
from qlora_planner.memory.options.resolve import resolve
from qlora_planner.memory.sweep.validity import trace_key
from qlora_planner.memory.weights.classifier import classifier_profile
from qlora_planner.planner.candidate_memory import CandidateFactory
from qlora_planner.session.session import Session
from qlora_planner.sources.catalogue import ModelCatalogue
from qlora_planner.spec.run import RunConfig

ROOT = Path(__file__).parents[2]
CATALOGUE = ModelCatalogue([ROOT / "profiles" / "models"])
LLAMA = CATALOGUE.load("meta-llama/Llama-3.2-1B")
CARDS = GpuCatalogue([ROOT / "profiles" / "gpus"])
CLASSIFY = RunConfig(task="classification", num_labels=4)


def test_a_classifier_has_a_score_of_its_labels_in_place_of_the_tied_head() -> None:
    answer = estimate(LLAMA, CLASSIFY)
    text = estimate(LLAMA, RunConfig(trainer="hf-trainer"))
    assert answer.model.params == LLAMA.params + 4 * 2048
    assert answer.model.trainable_params == text.model.trainable_params + 4 * 2048
    # The layer and its copy that is trained, both in 16 bits, in blocks that may end in a rest of less than 1 MiB.
    wide = estimate(LLAMA, CLASSIFY.with_(num_labels=4 + 4096))
    more = wide.static.after_adapters - answer.static.after_adapters
    assert abs(more - 2 * (2 * 4096 * 2048)) < 2 << 20


def test_an_untied_head_is_not_loaded() -> None:
    profile = CATALOGUE.load("meta-llama/Llama-3.1-8B")
    assert classifier_profile(profile, 3).params == profile.params - 128256 * 4096 + 3 * 4096


def test_the_logits_of_a_vocabulary_are_not_counted() -> None:
    long = RunConfig(trainer="hf-trainer", seq_len=8192)
    text, labels = estimate(LLAMA, long), estimate(LLAMA, long.with_(task="classification"))
    logits = {line.component.value: line.size_bytes for line in text.lines}["logits_and_loss"]
    assert text.peak.allocated_bytes - labels.peak.allocated_bytes > logits // 2 > 4 << 30


def test_the_trainer_and_the_labels_are_chosen() -> None:
    resolution = resolve(LLAMA, RunConfig(task="classification"))
    assert (resolution.run.trainer, resolution.run.num_labels) == ("hf-trainer", 2)
    assert resolution.why["trainer"] == "trl-sft trains no classifier"
    assert not resolution.problems


@pytest.mark.parametrize("trainer", ["trl-sft", "loop"])
def test_another_trainer_will_not_run(trainer: str) -> None:
    problem = next(p for p in resolve(LLAMA, CLASSIFY.with_(trainer=trainer)).problems if p.blocking)
    assert (problem.code, problem.fix) == ("task-refused", "--trainer hf-trainer")
    assert trainer in problem.message


@pytest.mark.parametrize("kernel", ["cut-cross-entropy", "liger-fused", "chunked"])
def test_no_kernel_takes_the_place_of_a_classifiers_loss(kernel: str) -> None:
    problem = next(p for p in resolve(LLAMA, CLASSIFY.with_(loss_kernel=kernel)).problems if p.blocking)
    assert "a classifier scores labels and not words" in problem.message
    assert problem.fix == "--loss-kernel full"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"num_labels": 3}, "--num-labels 3 is of --task classification"),
        ({"task": "classification", "num_labels": 1}, "--num-labels 1 is a regression"),
        ({"task": "text"}, "--task must be one of classification"),
    ],
)
def test_labels_and_tasks_that_make_no_classifier_are_refused(options: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        resolve(LLAMA, RunConfig(**options))  # type: ignore[arg-type]


def test_a_model_without_a_classifier_is_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"granite-3\.1-2b-base: transformers has no sequence classifier of a granite"):
        estimate(CATALOGUE.load("ibm-granite/granite-3.1-2b-base"), CLASSIFY)


def test_on_a_card_without_bfloat16_the_score_is_cast_for_the_scaler() -> None:
    resolution = resolve(LLAMA, CLASSIFY, parse_gpu("t4", CARDS))
    assert (resolution.run.compute_dtype, resolution.run.upcast) == ("float16", True)
    assert not [problem for problem in resolution.problems if problem.blocking]
    kept = resolve(LLAMA, CLASSIFY.with_(upcast=False), parse_gpu("t4", CARDS))
    assert [problem.code for problem in kept.problems if problem.blocking] == ["float16-gradients"]


def test_traces_of_classifiers_and_of_text_are_told_apart() -> None:
    stack = {"trl": "1.16.0"}
    text, two, four = (
        trace_key(RunConfig(trainer="hf-trainer", **options), stack, None)  # type: ignore[arg-type]
        for options in ({}, {"task": "classification"}, {"task": "classification", "num_labels": 4})
    )
    assert len({text, two, four}) == 3


def test_a_search_over_text_and_classes_does_not_mix_what_they_load() -> None:
    budget = Budget.of(parse_gpu("24GB", CARDS))
    one = CandidateFactory.of(LLAMA, budget)
    for run in (RunConfig(trainer="hf-trainer"), CLASSIFY, CLASSIFY.with_(num_labels=4096)):
        resolution = resolve(LLAMA, run)
        assert one.ground(resolution) == CandidateFactory.of(LLAMA, budget).ground(resolution)


def labelled(folder: Path, labels: int) -> Path:
    path = folder / "labelled.jsonl"
    path.write_text("".join(f'{{"text": "some words", "label": {row % labels}}}\n' for row in range(3 * labels)))
    return path


def test_a_plan_for_labelled_data_has_its_number_of_labels(tmp_path: Path) -> None:
    bench = Session(stored_only=True).on("24GB")
    path = labelled(tmp_path, 7)
    plan = bench.plan("llama-3.2-1b", task="classification", data=path, chars_per_token=4)
    assert (plan.run.num_labels, plan.run.trainer) == (7, "hf-trainer")
    assert plan.to_dict()["data"]["labels"] == 7
    with pytest.raises(InputError, match="--num-labels 3: the data has 7 labels"):
        bench.plan("llama-3.2-1b", task="classification", num_labels=3, data=path, chars_per_token=4)


def test_a_survey_has_classifiers_of_what_has_one() -> None:
    rows = {row.model_id: row for row in Session(stored_only=True).on("24GB").survey(task="classification").rows}
    eight, granite = rows["meta-llama/Llama-3.1-8B"], rows["ibm-granite/granite-3.1-2b-base"]
    assert eight.verdict == "fits" and eight.run.trainer == "hf-trainer"
    assert eight.params == 8030261248 - 128256 * 4096 + 2 * 4096
    assert granite.verdict == "will-not-run" and "no sequence classifier" in (granite.note or "")
