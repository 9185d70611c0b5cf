"""Models that cut an image into square tiles, each read as an image of its own, beside the whole one made small."""

from __future__ import annotations

from math import ceil

from qlora_planner.catalog.images.picture import (
    Dims,
    ImageInput,
    Picture,
    Pixels,
    Shown,
    check_tokens,
    needs_size,
    whole_dim,
)
from qlora_planner.record import record

# LLaVA-NeXT's grids of tiles, rows by columns, as its published config has them (336 pixels a tile).
_PINPOINTS = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
_EDGE_TILES = 4  # Idefics 3 and SmolVLM: `size` is four times `max_image_size` in every published processor


def _with_whole(grid: tuple[int, int]) -> int:
    """Tiles of a grid with the whole image beside them, where there is more than one."""
    tiles = grid[0] * grid[1]
    return tiles + (tiles > 1)


@record
class LlavaNextReader:
    """LLaVA-NeXT's: the grid of tiles that wastes least, without the patches that only fill it up, and a line feed
    after each row of patches."""

    side: int = 336
    patch: int = 14
    marks: str | None = None
    marks_text: bool = False

    def picture(self, dims: Dims, pixels: Pixels | None, tokens: int | None) -> Picture:
        """See ImageReader."""
        width, height = needs_size(pixels)
        side = whole_dim(dims, "vision_image_size", self.side)
        each = side // whole_dim(dims, "vision_patch_size", self.patch)
        grid = self._grid(width, height, side)
        rows, columns = grid[0] * each, grid[1] * each
        if width / height > columns / rows:
            rows -= (rows - int(round(height * (columns / width), 7))) // 2 * 2
        else:
            columns -= (columns - int(round(width * (rows / height), 7))) // 2 * 2
        has = each * each + rows * (columns + 1)
        check_tokens(tokens, has)
        return Picture(tokens=has, beside=0, grid=grid, pixels=(width, height))

    def _grid(self, width: int, height: int, side: int) -> tuple[int, int]:
        """The most pixels that are not made up, then the fewest that are."""

        def worth(grid: tuple[int, int]) -> tuple[int, int]:
            scale = min(grid[1] * side / width, grid[0] * side / height)
            shown = min(int(width * scale) * int(height * scale), width * height)
            return shown, shown - grid[0] * grid[1] * side * side

        return max(_PINPOINTS, key=worth)

    def inputs(self, dims: Dims, shown: Shown) -> tuple[ImageInput, ...]:
        """See ImageReader."""
        side = whole_dim(dims, "vision_image_size", self.side)
        rows, columns = shown.picture.grid
        width, height = needs_size(shown.picture.pixels)
        return (
            ImageInput(name="pixel_values", shape=(shown.count, rows * columns + 1, 3, side, side)),
            ImageInput(name="image_sizes", shape=(shown.count, 2), values=(height, width) * shown.count),
        )


@record
class SplitReader:
    """Idefics 3 and SmolVLM: the longer edge made four tiles long, each side rounded up to whole tiles.

    A tile has two tokens beside its own, a row of tiles one, and the whole image three.
    """

    side: int
    patch: int
    marks: str | None = None
    marks_text: bool = False

    def picture(self, dims: Dims, pixels: Pixels | None, tokens: int | None) -> Picture:
        """See ImageReader."""
        width, height = needs_size(pixels)
        side = whole_dim(dims, "vision_image_size", self.side)
        longest, aspect = _EDGE_TILES * side, width / height
        wide, high = (longest, int(longest / aspect)) if width >= height else (int(longest * aspect), longest)
        rows, columns = (max(1, ceil((edge + edge % 2) / side)) for edge in (high, wide))
        tiles = rows * columns if rows * columns > 1 else 0
        each = (side // whole_dim(dims, "vision_patch_size", self.patch) // whole_dim(dims, "scale_factor", 2)) ** 2
        has = (tiles + 1) * each
        check_tokens(tokens, has)
        beside = tiles * 2 + (rows if tiles else 0) + 3
        return Picture(tokens=has, beside=beside, grid=(rows, columns))

    def inputs(self, dims: Dims, shown: Shown) -> tuple[ImageInput, ...]:
        """See ImageReader."""
        side = whole_dim(dims, "vision_image_size", self.side)
        tiles = _with_whole(shown.picture.grid) * shown.images
        return (
            ImageInput(name="pixel_values", shape=(shown.rows, tiles, 3, side, side)),
            ImageInput(name="pixel_attention_mask", shape=(shown.rows, tiles, side, side), filled=1),
        )


@record
class CanvasReader:
    """InternVL: the canvas of at most `most` tiles whose shape is nearest the image's, and a thumbnail."""

    side: int = 448
    patch: int = 14
    most: int = 12
    marks: str | None = None
    marks_text: bool = False

    def picture(self, dims: Dims, pixels: Pixels | None, tokens: int | None) -> Picture:
        """See ImageReader."""
        width, height = needs_size(pixels)
        side = whole_dim(dims, "vision_image_size", self.side)
        counts = range(1, self.most + 1)
        canvases = sorted(
            ((columns, rows) for columns in counts for rows in counts if columns * rows <= self.most),
            key=lambda canvas: canvas[0] * canvas[1],
        )
        nearest = float("inf")
        chosen = (1, 1)
        for columns, rows in canvases:
            off = abs(width / height - columns / rows)
            larger = off == nearest and width * height > side * side * columns * rows / 2
            if off < nearest or larger:
                nearest, chosen = off, (columns, rows)
        tiles = _with_whole(chosen)
        each = whole_dim(dims, "image_seq_length", (side // self.patch // 2) ** 2)
        check_tokens(tokens, tiles * each)
        return Picture(tokens=tiles * each, beside=2, grid=(chosen[1], chosen[0]))

    def inputs(self, dims: Dims, shown: Shown) -> tuple[ImageInput, ...]:
        """See ImageReader."""
        side = whole_dim(dims, "vision_image_size", self.side)
        tiles = _with_whole(shown.picture.grid)
        return (ImageInput(name="pixel_values", shape=(shown.count * tiles, 3, side, side)),)


@record
class CrossReader:
    """Llama 3.2 Vision: one token in the sequence, and up to four tiles that layers of their own attend to.

    Each image is padded to `most` tiles, whatever its size (MllamaImageProcessor, pack_images).
    """

    side: int = 560
    most: int = 4
    marks: str | None = None
    marks_text: bool = False

    def picture(self, dims: Dims, pixels: Pixels | None, tokens: int | None) -> Picture:
        """See ImageReader; the size decides which tiles are masked, and no bytes."""
        check_tokens(tokens, 1)
        return Picture(tokens=1, beside=0, grid=(1, self.most))

    def inputs(self, dims: Dims, shown: Shown) -> tuple[ImageInput, ...]:
        """See ImageReader: every tile is taken as filled."""
        side, most = whole_dim(dims, "vision_image_size", self.side), whole_dim(dims, "vision_max_num_tiles", self.most)
        rows, images = shown.rows, shown.images
        return (
            ImageInput(name="pixel_values", shape=(rows, images, most, 3, side, side)),
            ImageInput(name="aspect_ratio_ids", shape=(rows, images), filled=1),
            ImageInput(name="aspect_ratio_mask", shape=(rows, images, most), filled=1),
            ImageInput(name="cross_attention_mask", shape=(rows, shown.seq_len, images, most), filled=1),
        )
