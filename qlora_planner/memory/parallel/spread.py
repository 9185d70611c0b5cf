"""Which card of a pipeline holds which modules: transformers' `device_map`, written out, since "auto" goes by what is
free and puts the head on the last card."""

from __future__ import annotations

from collections.abc import Mapping

from qlora_planner.memory.weights.placement import PlacedTensor, Placement, module_of

_ANY = ".*."  # where a layer's number stands in a group's name


def spread(placement: Placement, cards: int) -> Mapping[str, int] | None:
    """Module -> card: embedding, norm and head on the first, where the loss meets the labels, and layers in their order
    so that the weights of all cards are as even as whole layers make them. None where layers are in several lists."""
    profile = placement.profile
    weights = [weight for weight in placement.weights if not weight.group.tied_with]
    lists = {weight.group.name.partition(_ANY)[0] for weight in weights if weight.group.layer_kind is not None}
    layers = sum(count for _, count in profile.layer_order)
    if len(lists) != 1 or layers < cards:
        return None
    inside = sum(_bytes(weight) for weight in weights if weight.group.layer_kind is not None)
    outside = sum(_bytes(weight) for weight in weights if weight.group.layer_kind is None)
    first = max(0, int(((inside + outside) / cards - outside) * layers / inside))
    prefix = lists.pop()
    placed = {module_of(weight): 0 for weight in placement.weights if weight.group.layer_kind is None}
    for layer in range(layers):
        behind = (layer - first) * (cards - 1) // (layers - first)
        placed[f"{prefix}.{layer}"] = 0 if layer < first else 1 + behind
    return placed


def _bytes(weight: PlacedTensor) -> int:
    size = weight.weight_bytes if weight.scheme is not None else weight.kept_bytes
    return (size + sum(weight.constant_bytes)) * weight.group.count
