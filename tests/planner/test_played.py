"""What was played beforehand is what playing says, and a survey names the run that a plan does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qlora_planner.catalog.cuda import cublas_workspace_bytes
from qlora_planner.planner.survey.index import storages_of
from qlora_planner.planner.survey.played import Floors, Key, PlayedRuns, key_of, layers_checkpointed, run_of
from qlora_planner.planner.survey.survey import SurveyRow
from qlora_planner.session.session import Session
from qlora_planner.sources.locations import models_dirs
from qlora_planner.sources.played import played_runs, rows_beside
from qlora_planner.spec.run import RunConfig
from qlora_planner.speed.step import step_work

ROOT = Path(__file__).parents[2]
WORKSPACE = cublas_workspace_bytes("8.9")


@pytest.fixture(scope="module")
def session() -> Session:
    return Session(stored_only=True)


@pytest.fixture(scope="module")
def survey(session: Session) -> dict[str, SurveyRow]:
    return {row.model_id: row for row in session.on("rtx-4090").survey().rows}


@pytest.mark.parametrize(
    ("name", "key", "batch"),
    [
        ("meta-llama/Llama-3.1-8B", ("nf4", 8, None), 1),
        ("Qwen/Qwen2.5-0.5B", ("none", 1, "expandable_segments:True"), 4),
        ("google/gemma-2-9b", ("nf4", 3, None), 2),
        ("EleutherAI/pythia-14m", ("nf4", 1, None), 16),
    ],
)
def test_a_run_played_anew_needs_what_is_kept(session: Session, name: str, key: Key, batch: int) -> None:
    model = session.open(name, session.on("a10").card)
    kept = played_runs(model.profile, WORKSPACE, models_dirs())
    assert kept is not None
    run = run_of(key, batch, kept.seq_len)
    played = model.played(run)
    assert played is not None
    context = model.budget.context_for(run).total_bytes
    assert kept.row(key)[batch] == played.floor_bytes - context


@pytest.mark.parametrize(
    "name", ["meta-llama/Llama-3.1-8B", "Qwen/Qwen3-8B", "google/gemma-2-9b", "codellama/CodeLlama-34b-hf"]
)
def test_a_survey_names_the_run_that_a_plan_does(session: Session, survey: dict[str, SurveyRow], name: str) -> None:
    best = survey[name].recommended
    plan = session.on("rtx-4090").plan(name).plan
    assert best is not None
    assert dict(best.options) == dict(plan.options)
    assert best.floor_bytes == plan.estimate.floor_bytes
    assert best.tokens_per_s == pytest.approx(plan.estimate.speed.tokens_per_s, rel=1e-9)


def test_llama_keeps_seven_layers_in_eight_on_a_4090(survey: dict[str, SurveyRow]) -> None:
    best = survey["meta-llama/Llama-3.1-8B"].recommended
    assert best is not None
    assert dict(best.options) == {"grad_accum": 16, "checkpoint_every": 8}


def test_of_numbers_of_layers_the_one_that_leaves_out_most_is_worth_a_try() -> None:
    # Floors of one model at batch 1, by layers of which one is checkpointed: 40 for every layer up to 90 for none.
    row = {1: 40, 2: 65, 3: 74, 4: 78, 8: 84, 0: 90}
    floors: dict[Key, Floors] = {("nf4", every, None): (size, None, None, None, None) for every, size in row.items()}
    runs = PlayedRuns(seq_len=2048, floors=floors)
    worth = {every: runs.worth(("nf4", every, None), 80) for every in row}
    assert [every for every in row if every > 1 and worth[every] == [1]] == [4]
    assert all(runs.worth(("nf4", every, None), 95) == [] for every in (2, 3, 4, 8))


def test_another_model_of_the_same_name_is_not_answered(session: Session) -> None:
    profile = session.open("Qwen/Qwen3-8B", session.on("a10").card).profile
    other = replace(profile, params=profile.params + 1)
    assert played_runs(profile, WORKSPACE, models_dirs()) is not None
    assert played_runs(other, WORKSPACE, models_dirs()) is None


def test_options_that_were_not_played_have_no_row() -> None:
    assert key_of(RunConfig(quant="nf4", batch_size=4, grad_accum=4), 2048) == ("nf4", 1, None)
    usual = RunConfig(quant="nf4")
    for name, value in (("rank", 32), ("seq_len", 4096), ("attention", "eager"), ("quant", "int8")):
        assert key_of(usual.with_(**{name: value}), 2048) is None


@pytest.mark.parametrize("name", ["meta-llama/Llama-3.1-8B", "google/gemma-2-9b"])
@pytest.mark.parametrize("every", [2, 8])
def test_the_index_has_the_work_of_runs_that_checkpoint_some_layers(session: Session, name: str, every: int) -> None:
    from qlora_planner.memory.options.resolve import resolve

    card = session.on("rtx-4090").card
    profile = session.open(name, card).profile
    storage = next(each for each in storages_of(profile, card.gpu) if each.options.get("double_quant"))
    resolution = resolve(profile, RunConfig(**layers_checkpointed(every), padding=False), card.gpu)
    whole = step_work(profile, resolution).micro.table
    assert storage.work(every, padding=False).micro.table == pytest.approx(whole, rel=1e-12)


def test_nearly_every_model_of_the_catalogue_was_played() -> None:
    assert len(rows_beside(ROOT / "profiles" / "models")) > 200
