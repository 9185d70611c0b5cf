"""Models that read an image as it is, resized to whole patches: more pixels are more tokens."""

from __future__ import annotations

from math import ceil, floor, isqrt, sqrt

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
from qlora_planner.errors import InputError
from qlora_planner.record import record

_LONGEST_ASPECT = 200


@record
class GridReader:
    """Qwen's: sides rounded to whole merged patches, the area kept between bounds (Qwen2VLImageProcessor).

    The bounds, in pixels, are those of the published preprocessor_config.json.
    """

    patch: int
    least_pixels: int
    most_pixels: int
    beside: int = 2  # where vision begins and ends
    marks: str | None = "mm_token_type_ids"
    marks_text: bool = False

    def picture(self, dims: Dims, pixels: Pixels | None, tokens: int | None) -> Picture:
        """See ImageReader; of tokens alone, the squarest image that has so many."""
        merge = whole_dim(dims, "vision_spatial_merge_size", 2)
        if pixels is None and tokens is not None:
            rows = next(side for side in range(isqrt(tokens), 0, -1) if tokens % side == 0)
            grid = rows * merge, tokens // rows * merge
        else:
            grid = self._grid(dims, needs_size(pixels), merge)
        has = grid[0] * grid[1] // merge**2
        check_tokens(tokens, has)
        return Picture(tokens=has, beside=self.beside, grid=grid)

    def _grid(self, dims: Dims, pixels: Pixels, merge: int) -> tuple[int, int]:
        width, height = pixels
        if max(pixels) > _LONGEST_ASPECT * min(pixels):
            raise InputError(f"--image-size {width}x{height}: one side is over {_LONGEST_ASPECT} times the other")
        unit = whole_dim(dims, "vision_patch_size", self.patch) * merge
        rows, columns = round(height / unit), round(width / unit)
        area = rows * columns * unit * unit
        if area > self.most_pixels:
            shrink = sqrt(height * width / self.most_pixels)
            rows, columns = max(1, floor(height / shrink / unit)), max(1, floor(width / shrink / unit))
        elif area < self.least_pixels:
            grow = sqrt(self.least_pixels / (height * width))
            rows, columns = ceil(height * grow / unit), ceil(width * grow / unit)
        return rows * merge, columns * merge

    def inputs(self, dims: Dims, shown: Shown) -> tuple[ImageInput, ...]:
        """See ImageReader: patches of all images end to end, and the grid of each."""
        rows, columns = shown.picture.grid
        side = whole_dim(dims, "vision_patch_size", self.patch)
        depth = whole_dim(dims, "vision_in_channels", 3) * whole_dim(dims, "vision_temporal_patch_size", 2)
        return (
            ImageInput(name="pixel_values", shape=(shown.count * rows * columns, depth * side * side)),
            ImageInput(name="image_grid_thw", shape=(shown.count, 3), values=(1, rows, columns) * shown.count),
        )


@record
class PixtralReader:
    """Pixtral's: shrunk to the longest edge, then up to whole merged patches; a break follows each row."""

    patch: int = 14
    longest: int = 1540
    marks: str | None = None
    marks_text: bool = False

    def picture(self, dims: Dims, pixels: Pixels | None, tokens: int | None) -> Picture:
        """See ImageReader."""
        width, height = needs_size(pixels)
        merge = whole_dim(dims, "spatial_merge_size", 1)
        unit = whole_dim(dims, "vision_patch_size", self.patch) * merge
        shrink = max(max(width, height) / whole_dim(dims, "vision_image_size", self.longest), 1.0)
        if shrink > 1:
            width, height = floor(width / shrink), floor(height / shrink)
        rows, columns = -(-height // unit), -(-width // unit)
        check_tokens(tokens, rows * columns)
        return Picture(tokens=rows * columns, beside=rows, grid=(rows * merge, columns * merge))

    def inputs(self, dims: Dims, shown: Shown) -> tuple[ImageInput, ...]:
        """See ImageReader."""
        side = whole_dim(dims, "vision_patch_size", self.patch)
        height, width = (part * side for part in shown.picture.grid)
        return (
            ImageInput(name="pixel_values", shape=(shown.count, 3, height, width)),
            ImageInput(name="image_sizes", shape=(shown.count, 2), values=(height, width) * shown.count),
        )
