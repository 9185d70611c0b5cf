"""Models that make every image the same number of tokens, whatever its size."""

from __future__ import annotations

from qlora_planner.catalog.images.picture import Dims, ImageInput, Picture, Pixels, Shown, check_tokens, whole_dim
from qlora_planner.record import record


@record
class FixedReader:
    """One square of `vision_image_size` pixels an image: LLaVA 1.5, PaliGemma, Gemma 3 without pan and scan.

    Its tokens are those that config.json names (`mm_tokens_per_image`), else one a patch.
    """

    side: int
    patch: int
    beside: int = 0
    marks: str | None = None
    marks_text: bool = False

    def picture(self, dims: Dims, pixels: Pixels | None, tokens: int | None) -> Picture:
        """See ImageReader; the size is not looked at, because it is resized away."""
        patches = whole_dim(dims, "vision_image_size", self.side) // whole_dim(dims, "vision_patch_size", self.patch)
        has = whole_dim(dims, "mm_tokens_per_image", patches * patches)
        check_tokens(tokens, has)
        return Picture(tokens=has, beside=self.beside, grid=(patches, patches))

    def inputs(self, dims: Dims, shown: Shown) -> tuple[ImageInput, ...]:
        """See ImageReader."""
        side = whole_dim(dims, "vision_image_size", self.side)
        return (ImageInput(name="pixel_values", shape=(shown.count, 3, side, side)),)
