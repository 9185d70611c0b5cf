"""How many tokens an image is to each family of models, and what its processor makes of it. No torch."""

from __future__ import annotations

from qlora_planner.catalog.images.fixed import FixedReader
from qlora_planner.catalog.images.patches import GridReader, PixtralReader
from qlora_planner.catalog.images.picture import Dims, ImageInput, ImageReader, Picture, Shown, image_letters
from qlora_planner.catalog.images.tiles import CanvasReader, CrossReader, LlavaNextReader, SplitReader
from qlora_planner.errors import InputError
from qlora_planner.spec.run import RunConfig

__all__ = [
    "IMAGE_READERS", "ImageInput", "ImageReader", "Picture", "Shown", "image_letters", "picture_of", "reader_of",
    "shown_by",
]  # fmt: skip

_QWEN2 = GridReader(patch=14, least_pixels=3136, most_pixels=12845056)
_QWEN3 = GridReader(patch=16, least_pixels=65536, most_pixels=16777216)

# By the model type of the whole.
IMAGE_READERS: dict[str, ImageReader] = {
    "qwen2_vl": _QWEN2,
    "qwen2_5_vl": _QWEN2,
    "qwen3_vl": _QWEN3,
    "qwen3_vl_moe": _QWEN3,
    # Two line feeds as one token, the beginning, the end, and two line feeds again.
    "gemma3": FixedReader(side=896, patch=14, beside=4, marks="token_type_ids"),
    "llava": FixedReader(side=336, patch=14),
    "paligemma": FixedReader(side=224, patch=14, marks="token_type_ids", marks_text=True),
    "llava_next": LlavaNextReader(),
    "mistral3": PixtralReader(),
    "idefics3": SplitReader(side=364, patch=14),
    "smolvlm": SplitReader(side=512, patch=16),
    "internvl": CanvasReader(),
    "mllama": CrossReader(),
}


def reader_of(model_type: str) -> ImageReader:
    """How this type of model takes images. Raises InputError where that is not known."""
    reader = IMAGE_READERS.get(model_type)
    if reader is None:
        raise InputError(
            f"--image-size: how {model_type} takes images is not known yet; known: {', '.join(sorted(IMAGE_READERS))}"
        )
    return reader


def picture_of(model_type: str, dims: Dims, run: RunConfig) -> Picture:
    """One image of the run. Raises InputError for a size that cannot be, and as `reader_of` does."""
    return reader_of(model_type).picture(dims, run.image_pixels, run.image_tokens)


def shown_by(model_type: str, dims: Dims, run: RunConfig, rows: int) -> Shown | None:
    """What a micro-batch of so many rows shows; None where it shows no image. Raises as `picture_of`."""
    if not run.images:
        return None
    return Shown(rows=rows, images=run.images, seq_len=run.seq_len, picture=picture_of(model_type, dims, run))
