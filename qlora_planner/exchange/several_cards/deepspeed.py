"""DeepSpeed's settings: a JSON file that a config names, a mapping in its place, or the few that accelerate writes.

Sources: DeepSpeed 0.19 runtime/zero/config.py (defaults) and stage_1_and_2.py (`overlap_comm` makes a second bucket),
accelerate 1.15 utils/dataclasses.py (DeepSpeedPlugin), the names of the files that axolotl and LLaMA-Factory ship.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qlora_planner.catalog.parallel import ZERO2, ZERO3
from qlora_planner.exchange.files import read_yaml
from qlora_planner.exchange.several_cards.sharing import Draft, beside, mapping, truth
from qlora_planner.text import quoted

# What the interval of ZeRO reckons with: DeepSpeed's own default, in elements of two bytes.
BUCKET_ELEMENTS = 500_000_000
_BUCKETS = ("reduce_bucket_size", "allgather_bucket_size", "stage3_prefetch_bucket_size")
_OTHERS = ("mics_shard_size", "zero_hpz_partition_size", "zero_quantized_weights", "zero_quantized_gradients")
# axolotl's deepspeed_configs/zero3_bf16.json and LLaMA-Factory's examples/deepspeed/ds_z3_offload_config.json.
_OWN_FILE = re.compile(r"(?:ds_z|zero)([0-3])(?:_[a-z0-9_]*)?\.json")


def read_named(draft: Draft, value: Any, location: str, key: str) -> None:
    """What `deepspeed: value` asks for: a file beside the config, one of the tools' own by its name, or a mapping.

    Raises InputError for a file that is there and cannot be read.
    """
    if isinstance(value, Mapping):
        read_settings(draft, value, f"{key}.")
        return
    path = beside(str(value), location)
    if path is not None:
        read_settings(draft, read_yaml(path), f"{path.name}: ")
        return
    own = _OWN_FILE.fullmatch(Path(str(value)).name)
    if own is None:
        draft.unplanned(f"{key}: {quoted(str(value)[:80])} is not here, so nobody can say what DeepSpeed shards")
        return
    offloaded = {"offload_optimizer": {"device": "cpu"}} if "offload" in own[0] else {}
    draft.notes.append(f"{key}: {own[0]} is not here; taken by its name, with DeepSpeed's defaults")
    _staged(draft, int(own[1]), f"{key}: {own[0]}")
    _offloads(draft, offloaded, f"{key}: {own[0]} ")


def read_settings(draft: Draft, settings: Mapping[str, Any], at: str) -> None:
    """What DeepSpeed's own JSON asks for; `at` stands before its names where they are told."""
    zero = mapping(settings.get("zero_optimization"))
    _staged(draft, zero.get("stage", 0), f"{at}zero_optimization.stage")
    _offloads(draft, zero, f"{at}zero_optimization.")
    _buffers(draft, zero, f"{at}zero_optimization.")
    for name in _OTHERS:
        if zero.get(name) not in (None, False, -1, 1):
            draft.leave(f"{at}zero_optimization.{name}", "shares weights in another way than ZeRO's stages")
    for name in ("tensor_parallel", "pipeline", "compile", "sparse_attention", "compression_training"):
        if settings.get(name) not in (None, False, {}):
            draft.leave(f"{at}{name}", "changes what is stored or computed on a card")


def read_accelerate(draft: Draft, settings: Mapping[str, Any], location: str, at: str) -> None:
    """What accelerate's `deepspeed_config` asks for."""
    if settings.get("deepspeed_config_file"):
        read_named(draft, settings["deepspeed_config_file"], location, f"{at}deepspeed_config_file")
        return
    _staged(draft, settings.get("zero_stage", 2), f"{at}zero_stage")
    for what in ("optimizer", "param"):
        device = settings.get(f"offload_{what}_device")
        _offloads(draft, {f"offload_{what}": {"device": device}}, at)


def _staged(draft: Draft, stage: Any, key: str) -> None:
    """The strategy of a stage. ZeRO-1 keeps gradients whole, which the interval of ZeRO-2 has in it."""
    number = int(stage) if isinstance(stage, int | str) and str(stage).isdigit() else None
    draft.strategy = {1: ZERO2, 2: ZERO2, 3: ZERO3}.get(-1 if number is None else number)
    if draft.strategy is None:
        draft.unplanned(f"{key} is {quoted(stage)}, of which nothing is known here")
        return
    draft.decide("parallel", draft.strategy, f"{key}: {number}")
    if number == 1:
        draft.notes.append(f"{key}: 1 lies in the interval of ZeRO-2, which shards gradients too")


def _offloads(draft: Draft, zero: Mapping[str, Any], at: str) -> None:
    for name, what in (("offload_optimizer", "optimizer states"), ("offload_param", "shares of the weights")):
        device = mapping(zero.get(name)).get("device")
        if device not in (None, "none"):
            says = f"{what} wait outside the card between steps; loading does not"
            draft.leave(f"{at}{name}: {str(device)[:20]}", says, "down", after_loading=True)


def _buffers(draft: Draft, zero: Mapping[str, Any], at: str) -> None:
    """Buffers that are larger than those of the interval, or are two."""
    sizes = {name: int(zero[name]) for name in _BUCKETS if isinstance(zero.get(name), int | float)}
    for name, elements in sizes.items():
        if elements > BUCKET_ELEMENTS:
            more_bytes = 2 * (elements - BUCKET_ELEMENTS)
            draft.leave(f"{at}{name}: {elements}", "buckets above DeepSpeed's default", "up", at_most_bytes=more_bytes)
    if truth(zero.get("overlap_comm")) and draft.strategy == ZERO2:
        second_bytes = 2 * sizes.get("reduce_bucket_size", BUCKET_ELEMENTS)
        draft.leave(f"{at}overlap_comm: true", "a second bucket to reduce in", "up", at_most_bytes=second_bytes)
