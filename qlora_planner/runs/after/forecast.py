"""The memory of trying a prompt, before anything is loaded: weights, adapters, cache, one step's tensors, context."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

from qlora_planner.errors import InputError
from qlora_planner.record import fields_of, record
from qlora_planner.runs.after.finished import check_header
from qlora_planner.text import plain

# PEFT loads adapters in float32, whatever they are stored in.
_ADAPTER_WIDTH = 4
_HALF = 2


@record
class Forecast:
    """Bytes on the device. `load_bytes` is the peak while loading, everything included; the others add up to the peak
    while generating: `step_bytes` are the activations of reading the prompt, the logits of one token and the largest
    matrix unpacked to 16 bits."""

    load_bytes: int
    weights_bytes: int
    adapter_bytes: int
    cache_bytes: int
    step_bytes: int
    context_bytes: int

    @property
    def peak_bytes(self) -> int:
        """The most at any time."""
        parts = (self.weights_bytes, self.adapter_bytes, self.cache_bytes, self.step_bytes, self.context_bytes)
        return max(self.load_bytes, sum(parts))

    def to_dict(self) -> dict[str, int]:
        """JSON-ready."""
        return {**fields_of(self), "peak_bytes": self.peak_bytes}


def adapter_bytes(folder: Path) -> int:
    """What the adapters in a folder take once they are loaded.

    Raises InputError where its weights cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / "adapter_model.safetensors"
    if not path.is_file():
        raise InputError(f"{plain(folder)}: holds no adapter_model.safetensors")
    check_header(path)
    try:
        with safe_open(path, framework="numpy") as opened:  # shapes alone: no torch is needed
            shapes: list[tuple[int, ...]] = [tuple(opened.get_slice(key).get_shape()) for key in opened.keys()]  # noqa: SIM118  (no mapping)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{plain(path)}: cannot be read: {plain(error)}") from None
    return sum(prod(shape) for shape in shapes) * _ADAPTER_WIDTH


def cache_bytes(raw: Mapping[str, Any], tokens: int) -> int:
    """The keys and values (or states) of one sequence of `tokens`, as the model's own class keeps them in 16 bits.

    The class runs without storage, so that sliding windows, shared keys and linear attention are counted as they are;
    where it cannot run so, every layer is taken to keep keys and values of every token.
    """
    import torch

    from qlora_planner.train.model import model_class, model_config
    from qlora_planner.train.weights import skeleton

    config = model_config(raw)
    try:
        model = skeleton(model_class(raw, config), config, torch.bfloat16).eval()
        with torch.no_grad():
            ids = torch.zeros((1, tokens), dtype=torch.long, device="meta")
            kept = model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values
        size_bytes = sum(
            {id(tensor): tensor.numel() * tensor.element_size() for tensor in _tensors(kept, set())}.values()
        )
    except (RuntimeError, NotImplementedError, TypeError, AttributeError, ValueError):
        size_bytes = 0  # the class looks at values, or takes no such arguments
    return size_bytes or _plain_cache(config, tokens)


def _tensors(value: Any, seen: set[int]) -> Iterator[Any]:
    """Every tensor of numbers in a cache object, through its attributes, lists and dicts."""
    import torch

    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, torch.Tensor):
        if value.is_floating_point():  # beside counters of some bytes
            yield value
        return
    items: Any = ()
    if isinstance(value, Mapping):
        items = value.values()
    elif isinstance(value, list | tuple):
        items = value
    elif "cache" in type(value).__module__ or type(value).__name__.endswith(("Cache", "Layer")):
        items = vars(value).values()
    for item in items:
        yield from _tensors(item, seen)


def _plain_cache(config: Any, tokens: int) -> int:
    text = config.get_text_config(decoder=True)
    heads = text.num_attention_heads
    groups = getattr(text, "num_key_value_heads", None) or heads
    width = getattr(text, "head_dim", None) or text.hidden_size // heads
    return int(2 * text.num_hidden_layers * groups * width * tokens * _HALF)


def step_bytes(raw: Mapping[str, Any], prompt_tokens: int) -> int:
    """Tensors of one step beside weights and cache: the widest moment of reading the prompt, assumed from sizes.

    A feed-forward block holds its input, two activations of the inner width and the output; the logits of the last
    token are kept in 16 and copied to 32 bits twice, to be searched and to be made probabilities.
    """
    from qlora_planner.train.model import model_config

    text = model_config(raw).get_text_config(decoder=True)
    hidden = int(text.hidden_size)
    inner = int(getattr(text, "intermediate_size", None) or 4 * hidden)
    block = prompt_tokens * (3 * inner + 4 * hidden) * _HALF
    unpacked = inner * hidden * _HALF
    return block + unpacked + int(text.vocab_size) * (_HALF + 4 + 4)
