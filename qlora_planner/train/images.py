"""Images in a micro-batch: the placeholders among its token ids, and the tensors beside them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qlora_planner.catalog.images import ImageInput, Shown, reader_of, shown_by
from qlora_planner.spec.run import RunConfig
from qlora_planner.train.data import IGNORED, collate

_FIRST_TEXT = 8  # tokens before the first image, as a chat template has some
# Numbers by which processors and towers count, under the names of config.json; those of the tower's part are kept with
# `vision_` before them.
_OF_WHOLE = (
    "mm_tokens_per_image", "image_seq_length", "spatial_merge_size", "scale_factor", "downsample_ratio",
)  # fmt: skip
_OF_TOWER = (
    "image_size", "patch_size", "spatial_merge_size", "temporal_patch_size", "in_channels", "hidden_size", "depth",
    "num_hidden_layers", "pixel_shuffle_ratio", "max_num_tiles",
)  # fmt: skip


def image_dims(config: Any) -> dict[str, int | float | None]:
    """What `catalog.images` counts an image by."""
    numbers = {name: getattr(config, name, None) for name in _OF_WHOLE}
    numbers |= {f"vision_{name}": getattr(config.vision_config, name, None) for name in _OF_TOWER}
    # Some write the side of a square for both of them.
    numbers = {name: value[0] if isinstance(value, (list, tuple)) else value for name, value in numbers.items()}
    return {
        name: int(value) if isinstance(value, int) else value
        for name, value in numbers.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def placeholder_of(config: Any) -> int:
    """The token that stands for a piece of an image."""
    names = ("image_token_id", "image_token_index")
    return int(next(value for name in names if (value := getattr(config, name, None)) is not None))


def show(
    ids: Any, mask: Any, run: RunConfig, config: Any, *, labelled: bool
) -> tuple[dict[str, Any], tuple[ImageInput, ...]]:
    """The run's images in each row of `ids` [batch, length]: the tensors that change or are new among those of tokens,
    and the shapes of those beside them.

    Raises InputError as `catalog.images.picture_of` does.
    """
    import torch

    dims, reader, placeholder = image_dims(config), reader_of(config.model_type), placeholder_of(config)
    rows, length = ids.shape
    shown = shown_by(config.model_type, dims, run.with_(seq_len=length), rows)
    assert shown is not None
    places = _places(shown)
    # Text must not hold a placeholder by accident.
    ids = torch.where(ids == placeholder, ids + 1, ids).masked_fill(places, placeholder)
    # A padded row is longer than others are, where it would end inside an image: no model takes a part of one.
    mask = mask | (torch.arange(length) < places.any(0).nonzero().max() + 1)
    made: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    if labelled:
        labels = ids.masked_fill(mask == 0, IGNORED)
        made["labels"] = labels.masked_fill(places, IGNORED) if reader.marks_text else labels
    if reader.marks is not None:
        made[reader.marks] = (~places if reader.marks_text else places).to(torch.int64)
    return made, reader.inputs(dims, shown)


def numbers_of(part: ImageInput) -> Any:
    """The whole numbers of a tensor beside the tokens; None where it holds pixels."""
    import torch

    if part.values is not None:
        return torch.tensor(part.values, dtype=torch.int64).view(part.shape)
    return None if part.filled is None else torch.full(part.shape, part.filled, dtype=torch.int64)


def collator(run: RunConfig, config: Any) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
    """Makes batches of rows of ids as `data.collate` does, with the run's images in each row, of random pixels."""
    if not run.images:
        return collate
    import torch

    def with_images(features: list[dict[str, Any]]) -> dict[str, Any]:
        batch = collate(features)
        made, parts = show(batch["input_ids"], batch["attention_mask"], run, config, labelled=True)
        for part in parts:
            numbers = numbers_of(part)
            made[part.name] = torch.rand(part.shape) if numbers is None else numbers
        return {**batch, **made}

    return with_images


def _places(shown: Shown) -> Any:
    """Which tokens stand for images, the same in every row."""
    import torch

    places = torch.zeros((shown.rows, shown.seq_len), dtype=torch.bool)
    begin = min(_FIRST_TEXT, shown.seq_len - shown.images * shown.picture.all_tokens)
    for _ in range(shown.images):
        first = begin + (shown.picture.beside + 1) // 2
        places[:, first : first + shown.picture.tokens] = True
        begin += shown.picture.all_tokens
    return places
