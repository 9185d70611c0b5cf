"""What axolotl, LLaMA-Factory and TRL make of their keys for several cards, with their own defaults.

Sources: axolotl 0.19 (loaders/model.py `_set_device_map_config`, `_set_quantization_config`;
utils/schemas/validation.py; monkeypatch/accelerate/fsdp2.py), LLaMA-Factory 0.9.5 (model/model_utils/quantization.py,
checkpointing.py; launcher.py), trl 1.16 (trainer/sft_trainer.py, trainer/utils.py), transformers 5.17
(training_args.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qlora_planner.catalog.parallel import DDP, FSDP2, ZERO3, strategy_row
from qlora_planner.exchange.parsed_config import Config
from qlora_planner.exchange.several_cards import accelerate, deepspeed, fsdp
from qlora_planner.exchange.several_cards.sharing import Decision, Draft, Sharing, mapping
from qlora_planner.text import quoted

AXOLOTL_KEYS = ("fsdp", "fsdp_config", "fsdp_version", "deepspeed", "ddp")
TRANSFORMERS_KEYS = ("fsdp", "fsdp_config", "deepspeed")
TRL_KEYS = (*TRANSFORMERS_KEYS, "accelerate_config", "num_processes")
_STORED = "bnb_4bit_quant_storage"
_BOTH = "deepspeed and fsdp cannot be used together"


def of_axolotl(config: Config, run: Mapping[str, Any]) -> None:
    """Read axolotl's keys for several cards into `config`, and what it does by itself under them."""
    raw = {name: config.asked(name) for name in AXOLOTL_KEYS} | {"bnb_config_kwargs": config.get("bnb_config_kwargs")}
    if run.get("quant") in ("nf4", "fp4"):
        kwargs = mapping(raw.get("bnb_config_kwargs"))
        by = f"bnb_config_kwargs.{_STORED}" if _STORED in kwargs else "axolotl's default"
        config.stored = _storage(kwargs.get(_STORED, "bfloat16"), by)
    block, words = mapping(raw.get("fsdp_config")), _words(config, "fsdp")
    shards, engine = bool(block or words), raw.get("deepspeed")
    if shards and engine:
        config.faults.append(_BOTH)
        return
    keys = tuple(name for name in AXOLOTL_KEYS if raw.get(name))
    if engine:
        draft = Draft(strategy=None, keys=keys, why="")
        deepspeed.read_named(draft, engine, config.where, "deepspeed")
    elif shards:
        draft = _axolotl_fsdp(config, keys, block, words, run)
    elif raw.get("ddp"):
        draft = Draft(strategy=DDP, keys=("ddp",), why="ddp: true")
        draft.decide("parallel", DDP, "ddp: true")
    else:
        return
    if config.stored is not None:
        draft.decided["quant_storage"] = config.stored
    if (shards or draft.strategy == ZERO3) and config.casts_while_preparing:
        config.casts_while_preparing = None  # it then leaves prepare_model_for_kbit_training out
    config.sharing = draft.done()


def _axolotl_fsdp(
    config: Config, keys: tuple[str, ...], block: Mapping[str, Any], words: list[str], run: Mapping[str, Any]
) -> Draft:
    settings = fsdp.named(block)
    version, key = config.raw.get("fsdp_version"), "fsdp_version"
    if version is None:
        version, key = settings["version"][1] if "version" in settings else None, "fsdp_config.fsdp_version"
    draft = Draft(strategy=fsdp.strategy_of(version), keys=keys, why=keys[0])
    said = "no fsdp_version, which axolotl takes for 1" if version is None else f"{key}: {str(version)[:10]}"
    draft.decide("parallel", draft.strategy, said)
    draft.decide("load_on", "gpu", "axolotl's device_map, each rank's own card")
    fsdp.read_settings(draft, block, "fsdp_config.", run=run, words=words)
    loads_whole(draft, "axolotl", run)
    if draft.strategy == FSDP2:
        ram = settings.get("cpu_ram_efficient_loading")
        if ram is not None and ram[1] is True and run.get("quant") in ("nf4", "fp4"):
            draft.problems[:] = [problem for problem in draft.problems if problem.code != "ram-efficient-ignored"]
            draft.problem(
                "ram-efficient-refused", "axolotl refuses cpu_ram_efficient_loading of 4-bit weights under FSDP2",
                f"fsdp_config.{ram[0]}: false", blocking=True,
            )  # fmt: skip
        draft.leave(
            "axolotl's own wrapping",
            "embedding, norm and head are one unit, gathered through the pass",
            "up",
            at_most=1.0,
        )
    return draft


def of_transformers(config: Config, run: Mapping[str, Any], tool: str, stored: tuple[str, str] | None) -> None:
    """Read the keys that LLaMA-Factory and TRL hand to transformers, and TRL's `accelerate_config`.

    `stored` is the dtype that 4-bit weights are stored in, with what decided it.
    """
    raw = {name: config.asked(name) for name in (TRL_KEYS if tool == "trl" else TRANSFORMERS_KEYS)}
    config.stored = None if stored is None else _storage(*stored)
    keys = tuple(name for name, value in raw.items() if value)
    block, words = mapping(raw.get("fsdp_config")), _words(config, "fsdp")
    shards, engine, launched = raw.get("fsdp"), raw.get("deepspeed"), raw.get("accelerate_config")
    draft: Draft | None = None
    if bool(shards) + bool(engine) + bool(launched) > 1:
        config.faults.append(f"{', '.join(keys)}: say in one way how cards share the run")
        return
    if launched:
        draft = accelerate.read_word(str(launched), config.where, run, "accelerate_config")
    elif engine:
        draft = Draft(strategy=None, keys=keys, why="")
        deepspeed.read_named(draft, engine, config.where, "deepspeed")
    elif shards:
        draft = _transformers_fsdp(config, keys, block, words, run)
    elif raw.get("num_processes") not in (None, 1):
        draft = Draft(strategy=DDP, keys=keys, why="num_processes")
        draft.decide("parallel", DDP, "num_processes, without a strategy")
    if _cuts_by_itself(config) and config.stored is not None:
        draft, keys = Draft(strategy=None, keys=keys, why="transformers' own cutting"), ("model_init_kwargs",)
        draft.problem(
            "native-fsdp-refused",
            "transformers' own DistributedConfig(fsdp_size) quantises each rank's slice by itself and loses its state:"
            " a 4-bit model loads and breaks in forward",
            "accelerate_config: fsdp2",
            blocking=True,
        )
    if draft is None:
        return
    draft.keys = keys
    config.sharing = of_launch(draft, run, tool, config.stored)


def _transformers_fsdp(
    config: Config, keys: tuple[str, ...], block: Mapping[str, Any], words: list[str], run: Mapping[str, Any]
) -> Draft:
    settings = fsdp.named(block)
    version = settings["version"][1] if "version" in settings else 2
    draft = Draft(strategy=fsdp.strategy_of(version), keys=keys, why="fsdp")
    said = (
        f"fsdp_config.version: {str(version)[:10]}" if "version" in settings else "fsdp, version 2 where none is given"
    )
    draft.decide("parallel", draft.strategy, said)
    fsdp.read_settings(draft, block, "fsdp_config.", run=run, words=words)
    draft.saves_whole = True if draft.saves_whole is None else draft.saves_whole
    return draft


def of_launch(draft: Draft, run: Mapping[str, Any], tool: str, stored: Decision | None) -> Sharing:
    """What a tool does under a strategy that was read, from its keys or from accelerate's own config."""
    if draft.strategy is not None and strategy_row(draft.strategy).shards and "load_on" not in draft.decided:
        draft.decide("load_on", "gpu", f"{tool}: transformers takes each rank's own card")
        loads_whole(draft, tool, run)
    if stored is not None:
        draft.decided["quant_storage"] = stored
    if tool == "LLaMA-Factory" and draft.strategy == FSDP2 and run.get("use_reentrant"):
        draft.decide("use_reentrant", False, "LLaMA-Factory, which switches use_reentrant_gc off under FSDP2")
    return draft.done()


def loads_whole(draft: Draft, tool: str, run: Mapping[str, Any]) -> None:
    """Say that no key of the tool keeps 4-bit weights off the card while they load."""
    if run.get("quant") in ("nf4", "fp4"):
        keeps = ", and accelerate keeps it while it makes the shards" if draft.strategy == FSDP2 else ""
        draft.problem(
            "loads-whole",
            f"{tool} loads the whole 4-bit model onto every card before anything is sharded{keeps}; no key of it loads"
            " on the CPU",
            "a script of one's own: qlora-plan plan --load-on cpu --export trl=train.py",
        )


def _storage(value: Any, key: str) -> Decision:
    return Decision(option="quant_storage", value=str(value).removeprefix("torch."), key=key)


def _cuts_by_itself(config: Config) -> bool:
    """Whether `from_pretrained` is told to shard, which it does without accelerate."""
    native = mapping(mapping(config.raw.get("model_init_kwargs")).get("distributed_config"))
    return native.get("fsdp_size") not in (None, 0, 1)


def _words(config: Config, key: str) -> list[str]:
    """transformers' old way: `full_shard auto_wrap offload`, as words or as a list."""
    value = config.raw.get(key)
    if value is None or isinstance(value, bool):
        return []
    words = value.split() if isinstance(value, str) else value
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        config.faults.append(f"{key} must be a list of words, as [full_shard, auto_wrap], not {quoted(value)}")
        return []
    return [word for word in words if word.lower() not in ("true", "false")]
