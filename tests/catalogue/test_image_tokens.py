"""Tokens of images against transformers' own processors, which look at no weights."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest

pytest.importorskip("torch")
pytest.importorskip("PIL")

from qlora_planner.catalog.images import picture_of
from qlora_planner.spec.run import RunConfig

_DRAWN = random.Random(7)
SIZES = [(504, 504), (1280, 720), (28, 28), (8000, 6000), (100, 2000), (1, 150), (5600, 28), (335, 337)]
SIZES += [(_DRAWN.randint(1, 3000), _DRAWN.randint(20, 3000)) for _ in range(40)]


def tokens(
    model_type: str, size: tuple[int, int], dims: dict[str, int | float | None] | None = None
) -> tuple[int, tuple[int, int]]:
    picture = picture_of(model_type, dims or {}, RunConfig(image_size=f"{size[0]}x{size[1]}"))
    return picture.tokens, picture.grid


@pytest.mark.parametrize(
    ("model_type", "settings"),
    [
        ("qwen2_vl", {"min_pixels": 3136, "max_pixels": 12845056}),
        ("qwen2_5_vl", {"min_pixels": 3136, "max_pixels": 12845056}),
        ("qwen3_vl", {"patch_size": 16, "size": {"shortest_edge": 65536, "longest_edge": 16777216}}),
    ],
)
def test_qwens_grids_are_those_of_its_processor(model_type: str, settings: dict[str, object]) -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    processor = Qwen2VLImageProcessorPil(**settings)
    for size in (size for size in SIZES if max(size) <= 200 * min(size)):
        patches = processor.get_number_of_image_patches(size[1], size[0], {})
        planned, grid = tokens(model_type, size)
        assert (planned, grid[0] * grid[1]) == (patches // 4, patches), size


def test_an_image_that_the_processor_makes_has_the_grid_that_is_planned() -> None:
    from PIL import Image
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    processor = Qwen2VLImageProcessorPil(min_pixels=3136, max_pixels=12845056)
    made = processor(images=[Image.new("RGB", (335, 337)), Image.new("RGB", (640, 90))], return_tensors="np")
    assert made["image_grid_thw"].tolist() == [[1, *tokens("qwen2_vl", size)[1]] for size in ((335, 337), (640, 90))]


def test_pixtrals_rows_and_columns_are_those_of_its_processor() -> None:
    import numpy as np
    from transformers.models.pixtral.image_processing_pil_pixtral import get_resize_output_image_size

    for width, height in SIZES:
        resized = get_resize_output_image_size(
            np.zeros((height, width, 3), dtype=np.uint8), size=(1540, 1540), patch_size=(28, 28)
        )
        dims = {"spatial_merge_size": 2, "vision_image_size": 1540}
        picture = picture_of("mistral3", dims, RunConfig(image_size=f"{width}x{height}"))
        assert tuple(side * 14 for side in picture.grid) == tuple(resized), (width, height)
        assert picture.tokens == resized[0] // 28 * (resized[1] // 28)


@pytest.mark.parametrize(
    ("model_type", "side", "each", "dims"), [("smolvlm", 512, 64, {"scale_factor": 4}), ("idefics3", 364, 169, {})]
)
def test_split_images_have_the_rows_and_columns_of_their_processors(
    model_type: str, side: int, each: int, dims: dict[str, int | float | None]
) -> None:
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

    processor = SmolVLMImageProcessorPil() if model_type == "smolvlm" else Idefics3ImageProcessorPil()
    sizes = {"size": {"longest_edge": 4 * side}, "max_image_size": {"longest_edge": side}}
    for size in SIZES:
        tiles, rows, columns = processor.get_number_of_image_patches(size[1], size[0], sizes)
        planned, grid = tokens(model_type, size, dims)
        assert planned == each * max(tiles, 1), size
        assert not tiles or grid == (rows, columns), size


def test_internvls_canvases_are_those_of_its_processor() -> None:
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    tile = {"height": 448, "width": 448}
    processor = GotOcr2ImageProcessorPil(size=tile, crop_to_patches=True, min_patches=1, max_patches=12)
    for size in SIZES:
        tiles = processor.get_number_of_image_patches(size[1], size[0], {"patch_size": tile, "crop_to_patches": True})
        assert tokens("internvl", size)[0] == 256 * tiles, size


def test_llava_nexts_tokens_are_those_of_its_processor() -> None:
    from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor

    class Published(LlavaNextProcessor):  # type: ignore[misc, unused-ignore]
        """As its files have it, without a tokenizer."""

        def __init__(self) -> None:
            grids = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
            self.image_processor = SimpleNamespace(image_grid_pinpoints=grids)
            self.patch_size, self.num_additional_image_tokens = 14, 1

    for size in SIZES:
        counted = Published()._get_number_of_features(size[1], size[0], 336, 336)
        assert tokens("llava_next", size)[0] == counted - 1, size  # without the class token
