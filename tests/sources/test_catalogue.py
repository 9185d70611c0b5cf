"""Names of catalogue models: found when they mean one model, listed when they mean several, nearest when none."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlora_planner.errors import InputError, MissingError, PlannerError
from qlora_planner.sources.catalogue import ModelCatalogue, file_name, fold

from .conftest import add_profile

IDS = (
    "01-ai/Yi-1.5-9B", "Qwen/Qwen2.5-7B", "Qwen/Qwen2.5-7B-Instruct", "huggyllama/llama-7b", "meta-llama/Llama-2-7b-hf",
    "meta-llama/Llama-3.1-8B", "meta-llama/Meta-Llama-3-8B", "microsoft/phi-1_5", "mistralai/Mistral-7B-v0.3",
    "openai-community/gpt2", "someone/Mistral-7B-v0.3", "tiiuae/falcon-7b",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = tmp_path_factory.mktemp("profiles") / "models"
    for model_id in IDS:
        add_profile(models, model_id)
    (models / "README.md").touch()
    (models / ".hidden.json").touch()
    return models


@pytest.fixture(scope="module")
def catalogue(folder: Path) -> ModelCatalogue:
    return ModelCatalogue([folder])


def test_names_come_from_file_names_alone(tmp_path: Path) -> None:
    (tmp_path / "b__Model.json").write_text("not even JSON")
    (tmp_path / "A__x.y.json").touch()
    assert ModelCatalogue([tmp_path]).names() == ("A/x.y", "b/Model")


def test_all_names_are_there(catalogue: ModelCatalogue) -> None:
    assert set(catalogue.names()) == set(IDS)
    assert ModelCatalogue([]).names() == ()


@pytest.mark.parametrize(
    ("text", "model_id"),
    [
        ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B"),
        ("META-LLAMA/llama-3.1-8b", "meta-llama/Llama-3.1-8B"),
        ("llama-3.1-8b", "meta-llama/Llama-3.1-8B"),
        ("Llama 3.1 8B", "meta-llama/Llama-3.1-8B"),
        ("llama_3_1_8b", "meta-llama/Llama-3.1-8B"),
        (" llama-3.1-8b ", "meta-llama/Llama-3.1-8B"),
        ("llama-3-8b", "meta-llama/Meta-Llama-3-8B"),  # the end of its name
        ("llama-2-7b", "meta-llama/Llama-2-7b-hf"),
        ("llama-7b", "huggyllama/llama-7b"),
        ("qwen2.5-7b", "Qwen/Qwen2.5-7B"),
        ("phi-1.5", "microsoft/phi-1_5"),
        ("gpt2", "openai-community/gpt2"),
        ("someone/mistral-7b-v0.3", "someone/Mistral-7B-v0.3"),
        ("9b", "01-ai/Yi-1.5-9B"),
    ],
)
def test_one_meaning_is_found(catalogue: ModelCatalogue, text: str, model_id: str) -> None:
    assert catalogue.resolve(text) == model_id


@pytest.mark.parametrize(
    "text", ["", " ", "-", "/", "llama", "unsloth/Llama-3.1-8B", "lama-3.1-8b", "llama-3.1-8b/", "é", "x" * 10_000]
)
def test_no_meaning_is_none(catalogue: ModelCatalogue, text: str) -> None:
    assert catalogue.resolve(text) is None


def test_several_meanings_are_listed(catalogue: ModelCatalogue) -> None:
    with pytest.raises(InputError) as caught:
        catalogue.resolve("mistral-7b-v0.3")
    assert str(caught.value) == (
        "'mistral-7b-v0.3' could be mistralai/Mistral-7B-v0.3, someone/Mistral-7B-v0.3; give more of the name"
    )
    with pytest.raises(InputError, match="Meta-Llama-3-8B"):
        catalogue.resolve("8b")


def test_a_long_list_of_candidates_is_cut(tmp_path: Path) -> None:
    for number in range(30):
        (tmp_path / f"org__model{number}-7b.json").touch()
    with pytest.raises(InputError, match="and 22 more; give more"):
        ModelCatalogue([tmp_path]).resolve("7b")


def test_ids_that_differ_in_case_alone_are_told_apart(tmp_path: Path) -> None:
    for name in ("a__Model.json", "a__model.json"):
        (tmp_path / name).touch()
    catalogue = ModelCatalogue([tmp_path])
    assert catalogue.resolve("a/model") == "a/model"
    with pytest.raises(InputError, match="could be"):
        catalogue.resolve("A/MODEL")


def test_nearest_names(catalogue: ModelCatalogue) -> None:
    assert catalogue.nearest("lama-3.1-8b")[0] == "meta-llama/Llama-3.1-8B"
    assert catalogue.nearest("unsloth/Llama-3.1-8B")[0] == "meta-llama/Llama-3.1-8B"
    assert catalogue.nearest("falcon-7") == ("tiiuae/falcon-7b",)
    assert catalogue.nearest("zzzzzz") == ()
    assert catalogue.nearest("") == ()
    assert len(catalogue.nearest("mistral-7b")) <= 3
    begun = time.monotonic()
    catalogue.nearest("a" * 10**6)
    assert time.monotonic() - begun < 1


def test_an_earlier_folder_wins(folder: Path, tmp_path: Path) -> None:
    add_profile(tmp_path, "Qwen/Qwen2.5-7B", "cd" * 32)
    assert ModelCatalogue([tmp_path, folder]).load("Qwen/Qwen2.5-7B").config_sha256 == "cd" * 32
    assert ModelCatalogue([folder, tmp_path]).load("Qwen/Qwen2.5-7B").config_sha256 == "ab" * 32
    assert len(ModelCatalogue([tmp_path, folder]).names()) == len(IDS)


def test_loading_says_where_from(catalogue: ModelCatalogue) -> None:
    profile = catalogue.load("tiiuae/falcon-7b")
    assert (profile.id, profile.source) == ("tiiuae/falcon-7b", "catalogue")
    assert [profile.id for profile in catalogue.load_all()] == list(catalogue.names())


def test_an_unknown_id_is_missing_with_the_nearest(catalogue: ModelCatalogue) -> None:
    with pytest.raises(MissingError, match="tiiuae/falcon-7 is not in the catalogue; nearest: tiiuae/falcon-7b"):
        catalogue.load("tiiuae/falcon-7")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"{}", b'{"schema": "qlora-plan/profile/1"}'])
def test_a_bad_file_is_named(folder: Path, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a__bad.json").write_bytes(content)
    catalogue = ModelCatalogue([tmp_path, folder])
    with pytest.raises(InputError, match=r"a__bad\.json: "):
        catalogue.load("a/bad")
    with pytest.raises(InputError, match=r"a__bad\.json: "):
        catalogue.load_all()
    told: list[str] = []
    assert len(catalogue.load_all(told.append)) == len(IDS)
    assert len(told) == 1 and told[0].endswith("; left out")
    assert catalogue.with_config("ab" * 32) is not None


def test_a_file_under_another_name_is_refused(tmp_path: Path) -> None:
    add_profile(tmp_path, "org/one").rename(tmp_path / file_name("org/two"))
    with pytest.raises(InputError, match="holds the profile of 'org/one', but its name says 'org/two'"):
        ModelCatalogue([tmp_path]).load("org/two")


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be listed"):
        ModelCatalogue([tmp_path / "nope"]).names()


def test_models_are_found_by_their_config(folder: Path, tmp_path: Path) -> None:
    path = add_profile(tmp_path, "org/known", "12" * 32)
    catalogue = ModelCatalogue([folder, tmp_path])
    found = catalogue.with_config("12" * 32)
    assert found is not None and found.id == "org/known"
    assert catalogue.with_config("34" * 32) is None
    raw = json.loads(path.read_text())
    path.write_text(json.dumps(raw | {"note": "56" * 32}))  # the text is there, but it is not the config's hash
    assert ModelCatalogue([tmp_path]).with_config("56" * 32) is None


@settings(deadline=None)
@given(st.text(max_size=30) | st.sampled_from(IDS).map(str.swapcase) | st.sampled_from(IDS).map(lambda name: name[-6:]))
def test_any_text_is_a_name_none_or_an_error(catalogue: ModelCatalogue, text: str) -> None:
    try:
        found = catalogue.resolve(text)
    except PlannerError as error:
        assert str(error).isprintable()
    else:
        assert found is None or found in IDS
    assert set(catalogue.nearest(text)) <= set(IDS)


@settings(deadline=None)
@given(st.sampled_from(IDS))
def test_every_id_means_itself_however_it_is_written(catalogue: ModelCatalogue, model_id: str) -> None:
    for text in (model_id, model_id.upper(), model_id.replace("-", "_"), model_id.replace("-", " ")):
        assert catalogue.resolve(text) == model_id
    assert fold(model_id) == fold(fold(model_id))
