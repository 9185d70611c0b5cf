"""Traces of runs with images that ship: of a model with its tower, one stands for images of many sizes.

`tapes/images/MODEL.jsonl.gz` is packed as a family's file is. Letters of its sizes are those of `image_letters`; the
header says of each tape of how many tokens an image has to be, and where the tower goes over windows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from qlora_planner.catalog.images import image_letters, picture_of
from qlora_planner.catalog.stack import same_code
from qlora_planner.errors import InputError
from qlora_planner.memory.sweep.validity import validity_ranges
from qlora_planner.sources.families import FamilyFile, decoded, family_file, region_name, stacks_of, unreadable
from qlora_planner.sources.tapes import StoredTape
from qlora_planner.spec.family import FamilyTape
from qlora_planner.spec.model import ModelProfile
from qlora_planner.spec.run import RunConfig
from qlora_planner.spec.trace import CompiledTape
from qlora_planner.spec.weaving.windows import WINDOW, WindowLoop, window_lengths, window_letters, windowed

OF_IMAGES = "images"
_WORD = "images:"


def shown_in(variant: str) -> tuple[str, RunConfig] | None:
    """What the word of a variant (see `trace_key`) says of images: the variant with their number alone, and a run with
    their number and size. None of a run that shows none."""
    words = variant.split()
    word = next((word for word in words if word.startswith(_WORD)), None)
    if word is None:
        return None
    count, _, size = word.removeprefix(_WORD).partition("x")
    if not count.isdecimal():
        return None
    key = " ".join(f"{_WORD}{count}" if each == word else each for each in words)
    if size.isdecimal():
        return key, RunConfig(images=int(count), image_tokens=int(size))
    return key, RunConfig(images=int(count), image_size=None if size == "None" else size)


def image_tape(
    profile: ModelProfile,
    variant: str,
    folders: Sequence[Path],
    batch_size: int,
    seq_len: int,
    stack: Mapping[str, str],
) -> StoredTape | None:
    """The tape of a run with images of this size; None where none ships. Raises InputError naming a file that cannot be
    read."""
    shown = shown_in(variant)
    region = next((part for part in validity_ranges(profile, batch_size > 1) if part.holds(batch_size, seq_len)), None)
    name = f"{(profile.same_shape_as or profile.id).replace('/', '__')}.jsonl.gz"
    path = next((path for folder in folders if (path := folder / OF_IMAGES / name).is_file()), None)
    if shown is None or region is None or path is None:
        return None
    key, run = shown
    letters: dict[str, int] = {}
    if run.images:
        try:
            letters = image_letters(picture_of(profile.model_type, profile.dims, run))
        except InputError:  # no such image can be, which the run's own refusal says
            return None
    try:
        file = family_file(path)
        for number in file.numbers.get((key, region_name(profile, region)), ()):
            tape = _of_size(file, path, number, profile, (batch_size, seq_len), letters)
            versions = next((each for each in stacks_of(file.header, {}) if same_code(each, stack)), None)
            if tape is not None and versions is not None:
                return StoredTape(tape=tape, region=region, versions=versions)
    except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise unreadable(path, error) from error
    return None


def _of_size(
    file: FamilyFile, path: Path, number: int, profile: ModelProfile, sizes: tuple[int, int], letters: Mapping[str, int]
) -> CompiledTape | None:
    words = file.header["tapes"][number]
    least, most = words["image_tokens"]
    if not least <= letters.get("image_tokens", 0) <= most:
        return None
    family = decoded(path, number)
    if "windows" not in words:
        return _filled(family, profile, sizes, letters)
    loops = [WindowLoop.of(*loop) for loop in words["windows"]]
    grid = letters["image_rows"], letters["image_columns"], words["window_side"]
    lengths, own = window_lengths(*grid), {**letters, **window_letters(*grid)}
    if len(lengths) < 2:  # the first and the last are told apart
        return None
    by_length = {
        length: _filled(family, profile, sizes, {**own, WINDOW: length})
        for length in sorted(set(lengths), reverse=True)
    }
    tapes = {length: tape for length, tape in by_length.items() if tape is not None}
    return windowed(tapes, loops, lengths) if len(tapes) == len(by_length) else None


def _filled(
    family: FamilyTape, profile: ModelProfile, sizes: tuple[int, int], letters: Mapping[str, int]
) -> CompiledTape | None:
    return family.of_model(profile, *sizes, {name: ((size, 1, (0, 0, 0)),) for name, size in letters.items()})
