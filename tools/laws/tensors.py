"""The tensors of a structure's toys as a law: what all have alike, and every size in the class's dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qlora_planner.errors import PlannerError
from qlora_planner.sources.laws.sizes import Size
from qlora_planner.spec import codec
from qlora_planner.spec.codec import profile_to_dict
from qlora_planner.spec.model import ModelProfile
from tools.laws.sizes import Sizes

# Of a tensor or an adapter, what its law says by itself.
_SOLVED = ("name", "module", "layer_kind", "count", "shape", "dims")


class NoLawError(PlannerError):
    """A structure of which something is no sum of products of its dimensions."""


def solved_tensors(
    profiles: Sequence[ModelProfile], by_toy: Sequence[Sequence[Any]], sizes: Sizes
) -> list[dict[str, Any]]:
    """Tensors or adapters of the toys as the law writes them: what all have alike, and sizes in the dimensions."""
    counts = {kind.name: (index, kind.count) for index, kind in enumerate(profiles[0].layer_kinds)}
    if len({len(tensors) for tensors in by_toy}) != 1:
        raise NoLawError("toys of one structure hold other tensors")
    items = []
    for same in zip(*by_toy, strict=True):
        first = same[0]
        name = first.name if hasattr(first, "shape") and not callable(first.shape) else first.module
        written = [_constant(tensor) for tensor in same]
        if any(one != written[0] for one in written):
            raise NoLawError(f"{name} differs from toy to toy")
        item = dict(written[0])
        each = 1
        if first.layer_kind is not None:
            item["kind"], each = counts[first.layer_kind]
        if any(tensor.count % each for tensor in same):
            raise NoLawError(f"{name} is not in every layer of its kind")
        count = solved([tensor.count // each for tensor in same], f"the number of {name}", sizes)
        if count != 1:
            item["count"] = count
        if "dims" in first.__struct_fields__:
            item["dims"] = [
                [solved([tensor.dims[at][part] for tensor in same], name, sizes) for part in (0, 1)]
                for at in range(len(first.dims))
            ]
        else:
            item["shape"] = [
                solved([tensor.shape[at] for tensor in same], name, sizes) for at in range(len(first.shape))
            ]
        items.append(item)
    return items


def solved(values: Sequence[int], what: str, sizes: Sizes) -> Size:
    """The size that has these values at the toys. Raises NoLawError naming `what`."""
    size = sizes.fit(values)
    if size is None:
        raise NoLawError(f"{what} is no sum of products of the dimensions: {tuple(values)}")
    return size


def _constant(tensor: Any) -> dict[str, Any]:
    """What every toy's tensor has alike, as profiles are written."""
    kept = {name: value for name, value in codec.written(tensor).items() if name not in _SOLVED}
    named = {name: getattr(tensor, name) for name in ("name", "module") if name in tensor.__struct_fields__}
    return {**named, **kept}


def facts_of(profile: ModelProfile) -> dict[str, Any]:
    """All of a profile that a law has to give: everything but the name, the config's hash and remarks."""
    beside = ("schema", "id", "config_sha256", "versions", "note", "text_part_of", "checkpoint_quantization")
    written = profile_to_dict(profile)
    return {
        **{name: value for name, value in written.items() if name not in beside},
        "refusals": dict(profile.refusals), "dims": dict(sorted(profile.dims.items())),
    }  # fmt: skip
