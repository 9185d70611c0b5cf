"""Configs of axolotl and LLaMA-Factory: their own defaults, every key accounted for, and what contradicts itself."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from qlora_planner.errors import InputError
from qlora_planner.exchange.axolotl import keys as axolotl_keys
from qlora_planner.exchange.axolotl import read as axolotl
from qlora_planner.exchange.configs import keys_of, read_config
from qlora_planner.exchange.export import export
from qlora_planner.exchange.llama_factory import keys as llama_factory_keys
from qlora_planner.exchange.llama_factory import read as llama_factory
from qlora_planner.exchange.parsed_config import Config, Reading
from qlora_planner.spec.run import RUN_FIELDS, RunConfig

AXOLOTL = {
    "base_model": "meta-llama/Llama-3.1-8B", "adapter": "qlora", "load_in_4bit": True, "lora_r": 32,
    "lora_target_linear": True, "micro_batch_size": 2, "gradient_accumulation_steps": 4,
}  # fmt: skip
FACTORY = {"model_name_or_path": "meta-llama/Llama-3.1-8B", "quantization_bit": 4, "bf16": True}
TOOLS = [(axolotl, axolotl_keys, AXOLOTL), (llama_factory, llama_factory_keys, FACTORY)]


def written(tmp_path: Path, config: dict[str, Any]) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def read(tmp_path: Path, base: dict[str, Any], **changes: Any) -> Reading:
    return read_config(written(tmp_path, base | changes))


def differing(run: RunConfig, other: RunConfig) -> dict[str, Any]:
    return {name: getattr(run, name) for name in RUN_FIELDS if getattr(run, name) != getattr(other, name)}


def test_axolotl_defaults(tmp_path: Path) -> None:
    found = read(tmp_path, AXOLOTL)
    assert (found.format, found.model_id) == ("axolotl", "meta-llama/Llama-3.1-8B")
    assert found.run == RunConfig(
        method="qlora", quant="nf4", seq_len=512, batch_size=2, grad_accum=4, rank=32, target_modules="all-linear",
        lora_dropout=0.0, gradient_checkpointing=False, optimizer="adamw_torch_fused", trainer="hf-trainer",
        upcast=False, alloc_conf="expandable_segments:True",
    )  # fmt: skip
    assert set(found.used) == set(AXOLOTL)
    assert any("modelled as hf-trainer" in note for note in found.notes)


def test_llama_factory_defaults(tmp_path: Path) -> None:
    found = read(tmp_path, FACTORY)
    assert found.run == RunConfig(
        method="qlora", quant="nf4", compute_dtype="bfloat16", load_dtype="bfloat16", seq_len=2048, batch_size=8,
        rank=8, target_modules="all-linear", lora_dropout=0.0, use_reentrant=True, optimizer="adamw_torch_fused",
        trainer="hf-trainer", upcast=False,
    )  # fmt: skip
    assert any("modelled as hf-trainer" in note for note in found.notes)


# What is written, what of the run changes by it.
CUT = "axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin"
AXOLOTL_CHANGES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"sequence_len": 4096}, {"seq_len": 4096}),
    ({"gradient_checkpointing": True}, {"gradient_checkpointing": True}),
    ({"gradient_checkpointing": "offload"}, {"gradient_checkpointing": True, "checkpoint_offload": True}),
    (
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True, "every_n_layers": 2}},
        {"gradient_checkpointing": True, "use_reentrant": True, "checkpoint_every": 2},
    ),
    ({"adapter": "lora", "load_in_4bit": None, "load_in_8bit": True}, {"quant": "int8"}),
    ({"adapter": "lora", "load_in_4bit": False}, {"method": "lora", "quant": "none"}),
    ({"bnb_config_kwargs": {"bnb_4bit_use_double_quant": False}}, {"double_quant": False}),
    ({"lora_target_linear": None, "lora_target_modules": ["q_proj", "v_proj"]}, {"target_modules": "q_proj,v_proj"}),
    ({"lora_modules_to_save": ["lm_head", "embed_tokens"]}, {"modules_to_save": "lm_head,embed_tokens"}),
    ({"peft_use_dora": True, "lora_alpha": 7, "lora_dropout": 0.1}, {"dora": True, "alpha": 7, "lora_dropout": 0.1}),
    ({"flash_attention": True, "sample_packing": True}, {"attention": "flash_attention_2", "padding": False}),
    ({"attn_implementation": "eager"}, {"attention": "eager"}),
    ({"attn_implementation": "flex_attention"}, {"attention": "flex_attention"}),
    ({"attn_implementation": "kernels-community/flash-attn3"}, {"attention": "kernels-community/flash-attn3"}),
    ({"xformers_attention": True}, {"attention": "xformers"}),
    ({"bf16": True}, {"compute_dtype": "bfloat16", "load_dtype": "bfloat16"}),
    ({"bf16": False, "fp16": True}, {"compute_dtype": "float16", "load_dtype": "float16"}),
    ({"fp16": True, "bf16": "auto"}, {"compute_dtype": "float16", "load_dtype": "float16"}),
    ({"gradient_accumulation_steps": None, "batch_size": 32}, {"grad_accum": 16}),
    ({"val_set_size": 0.05}, {}),
    ({"val_set_size": 0.05, "evals_per_epoch": 4}, {"eval_batch_size": 2}),
    ({"val_set_size": 0.05, "eval_steps": 10, "eval_batch_size": 3}, {"eval_batch_size": 3}),
    ({"evals_per_epoch": 4}, {}),
    ({"optimizer": "adamw_bnb_8bit"}, {"optimizer": "adamw_bnb_8bit"}),
    (
        {
            "plugins": ["axolotl.integrations.liger.LigerPlugin"], "liger_rope": True, "liger_rms_norm": True,
            "liger_glu_activation": True, "liger_fused_linear_cross_entropy": True,
        },
        {"liger": True},
    ),
    ({"plugins": [CUT]}, {"loss_kernel": "cut-cross-entropy"}),
]  # fmt: skip
FACTORY_CHANGES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"cutoff_len": 4096, "per_device_train_batch_size": 1}, {"seq_len": 4096, "batch_size": 1}),
    ({"quantization_bit": None}, {"method": "lora", "quant": "none"}),
    ({"quantization_bit": 8}, {"quant": "int8"}),
    ({"quantization_type": "fp4", "double_quantization": False}, {"quant": "fp4", "double_quant": False}),
    ({"lora_target": "q_proj,v_proj", "lora_rank": 64}, {"target_modules": "q_proj,v_proj", "rank": 64}),
    ({"additional_target": "embed_tokens,lm_head"}, {"modules_to_save": "embed_tokens,lm_head"}),
    ({"disable_gradient_checkpointing": True}, {"gradient_checkpointing": False, "use_reentrant": False}),
    ({"use_reentrant_gc": False}, {"use_reentrant": False}),
    ({"use_unsloth": True}, {"trainer": "unsloth", "use_reentrant": False}),
    ({"use_unsloth_gc": True}, {"checkpoint_offload": True, "use_reentrant": False}),
    ({"flash_attn": "fa2"}, {"attention": "flash_attention_2"}),
    ({"flash_attn": "disabled"}, {"attention": "eager"}),
    ({"flash_attn": "fa3"}, {"attention": "flash_attention_3"}),
    ({"neat_packing": True, "flash_attn": "fa2"}, {"padding": False, "attention": "flash_attention_2"}),
    ({"neat_packing": True}, {"padding": True}),
    ({"bf16": False, "fp16": True}, {"compute_dtype": "float16", "load_dtype": "float16"}),
    ({"bf16": None}, {"compute_dtype": None, "load_dtype": None}),
    ({"packing": True}, {"padding": False}),
    ({"stage": "pt"}, {"padding": False}),
    ({"val_size": 0.1}, {}),
    ({"val_size": 0.1, "eval_strategy": "steps"}, {"eval_batch_size": 8}),
    ({"enable_liger_kernel": True, "use_rslora": True}, {"liger": True, "rslora": True}),
    (
        {"finetuning_type": "full", "quantization_bit": None, "pure_bf16": True},
        {"method": "full", "quant": "none", "rank": 16, "target_modules": None, "lora_dropout": None},
    ),
]


@pytest.mark.parametrize(
    ("base", "changes", "expected"),
    [(AXOLOTL, *row) for row in AXOLOTL_CHANGES] + [(FACTORY, *row) for row in FACTORY_CHANGES],
)
def test_what_a_key_decides(
    tmp_path: Path, base: dict[str, Any], changes: dict[str, Any], expected: dict[str, Any]
) -> None:
    found = read(tmp_path, base, **changes)
    assert differing(found.run, read(tmp_path, base).run) == expected
    assert not found.not_modelled
    assert not found.unknown
    assert set(changes) <= set(found.used)


CONTRADICTIONS: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (AXOLOTL, {"load_in_8bit": True}, "load_in_4bit and load_in_8bit are both on"),
    (AXOLOTL, {"load_in_4bit": False}, "adapter: qlora needs load_in_4bit: true"),
    (AXOLOTL, {"adapter": None}, "load_in_4bit without adapter"),
    (AXOLOTL, {"adapter": "lora"}, "write adapter: qlora"),
    (AXOLOTL, {"adapter": "ia3"}, "adapter must be one of lora, qlora"),
    (AXOLOTL, {"optimizer": "adamx"}, "optimizer: the memory of 'adamx' is not known here"),
    (AXOLOTL, {"batch_size": 8}, "batch_size and gradient_accumulation_steps are both given"),
    (AXOLOTL, {"micro_batch_size": None}, "two of micro_batch_size"),
    (AXOLOTL, {"lora_r": None}, "adapter without lora_r"),
    (AXOLOTL, {"sequence_len": "long"}, "sequence_len must be a whole number from 1 on, not 'long'"),
    (AXOLOTL, {"micro_batch_size": 0}, "micro_batch_size must be a whole number from 1 on"),
    (AXOLOTL, {"attn_implementation": "sdpa", "flash_attention": True}, "attn_implementation and flash_attention"),
    (AXOLOTL, {"lora_dropout": 3}, "--lora-dropout must be from 0.0 to 0.999"),
    (AXOLOTL, {"base_model": None}, "names no model: base_model is missing"),
    (AXOLOTL, {"base_model": ["a"]}, "base_model must be a word"),
    (FACTORY, {"finetuning_type": "full"}, "finetuning_type: full with quantization_bit"),
    (FACTORY, {"quantization_bit": 3}, "quantization_bit must be 4 or 8"),
    (FACTORY, {"fp16": True}, "bf16 and fp16 are both on"),
    (FACTORY, {"optim": "adamx"}, "optim: the memory of 'adamx' is not known here"),
    (FACTORY, {"model_name_or_path": ""}, "names no model: model_name_or_path is missing"),
    (FACTORY, {"per_device_train_batch_size": True}, "per_device_train_batch_size must be a whole number"),
]


@pytest.mark.parametrize(("base", "changes", "says"), CONTRADICTIONS)
def test_contradictions(tmp_path: Path, base: dict[str, Any], changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, base, **changes)
    assert str(caught.value).startswith(str(tmp_path / "config.yaml"))
    assert says in str(caught.value)


def test_all_faults_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"load_in_4bit and load_in_8bit.*sequence_len must be.*'adamx'"):
        read(tmp_path, AXOLOTL, load_in_8bit=True, optimizer="adamx", sequence_len=-1)


@pytest.mark.parametrize(
    ("base", "changes", "key"),
    [
        (AXOLOTL, {"deepspeed": "zero3.json"}, "deepspeed"),
        (AXOLOTL, {"rl": "simpo"}, "rl"),
        (AXOLOTL, {"plugins": ["axolotl.integrations.spectrum.SpectrumPlugin"]}, "plugins"),
        (AXOLOTL, {"attn_implementation": "magic"}, "attn_implementation"),
        (AXOLOTL, {"bf16": False}, "bf16"),
        (AXOLOTL, {"optimizer": "adamw_torch_8bit"}, "optimizer"),
        (AXOLOTL, {"gradient_checkpointing": "offload_disk"}, "gradient_checkpointing"),
        (AXOLOTL, {"lora_target_linear": False, "lora_target_modules": r"layers\.\d+\.q_proj"}, "lora_target_modules"),
        (FACTORY, {"deepspeed": "zero3.json"}, "deepspeed"),
        (FACTORY, {"stage": "dpo"}, "stage"),
        (FACTORY, {"use_kt": True}, "use_kt"),
        (FACTORY, {"quantization_method": "hqq"}, "quantization_method"),
        (FACTORY, {"finetuning_type": "full", "quantization_bit": None}, "finetuning_type"),
    ],
)
def test_what_is_not_modelled_is_named(tmp_path: Path, base: dict[str, Any], changes: dict[str, Any], key: str) -> None:
    found = read(tmp_path, base, **changes)
    assert list(found.not_modelled) == [key]
    assert key not in found.used + found.ignored + found.unknown


@pytest.mark.parametrize("value", [None, False, "", [], 0])
def test_what_is_switched_off_is_ignored(tmp_path: Path, value: Any) -> None:
    found = read(tmp_path, AXOLOTL, deepspeed=value, wandb_project="x", learning_rate=1e-4)
    assert not found.not_modelled
    assert set(found.ignored) == {"deepspeed", "wandb_project", "learning_rate"}


def test_typing_errors_are_unknown(tmp_path: Path) -> None:
    assert read(tmp_path, AXOLOTL, sequence_length=4096).unknown == ("sequence_length",)
    assert read(tmp_path, FACTORY, **{"cutof\x1b": 1}).unknown == ("cutof?",)


@pytest.mark.parametrize(("tool", "keys", "base"), TOOLS)
def test_the_table_of_keys_is_what_is_read(
    tool: ModuleType, keys: ModuleType, base: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: set[str] = set()
    get = Config.get

    def spy(self: Config, key: str) -> Any:
        looked.add(key)
        return get(self, key)

    monkeypatch.setattr(Config, "get", spy)
    tool.read(base, "x")
    assert looked == set(keys.USED)
    kinds = [set(keys.USED), set(keys.NOT_MODELLED), set(keys.NEUTRAL)]
    assert sum(map(len, kinds)) == len(set.union(*kinds))


EXPORTED: list[dict[str, Any]] = [
    {},
    {"quant": "fp4", "double_quant": False, "rank": 64, "alpha": 16, "lora_dropout": 0.0},
    {"method": "lora", "quant": "none", "target_modules": "q_proj,v_proj", "modules_to_save": "lm_head", "dora": True},
    {"quant": "int8", "seq_len": 4096, "batch_size": 4, "grad_accum": 8, "use_reentrant": True, "rslora": True},
    {
        "gradient_checkpointing": False,
        "checkpoint_every": None,
        "optimizer": "adamw_torch",
        "liger": True,
        "attention": "flash_attention_2",
    },
    {"compute_dtype": "float16", "load_dtype": "float16", "eval_batch_size": 2, "attention": "eager"},
    {"method": "full", "quant": "none", "target_modules": None, "optimizer": "adafactor"},
]


@pytest.mark.parametrize("kind", ["axolotl", "llama-factory"])
@pytest.mark.parametrize("changes", EXPORTED)
def test_an_export_reads_back_as_the_run(
    document: dict[str, Any], tmp_path: Path, kind: str, changes: dict[str, Any]
) -> None:
    document["run"] |= changes
    path = tmp_path / "config.yaml"
    path.write_text(export(kind, document))
    found, run = read_config(path), RunConfig.from_dict(document["run"])
    assert found.format == kind
    assert (found.unknown, found.not_modelled) == ((), {})
    # What these tools decide by themselves, and what a run without adapters does not have.
    own = {"trainer", "alloc_conf", "upcast", "padding"}
    own |= {"rank", "alpha", "lora_dropout"} if run.method == "full" else set()
    own |= set() if run.quant in ("nf4", "fp4") else {"double_quant"}
    if kind == "llama-factory":  # checkpoints every layer, and its file says so
        assert ("checkpoints all" in path.read_text()) == (run.checkpoint_every is not None)
        own |= {"checkpoint_every"}
    assert set(differing(found.run, run)) <= own


@pytest.mark.parametrize("kind", ["axolotl", "llama-factory"])
def test_an_export_that_nobody_judged_states_no_figure(document: dict[str, Any], kind: str) -> None:
    first = export(kind, document).splitlines()[0]
    assert "meta-llama/Llama-3.1-8B" in first
    assert "peak" not in first


@pytest.mark.parametrize(("base", "key"), [(AXOLOTL, "sequence_len"), (FACTORY, "cutoff_len")])
def test_changes_are_told_in_the_files_own_keys(tmp_path: Path, base: dict[str, Any], key: str) -> None:
    changes = {
        "seq_len": 64,
        "batch_size": 1,
        "optimizer": "paged_adamw_8bit",
        "gradient_checkpointing": True,
        "rank": 4,
    }
    found = read(tmp_path, base)
    keys = keys_of(found.format, changes)
    assert keys[key] == 64
    after = read(tmp_path, base, **keys).run
    assert {name: getattr(after, name) for name in changes} == changes
    assert keys_of("plan", changes) == changes


def test_which_tool(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="names no model: a plan has schema, axolotl base_model"):
        read_config(written(tmp_path, {"learning_rate": 1}))
    with pytest.raises(InputError, match="could be axolotl or llama-factory; --format says which"):
        read_config(written(tmp_path, AXOLOTL | FACTORY))
    assert read_config(written(tmp_path, AXOLOTL | FACTORY), "axolotl").format == "axolotl"
    with pytest.raises(InputError, match="base_model is missing"):
        read_config(written(tmp_path, FACTORY), "axolotl")
