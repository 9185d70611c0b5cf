"""Families of traces that ship: for each structure of a model class the recipes that people use, with the class's
dimensions as letters. A model of the catalogue, or of the same shapes, is answered from them without any package.

`families/NAME.jsonl.gz` holds a header with the models, the recipes and, for each, the versions of libraries that it
was made with or proved at, then one tape a line; `families/index.json` says which file a config is answered from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from qlora_planner.bounded import read_bytes
from qlora_planner.catalog.stack import same_code
from qlora_planner.catalog.trainers import trainer_named
from qlora_planner.errors import InputError
from qlora_planner.memory.sweep.joined import FLASH_BLOCK
from qlora_planner.memory.sweep.tasks import TaskSizes, task_ranges, task_sizes
from qlora_planner.memory.sweep.validity import (
    HEAD_TILE_TOKENS,
    LEAST_TOKENS,
    TRAINER,
    ValidityRange,
    fuses_loss,
    last_within_window,
    validity_ranges,
)
from qlora_planner.record import record, replaced
from qlora_planner.sources.tapes import StoredTape, lines_of, tape_in
from qlora_planner.sources.traces.joined_rows import joined_tape
from qlora_planner.spec.family import (
    FLASH_ROWS,
    LIGER_ROWS,
    ROW_BLOCKS,
    FamilyTape,
    filled_lengths,
    flash_sizes,
    liger_rows,
)
from qlora_planner.spec.model import ModelProfile
from qlora_planner.spec.tiles import TOKENS, tile_count

FAMILY_SCHEMA = "qlora-plan/family/2"
INDEX = "index.json"
# What ends a region's name whose rows fill a whole number of the blocks that state spaces scan: nothing is cut off.
WHOLE = " whole"
_LARGEST_BYTES = 4 << 20
# Elements that bitsandbytes quantises as one: a last block that is not full is no fraction of a size.
_BLOCK = 64
# Before compute capability 8.0 efficient attention rounds rows and heads up to it (kernel_backward.h, kBlockSizeI).
_ALIGNED = 64
# Weights below so many elements with less than half as many columns as rows are multiplied by bitsandbytes' fused
# kernel at up to LEAST_TOKENS tokens on cards of compute capability 9.0 (backends/cuda/ops.py): no copy is made then.
_SMALL_ELEMENTS = 4 << 20


def region_name(profile: ModelProfile, region: ValidityRange) -> str:
    """How the families name a region: `single` or `batched`, its length, and on which side of a window it lies."""
    last = last_within_window(profile)
    if region.batched:
        length = "middle" if region.most_tokens <= HEAD_TILE_TOKENS else "long"
    else:
        length = "short" if region.high <= LEAST_TOKENS else "middle" if region.high <= HEAD_TILE_TOKENS else "long"
    side = "" if last is None else " beyond" if region.low >= last else " within"
    return f"{'batched' if region.batched else 'single'} {length}{side}"


def family_tape(
    profile: ModelProfile,
    variant: str,
    dirs: Sequence[Path],
    batch_size: int = 1,
    seq_len: int = 2048,
    stack: Mapping[str, str] | None = None,
) -> StoredTape | None:
    """The tape of this model, recipe and sizes out of its family; None where no family ships it.

    `variant` is what `trace_key` says of the run, `stack` the versions that it must hold for, by default the profile's.
    Raises InputError naming a file that cannot be read.
    """
    task = task_sizes(variant)
    if task is not None:
        return _of_task(profile, task, dirs, batch_size, seq_len, profile.versions if stack is None else stack)
    if trainer_named(variant.split()[TRAINER]).joins_rows:
        if _has_part_blocks(profile):
            return None
        counted = profile.versions if stack is None else stack
        return joined_tape(
            profile, variant, batch_size, seq_len, lambda name, part: _held(profile, name, [part], dirs, counted)
        )
    region = next((part for part in validity_ranges(profile, batch_size > 1) if part.holds(batch_size, seq_len)), None)
    if region is None or (region.high <= LEAST_TOKENS and not region.batched and fuses_short_rows(profile)):
        return None
    if _has_part_blocks(profile):
        return None
    if not lengths_alike(variant, seq_len) or (
        variant.startswith("sm70") and int(profile.dims.get("head_dim") or 1) % _ALIGNED
    ):
        return None
    name = region_name(profile, region)
    names = [name]
    if not profile.dims.get("sliding_window") and _masks_nothing(variant):  # every row lies within no window
        names.append(f"{name} within")
    wanted = profile.versions if stack is None else stack
    for regions in ([f"{name}{WHOLE}" for name in names], names):
        held = _held(profile, variant, regions, dirs, wanted)
        alike = None if held is None else held[0].lengths_alike(seq_len)
        if alike is not None:
            break
    if held is None or alike is None:
        return None
    family, versions = held
    sizes = kernel_letters(variant, profile.dims, batch_size, seq_len)
    letters = {name: ((size, 1, (0, 0, 0)),) for name, size in sizes.items()}
    tape = family.of_model(profile, batch_size, seq_len, letters)
    if tape is None:
        return None
    region = _of_as_many_tiles(family, region, batch_size, seq_len)
    if LIGER_ROWS in sizes:
        region = _of_one_size(region, batch_size, seq_len)
    for low, high in (alike, filled_lengths(seq_len, FLASH_ROWS)) if ROW_BLOCKS in sizes else (alike,):
        region = replaced(region, low=max(region.low, low), high=min(region.high, high))
    return StoredTape(tape=tape, region=region, versions=versions)


def kernel_letters(
    variant: str, dims: Mapping[str, int | float | None], batch_size: int, seq_len: int
) -> dict[str, int]:
    """The letters of the kernels that a variant names, for rows of these sizes."""
    letters = flash_sizes(dims, seq_len) if "flash_attention_2" in variant.split() else {}
    if fuses_loss(variant):
        rows = liger_rows(int(dims.get("hidden_size") or 1), int(dims.get("vocab_size") or 1), batch_size * seq_len)
        letters |= {LIGER_ROWS: rows}
    return letters


def lengths_alike(variant: str, seq_len: int) -> bool:
    """Whether rows of this length take what others of their region do: before compute capability 8.0 they are rounded
    up, so that only those that are not stand for each other; packed ones are traced as two halves. Rows that are joined
    are rounded up on every card."""
    if trainer_named(variant.split()[TRAINER]).joins_rows:
        return not seq_len % FLASH_BLOCK
    if "packing" in variant.split() and seq_len % 2:
        return False
    return not (variant.startswith("sm70") and seq_len % _ALIGNED)


def _of_task(
    profile: ModelProfile,
    task: TaskSizes,
    dirs: Sequence[Path],
    batch_size: int,
    seq_len: int,
    stack: Mapping[str, str],
) -> StoredTape | None:
    """The same for a task: for sequences that are as even or odd as this one, with as many tokens after a prompt."""
    rows = batch_size * task.trainer.sequences_per_row
    if _has_part_blocks(profile):
        return None
    if rows * seq_len <= LEAST_TOKENS and fuses_short_rows(profile):
        return None
    ranges = task_ranges(task, last_within_window(profile))
    part = next((part for part in ranges if part.holds(batch_size, seq_len)), None)
    held = None if part is None else _held(profile, task.key, [part.name], dirs, stack)
    if held is None:
        return None
    family, versions = held
    if task.trainer.generation is None and "padding" in task.key.split():
        family = family.with_left_out()
    letters = dict(task.letters(seq_len))
    if "flash_attention_2" in task.key.split():
        letters |= {name: ((size, 1, (0, 0, 0)),) for name, size in flash_sizes(profile.dims, seq_len).items()}
    tape = family.of_model(profile, batch_size, seq_len, letters)
    if tape is None:
        return None
    tokens = batch_size * seq_len
    here = ValidityRange(batched=batch_size > 1, low=seq_len - 1, high=seq_len, tokens=tokens - 1, most_tokens=tokens)
    return StoredTape(tape=tape, region=here, versions=versions)


def _held(
    profile: ModelProfile, variant: str, regions: Sequence[str], dirs: Sequence[Path], stack: Mapping[str, str]
) -> tuple[FamilyTape, Mapping[str, str]] | None:
    """The tape of a model's family for a variant, and the versions it was made with; None where none ships."""
    made_from = profile.family_sha256 or profile.same_shape_sha256 or profile.config_sha256
    path = next((path for folder in dirs if (path := _path_of(folder, made_from)) is not None), None)
    return None if path is None else _family(path, variant, regions, profile.drawn_dims, stack)


def _has_part_blocks(profile: ModelProfile) -> bool:
    """Whether a last block of some weight is not full: then what it takes is no fraction of its size."""
    return any(tensor.quantized and tensor.numel % _BLOCK for tensor in profile.tensors)


def _masks_nothing(variant: str) -> bool:
    """Whether no mask is made for rows within a window, as for rows without one."""
    words = variant.split()
    return "sdpa" in words and not {"padding", "packing"} & set(words)


def _of_as_many_tiles(family: FamilyTape, region: ValidityRange, batch_size: int, seq_len: int) -> ValidityRange:
    """The part of a region in which the head takes as many tiles of tokens as for these sizes."""
    scored = family.scored_tokens(batch_size, seq_len)
    if scored is None:
        return region
    tiles = tile_count(scored, TOKENS)
    if region.batched:  # how many tokens are scored is no function of the tokens alone
        return _of_one_size(region, batch_size, seq_len)
    first, last = ((tiles + step) * HEAD_TILE_TOKENS + 1 for step in (-1, 0))  # the last token of a row is not scored
    return replaced(region, low=max(region.low, first), high=min(region.high, last))


def _of_one_size(region: ValidityRange, batch_size: int, seq_len: int) -> ValidityRange:
    tokens = batch_size * seq_len
    return replaced(region, low=seq_len - 1, high=seq_len, tokens=tokens - 1, most_tokens=tokens)


def known_configs(dirs: Sequence[Path]) -> frozenset[str]:
    """The hashes of the configs that some family answers. Raises InputError naming an index that cannot be read."""
    return frozenset(name for folder in dirs if (folder / INDEX).is_file() for name in _index(folder / INDEX))


def fuses_short_rows(profile: ModelProfile) -> bool:
    """Whether some of a model's weights are so small that a fused kernel multiplies rows of a few hundred tokens."""
    weights = (tensor for tensor in profile.tensors if tensor.quantized and len(tensor.shape) == 2)
    return any(tensor.numel < _SMALL_ELEMENTS and 2 * tensor.shape[1] < tensor.shape[0] for tensor in weights)


def _path_of(folder: Path, config_sha256: str) -> Path | None:
    index = folder / INDEX
    if not index.is_file():
        return None
    name = _index(index).get(config_sha256)
    return None if name is None else folder / f"{name}.jsonl.gz"


@lru_cache(maxsize=4)
def _index(path: Path) -> dict[str, str]:
    try:
        document = json.loads(read_bytes(path, _LARGEST_BYTES, "index of families"))
        names = dict(document["configs"])
        if not all(isinstance(name, str) and name.replace("-", "_").isidentifier() for name in names.values()):
            raise TypeError("a family is named by a word")
        return names
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise unreadable(path, error) from error


@record
class FamilyFile:
    """A file of families as it was read, with the numbers of its tapes by variant and region."""

    header: dict[str, Any]
    lines: tuple[bytes, ...]
    numbers: Mapping[tuple[str, str], list[int]]


@lru_cache(maxsize=64)
def decoded(path: Path, number: int) -> FamilyTape:
    """Tape `number` of a file."""
    file = family_file(path)
    return FamilyTape.from_dict(tape_in(file.lines[number]), file.header)


@lru_cache(maxsize=4)
def family_file(path: Path) -> FamilyFile:
    """The file as it was read. Raises what a file that is no family's raises."""
    first, *lines = lines_of(path, "family")
    header = json.loads(first)
    numbers: dict[tuple[str, str], list[int]] = {}
    for number, (made, _) in enumerate(zip(header["tapes"], lines, strict=False)):
        numbers.setdefault((made["variant"], made["region"]), []).append(number)
    return FamilyFile(header=header, lines=tuple(lines), numbers=numbers)


def _family(
    path: Path, variant: str, regions: Sequence[str], letters: Sequence[str], stack: Mapping[str, str]
) -> tuple[FamilyTape, Mapping[str, str]] | None:
    """The tape in a file that holds for a stack, and the versions it was made with; None where it has none for this, or
    holds one of the dimensions `letters` as a number."""
    try:
        file = family_file(path)
        header = file.header
        if header["schema"] != FAMILY_SCHEMA or not set(letters) <= set(header["symbols"]):
            return None
        for number in sorted(number for region in regions for number in file.numbers.get((variant, region), ())):
            stacks = stacks_of(header, header["tapes"][number])
            held = next((versions for versions in stacks if same_code(versions, stack)), None)
            if held is not None:
                return decoded(path, number), held
        return None
    except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise unreadable(path, error) from error


def stacks_of(header: Mapping[str, Any], made: Mapping[str, Any]) -> list[dict[str, str]]:
    """The stacks that a tape of a file holds for: `made` numbers them among the header's, without a word the first."""
    known = header["versions"]
    stacks = [known] if isinstance(known, dict) else list(known)
    return [stacks[number] for number in made.get("stacks", (0,))]


def unreadable(path: Path, error: Exception) -> InputError:
    """What is said of a file that cannot be read."""
    return InputError(f"{path}: not readable families ({type(error).__name__}); `make families` makes them anew")
