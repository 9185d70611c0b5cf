"""What a newcomer types for a model, answered without a network: the model, candidates, or what to give instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from qlora_planner.errors import InputError, MissingError, PlannerError, RefusedError
from qlora_planner.session import load_model
from qlora_planner.sources.locations import configs_dirs
from qlora_planner.sources.words import name_in, nearest_names, words_tuned_alike


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.mark.parametrize(
    ("typed", "model_id"),
    [
        # a model that another organisation publishes under the same name too
        ("phi-4", "microsoft/phi-4"),
        ("unsloth/phi-4", "unsloth/phi-4"),
        # as ollama writes them
        ("llama3.2:3b", "meta-llama/Llama-3.2-3B"),
        ("llama3.1:70b-instruct-q4_K_M", "meta-llama/Llama-3.1-70B-Instruct"),
        ("qwen2.5-coder:7b", "Qwen/Qwen2.5-Coder-7B"),
        ("gemma2:9b-instruct-q4_0", "google/gemma-2-9b-it"),
        ("mixtral:8x7b-instruct-v0.1-q4_0", "mistralai/Mixtral-8x7B-Instruct-v0.1"),
        ("gemma3:27b-it-q4_K_M", "google/gemma-3-27b-it"),
        ("deepseek-r1:14b", "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B"),
        ("phi3:mini", "microsoft/Phi-3-mini-4k-instruct"),
        ("phi4:latest", "microsoft/phi-4"),
        ("qwen3:30b-a3b", "Qwen/Qwen3-30B-A3B"),
        ("falcon:7b-instruct", "tiiuae/falcon-7b-instruct"),
        # with a size that the name does not state
        ("phi4:14b", "microsoft/phi-4"),
        ("phi3:14b", "microsoft/Phi-3-medium-4k-instruct"),
        ("mistral-nemo:12b", "mistralai/Mistral-Nemo-Base-2407"),
        ("command-r:35b", "CohereForAI/c4ai-command-r-v01"),
        # case, separators, addresses
        ("LLAMA 3.1 8B", "meta-llama/Llama-3.1-8B"),
        ("Llama_3_8B", "meta-llama/Meta-Llama-3-8B"),
        ("llama-3-8b", "meta-llama/Meta-Llama-3-8B"),
        ("Qwen2.5 7B Instruct", "Qwen/Qwen2.5-7B-Instruct"),
        ("qwen_2.5_7b", "Qwen/Qwen2.5-7B"),
        ("gemma-2-9b-it", "google/gemma-2-9b-it"),
        ("https://huggingface.co/Qwen/Qwen2.5-7B", "Qwen/Qwen2.5-7B"),
        ("hf.co/meta-llama/Llama-3.1-8B-Instruct", "meta-llama/Llama-3.1-8B-Instruct"),
        # mirrors, fine-tunes, nicknames
        ("unsloth/Meta-Llama-3.1-8B-Instruct-bnb-4bit", "unsloth/Meta-Llama-3.1-8B-Instruct-bnb-4bit"),
        ("unsloth/mistral-7b-instruct-v0.3-bnb-4bit", "unsloth/mistral-7b-instruct-v0.3-bnb-4bit"),
        ("lmsys/vicuna-7b-v1.5", "lmsys/vicuna-7b-v1.5"),
        ("openhermes", "teknium/OpenHermes-2.5-Mistral-7B"),
        ("tulu 3 8b", "allenai/Llama-3.1-Tulu-3-8B"),
        ("r1 distill llama 8b", "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"),
        ("qwq", "Qwen/QwQ-32B"),
        ("nemo", "mistralai/Mistral-Nemo-Base-2407"),
        ("codestral", "mistralai/Codestral-22B-v0.1"),
        ("command-r", "CohereForAI/c4ai-command-r-v01"),
        ("phi-4-mini", "microsoft/Phi-4-mini-instruct"),
        ("olmo2 7b", "allenai/OLMo-2-1124-7B"),
        ("yi 34b", "01-ai/Yi-34B"),
        ("solar", "upstage/SOLAR-10.7B-v1.0"),
        ("starcoder", "bigcode/starcoder"),
        ("qwen2.5-vl 7b", "Qwen/Qwen2.5-VL-7B-Instruct"),
        ("llava", "llava-hf/llava-1.5-7b-hf"),
        ("smollm 135m", "HuggingFaceTB/SmolLM-135M"),
    ],
)
def test_what_a_newcomer_types_is_the_model_they_mean(typed: str, model_id: str) -> None:
    assert load_model(typed, build="never").id == model_id


@pytest.mark.parametrize(
    ("typed", "first"),
    [
        ("7b", "Qwen/Qwen2.5-7B"),
        ("70B", "meta-llama/Llama-3.3-70B-Instruct"),
        ("8B", "meta-llama/Llama-3.1-8B"),
        ("llama3.2", "meta-llama/Llama-3.2-3B"),
        ("codellama", "codellama/CodeLlama-7b-hf"),
        ("deepseek-coder", "deepseek-ai/deepseek-coder-6.7b-base"),
        ("smollm2", "HuggingFaceTB/SmolLM2-135M"),
        ("granite 8b", "ibm-granite/granite-4.1-8b"),
        ("gpt-oss", "openai/gpt-oss-20b"),
        ("starcoder2", "bigcode/starcoder2-7b"),
        ("vicuna", "lmsys/vicuna-7b-v1.5"),
        ("hermes", "NousResearch/Hermes-3-Llama-3.1-8B"),
        ("qwen3-vl", "Qwen/Qwen3-VL-8B-Instruct"),
        ("yi", "01-ai/Yi-34B"),
    ],
)
def test_a_word_of_several_lists_them_with_the_best_known_first(typed: str, first: str) -> None:
    with pytest.raises(InputError, match=" could be ") as caught:
        load_model(typed, build="never")
    assert str(caught.value).partition(" could be ")[2].split(", ")[0] == first


@pytest.mark.parametrize(
    ("typed", "first"),
    [
        ("lama 3 8b", "meta-llama/Meta-Llama-3-8B"),
        ("mixtrall", "mistralai/Mixtral-8x7B-v0.1"),
        ("quen2.5 7b", "Qwen/Qwen2.5-7B"),
        ("gema 2 9b", "google/gemma-2-9b"),
        ("mistrall 7b", "mistralai/Mistral-7B-v0.3"),
        ("lama3.1", "meta-llama/Llama-3.1-8B"),
        ("mistral-nemo:70b", "mistralai/Mistral-Nemo-Base-2407"),
    ],
)
def test_a_misspelt_or_unknown_name_is_answered_with_the_nearest(typed: str, first: str) -> None:
    with pytest.raises((InputError, MissingError)) as caught:
        load_model(typed, build="never")
    assert str(caught.value).partition("nearest")[2].partition(": ")[2].split(", ")[0] == first


@pytest.mark.parametrize(
    ("typed", "instead"),
    [
        ("TheBloke/Mistral-7B-Instruct-v0.2-GGUF", "mistralai/Mistral-7B-Instruct-v0.2"),
        ("TheBloke/Llama-2-13B-chat-GPTQ", "meta-llama/Llama-2-13b-chat-hf"),
        ("Qwen/Qwen2.5-7B-Instruct-AWQ", "Qwen/Qwen2.5-7B-Instruct"),
        ("Qwen/Qwen3-8B-FP8", "Qwen/Qwen3-8B"),
        ("RedHatAI/Llama-3.1-8B-Instruct-FP8", "meta-llama/Llama-3.1-8B-Instruct"),
        ("RedHatAI/Llama-3.1-8B-Instruct-quantized.w8a8", "meta-llama/Llama-3.1-8B-Instruct"),
        ("hf.co/bartowski/Meta-Llama-3.1-8B-Instruct-GGUF:Q4_K_M", "meta-llama/Llama-3.1-8B-Instruct"),
    ],
)
def test_packed_weights_are_refused_with_what_they_were_made_from(typed: str, instead: str) -> None:
    with pytest.raises(RefusedError, match="its weights are packed as") as caught:
        load_model(typed, build="never")
    assert f"give {instead}, which it was made from" in str(caught.value) or (
        "give meta-llama/Meta-Llama-3.1-8B-Instruct, which" in str(caught.value)
    )


@pytest.mark.parametrize(("typed", "why"), [("internlm", "code of their own"), ("chatgpt", "not published")])
def test_models_that_cannot_be_planned_say_why(typed: str, why: str) -> None:
    with pytest.raises(RefusedError, match=why):
        load_model(typed, build="never")


@pytest.mark.parametrize("typed", ["Qwen/Qwen2.5-VL-7B-Instruct", "llava-hf/llava-1.5-7b-hf"])
def test_a_model_with_a_tower_says_of_what_it_is_the_text_part(typed: str) -> None:
    assert load_model(typed, build="never").text_part_of is not None


def test_a_name_is_read_off_an_address_and_a_tag_off_a_name() -> None:
    assert name_in("https://huggingface.co/Qwen/Qwen3-8B/") == "Qwen/Qwen3-8B"
    assert name_in("llama3.1:8b-instruct-q4_K_M") == "llama3.1:8b-instruct"
    assert name_in("somebody/model-q4_0") == "somebody/model-q4_0"
    assert name_in("qwq") == "qwq"


def test_words_for_models_that_follow_instructions_are_one() -> None:
    assert (
        words_tuned_alike("gemma-2-9b-it")
        == words_tuned_alike("gemma2:9b-instruct")
        == ("gemma", "2", "9b", "instruct")
    )


def test_one_wrong_letter_of_four_is_a_misspelling() -> None:
    assert nearest_names("quen3", ["Qwen/Qwen3-8B", "google/gemma-3-4b"], ()) == ("Qwen/Qwen3-8B",)


def test_an_unknown_repository_at_an_address_is_named_without_it() -> None:
    with pytest.raises(PlannerError) as caught:
        load_model("https://huggingface.co/nobody/Some-Model", build="never")
    assert str(caught.value).startswith("nobody/Some-Model: ")


def test_a_folder_is_meant_before_a_catalogue_name_that_only_ends_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder called `tiny` is no granite-4.0-h-tiny; a whole catalogue name goes before a folder, and says so."""
    config = (configs_dirs()[0] / "meta-llama__Llama-3.1-8B.json").read_text()
    monkeypatch.chdir(tmp_path)
    for name in ("tiny", "llama-2-7b-hf"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(config)
    said: list[str] = []
    assert load_model("tiny", warn=said.append).id == "meta-llama/Llama-3.1-8B"
    assert said == []
    assert load_model("llama-2-7b-hf", warn=said.append).id == "meta-llama/Llama-2-7b-hf"
    assert said == [
        "llama-2-7b-hf: taken as the catalogue's meta-llama/Llama-2-7b-hf; write ./llama-2-7b-hf for the file or folder"
    ]
