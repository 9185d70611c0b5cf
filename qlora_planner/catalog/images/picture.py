"""What one image is to a model: its tokens, and the tensors that the model's processor makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from qlora_planner.errors import InputError
from qlora_planner.record import record

Dims = Mapping[str, "int | float | None"]
Pixels = tuple[int, int]  # width, height


@record
class Picture:
    """One image as the processor hands it on.

    `tokens` stand for it in the sequence, and `beside` others mark where it begins, ends or breaks. `grid` is what the
    reader counts it in, rows and columns of patches or tiles.
    """

    tokens: int
    beside: int
    grid: tuple[int, int]
    pixels: Pixels | None = None  # as they were before the processor resized them, where the model is told

    @property
    def all_tokens(self) -> int:
        """Every token that an image takes of a sequence."""
        return self.tokens + self.beside


@record
class ImageInput:
    """One tensor beside the token ids: its shape, and the whole numbers in it where the model reads them."""

    name: str
    shape: tuple[int, ...]
    values: tuple[int, ...] | None = None  # None: pixels, in float32 as processors make them
    filled: int | None = None  # a whole number that all of them are, in place of `values`


@record
class Shown:
    """What a micro-batch shows: `rows` sequences of `seq_len` tokens with `images` pictures each."""

    rows: int
    images: int
    seq_len: int
    picture: Picture

    @property
    def count(self) -> int:
        """Images in all."""
        return self.rows * self.images


def image_letters(picture: Picture) -> dict[str, int]:
    """What the sizes of a traced step are made of beside batch, sequence and rank, where they show such images: the
    image's tokens, rows and columns of its grid and the longer of both, and the tiles of one that is cut into tiles,
    with the whole beside them."""
    rows, columns = picture.grid
    tiles = rows * columns
    return {
        "image_tokens": picture.tokens, "image_rows": rows, "image_columns": columns, "image_side": max(rows, columns),
        "image_tiles": tiles + (tiles > 1),
    }  # fmt: skip


class ImageReader(Protocol):
    """How one family of models takes images."""

    @property
    def marks(self) -> str | None:
        """The input that tells image tokens from text, where there is one."""

    @property
    def marks_text(self) -> bool:
        """Whether it is 1 for text and 0 for images, which then have no labels either."""

    def picture(self, dims: Dims, pixels: Pixels | None, tokens: int | None) -> Picture:
        """One image of so many pixels, or of so many tokens. Raises InputError for a size that cannot be."""

    def inputs(self, dims: Dims, shown: Shown) -> tuple[ImageInput, ...]:
        """The tensors of a micro-batch, beside token ids and what `marks` names."""


def whole_dim(dims: Dims, name: str, default: int) -> int:
    """A dimension of the tower; its class's default where the profile does not have it."""
    value = dims.get(name)
    return default if value is None else int(value)


def needs_size(pixels: Pixels | None) -> Pixels:
    """The pixels; raises InputError where there are none and tokens depend on them."""
    if pixels is None:
        raise InputError("--image-size: this model has more tokens for larger images; give WIDTHxHEIGHT in pixels")
    return pixels


def check_tokens(wanted: int | None, has: int) -> None:
    """Raises InputError where so many tokens were asked for and every image has another number."""
    if wanted is not None and wanted != has:
        raise InputError(f"--image-tokens {wanted}: an image of this size is {has} tokens to this model")
