"""FSDP's settings as accelerate, transformers and axolotl write them, with and without the prefix `fsdp_`.

Sources: accelerate 1.15 (utils/dataclasses.py, FullyShardedDataParallelPlugin), transformers 5.17 (training_args.py,
`_process_fsdp_args`; trainer.py, which refuses two checkpointings), axolotl 0.19 (utils/schemas/fsdp.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from qlora_planner.catalog.parallel import FSDP1, FSDP2
from qlora_planner.exchange.several_cards.sharing import Draft, truth
from qlora_planner.spec.run import RunConfig
from qlora_planner.text import quoted

# What is read below, or decides how files are written and who starts: it takes no memory that is not counted.
# Prefetching is in the interval of FSDP1, which has two layers gathered at once.
_NAMES = """
version fsdp_version auto_wrap_policy transformer_layer_cls_to_wrap transformer_cls_names_to_wrap use_orig_params
sync_module_states state_dict_type final_state_dict_type cpu_offload_pin_memory min_num_params limit_all_gathers
backward_prefetch backward_prefetch_policy forward_prefetch xla xla_fsdp_settings xla_fsdp_grad_ckpt sharding_strategy
reshard_after_forward offload_params cpu_offload activation_checkpointing cpu_ram_efficient_loading
mixed_precision_policy
"""
_KNOWN = frozenset(_NAMES.split())
_STRATEGIES = ("FULL_SHARD", "SHARD_GRAD_OP", "NO_SHARD", "HYBRID_SHARD", "HYBRID_SHARD_ZERO2")
_OTHERWISE = {
    "SHARD_GRAD_OP": "gathered weights are kept from forward to backward",
    "NO_SHARD": "nothing is sharded",
    "HYBRID_SHARD": "weights are shared within a node alone",
    "HYBRID_SHARD_ZERO2": "weights are shared within a node alone, and kept from forward to backward",
}
_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "no": "float32"}
_FULL = "FULL_STATE_DICT"


def strategy_of(version: Any) -> str:
    """The strategy of a version as it is written."""
    return FSDP2 if str(version) == "2" else FSDP1


def named(block: Mapping[str, Any]) -> dict[str, tuple[str, Any]]:
    """Settings without their prefix, each with the name that it stands under and its value."""
    return {_bare(name): (name, value) for name, value in block.items() if isinstance(name, str)}


def read_settings(
    draft: Draft, block: Mapping[str, Any], at: str, *, run: Mapping[str, Any], words: Iterable[str] = ()
) -> None:
    """Take over what `block` says; `at` stands before its names where they are told, `run` are the run's options.

    `words` are those of transformers' old `fsdp: full_shard auto_wrap offload`.
    """
    settings = named(block)
    four_bit = run.get("quant") in ("nf4", "fp4")
    _sharding(draft, settings, at, [word.upper() for word in words])
    if truth(_value(settings, "offload_params")) or truth(_value(settings, "cpu_offload")) or "offload" in words:
        name = next((settings[name][0] for name in ("offload_params", "cpu_offload") if name in settings), "fsdp")
        key = f"{at}{name}: true" if name != "fsdp" else "fsdp: offload"
        draft.leave(key, "shares wait in host memory; loading and wrapping do not", "down", after_loading=True)
    if truth(_value(settings, "activation_checkpointing")):
        _checkpointed_by_plugin(draft, f"{at}{settings['activation_checkpointing'][0]}: true", run)
    if truth(_value(settings, "cpu_ram_efficient_loading")):
        _loaded_by_rank_0(draft, f"{at}{settings['cpu_ram_efficient_loading'][0]}", four_bit)
    saved = _value(settings, "state_dict_type")
    if saved is not None:
        draft.saves_whole = str(saved).upper() == _FULL
    policy = str(_value(settings, "auto_wrap_policy") or "TRANSFORMER_BASED_WRAP").upper()
    if policy != "TRANSFORMER_BASED_WRAP":
        draft.leave(f"{at}{settings['auto_wrap_policy'][0]}: {policy[:40]}", "what is gathered at once is no layer")
    precision = _DTYPES.get(str(_value(settings, "mixed_precision_policy")))
    compute = run.get("compute_dtype") or "bfloat16"
    if four_bit and precision is not None and precision != compute:
        key = f"{at}{settings['mixed_precision_policy'][0]}"
        draft.problem(
            "storage-refused", f"{key} is {precision}, and weights stored as {compute} would be reinterpreted",
            f"{key}: {'bf16' if compute == 'bfloat16' else 'fp16'}", blocking=True,
        )  # fmt: skip
    for name, (written, value) in settings.items():
        if name not in _KNOWN and value not in (None, False, "", "false"):
            draft.leave(f"{at}{written}", "is no setting of FSDP that is known here")


def fsdp_keys(run: RunConfig, version: str) -> dict[str, Any]:
    """A run's strategy in the keys that axolotl and transformers share; nothing where no FSDP shares it.

    `version` is where the tool has the version: a key of its own, or `version` among the settings.
    """
    if run.parallel not in (FSDP1, FSDP2):
        return {}
    number = 2 if run.parallel == FSDP2 else 1
    settings: dict[str, Any] = {"auto_wrap_policy": "TRANSFORMER_BASED_WRAP", "state_dict_type": _FULL}
    if run.parallel == FSDP2:
        settings["reshard_after_forward"] = run.reshard_after_forward is not False
    own = {version: number} if version == "fsdp_version" else {}
    return {**own, "fsdp_config": settings if own else {version: number, **settings}}


def _sharding(draft: Draft, settings: Mapping[str, tuple[str, Any]], at: str, words: list[str]) -> None:
    """Whether gathered weights are given back, and how far weights are shared."""
    name = next((name for name in ("reshard_after_forward", "sharding_strategy") if name in settings), None)
    written, value = settings[name] if name else ("fsdp", next((word for word in words if word in _STRATEGIES), None))
    key = f"{at}{written}" if name else written
    if value is None:
        return
    word = str(value).upper()
    word = _STRATEGIES[int(word) - 1] if word in "12345" and len(word) == 1 else word
    if draft.strategy == FSDP2:
        if word in ("TRUE", "FALSE", "FULL_SHARD", "SHARD_GRAD_OP"):
            draft.decide("reshard_after_forward", word in ("TRUE", "FULL_SHARD"), f"{key}: {str(value)[:40]}")
        else:
            draft.problem(
                "reshard-refused", f"{key} is {quoted(value)}, and FSDP2 takes true or false alone", f"{key}: true",
                blocking=True,
            )  # fmt: skip
    elif word in _OTHERWISE:
        draft.leave(f"{key}: {str(value)[:40]}", _OTHERWISE[word], "up")


def _checkpointed_by_plugin(draft: Draft, key: str, run: Mapping[str, Any]) -> None:
    if run.get("gradient_checkpointing"):
        draft.problem(
            "checkpointed-twice",
            f"{key} beside gradient_checkpointing: transformers' Trainer takes one of the two alone",
            "gradient_checkpointing: false",
            blocking=True,
        )
        return
    draft.decide("gradient_checkpointing", True, key)
    # In backward the plugin's checkpoints let go of a layer's gathered weights before the next are there.
    draft.leave(
        key, "a layer less is gathered in backward than with the trainer's own checkpointing", "down", at_most=0.1
    )


def _loaded_by_rank_0(draft: Draft, key: str, four_bit: bool) -> None:
    if not four_bit:
        draft.decide("load_on", "cpu", f"{key}: true")
        return
    draft.problem(
        "ram-efficient-ignored",
        f"{key} does nothing for 4-bit weights: transformers 5 quantises the whole model on every rank",
        f"{key}: false",
    )


def _value(settings: Mapping[str, tuple[str, Any]], name: str) -> Any:
    return settings[name][1] if name in settings else None


def _bare(name: str) -> str:
    bare = name.removeprefix("fsdp_")
    return "cpu_offload" if bare == "offload" else bare
