"""What the QLoRA examples of axolotl's and LLaMA-Factory's repositories ask for, key by key, without their values that
take no memory: models of the catalogue with the sizes, kernels and switches that such files combine."""

from __future__ import annotations

from typing import Any

CUT = "axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin"
LIGER = "axolotl.integrations.liger.LigerPlugin"
KERNELS = {"lora_mlp_kernel": True, "lora_qkv_kernel": True, "lora_o_kernel": True}
_PACKED = {"sample_packing": True, "pad_to_sequence_len": True}
_HELD_OUT = {"val_set_size": 0.05, "evals_per_epoch": 4}


def axolotl(model: str, seq_len: int, batch: int, **more: Any) -> dict[str, Any]:
    return {
        "base_model": model, "adapter": "qlora", "load_in_4bit": True, "lora_r": 32, "lora_alpha": 16,
        "lora_dropout": 0.05, "lora_target_linear": True, "sequence_len": seq_len, "micro_batch_size": batch,
        "gradient_accumulation_steps": 4, "optimizer": "adamw_bnb_8bit", "bf16": "auto", "tf32": False,
        "gradient_checkpointing": True, "num_epochs": 1, "learning_rate": 0.0002, **more,
    }  # fmt: skip


def factory(model: str, batch: int = 1, **more: Any) -> dict[str, Any]:
    return {
        "model_name_or_path": model, "quantization_bit": 4, "quantization_method": "bnb", "stage": "sft",
        "do_train": True, "finetuning_type": "lora", "lora_rank": 8, "lora_target": "all", "template": "llama3",
        "cutoff_len": 2048, "per_device_train_batch_size": batch, "gradient_accumulation_steps": 8, "bf16": True,
        **more,
    }  # fmt: skip


def trl(model: str, seq_len: int, batch: int, **more: Any) -> dict[str, Any]:
    return {
        "model_name_or_path": model, "dtype": "bfloat16", "dataset_name": "some/rows", "use_peft": True,
        "load_in_4bit": True, "use_bnb_nested_quant": True, "lora_r": 32, "lora_target_modules": "all-linear",
        "max_length": seq_len, "per_device_train_batch_size": batch, "gradient_accumulation_steps": 4,
        "optim": "adamw_8bit", "learning_rate": 0.0002, **more,
    }  # fmt: skip


# Name -> config, and the keys that take its verdict away; none where it is answered.
EXAMPLES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "llama 3 8b": (axolotl("NousResearch/Meta-Llama-3-8B", 4096, 2, flash_attention=True, **_PACKED), ()),
    "llama 3.2 1b": (axolotl("meta-llama/Llama-3.2-1B", 2048, 2, flash_attention=True, **_PACKED, **_HELD_OUT), ()),
    "mistral": (axolotl("mistralai/Mistral-7B-v0.1", 8192, 2, attn_implementation="flash_attention_2", **_PACKED), ()),
    "qwen 3": (
        axolotl("Qwen/Qwen3-8B", 2048, 2, plugins=[CUT], flash_attention=True, **_PACKED, **KERNELS), (),
    ),
    "qwen 3 offloaded": (
        axolotl("Qwen/Qwen3-14B", 2048, 1, plugins=[CUT], flash_attention=True, gradient_checkpointing="offload"), (),
    ),
    "gemma 3": (
        axolotl("google/gemma-3-1b", 2048, 2, plugins=[CUT], attn_implementation="eager", **_PACKED, **_HELD_OUT), (),
    ),
    "phi 4": (axolotl("microsoft/phi-4", 4096, 1, flash_attention=True, lora_target_modules=["qkv_proj"],
                      lora_target_linear=False, **_PACKED), ()),
    "liger's kernels": (
        axolotl("meta-llama/Llama-3.1-8B", 4096, 2, plugins=[LIGER], liger_rope=True, liger_rms_norm=True,
                liger_glu_activation=True, liger_fused_linear_cross_entropy=True, flash_attention=True, **_PACKED), (),
    ),
    "liger's loss": (
        axolotl("meta-llama/Llama-3.1-8B", 4096, 2, plugins=[LIGER], liger_fused_linear_cross_entropy=True,
                flash_attention=True, **_PACKED), (),
    ),
    "re-entrant": (
        axolotl("meta-llama/Llama-3.1-8B", 2048, 2, gradient_checkpointing_kwargs={"use_reentrant": True}), (),
    ),
    "adamw of torchao": (axolotl("meta-llama/Llama-3.1-8B", 2048, 1, optimizer="adamw_torch_8bit"), ()),
    "preferences": (axolotl("meta-llama/Llama-3.1-8B", 2048, 1, rl="dpo"), ("trl 1.14 of axolotl",)),
    "two cards": (axolotl("meta-llama/Llama-3.1-8B", 2048, 1, fsdp_version=2, fsdp_config={"x": 1}), ("fsdp_config",)),
    "deepspeed": (axolotl("meta-llama/Llama-3.1-8B", 2048, 1, deepspeed="zero2.json"), ("deepspeed",)),
    "an unknown optimizer": (axolotl("meta-llama/Llama-3.1-8B", 2048, 1, optimizer="muon"), ("muon",)),
    "factory": (factory("meta-llama/Meta-Llama-3-8B-Instruct"), ()),
    "factory, evaluated": (
        factory("Qwen/Qwen2.5-7B", 2, flash_attn="fa2", val_size=0.1, eval_strategy="steps", eval_steps=500), (),
    ),
    "factory, packed": (factory("Qwen/Qwen2.5-7B", neat_packing=True, flash_attn="fa2"), ()),
    "factory, Liger": (factory("Qwen/Qwen2.5-7B", enable_liger_kernel=True), ()),
    "factory, Unsloth's checkpointing": (factory("Qwen/Qwen2.5-7B", use_unsloth_gc=True), ()),
    "factory, norms in float32": (factory("Qwen/Qwen2.5-7B", upcast_layernorm=True), ()),
    "factory, adapters in bfloat16": (factory("Qwen/Qwen2.5-7B", pure_bf16=True, bf16=False), ()),
    "factory, gemma 2": (factory("google/gemma-2-9b"), ()),
    "factory, Unsloth": (factory("Qwen/Qwen2.5-7B", use_unsloth=True), ()),
    "factory, Unsloth, gemma": (factory("google/gemma-2b", use_unsloth=True), ("--trainer unsloth",)),
    "factory, reward": (factory("Qwen/Qwen2.5-7B", stage="rm"), ("stage: rm",)),
    "factory, deepspeed": (factory("Qwen/Qwen2.5-7B", deepspeed="ds_z3.json"), ("deepspeed",)),
    "factory, another quantisation": (factory("Qwen/Qwen2.5-7B", quantization_method="hqq"), ("hqq",)),
}  # fmt: skip
