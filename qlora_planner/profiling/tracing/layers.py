"""Which layers of a model are alike, and the model cut down to a few of each kind."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from qlora_planner.errors import RefusedError
from qlora_planner.spec.layers import MOST_KEPT, bridged, kept_positions

_INDEX_NAMES = re.compile(r"(layer|block)_?(idx|id|index|number|num)$|^(idx|index)$|_layer_index$")
_CHECKPOINTED = "_checkpointed_in_whole_model"
_TOWERS = ("vision", "visual", "audio", "encoder.", "image")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """A model's layers: the kind of each, and the positions that are kept for tracing."""

    list_name: str
    order: tuple[str, ...]
    kept: tuple[int, ...]

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kind of each kept layer."""
        return tuple(self.order[index] for index in self.kept)


def decoder_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The list of decoder layers: the one with most parameters among those of full depth, outside other towers.

    Models that are one encoder, made causal by their mask, have their layers in it.
    """
    config: Any = model.config
    depth = getattr(config.get_text_config(decoder=True), "num_hidden_layers", None)
    best: tuple[tuple[bool, bool, int], str, nn.ModuleList] | None = None
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or not len(module):
            continue
        size = sum(parameter.numel() for parameter in module.parameters())
        rank = (not any(tower in name for tower in _TOWERS), len(module) == depth, size)
        if best is None or rank > best[0]:
            best = (rank, name, module)
    if best is None:
        raise ValueError(f"{type(model).__name__}: no list of layers found")
    return best[1], best[2]


def signature(layer: nn.Module) -> tuple[Any, ...]:
    """Everything that may make one layer run differently from another: classes, shapes and plain settings."""
    parts: list[Any] = []
    for name, module in layer.named_modules():
        settings: list[tuple[str, Any]] = []
        for key, value in sorted(vars(module).items()):
            if key.startswith("_") or _INDEX_NAMES.search(key) or isinstance(value, float):
                continue
            if isinstance(value, (bool, int, str)) or value is None:
                settings.append((key, value))
            elif isinstance(value, (tuple, list)) and all(isinstance(x, (bool, int, str)) for x in value):
                settings.append((key, tuple(value)))
        shapes = tuple((key, tuple(p.shape)) for key, p in module._parameters.items() if p is not None)
        parts.append((name, type(module).__qualname__, tuple(settings), shapes))
    return tuple(parts)


def _kinds(model: nn.Module, layers: nn.ModuleList) -> tuple[str, ...]:
    names: dict[Any, str] = {}
    order = []
    for position, layer in enumerate(layers):
        around = _checkpointed_around(layers, position)
        key = (signature(layer), _settings_at(model, len(layers), position), around, _fed_by_tower(model, position))
        order.append(names.setdefault(key, f"kind{len(names)}"))
    return tuple(order)


def mark_checkpointed(model: nn.Module, every: int) -> None:
    """Note which layers of the whole model are checkpointed where only every `every`-th is.

    The count is that of transformers 5.17's `_set_gradient_checkpointing`: over every layer that checkpoints itself.
    Raises RefusedError where the decoder's layers do not.
    """
    _, layers = decoder_layers(model)
    if not all(any(isinstance(part, GradientCheckpointingLayer) for part in layer.modules()) for layer in layers):
        raise RefusedError(
            f"{type(model).__name__} checkpoints all of its layers or none: leave --checkpoint-every out"
        )
    own = (module for module in model.modules() if isinstance(module, GradientCheckpointingLayer))
    for position, layer in enumerate(own):
        setattr(layer, _CHECKPOINTED, position % every == 0)


def mark_last_kept(model: nn.Module) -> None:
    """Note that the last layer's input stays on the device where those of all others go to the host."""
    _, layers = decoder_layers(model)
    for position, layer in enumerate(layers):
        setattr(layer, _CHECKPOINTED, position + 1 < len(layers))


def restore_checkpointed(model: nn.Module) -> None:
    """Checkpoint the layers of a cut model that `mark_checkpointed` noted, whatever their place in it is now."""
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer) and hasattr(layer, _CHECKPOINTED):
            layer.gradient_checkpointing = bool(getattr(layer, _CHECKPOINTED))


def _checkpointed_around(layers: nn.ModuleList, position: int) -> tuple[bool | None, ...]:
    """Whether a layer and its neighbours are checkpointed: what it leaves lives until the next one's backward."""
    around = [layers[index] if 0 <= index < len(layers) else None for index in range(position - 1, position + 2)]
    return tuple(None if layer is None else getattr(layer, _CHECKPOINTED, None) for layer in around)


def _fed_by_tower(model: nn.Module, position: int) -> int | None:
    """The position of a layer whose output gets features of the image tower added (Qwen3-VL's first ones), and of the
    one that follows them, in which the last such output from before the sum dies."""
    tower = getattr(model.config, "vision_config", None)
    fed = len(getattr(tower, "deepstack_visual_indexes", None) or ())
    return position if fed and position <= fed else None


def _per_layer_lists(model: nn.Module, depth: int) -> Iterator[tuple[Any, str, Sequence[Any]]]:
    config: Any = model.config
    for holder in {id(c): c for c in (config, config.get_text_config(decoder=True))}.values():
        for key, value in vars(holder).items():
            if isinstance(value, (list, tuple)) and len(value) == depth:
                yield holder, key, value


def _settings_at(model: nn.Module, depth: int, position: int) -> tuple[Any, ...]:
    settings = []
    for _, key, values in _per_layer_lists(model, depth):
        value = values[position]
        # A list of numbers that merely counts the layers does not tell them apart.
        if isinstance(value, (bool, str)) or (isinstance(value, int) and value != position):
            settings.append((key, value))
    return tuple(settings)


def _reads_other_keys(layer: nn.Module) -> bool:
    if any("cross_attn" in name for name, _ in layer.named_children()):  # keys made of what the image tower gives
        return True
    settings = (item for module in layer.modules() for item in vars(module).items())
    return any("kv_shared" in key and value is not None and value is not False for key, value in settings)


def choose(model: nn.Module, most: int = MOST_KEPT) -> Cut:
    """First and last layer and one inner layer of each kind, with the layers whose keys and values others reuse."""
    name, layers = decoder_layers(model)
    order = _kinds(model, layers)
    depth = len(order)
    also = set()
    for layer in layers:
        for module in layer.modules():
            for key in ("kv_shared_layer_index", "kv_source_layer_idx"):
                source = getattr(module, key, None)
                if isinstance(source, int) and 0 <= source < depth:
                    also.add(source)
    # Backward meets the last reader of another layer's keys first: it makes their gradient, the others add to it.
    readers = {kind for kind, layer in zip(order, layers, strict=True) if _reads_other_keys(layer)}
    also |= {max(index for index in range(depth) if order[index] == kind) for kind in readers}
    flags = [getattr(layer, _CHECKPOINTED, None) for layer in layers]
    if any(flag is not None for flag in flags):
        kept = bridged(kept_positions(order, sorted(also), depth), flags)
        return Cut(list_name=name, order=order, kept=kept)
    return Cut(list_name=name, order=order, kept=kept_positions(order, sorted(also), most))


def choose_all(model: nn.Module) -> Cut:
    """Every layer, for runs in which what one layer leaves lives on through several others."""
    name, layers = decoder_layers(model)
    return Cut(list_name=name, order=_kinds(model, layers), kept=tuple(range(len(layers))))


def apply(model: nn.Module, cut: Cut) -> None:
    """Drop the layers that are not kept, from the module list and from the config's per-layer lists."""
    depth = len(cut.order)
    if len(cut.kept) == depth:
        return
    parent_name, _, leaf = cut.list_name.rpartition(".")
    parent = model.get_submodule(parent_name)
    layers = getattr(parent, leaf)
    setattr(parent, leaf, nn.ModuleList([layers[index] for index in cut.kept]))
    positions = {index: position for position, index in enumerate(cut.kept)}
    for index in cut.kept:
        for module in layers[index].modules():
            for key, value in list(vars(module).items()):
                if _INDEX_NAMES.search(key) and isinstance(value, int) and not isinstance(value, bool):
                    setattr(module, key, positions.get(value, value))  # caches are indexed by it
    changes = list(_per_layer_lists(model, depth))
    for holder, key, value in changes:
        cut_down = [value[index] for index in cut.kept]
        setattr(holder, key, tuple(cut_down) if isinstance(value, tuple) else cut_down)
    config: Any = model.config
    for holder in {id(c): c for c in (config, config.get_text_config(decoder=True))}.values():
        # Gemma's embeddings per layer are laid out by the number of layers and stay whole.
        per_layer_inputs = getattr(holder, "hidden_size_per_layer_input", None)
        # Some encoder-decoder configs work the number out from other fields and refuse to have it set.
        worked_out = isinstance(getattr(type(holder), "num_hidden_layers", None), property)
        if getattr(holder, "num_hidden_layers", None) == depth and not per_layer_inputs and not worked_out:
            holder.num_hidden_layers = len(cut.kept)
