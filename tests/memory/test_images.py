"""Images of a run: tokens, what they are refused for, and what the shipped profiles with towers hold. No torch."""

from __future__ import annotations

import json
from dataclasses import replace
from math import prod
from pathlib import Path

import pytest

from qlora_planner.catalog.images import IMAGE_READERS, Shown, picture_of, reader_of
from qlora_planner.errors import InputError
from qlora_planner.memory.estimate import estimate
from qlora_planner.memory.options.resolve import resolve
from qlora_planner.memory.sweep.validity import trace_key
from qlora_planner.session import Session
from qlora_planner.session.towers import with_tower
from qlora_planner.sources.catalogue import ModelCatalogue
from qlora_planner.spec.model import ModelProfile
from qlora_planner.spec.run import RunConfig
from tests.truth import FOLDER

ROOT = Path(__file__).parents[2]
TEXTS = ModelCatalogue([ROOT / "profiles" / "models"])
WHOLES = ModelCatalogue([ROOT / "profiles" / "whole"])
ROWS = [json.loads(line) for line in (FOLDER / "vision-open.jsonl").read_text(encoding="utf-8").splitlines()]
QWEN = "Qwen/Qwen2.5-VL-3B-Instruct"


@pytest.fixture(scope="module")
def qwen() -> ModelProfile:
    return WHOLES.load(QWEN)


def test_every_text_part_of_the_catalogue_has_its_whole_model_beside_it() -> None:
    parts = [profile for profile in TEXTS.load_all() if profile.text_part_of is not None]
    beside = {path.stem.replace("__", "/") for path in (ROOT / "profiles" / "configs" / "whole").glob("*.json")}
    assert sorted({*(profile.id for profile in parts), *beside}) == sorted(WHOLES.names())
    for part in parts:
        whole = WHOLES.load(part.id)
        assert (whole.config_sha256, whole.model_type, whole.text_part_of) == (
            part.config_sha256, part.text_part_of, None,
        )  # fmt: skip
        assert whole.tower
        assert whole.params > part.params
        assert sum(group.total_numel for group in whole.tensors if not group.buffer) == whole.params


# As published: the safetensors index of each repository, tied heads counted once.
@pytest.mark.parametrize(
    ("model", "params"),
    [
        (QWEN, 3_754_622_976),
        ("Qwen/Qwen2.5-VL-7B-Instruct", 8_292_166_656),
        ("Qwen/Qwen3-VL-8B-Instruct", 8_767_123_696),
        ("Qwen/Qwen3-VL-30B-A3B-Instruct", 31_070_754_032),
        ("llava-hf/llava-1.5-7b-hf", 7_063_427_072),
        ("google/paligemma-3b-pt-224", 2_923_466_480),
        ("google/gemma-3-4b", 4_300_079_472),
        ("google/gemma-3-27b", 27_432_406_640),
    ],
)
def test_a_whole_model_has_as_many_parameters_as_its_checkpoint(model: str, params: int) -> None:
    assert WHOLES.load(model).params == params


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["model"])
def test_the_shipped_profile_takes_what_was_measured_before_training(row: dict[str, dict[str, int]]) -> None:
    run = RunConfig(trainer="hf-trainer", seq_len=590, images=0)
    answer, measured = estimate(WHOLES.load(QWEN), run), row["measured_bytes"]
    assert answer.model.trainable_params == row["trainable_params"]
    assert answer.static.after_load == measured["load_alloc"]
    assert answer.static.after_adapters == measured["before_train_alloc"]


@pytest.mark.parametrize(
    ("size", "tokens"),
    [("504x504", 324), ("1280x720", 1196), ("28x28", 4), ("4000x3000", 15301), ("100x2000", 284)],
)
def test_images_are_as_many_tokens_as_patches_of_28_pixels(qwen: ModelProfile, size: str, tokens: int) -> None:
    assert resolve(qwen, RunConfig(image_size=size, seq_len=1 << 15)).run.image_tokens == tokens


def test_so_many_tokens_are_the_squarest_image_of_them(qwen: ModelProfile) -> None:
    assert picture_of("qwen2_5_vl", qwen.dims, RunConfig(image_tokens=324)).grid == (36, 36)
    assert picture_of("qwen2_5_vl", qwen.dims, RunConfig(image_tokens=7)).grid == (2, 14)


def test_a_square_that_all_images_are_resized_to_needs_no_size() -> None:
    resolved = resolve(WHOLES.load("llava-hf/llava-1.5-7b-hf"), RunConfig(images=2))
    assert (resolved.run.image_tokens, resolved.run.images) == (576, 2)
    with pytest.raises(InputError, match="--image-tokens 100: an image of this size is 576 tokens"):
        resolve(WHOLES.load("llava-hf/llava-1.5-7b-hf"), RunConfig(image_tokens=100))


def test_patches_are_what_the_grid_says(qwen: ModelProfile) -> None:
    run = RunConfig(image_size="504x504")
    shown = Shown(rows=2, images=3, seq_len=4096, picture=picture_of("qwen2_5_vl", qwen.dims, run))
    pixels, grid = reader_of("qwen2_5_vl").inputs(qwen.dims, shown)
    assert pixels.shape == (6 * 36 * 36, 1176)
    assert (grid.shape, grid.values) == ((6, 3), (1, 36, 36) * 6)


@pytest.mark.parametrize("model_type", sorted(IMAGE_READERS))
def test_inputs_with_values_have_as_many_as_their_shape_says(model_type: str) -> None:
    run = RunConfig(image_size="640x480")
    picture = picture_of(model_type, {}, run)
    assert picture.tokens > 0
    for part in reader_of(model_type).inputs({}, Shown(rows=2, images=2, seq_len=9000, picture=picture)):
        assert part.values is None or len(part.values) == prod(part.shape)


def test_more_image_than_sequence_is_refused_with_the_length_that_holds_it(qwen: ModelProfile) -> None:
    problems = resolve(qwen, RunConfig(image_size="1280x720", images=2, seq_len=2048)).problems
    assert [(problem.code, problem.fix) for problem in problems] == [("images-too-long", "--seq-len 2396 or more")]
    assert not resolve(qwen, RunConfig(image_size="1280x720", images=2, seq_len=2396)).problems


def test_rows_with_images_are_not_packed(qwen: ModelProfile) -> None:
    problems = resolve(qwen, RunConfig(image_size="504x504", packing=True)).problems
    assert [problem.code for problem in problems] == ["packing-refused"]


def test_no_trace_answers_for_another_size_of_image(qwen: ModelProfile) -> None:
    runs = [
        RunConfig(), RunConfig(images=0), RunConfig(image_size="504x504"), RunConfig(image_size="504x532"),
        RunConfig(image_size="504x504", images=2), RunConfig(image_tokens=324), RunConfig(exclude_modules="visual"),
    ]  # fmt: skip
    resolved = [resolve(qwen, run).run if run.shows_images else run for run in runs]
    assert len({trace_key(run, {}, None) for run in resolved}) == len(runs)


def test_without_a_trace_nobody_says_that_images_fit(qwen: ModelProfile) -> None:
    card = Session().gpu("24GB")
    answer = estimate(qwen, RunConfig(image_size="504x504"), card)
    assert answer.verdict == "cannot-say"
    assert any("activations of the tower" in reason for reason in (answer.fit.reasons if answer.fit else ()))
    assert estimate(qwen, RunConfig(images=0), card).verdict == "fits"


def test_excluded_modules_lose_their_adapters_and_all_in_them(qwen: ModelProfile) -> None:
    def trainable(names: str | None) -> int:
        return estimate(qwen, RunConfig(images=0, exclude_modules=names)).model.trainable_params or 0

    text = estimate(TEXTS.load(QWEN), RunConfig()).model.trainable_params
    assert trainable("visual") == text
    assert trainable(r".*visual.*") == text
    assert trainable("language_model") + trainable("visual") == trainable(None)
    assert trainable("q_proj,k_proj") < trainable("q_proj") < trainable(None)


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ("vision_tower", "matches no module that would carry adapters; there are"),
        ("visual,language_model", "leaves no module with adapters"),
        (r".*layers\.3\..*", "of some layers alone, which is not planned"),
        (r".*[", "is no regular expression"),
    ],
)
def test_what_cannot_be_left_out_is_refused(qwen: ModelProfile, names: str, says: str) -> None:
    with pytest.raises(InputError, match=f"--exclude-modules: .*{says}".replace("[", r"\[")):
        estimate(qwen, RunConfig(images=0, exclude_modules=names))


def test_a_run_with_images_is_of_the_shipped_whole_model() -> None:
    part = TEXTS.load(QWEN)
    assert with_tower(part, RunConfig()) is part
    whole = with_tower(part, RunConfig(image_size="504x504"))
    assert (whole.id, whole.tower, whole.class_name) == (QWEN, "model.visual", "Qwen2_5_VLForConditionalGeneration")


def test_a_model_that_is_planned_by_its_text_alone_is_whole_where_it_shows_images() -> None:
    text, shown = TEXTS.load("google/gemma-3-4b"), RunConfig(images=1)
    assert text.text_part_of is None and with_tower(text, RunConfig()) is text
    whole = with_tower(text, shown)
    assert whole.tower and whole.params == 4_300_079_472
    assert resolve(whole, shown).run.image_tokens == 256
    # A config of the same shape may be of a model of text.
    with pytest.raises(InputError, match="takes no images"):
        with_tower(replace(text, source="family", same_shape_as=text.id), shown)


def test_a_model_of_text_takes_no_images() -> None:
    with pytest.raises(InputError, match="SmolLM2-135M takes no images: leave out --image-size"):
        with_tower(TEXTS.load("HuggingFaceTB/SmolLM2-135M"), RunConfig(images=1))


def test_questions_about_many_runs_are_refused_with_images_where_none_is_traced() -> None:
    bench = Session().on("24GB")
    for ask in (bench.prices, bench.frontier):
        with pytest.raises(InputError, match="prices and frontiers with images need a recorded training step"):
            ask(QWEN, image_size="140x112")


def test_the_audit_of_a_run_with_images_has_the_tower() -> None:
    said = str(Session().audit(QWEN, images=1).to_dict())
    assert "visual" in said
    assert "visual" not in str(Session().audit(QWEN).to_dict())


@pytest.mark.parametrize("size", ["504", "0x3", "504x", "504X504", "1e3x2"])
def test_sizes_are_width_by_height(size: str) -> None:
    with pytest.raises(InputError, match="--image-size must be WIDTHxHEIGHT in pixels"):
        RunConfig(image_size=size)
