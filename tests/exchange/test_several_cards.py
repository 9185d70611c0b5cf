"""Configs of other tools for several cards: the strategy, which key decided it, and what the figures leave out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from qlora_planner.errors import InputError
from qlora_planner.exchange.configs import read_config
from qlora_planner.exchange.parsed_config import Reading
from qlora_planner.exchange.several_cards.accelerate import NAMED
from qlora_planner.exchange.several_cards.on_cards import launched, on_cards
from qlora_planner.exchange.several_cards.sharing import Beyond
from qlora_planner.memory.records import Phase
from qlora_planner.session import Session
from qlora_planner.session.cards import card_of
from tests.report.records import GIB, make_estimate

AXOLOTL = {
    "base_model": "meta-llama/Llama-3.1-8B", "adapter": "qlora", "load_in_4bit": True, "lora_r": 16, "bf16": True,
    "lora_target_linear": True, "micro_batch_size": 1, "gradient_accumulation_steps": 4,
}  # fmt: skip
FACTORY = {
    "model_name_or_path": "meta-llama/Llama-3.1-8B", "quantization_bit": 4, "bf16": True, "template": "llama3",
    "finetuning_type": "lora",
}  # fmt: skip
TRL = {
    "model_name_or_path": "meta-llama/Llama-3.1-8B", "dataset_name": "some/rows", "load_in_4bit": True,
    "use_peft": True, "use_bnb_nested_quant": True, "dtype": "bfloat16", "lora_target_modules": "all-linear",
    "max_length": 2048,
    "per_device_train_batch_size": 1,
}  # fmt: skip
ZERO3 = {"zero_optimization": {"stage": 3}}


def read(folder: Path, config: dict[str, Any], **files: Any) -> Reading:
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    path = folder / "train.yaml"
    path.write_text(yaml.safe_dump(config))
    return read_config(path)


# What a file says -> the options on two cards, and a word of what decided the strategy.
SHARES: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any], str]] = [
    (AXOLOTL, {}, {"parallel": "ddp", "quant_storage": None}, "no key shares"),
    (AXOLOTL, {"ddp": True}, {"parallel": "ddp"}, "ddp: true"),
    (
        AXOLOTL, {"fsdp": ["full_shard", "auto_wrap"]},
        {"parallel": "fsdp1", "load_on": "gpu", "quant_storage": "bfloat16"}, "no fsdp_version",
    ),
    (
        AXOLOTL, {"fsdp_version": 2, "fsdp_config": {"reshard_after_forward": False}},
        {"parallel": "fsdp2", "reshard_after_forward": False}, "fsdp_version: 2",
    ),
    (AXOLOTL, {"fsdp_config": {"fsdp_version": 2, "offload_params": False}}, {"parallel": "fsdp2"}, "fsdp_config."),
    (
        AXOLOTL, {"fsdp_version": 2, "fsdp_config": {"state_dict_type": "FULL_STATE_DICT"},
                  "bnb_config_kwargs": {"bnb_4bit_quant_storage": "uint8"}},
        {"parallel": "fsdp2", "quant_storage": "uint8"}, "bnb_config_kwargs.bnb_4bit_quant_storage",
    ),
    (AXOLOTL, {"deepspeed": "deepspeed_configs/zero3_bf16.json"}, {"parallel": "zero3"}, "zero3_bf16.json: 3"),
    (FACTORY, {"deepspeed": "examples/deepspeed/ds_z2_offload_config.json"}, {"parallel": "zero2"}, "ds_z2_offload"),
    (FACTORY, {"deepspeed": "mine.json"}, {"parallel": "zero3"}, "mine.json: zero_optimization.stage: 3"),
    (FACTORY, {"fsdp": "full_shard auto_wrap"}, {"parallel": "fsdp2", "use_reentrant": False}, "version 2 where none"),
    (FACTORY, {"fsdp": True, "fsdp_config": {"version": 1}}, {"parallel": "fsdp1"}, "fsdp_config.version: 1"),
    (FACTORY, {}, {"parallel": "ddp"}, "FORCE_TORCHRUN"),
    (TRL, {"accelerate_config": "fsdp2"}, {"parallel": "fsdp2", "quant_storage": "uint8"}, "accelerate_config: fsdp2"),
    (TRL, {"accelerate_config": "zero1"}, {"parallel": "zero2"}, "zero_stage: 1"),
    (TRL, {"accelerate_config": "multi_gpu"}, {"parallel": "ddp"}, "multi_gpu"),
    (TRL, {"num_processes": 2}, {"parallel": "ddp"}, "num_processes"),
]  # fmt: skip


@pytest.mark.parametrize(("base", "says", "options", "word"), SHARES, ids=lambda value: str(value)[:50])
def test_a_file_on_two_cards_is_the_strategy_that_its_keys_name(
    tmp_path: Path, base: dict[str, Any], says: dict[str, Any], options: dict[str, Any], word: str
) -> None:
    reading = on_cards(read(tmp_path, base | says, mine=ZERO3), 2)
    assert {name: getattr(reading.run, name) for name in options} == options
    assert any(word in note for note in reading.notes), reading.notes
    assert not set(says) & (set(reading.not_modelled) | set(reading.unknown))
    assert not any("say how many" in thing.what for thing in reading.unmodelled)


@pytest.mark.parametrize(
    ("base", "says"), [(base, says) for base, says, options, _ in SHARES if says and options["parallel"] != "ddp"]
)
def test_one_card_is_asked_in_one_line_how_many_there_are(
    tmp_path: Path, base: dict[str, Any], says: dict[str, Any]
) -> None:
    reading = on_cards(read(tmp_path, base | says, mine=ZERO3), 1)
    assert reading.run.parallel is None
    asked = {thing.what for thing in reading.unmodelled if "say how many, as --gpu 2x" in thing.what}
    assert len(asked) == 1 and {thing.at_most for thing in reading.unmodelled if thing.what in asked} == {None}


def test_a_file_of_deepspeed_that_is_not_here_is_left_open(tmp_path: Path) -> None:
    reading = on_cards(read(tmp_path, FACTORY | {"deepspeed": "z.json"}), 2)
    assert reading.run.parallel is None
    assert any("is not here" in thing.what and thing.at_most is None for thing in reading.unmodelled)


# What a file says -> the code of its problem, and whether it will not run.
REFUSED: list[tuple[dict[str, Any], dict[str, Any], str, bool]] = [
    (AXOLOTL, {"fsdp_version": 2, "fsdp_config": {"cpu_ram_efficient_loading": True}}, "ram-efficient-refused", True),
    (AXOLOTL, {"fsdp_config": {"fsdp_cpu_ram_efficient_loading": True}}, "ram-efficient-ignored", False),
    (
        AXOLOTL, {"gradient_checkpointing": True, "fsdp_config": {"activation_checkpointing": True}},
        "checkpointed-twice", True,
    ),
    (AXOLOTL, {"fsdp_version": 2, "fsdp_config": {"mixed_precision_policy": "fp16"}}, "storage-refused", True),
    (FACTORY, {"fsdp": True, "fsdp_config": {"reshard_after_forward": "HYBRID_SHARD"}}, "reshard-refused", True),
    (TRL, {"accelerate_config": "fsdp2"}, "loads-whole", False),
    (TRL, {"model_init_kwargs": {"distributed_config": {"fsdp_size": 2}}}, "native-fsdp-refused", True),
]  # fmt: skip


@pytest.mark.parametrize(("base", "says", "code", "blocks"), REFUSED, ids=lambda value: str(value)[:50])
def test_what_the_settings_run_into_is_said(
    tmp_path: Path, base: dict[str, Any], says: dict[str, Any], code: str, blocks: bool
) -> None:
    sharing = read(tmp_path, base | says).sharing
    assert sharing is not None
    found = {problem.code: problem.blocking for problem in sharing.problems}
    assert found.get(code) is blocks, found


def test_checkpointing_by_the_plugin_alone_is_checkpointing(tmp_path: Path) -> None:
    says = {"gradient_checkpointing": False, "fsdp_config": {"activation_checkpointing": True}}
    assert on_cards(read(tmp_path, AXOLOTL | says), 2).run.gradient_checkpointing


def test_offloaded_shares_never_take_less_than_loading_does() -> None:
    made = make_estimate("does-not-fit", 31 * GIB)
    estimate = replace(made, phases=(Phase(name="load", allocated_bytes=10 * GIB), *made.phases[1:]))
    thing = Beyond(key="offload_params: true", what="waits on the host", direction="down", after_loading=True)
    least = estimate.floor_bytes * (1 - (thing.of(estimate, Session().model("meta-llama/Llama-3.1-8B")).at_most or 0))
    around = sum(estimate.components.get(part, 0) for part in ("cuda_context", "communication"))
    assert least == pytest.approx(10 * GIB + around, rel=1e-3)


def test_a_second_bucket_is_as_large_as_the_first(tmp_path: Path) -> None:
    settings = {"zero_optimization": {"stage": 2, "overlap_comm": True, "reduce_bucket_size": 200_000_000}}
    sharing = read(tmp_path, FACTORY | {"deepspeed": "mine.json"}, mine=settings).sharing
    assert sharing is not None
    assert [beyond.at_most_bytes for beyond in sharing.beyond] == [400_000_000]


def test_two_ways_to_share_are_a_fault(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be used together"):
        read(tmp_path, AXOLOTL | {"deepspeed": "zero2.json", "fsdp_config": {"offload_params": True}})
    with pytest.raises(InputError, match="in one way"):
        read(tmp_path, TRL | {"deepspeed": "zero2.json", "accelerate_config": "fsdp2"})
    with pytest.raises(InputError, match="neither a file nor one of single_gpu"):
        read(tmp_path, TRL | {"accelerate_config": "fsdp3"})


def test_the_words_that_trl_knows_are_its_own_files() -> None:
    pytest.importorskip("trl")
    from importlib.resources import files

    shipped = {path.name.removesuffix(".yaml"): path for path in files("trl.accelerate_configs").iterdir()}
    assert {name for name, path in shipped.items() if path.name.endswith(".yaml")} == set(NAMED)
    for name, ours in NAMED.items():
        theirs = yaml.safe_load(shipped[name].read_text())
        assert ours["distributed_type"] == theirs["distributed_type"]
        for block in ("fsdp_config", "deepspeed_config"):
            written = {key.removeprefix("fsdp_"): value for key, value in theirs.get(block, {}).items()}
            assert ours.get(block, {}).items() <= written.items(), name


def test_accelerates_own_config_says_what_the_file_does_not(tmp_path: Path) -> None:
    launch = tmp_path / "accelerate.yaml"
    launch.write_text(
        yaml.safe_dump({"distributed_type": "FSDP", "num_processes": 8, "fsdp_config": {"fsdp_version": 2}})
    )
    reading = on_cards(launched(read(tmp_path, FACTORY), str(launch)), 2)
    assert (reading.run.parallel, reading.run.load_on, reading.run.use_reentrant) == ("fsdp2", "gpu", False)
    assert any("num_processes: 8" in note for note in reading.notes)
    with pytest.raises(InputError, match="shares the run itself"):
        launched(read(tmp_path, FACTORY | {"deepspeed": "zero2.json"}), str(launch))
    with pytest.raises(InputError, match="no config of accelerate"):
        launched(read(tmp_path, FACTORY), str(tmp_path / "train.yaml"))


def test_context_parallel_is_planned_as_the_tokens_of_a_card_with_a_second_communicator(tmp_path: Path) -> None:
    launch = tmp_path / "accelerate.yaml"
    split = {"parallelism_config_cp_size": 2, "parallelism_config_tp_size": 1}
    sharded = {"distributed_type": "FSDP", "num_processes": 2, "fsdp_config": {"fsdp_version": 2}}
    launch.write_text(yaml.safe_dump(sharded | {"parallelism_config": split}))
    plain = read(tmp_path, FACTORY)
    reading = on_cards(launched(plain, str(launch)), 2)
    sharing = reading.sharing
    assert sharing is not None
    (left,) = [beyond for beyond in sharing.beyond if beyond.key.startswith("parallelism_config")]
    assert left.key.endswith("cp_size") and left.direction == "up"
    assert reading.run.seq_len == plain.run.seq_len // 2
    card = card_of(Session(), "2xh200")
    cards = (card, replace(card, communicators=sharing.communicators))
    contexts = [each.budget(None).context_for(reading.run).total_bytes for each in cards]
    assert contexts[1] - contexts[0] == pytest.approx(446 << 20, rel=0.1)  # measured of three such runs
