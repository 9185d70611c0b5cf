"""Keys of other tools that no figure counts: the verdict that they leave, and the tools that are told by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from qlora_planner.errors import InputError
from qlora_planner.exchange.axolotl import keys as axolotl_keys
from qlora_planner.exchange.axolotl import read as axolotl
from qlora_planner.exchange.configs import keys_of, read_config
from qlora_planner.exchange.llama_factory import keys as llama_factory_keys
from qlora_planner.exchange.llama_factory import read as llama_factory
from qlora_planner.exchange.meant import meant, standing_in
from qlora_planner.exchange.parsed_config import Config, Reading
from qlora_planner.exchange.trl import keys as trl_keys
from qlora_planner.exchange.trl import read as trl
from qlora_planner.memory.unmodelled.qualified import qualified
from qlora_planner.session import load_model
from qlora_planner.spec.run import RunConfig
from tests.report.records import GIB, make_estimate

AXOLOTL = {
    "base_model": "Qwen/Qwen3-4B", "adapter": "qlora", "load_in_4bit": True, "lora_r": 32, "lora_target_linear": True,
    "micro_batch_size": 2, "gradient_accumulation_steps": 4, "gradient_checkpointing": True,
}  # fmt: skip
FACTORY = {"model_name_or_path": "Qwen/Qwen3-4B", "quantization_bit": 4, "bf16": True, "template": "qwen3"}
TRL = {"model_name_or_path": "Qwen/Qwen3-4B", "dataset_name": "some/rows", "dtype": "bfloat16"}
CUT = "axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin"
LIGER = "axolotl.integrations.liger.LigerPlugin"
FUSED = "liger_fused_linear_cross_entropy"


def read(tmp_path: Path, config: dict[str, Any]) -> Reading:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return read_config(path)


# What a key says -> the verdicts that are left of one that fits with half the card to spare, and of one that takes a
# third more than the card.
KEYS: list[tuple[dict[str, Any], dict[str, Any], str, str]] = [
    *((AXOLOTL, {"rl": kind}, "cannot-say", "cannot-say") for kind in (True, "grpo", "simpo")),
    *((AXOLOTL, {"rl": kind}, "cannot-say", "does-not-fit") for kind in ("dpo", "ipo", "kto", "orpo")),
    (AXOLOTL, {"fsdp": ["full_shard", "auto_wrap"]}, "cannot-say", "cannot-say"),
    (AXOLOTL, {"fsdp_config": {"offload_params": True}}, "cannot-say", "cannot-say"),
    (AXOLOTL, {"deepspeed": "zero3.json"}, "cannot-say", "cannot-say"),
    (AXOLOTL, {"context_parallel_size": 2}, "cannot-say", "cannot-say"),
    (AXOLOTL, {"context_parallel_size": 1}, "fits", "does-not-fit"),
    (AXOLOTL, {"reward_model": True}, "cannot-say", "cannot-say"),
    (AXOLOTL, {"torch_compile": True}, "cannot-say", "cannot-say"),
    (AXOLOTL, {"relora": True}, "cannot-say", "cannot-say"),
    (AXOLOTL, {"model_config": {"output_router_logits": True}}, "fits", "does-not-fit"),
    (AXOLOTL, {"model_config": {"hidden_size": 1}}, "cannot-say", "cannot-say"),
    (AXOLOTL, {"nf4_backend": "torchao"}, "cannot-say", "cannot-say"),
    (AXOLOTL, {"nf4_backend": "bitsandbytes"}, "fits", "does-not-fit"),
    (AXOLOTL, {"qat": {"weight_dtype": "int4"}}, "cannot-say", "cannot-say"),
    (AXOLOTL, {"optimizer": "galore_adamw"}, "cannot-say", "cannot-say"),
    (AXOLOTL, {"plugins": ["mine.MyPlugin"]}, "cannot-say", "cannot-say"),
    (AXOLOTL, {"gradient_checkpointing": "offload"}, "fits", "cannot-say"),
    (AXOLOTL, {"chunked_cross_entropy": True}, "fits", "cannot-say"),
    (AXOLOTL, {"unfrozen_parameters": ["lm_head"]}, "fits", "cannot-say"),
    (AXOLOTL, {"processor_type": "AutoProcessor"}, "cannot-say", "does-not-fit"),
    (AXOLOTL, {"tokens": ["<a>"]}, "fits", "does-not-fit"),
    (AXOLOTL, {"neftune_noise_alpha": 5, "wandb_project": "x"}, "fits", "does-not-fit"),
    *((FACTORY, {"stage": stage}, "cannot-say", "cannot-say") for stage in ("ppo", "rm")),
    *((FACTORY, {"stage": stage}, "cannot-say", "does-not-fit") for stage in ("dpo", "kto")),
    (FACTORY, {"deepspeed": "z.json"}, "cannot-say", "cannot-say"),
    (FACTORY, {"use_badam": True}, "cannot-say", "cannot-say"),
    (FACTORY, {"use_galore": True}, "cannot-say", "cannot-say"),
    (FACTORY, {"shift_attn": True}, "cannot-say", "cannot-say"),
    (FACTORY, {"finetuning_type": "oft"}, "cannot-say", "cannot-say"),
    (FACTORY, {"quantization_method": "hqq"}, "cannot-say", "cannot-say"),
    (FACTORY, {"use_unsloth_gc": True}, "fits", "cannot-say"),
    (FACTORY, {"image_max_pixels": 262144}, "fits", "cannot-say"),
    (FACTORY, {"video_max_pixels": 16384}, "cannot-say", "does-not-fit"),
    (FACTORY, {"neat_packing": True, "flash_attn": "fa2"}, "fits", "does-not-fit"),
    (TRL, {"beta": 0.1}, "cannot-say", "cannot-say"),
    (TRL, {"accelerate_config": "zero3"}, "cannot-say", "cannot-say"),
    (TRL, {"accelerate_config": "single_gpu", "num_processes": 1}, "fits", "does-not-fit"),
    (TRL, {"dtype": None}, "cannot-say", "does-not-fit"),
]  # fmt: skip


@pytest.mark.parametrize(("base", "changes", "of_fits", "of_too_large"), KEYS)
def test_a_key_that_is_not_modelled_takes_away_the_verdicts_that_it_could_change(
    tmp_path: Path, base: dict[str, Any], changes: dict[str, Any], of_fits: str, of_too_large: str
) -> None:
    things = standing_in(read(tmp_path, base | changes)).unmodelled
    assert qualified(make_estimate("fits", 11 * GIB), things).verdict == of_fits
    assert qualified(make_estimate("does-not-fit", 31 * GIB), things).verdict == of_too_large


def test_the_reason_names_the_key_as_it_stands_in_the_file(tmp_path: Path) -> None:
    found = qualified(make_estimate("fits"), read(tmp_path, AXOLOTL | {"rl": "simpo"}).unmodelled)
    assert found.fit is not None
    assert found.fit.reasons[0].startswith("not modelled: rl: simpo (")


@pytest.mark.parametrize(
    ("asks", "kernel"),
    [
        ({"plugins": [CUT]}, "cut-cross-entropy"),
        ({"plugins": [CUT], "cut_cross_entropy": True}, "cut-cross-entropy"),
        ({"plugins": [LIGER], FUSED: True}, "liger-fused"),
    ],
    ids=["cut", "cut, told so", "Liger's loss alone"],
)
def test_a_loss_without_whole_logits_is_its_own_kernel_and_trls_where_it_is_not_traced(
    tmp_path: Path, asks: dict[str, Any], kernel: str
) -> None:
    found = read(tmp_path, AXOLOTL | {"sample_packing": True} | asks)
    assert (found.run.trainer, found.run.loss_kernel, found.not_modelled) == ("hf-trainer", kernel, {})
    near = standing_in(meant(found, load_model("Qwen/Qwen3-4B")))
    assert (near.run.trainer, near.run.loss_kernel, near.run.packing) == ("trl-sft", None, True)
    assert all(thing.at_most is not None for thing in near.unmodelled)


def test_cut_cross_entropy_that_is_switched_off_keeps_the_logits(tmp_path: Path) -> None:
    assert read(tmp_path, AXOLOTL | {"plugins": [CUT], "cut_cross_entropy": False}).run.loss_kernel is None


def test_a_model_that_liger_does_not_know_keeps_its_logits(tmp_path: Path) -> None:
    found = meant(read(tmp_path, AXOLOTL | {"plugins": [LIGER], FUSED: True}), load_model("EleutherAI/pythia-1b"))
    assert found.run.loss_kernel is None and standing_in(found) == found


def test_a_model_that_trl_cannot_train_keeps_its_logits_and_may_take_less(tmp_path: Path) -> None:
    profile = load_model("microsoft/Phi-mini-MoE-instruct")
    found = standing_in(meant(read(tmp_path, AXOLOTL | {"plugins": [CUT], "sample_packing": True}), profile))
    assert (found.run.trainer, found.run.packing, found.run.padding) == ("hf-trainer", False, False)
    assert found.unmodelled[-1].direction == "down"
    assert found.unmodelled[-1].at_most is None


def test_factorys_own_choice_of_attention_is_that_of_its_code(tmp_path: Path) -> None:
    gemma, llama = (meant(read(tmp_path, FACTORY), load_model(name)) for name in ("gemma-2-9b", "llama-3.1-8b"))
    assert (gemma.run.attention, llama.run.attention) == ("eager", None)
    assert gemma.unmodelled[-1].key == "flash_attn: auto"
    assert meant(read(tmp_path, FACTORY | {"flash_attn": "sdpa"}), load_model("gemma-2-9b")).run.attention == "sdpa"


ADDED = [
    {"resize_vocab": True}, {"new_special_tokens": "[a],[b]"}, {"add_tokens": "<a>,<b>"}, {"add_special_tokens": "<a>"},
]  # fmt: skip


@pytest.mark.parametrize("added", ADDED)
@pytest.mark.parametrize(
    ("model", "names"),
    [("meta-llama/Meta-Llama-3-8B", "embed_tokens,lm_head"), ("EleutherAI/pythia-1b", "embed_in,lm_head")],
)
def test_added_tokens_train_the_embedding_and_the_head(
    tmp_path: Path, added: dict[str, Any], model: str, names: str
) -> None:
    found = read(tmp_path, FACTORY | added)
    assert (found.unknown, found.not_modelled) == ((), {})
    assert meant(found, load_model(model)).run.modules_to_save == names


def test_what_additional_target_names_is_what_is_trained(tmp_path: Path) -> None:
    found = read(tmp_path, FACTORY | {"add_tokens": "<a>", "additional_target": "embed_tokens"})
    assert meant(found, load_model("Qwen/Qwen3-4B")).run.modules_to_save == "embed_tokens"
    nothing = read(tmp_path, FACTORY | {"add_tokens": "", "resize_vocab": False})
    assert meant(nothing, load_model("Qwen/Qwen3-4B")).run.modules_to_save is None


def test_trl_defaults(tmp_path: Path) -> None:
    found = read(tmp_path, TRL)
    assert (found.format, found.model_id, found.unknown) == ("trl", "Qwen/Qwen3-4B", ())
    assert found.run == RunConfig(
        method="full", quant="none", compute_dtype="bfloat16", load_dtype="bfloat16", seq_len=1024, batch_size=8,
        optimizer="adamw_torch_fused", trainer="trl-sft", upcast=False,
    )  # fmt: skip


def test_a_file_of_trls_own_command_line(tmp_path: Path) -> None:
    adapted = {
        "load_in_4bit": True, "use_bnb_nested_quant": True, "use_peft": True, "lora_r": 64, "lora_alpha": 64,
        "lora_target_modules": "all-linear", "max_length": 2048, "attn_implementation": "flash_attention_2",
        "gradient_checkpointing": True, "bf16": True, "lora_dropout": 0.0, "optim": "paged_adamw_8bit",
    }  # fmt: skip
    found = read(tmp_path, TRL | adapted)
    assert found.unknown == ()
    assert found.run == RunConfig(
        method="qlora", quant="nf4", compute_dtype="bfloat16", load_dtype="bfloat16", seq_len=2048, batch_size=8,
        rank=64, alpha=64, target_modules="all-linear", lora_dropout=0.0, attention="flash_attention_2",
        optimizer="paged_adamw_8bit", trainer="trl-sft", upcast=False,
    )  # fmt: skip
    keys = keys_of("trl", {"seq_len": 512, "batch_size": 4, "grad_accum": 2, "rank": 8})
    after = read(tmp_path, TRL | adapted | keys).run
    assert (after.seq_len, after.batch_size, after.grad_accum, after.rank) == (512, 4, 2, 8)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"load_in_4bit": True}, "load_in_4bit without use_peft"),
        ({"load_in_4bit": True, "load_in_8bit": True, "use_peft": True}, "are both on"),
        ({"bf16": True, "fp16": True}, "bf16 and fp16 are both on"),
        ({"optim": "adamx"}, "'adamx' is not known here"),
    ],
)
def test_contradictions_in_a_file_of_trl(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        read(tmp_path, TRL | changes)


FOREIGN: list[tuple[str, dict[str, Any]]] = [
    ("torchtune", {"model": {"_component_": "torchtune.models.llama3_1.qlora_llama3_1_8b", "lora_rank": 8}}),
    ("Unsloth Studio", {"model": "unsloth/Qwen2.5-0.5B", "training": {"max_seq_length": 2048}, "lora": {"lora_r": 64}}),
    ("LLaMA-Factory v1", {"model": "Qwen/Qwen3-0.6B", "peft_config": {"name": "lora", "r": 16}, "cutoff_len": 2048}),
    ("LLaMA-Factory v1", {"model": "Qwen/Qwen3-0.6B", "train_dataset": "data/v1_sft_demo.yaml"}),
    ("ms-swift", {"model": "Qwen/Qwen3-8B", "tuner_type": "lora", "lora_rank": 8, "max_length": 2048}),
    ("ms-swift", {"model": "Qwen/Qwen3-8B", "train_type": "lora", "dataset": ["a"], "quant_bits": 4}),
    ("ms-swift", {"model_type": "qwen-7b", "sft_type": "lora", "dataset": "a"}),
    ("AutoTrain", {"task": "llm-sft", "base_model": "Qwen/Qwen3-8B", "project_name": "x", "params": {"peft": True}}),
    ("Ludwig", {"model_type": "llm", "base_model": "Qwen/Qwen3-8B", "input_features": [], "adapter": {"type": "lora"}}),
    ("accelerate", {"compute_environment": "LOCAL_MACHINE", "distributed_type": "FSDP", "num_processes": 2}),
    ("DeepSpeed", {"zero_optimization": {"stage": 3}, "train_batch_size": "auto"}),
    ("an adapter's own config", {"peft_type": "LORA", "base_model_name_or_path": "Qwen/Qwen3-8B", "r": 16}),
    ("a model's own config", {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}),
]


@pytest.mark.parametrize(("tool", "config"), FOREIGN)
def test_the_files_of_other_tools_are_told_by_name_and_refused(
    tmp_path: Path, tool: str, config: dict[str, Any]
) -> None:
    with pytest.raises(InputError, match=f"is .*{tool}.*which is not read here; read are plan files"):
        read(tmp_path, config)


@pytest.mark.parametrize(
    ("tool", "keys", "base"),
    [(axolotl, axolotl_keys, AXOLOTL), (llama_factory, llama_factory_keys, FACTORY), (trl, trl_keys, TRL)],
)
def test_every_key_has_one_place(tool: Any, keys: Any, base: dict[str, Any]) -> None:
    kinds = [set(keys.USED), set(keys.NOT_MODELLED), set(keys.NEUTRAL)]
    assert sum(map(len, kinds)) == len(set.union(*kinds))
    for key, effect in keys.NOT_MODELLED.items():
        assert effect.direction in ("up", "down", "both"), key
        assert effect.at_most is None or 0 < effect.at_most <= 1, key


def test_the_table_of_trl_is_what_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: set[str] = set()
    get = Config.get

    def spy(self: Config, key: str) -> Any:
        looked.add(key)
        return get(self, key)

    monkeypatch.setattr(Config, "get", spy)
    trl.read(TRL | {"use_peft": True}, "x")
    assert looked == set(trl_keys.USED)
