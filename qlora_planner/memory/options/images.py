"""The images of a run: how many, of how many tokens, and whether they fit into a sequence."""

from __future__ import annotations

from typing import Protocol

from qlora_planner.catalog import TrainerRow
from qlora_planner.catalog.images import picture_of
from qlora_planner.errors import InputError
from qlora_planner.spec.model import ModelProfile
from qlora_planner.spec.run import RunConfig


class Draft(Protocol):
    """What is settled of a run."""

    profile: ModelProfile
    asked: RunConfig

    def settle(self, option: str, value: object, why: str) -> None: ...
    def refuse(self, code: str, message: str, fix: str) -> None: ...


def settle_images(draft: Draft, trainer: TrainerRow) -> None:
    """Number and tokens of the images of a run that has some.

    Raises InputError for a model that takes none, and for a size that cannot be.
    """
    run, profile = draft.asked, draft.profile
    if not run.shows_images:
        return
    if profile.tower is None:
        kind = "is planned by its text part" if profile.text_part_of else "takes no images"
        raise InputError(f"{profile.id} {kind}: leave out --image-size, --images and --image-tokens")
    texts_alone = not trainer.one_pass
    for option, of_text in ((f"--task {run.task}", run.task), (f"--trainer {trainer.name}", texts_alone)):
        if of_text:
            raise InputError(f"{option}: planned for text alone; leave out --image-size, --images and --image-tokens")
    count = 1 if run.images is None else run.images
    if run.images is None:
        draft.settle("images", count, "one a sequence")
    if not count:
        return
    picture = picture_of(profile.model_type, profile.dims, run)
    if run.image_tokens is None:
        draft.settle("image_tokens", picture.tokens, f"as {profile.model_type}'s processor counts them")
    taken = count * picture.all_tokens
    if taken > run.seq_len:
        each = f"{count:,} images of {picture.all_tokens:,} tokens are" if count > 1 else "the image is"
        draft.refuse(
            "images-too-long",
            f"{each} {taken:,} tokens, with what marks them, and the sequence has {run.seq_len:,}: cutting an image off"
            " breaks the model",
            f"--seq-len {taken} or more",
        )
    if run.packing:
        draft.refuse("packing-refused", "trl does not pack rows with images (sft_trainer.py)", "--no-packing")
