"""accelerate's own config, which says how a run is launched: named by `--accelerate-config`, or by a TRL config.

Sources: accelerate 1.15 (commands/config/config_args.py, commands/launch.py), trl 1.16 (accelerate_configs/*.yaml,
cli/accelerate_config.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qlora_planner.catalog.parallel import DDP, FSDP2
from qlora_planner.exchange.files import read_yaml
from qlora_planner.exchange.several_cards import deepspeed, fsdp
from qlora_planner.exchange.several_cards.sharing import Draft, beside, mapping
from qlora_planner.spec.faults import refuse
from qlora_planner.text import plain, quoted

_SHARED: dict[str, Any] = {"cpu_ram_efficient_loading": True, "state_dict_type": "FULL_STATE_DICT"}
# What trl knows by a word, as far as it takes memory.
NAMED: Mapping[str, Mapping[str, Any]] = {
    "single_gpu": {"distributed_type": "NO"},
    "multi_gpu": {"distributed_type": "MULTI_GPU"},
    "fsdp1": {
        "distributed_type": "FSDP", "fsdp_config": {**_SHARED, "version": 1, "reshard_after_forward": "FULL_SHARD"},
    },
    "fsdp2": {"distributed_type": "FSDP", "fsdp_config": {**_SHARED, "version": 2, "reshard_after_forward": True}},
    "zero1": {"distributed_type": "DEEPSPEED", "deepspeed_config": {"zero_stage": 1}},
    "zero2": {"distributed_type": "DEEPSPEED", "deepspeed_config": {"zero_stage": 2}},
    "zero3": {"distributed_type": "DEEPSPEED", "deepspeed_config": {"zero_stage": 3}},
}  # fmt: skip
_PARALLEL = ("tp_size", "cp_size", "sp_size", "ep_size", "dp_replicate_size")
# Two H200s that shared sequences of 8,192, 32,768 and 65,536 tokens held the tensors of FSDP2 at half of them to 3 MiB,
# 446 MiB for a second communicator, and 0, 194 and 124 more in torch's pool. What the pool keeps is no figure of the
# run: the two ranks of one kept 17,042 and 16,420, as each was or was not done with the other's part in time.
_CONTEXT_PARALLEL = (
    "what the ring that passes keys and values round allocates in a layer, and how much of it torch keeps: two ranks of"
    " one run on H200s kept 17,042 and 16,420 MiB, by how soon each was done with the other's part"
)


def read_file(path: str, run: Mapping[str, Any]) -> Draft | None:
    """What a file of accelerate's asks for; None where it starts one process.

    Raises InputError naming the file where it is no such config.
    """
    raw = read_yaml(path)
    if "distributed_type" not in raw:
        refuse(["is no config of accelerate: it has no distributed_type"], path)
    return read(raw, path, run, Path(path).name)


def read_word(word: str, location: str, run: Mapping[str, Any], key: str) -> Draft | None:
    """What `accelerate_config: word` asks for: one of trl's own names, or a file.

    Raises InputError where it is neither.
    """
    if word in NAMED:
        return read(NAMED[word], location, run, f"{key}: {word}")
    path = beside(word, location)
    if path is None:
        refuse([f"{key}: {quoted(word[:80])} is neither a file nor one of {', '.join(NAMED)}"], location)
    return read_file(str(path), run)


def read(raw: Mapping[str, Any], location: str, run: Mapping[str, Any], said: str) -> Draft | None:
    """What a parsed config asks for; `said` names it."""
    kind = str(raw.get("distributed_type")).upper()
    if kind in ("NO", "NONE"):
        return None
    key = f"{said}, distributed_type: {kind[:20]}"
    draft = Draft(strategy=DDP, keys=(), why=key)
    if kind == "FSDP":
        block = mapping(raw.get("fsdp_config"))
        version = next((block[name] for name in ("fsdp_version", "version") if name in block), 1)
        draft.strategy = fsdp.strategy_of(version)
        draft.decide("parallel", draft.strategy, f"{key}, fsdp_version: {plain(version)[:10]}")
        fsdp.read_settings(draft, block, "", run=run)
    elif kind == "DEEPSPEED":
        deepspeed.read_accelerate(draft, mapping(raw.get("deepspeed_config")), location, f"{key}, ")
    elif kind == "MULTI_GPU":
        draft.decide("parallel", DDP, key)
    else:
        draft.unplanned(f"{key} is not planned here")
    split = mapping(raw.get("parallelism_config"))
    for name, value in split.items():
        size = str(name).removeprefix("parallelism_config_")
        if size in _PARALLEL and value not in (None, 1):
            left = f"parallelism_config.{plain(name)}"
            if size == "cp_size" and isinstance(value, int) and value > 1 and draft.strategy == FSDP2:
                # Each card holds its part of every sequence, as FSDP2 of that many tokens.
                draft.decide("seq_len", -(-int(run["seq_len"]) // value), f"{left}: {value}, of each card")
                draft.communicators = 2
                draft.leave(left, _CONTEXT_PARALLEL, "up", ring_of=value)
            else:
                draft.leave(left, "cards share more than weights")
    processes = raw.get("num_processes")
    draft.processes = processes if isinstance(processes, int) else None
    return draft
