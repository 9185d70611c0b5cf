"""Tokens of images against transformers' own processors, which look at no weights."""

from __future__ import annotations

import random

import pytest

pytest.importorskip("torch")
pytest.importorskip("PIL")

from qlora_planner.catalog.images import picture_of
from qlora_planner.spec.run import RunConfig

_DRAWN = random.Random(7)
SIZES = [(504, 504), (1280, 720), (28, 28), (8000, 6000), (100, 2000), (1, 150), (5600, 28), (335, 337)]
SIZES += [(_DRAWN.randint(1, 3000), _DRAWN.randint(20, 3000)) for _ in range(40)]


def tokens(model_type: str, size: tuple[int, int]) -> tuple[int, tuple[int, int]]:
    picture = picture_of(model_type, {}, RunConfig(image_size=f"{size[0]}x{size[1]}"))
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
