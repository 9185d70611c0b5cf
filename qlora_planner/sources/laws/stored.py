"""What the weights beside a config hold, against the law of its class: where they disagree, the files are right."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from qlora_planner.bounded import MOST_VALUES, Unreadable, check_json, open_regular, small_json
from qlora_planner.sources.configs import RawConfig
from qlora_planner.sources.on_hub.hub_weights import header_folder
from qlora_planner.spec.model import ModelProfile
from qlora_planner.text import quoted

INDEX = "model.safetensors.index.json"
# A header of 26,000 tensors has 3 MB; safetensors itself takes no more than this.
_LARGEST_HEADER = 100_000_000
_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


def disagreement(profile: ModelProfile, *folders: Path) -> str | None:
    """Where the safetensors files or their index in `folders` hold other tensors than `profile`, in words that end a
    sentence; None where they agree, or hold nothing that could be compared.

    Tensors are compared by name. Files name some of them otherwise than the class does (fused experts, a tied head), so
    only those are judged of which both know: their shapes, their number, and biases that the class lacks.
    Weights that are stored quantised are not compared.
    """
    if profile.checkpoint_quantization is not None:
        return None
    try:
        stored = _stored(folders)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"its weights cannot be read ({type(error).__name__})"
    counts: dict[str, int] = {}
    for name in stored:
        pattern = _NUMBER.sub("*", name)
        counts[pattern] = counts.get(pattern, 0) + 1
    shapes = {(tensor.name, tensor.shape) for tensor in profile.tensors}
    totals: dict[str, int] = {}
    for tensor in profile.tensors:
        totals[tensor.name] = totals.get(tensor.name, 0) + tensor.count
    shared = {name: total for name, total in totals.items() if name in counts}
    for name, (shape, dtype) in stored.items():
        pattern = _NUMBER.sub("*", name)
        if pattern in shared and shape is not None and (pattern, shape) not in shapes:
            wanted = next(list(tensor.shape) for tensor in profile.tensors if tensor.name == pattern)
            return f"its weights hold {quoted(name)} of {list(shape)} where the config makes it {wanted}"
        if pattern in shared and dtype is not None and dtype not in _FLOATS:
            return f"its weights hold {quoted(name)} as {quoted(dtype)}, and the config names no quantization"
        module, _, leaf = pattern.rpartition(".")
        if leaf == "bias" and pattern not in totals and f"{module}.weight" in shared:
            return f"its weights hold {quoted(name)}, which the config gives no model"
    for name, total in shared.items():
        if counts[name] != total:
            return f"its weights hold {counts[name]} of {quoted(name)} where the config makes it {total}"
    return None


def weights_folders(raw: RawConfig) -> list[Path]:
    """Where files of the weights, their index or a header of them lie beside a config."""
    if raw.path is None or raw.path.name != "config.json":
        return []
    fetched = header_folder(raw.id, raw.path) if raw.origin in ("hub", "cache") else None
    return [raw.path.parent] + ([] if fetched is None else [fetched])


def as_stored(profile: ModelProfile, raw: RawConfig) -> ModelProfile:
    """The profile with what the files beside its config say of tied tensors; as it is where none can be read."""
    tied = {tensor.name for tensor in profile.tensors if tensor.tied_with}
    try:
        stored = {_NUMBER.sub("*", name) for name in _stored(weights_folders(raw))} if tied else set()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return profile
    return replace(profile, tied_stored=not tied.isdisjoint(stored)) if stored else profile


def _stored(folders: Sequence[Path]) -> dict[str, tuple[tuple[int, ...] | None, str | None]]:
    """Shape and dtype of every tensor by name; without them where only an index is there."""
    stored: dict[str, tuple[tuple[int, ...] | None, str | None]] = {}
    for folder in (folder for folder in folders if (folder / INDEX).is_file()):
        stored |= {str(name): (None, None) for name in small_json(folder / INDEX, 64 << 20)["weight_map"]}
    for path in (path for folder in folders for path in sorted(folder.glob("*.safetensors"))):
        if path.name.startswith("adapter_"):
            continue
        for name, entry in _header(path):
            stored[name] = tuple(int(size) for size in entry["shape"]), str(entry["dtype"])
    return stored


def _header(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    with open_regular(path) as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > _LARGEST_HEADER:
            raise ValueError("its header is too long")
        content = stream.read(length)
    try:
        check_json(content, path, most_values=8 * MOST_VALUES)
    except Unreadable as error:
        raise ValueError(error.reason) from None
    for name, entry in json.loads(content).items():
        if name != "__metadata__":
            yield name, entry
