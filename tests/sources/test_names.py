"""Models by the names that people type, without a network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qlora_planner.errors import InputError, MissingError, PlannerError, RefusedError
from qlora_planner.session import load_model
from qlora_planner.sources.catalogue import ModelCatalogue
from qlora_planner.sources.names import Names
from qlora_planner.sources.words import billions, nearest_names, words_of

ROOT = Path(__file__).parents[2] / "profiles"
CATALOGUE = ModelCatalogue([ROOT / "models"])
NAMES = Names(CATALOGUE)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


# What was typed, the model that is planned, and the model of the catalogue that it has the shapes of.
TYPED = [
    ("meta-llama/Llama-3.1-8B-Instruct", "meta-llama/Llama-3.1-8B-Instruct", "meta-llama/Llama-3.1-8B"),
    ("meta-llama/Meta-Llama-3.1-8B", "meta-llama/Meta-Llama-3.1-8B", "meta-llama/Llama-3.1-8B"),
    ("META-LLAMA/llama-3.2-1b-instruct", "meta-llama/Llama-3.2-1B-Instruct", "meta-llama/Llama-3.2-1B"),
    ("Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-7B"),
    ("Qwen/Qwen2.5-Coder-32B-Instruct", "Qwen/Qwen2.5-Coder-32B-Instruct", "Qwen/Qwen2.5-32B"),
    ("Qwen/Qwen3-4B-Instruct-2507", "Qwen/Qwen3-4B-Instruct-2507", "Qwen/Qwen3-4B"),
    ("qwen2.5-0.5b-instruct", "Qwen/Qwen2.5-0.5B-Instruct", "Qwen/Qwen2.5-0.5B"),
    ("gemma-3-27b-it", "google/gemma-3-27b-it", "google/gemma-3-27b"),
    ("google/gemma-2-9b-it", "google/gemma-2-9b-it", "google/gemma-2-9b"),
    ("mistralai/Mistral-7B-Instruct-v0.3", "mistralai/Mistral-7B-Instruct-v0.3", "mistralai/Mistral-7B-v0.3"),
    ("mistral-nemo-instruct-2407", "mistralai/Mistral-Nemo-Instruct-2407", "mistralai/Mistral-Nemo-Base-2407"),
    ("unsloth/llama-3-8b-bnb-4bit", "unsloth/llama-3-8b-bnb-4bit", "meta-llama/Meta-Llama-3-8B"),
    ("unsloth/Qwen2.5-7B-Instruct", "unsloth/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-7B"),
    ("NousResearch/Llama-2-7b-hf", "NousResearch/Llama-2-7b-hf", "meta-llama/Llama-2-7b-hf"),
    ("meta-llama/Llama-2-13b-chat-hf", "meta-llama/Llama-2-13b-chat-hf", "meta-llama/Llama-2-13b-hf"),
    ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", "Qwen/Qwen2.5-7B"),
    ("deepseek-r1:70b", "deepseek-ai/DeepSeek-R1-Distill-Llama-70B", "meta-llama/Llama-3.3-70B-Instruct"),
    ("qwen coder 7b", "Qwen/Qwen2.5-Coder-7B", "Qwen/Qwen2.5-7B"),
    ("HuggingFaceTB/SmolLM2-1.7B-Instruct", "HuggingFaceTB/SmolLM2-1.7B-Instruct", "HuggingFaceTB/SmolLM2-1.7B"),
    ("llama3.1:8b", "meta-llama/Llama-3.1-8B", None),
    ("llama3:8b", "meta-llama/Meta-Llama-3-8B", None),
    ("llama 3 70b", "meta-llama/Meta-Llama-3-70B", None),
    ("llama3.3", "meta-llama/Llama-3.3-70B-Instruct", None),
    ("llama2:7b", "meta-llama/Llama-2-7b-hf", None),
    ("llama-3.2-3b", "meta-llama/Llama-3.2-3B", None),
    ("qwen3:8b", "Qwen/Qwen3-8B", None),
    ("Qwen 3 0.6B", "Qwen/Qwen3-0.6B", None),
    ("qwen2.5:14b", "Qwen/Qwen2.5-14B", None),
    ("gemma3 27b", "google/gemma-3-27b", None),
    ("gemma2:2b", "google/gemma-2-2b", None),
    ("phi4", "microsoft/phi-4", None),
    ("phi-4-mini", "microsoft/Phi-4-mini-instruct", None),
    ("tinyllama", "TinyLlama/TinyLlama-1.1B-Chat-v1.0", None),
    ("mixtral:8x7b", "mistralai/Mixtral-8x7B-v0.1", None),
    ("gpt-oss:20b", "openai/gpt-oss-20b", None),
    ("gpt2", "openai-community/gpt2", None),
    ("zephyr", "HuggingFaceH4/zephyr-7b-beta", None),
    ("mistral-nemo", "mistralai/Mistral-Nemo-Base-2407", None),
    ("smollm2 135m", "HuggingFaceTB/SmolLM2-135M", None),
    ("falcon-7b", "tiiuae/falcon-7b", None),
    ("command-r", "CohereForAI/c4ai-command-r-v01", None),
    ("codellama 34b", "codellama/CodeLlama-34b-hf", None),
]


@pytest.mark.parametrize(("typed", "model_id", "base"), TYPED)
def test_a_name_that_somebody_types_is_the_model_they_mean(typed: str, model_id: str, base: str | None) -> None:
    found = load_model(typed, build="never")
    assert (found.id, found.same_shape_as) == (model_id, base)
    assert found.resolved_from == typed


@pytest.mark.parametrize(
    ("typed", "first", "second"),
    [
        ("mistral", "mistralai/Mistral-7B-v0.3", "mistralai/Mistral-7B-"),
        ("llama3", "meta-llama/Meta-Llama-3-8B", "meta-llama/Meta-Llama-3-70B"),
        ("mixtral", "mistralai/Mixtral-8x7B-v0.1", "mistralai/Mixtral-8x22B-"),
        ("deepseek-r1", "deepseek-ai/DeepSeek-R1-Distill-", "deepseek-ai/DeepSeek-R1-"),
        ("7b", "Qwen/Qwen2.5-7B", "mistralai/Mistral-7B-v0.3"),
        ("gemma", "google/gemma-3-4b", "google/gemma-3-12b"),
        ("qwen3", "Qwen/Qwen3-8B", "Qwen/Qwen3-4B"),
        ("phi", "microsoft/phi-4", "microsoft/Phi-4-mini-instruct"),
    ],
)
def test_a_word_of_several_models_lists_the_best_known_first(typed: str, first: str, second: str) -> None:
    with pytest.raises(InputError) as caught:
        load_model(typed, build="never")
    shown = str(caught.value).partition(" could be ")[2].split(", ")
    assert shown[0].startswith(first)
    assert any(name.startswith(second) for name in shown[1:3])


@pytest.mark.parametrize(
    ("typed", "instead"),
    [
        ("TheBloke/Llama-2-7B-GPTQ", "meta-llama/Llama-2-7b-hf"),
        ("TheBloke/Mistral-7B-v0.1-AWQ", "mistralai/Mistral-7B-v0.1"),
        ("bartowski/Qwen2.5-7B-Instruct-GGUF", "Qwen/Qwen2.5-7B-Instruct"),
        ("TheBloke/Nobody-Knows-13B-GPTQ", "the 16-bit model"),
    ],
)
def test_packed_weights_are_refused_with_the_model_to_give_instead(typed: str, instead: str) -> None:
    with pytest.raises(RefusedError, match="will not run: its weights are packed") as caught:
        load_model(typed, build="never")
    assert instead in str(caught.value)
    assert caught.value.exit_code == 1


def test_a_name_with_a_near_miss_of_another_model_is_offered_its_own_family_alone() -> None:
    with pytest.raises(MissingError) as caught:
        load_model("somebody/Llama-3.1-8B-mine", build="never")
    nearest = str(caught.value).partition("nearest in the catalogue: ")[2].split(", ")
    assert nearest[0] == "meta-llama/Llama-3.1-8B"
    assert all("llama" in name.lower() for name in nearest)


def test_a_mirror_of_stored_weights_says_how_they_are_stored() -> None:
    assert load_model("unsloth/llama-3-8b-bnb-4bit").checkpoint_quantization == "bitsandbytes-nf4-double"
    assert load_model("unsloth/llama-3-8b").checkpoint_quantization is None


def test_a_derived_model_keeps_the_length_that_it_was_trained_for() -> None:
    assert load_model("Qwen/Qwen2.5-Math-7B").dim("max_position_embeddings") == 4096
    assert load_model("Qwen/Qwen2.5-7B").dim("max_position_embeddings") == 32768


def test_a_distilled_model_whose_head_is_its_own_is_not_taken_for_its_tied_base() -> None:
    assert "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B" not in NAMES.derived


def test_the_table_of_names_is_sound() -> None:
    table = json.loads((ROOT / "names.json").read_text("utf-8"))
    catalogue = set(CATALOGUE.names())
    ids = [name for group in table["derived"] for name in group["ids"]]
    assert len(ids) == len(set(ids))
    assert not set(ids) & catalogue
    assert all(group["base"] in catalogue and group["source"] for group in table["derived"])
    assert set(table["fame"]) <= catalogue | set(ids)


def test_a_search_finds_the_base_of_a_derived_name() -> None:
    found = NAMES.searched("deepseek-r1 qwen")
    assert found("Qwen/Qwen2.5-7B") and not found("meta-llama/Llama-3.1-8B")
    assert NAMES.searched("gemma3 27b")("google/gemma-3-27b")
    assert NAMES.searched("gemma2:9b-instruct-q4_0")("google/gemma-2-9b")
    assert not NAMES.searched("")("google/gemma-3-27b")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", ("llama", "3.1", "8b", "instruct")),
        ("llama3.1:8b", ("llama", "3.1", "8b")),
        ("Qwen3-30B-A3B", ("qwen", "3", "30b", "a3b")),
        ("Mixtral-8x7B-v0.1", ("mixtral", "8x7b", "v0.1")),
        ("stablelm-2-1_6b", ("stablelm", "2", "1.6b")),
        ("meta-llama/Llama-2-7b-hf", ("llama", "2", "7b")),
        ("gemma-4-E4B", ("gemma", "4", "e4b")),
        ("…", ()),
    ],
)
def test_a_name_is_taken_apart_into_words(name: str, words: tuple[str, ...]) -> None:
    assert words_of(name) == words


def test_sizes_are_read_off_names() -> None:
    assert billions(words_of("Mixtral-8x7B")) == 56
    assert billions(words_of("SmolLM2-135M")) == 0.135
    assert billions(words_of("phi-4")) is None


def test_the_nearest_names_go_by_version_then_size() -> None:
    names = ["Qwen/Qwen2.5-7B", "Qwen/Qwen3-4B", "Qwen/Qwen3-8B", "meta-llama/Llama-3.1-8B"]
    assert nearest_names("qwen3-7b", names, ()) == ("Qwen/Qwen3-8B", "Qwen/Qwen3-4B", "Qwen/Qwen2.5-7B")
    assert nearest_names("lama-3.1-9b", names, ()) == ("meta-llama/Llama-3.1-8B",)


@pytest.mark.parametrize("text", ["x" * 10_000, "-", "//", "é", "\0", "a/b/c", "0", "hf", "meta llama"])
def test_any_text_is_answered_with_a_model_or_a_line(text: str) -> None:
    try:
        load_model(text, build="never")
    except PlannerError as error:
        assert str(error).isprintable()
