"""Every trainer's row: what it does to dtypes, memory and the loss by version, what it offers, its names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qlora_planner.catalog.trainers.records import (
    DIVERGENCE,
    POLICY,
    REFERENCE,
    Generation,
    LossMemory,
    TrainerRow,
    Version,
)


def _model_loss(name: str) -> tuple[tuple[Version, LossMemory], ...]:
    why = f"{name} holds the whole logits in the model's own loss"
    return (((0, 0), LossMemory(kind="full", why=why)),)


# trl's default loss by version: first version that has it, newest first (facts read from its released wheels).
_TRL_LOSSES: tuple[tuple[Version, LossMemory], ...] = (
    ((1, 15), LossMemory(kind="fused", why="trl 1.15 and later compute the loss in tiles inside the head")),
    ((1, 14), LossMemory(kind="chunked_no_copy", why="trl 1.14 computes the loss in chunks of 256 rows")),
    ((1, 7), LossMemory(kind="chunked", why="trl 1.7 to 1.13 chunk the loss but copy the head's weight to float32")),
    ((0, 0), LossMemory(kind="full", why="trl before 1.7 holds the whole logits, several times over")),
)
_TRL_PREFERENCE_LOSSES: tuple[tuple[Version, LossMemory], ...] = (
    ((1, 15), LossMemory(kind="fused", why="trl 1.15 and later score completions in tiles inside the head")),
    ((0, 0), LossMemory(kind="full", why="trl before 1.15 holds the whole logits of every pass")),
)
# trl up to 0.24 upcast through its own prepare step (removed in trl pull request 4457).
_TRL_LAST_UPCASTING = (0, 24)

# trl 1.16 dpo_config.py and kto_config.py: their loss types, the default first.
_DPO_LOSSES = (
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
)  # fmt: skip
_KTO_LOSSES = ("kto", "apo_zero_unpaired")
_PREFERENCE_OPTIONS = (
    "activation_offloading", "prompt_len", "completion_len", "max_length", "loss_type", "beta",
    "precompute_ref_log_probs",
)  # fmt: skip


# What every trainer of trl does with a model on one card, as transformers' Trainer below it does (trl 1.16).
_TRL: dict[str, Any] = {
    "packages": ("trl", "datasets"),
    "versioned_by": "trl",
    "autocast": True,
    "adapters_bfloat16": True,
    "keeps_outputs": False,
    "micro_batches_stay": False,
    "embeddings_32bit": True,
    "clips_gradients": True,
    "frees_cache_first": True,
}


def _preference_trainer(name: str, **own: Any) -> TrainerRow:
    """What trl's DPOTrainer and KTOTrainer share (trl 1.16): SFTTrainer's casts and head, no dropout, own adapters."""
    usual: dict[str, Any] = {
        **_TRL,
        "modelled_since": (1, 15),
        "scores_completions": True,
        "losses": _TRL_PREFERENCE_LOSSES,
        "automatic": False,
        "drops_dropout": True,
        "adds_adapters": True,
        "own_options": _PREFERENCE_OPTIONS,
        "launches": True,
        "prepares_rows": True,
        "row_shapes": ("preference",),
    }
    return TrainerRow(name=name, **(usual | own))


# Kernels that a model's own loss can be exchanged for.
_OF_MODELS = ("cut-cross-entropy", "liger-fused")

_ONLINE_OPTIONS = (
    "prompt_len", "completion_len", "beta", "num_generations", "num_iterations", "steps_per_generation", "vllm",
    "vllm_gpu_memory_utilization", "vllm_enable_sleep_mode",
)  # fmt: skip
# What trl's online trainers share: SFT's casts and its head in tiles, completions that they generate.
_TRL_ONLINE: dict[str, Any] = {
    **_TRL,
    "modelled_since": (1, 16),
    "losses": (((1, 16), _TRL_LOSSES[0][1]), ((0, 0), _TRL_LOSSES[-1][1])),
    "automatic": False,
    "usual": "completions that it generates itself, with rewards",
    "batch_unit": "completions",
    "scores_completions": True,
    "adds_adapters": True,
    "launches": True,
    "prepares_rows": True,
    "row_shapes": ("prompts",),
}

# Unsloth on a machine without a card, with layers as they are written, and nothing asked of the network.
_UNSLOTH_WITHOUT_CARD: Mapping[str, str] = {
    "UNSLOTH_ALLOW_CPU": "1",
    "UNSLOTH_BLOCK_COMPILE": "0",
    "UNSLOTH_DISABLE_PINNED_MEMORY": "1",
    "UNSLOTH_DISABLE_STATISTICS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
}
# unsloth 2026.10.9: its loader stores NF4 with double quantisation, its checkpoints go to the host by themselves.
_OF_UNSLOTH: Mapping[str, tuple[Any, ...]] = {
    "method": ("qlora", "lora"),
    "quant": ("nf4", "none"),
    "double_quant": (True,),
    "attention": ("sdpa", "flash_attention_2"),
    "upcast": (False,),
    "liger": (False,),
    "checkpoint_every": (None,),
    "checkpoint_offload": (False,),
    "modules_to_save": (None,),
    "expert_quant": (None, "nf4"),  # unsloth_zoo temporary_patches: its quantizer takes fused experts too
}

# The first row is the default; rows are tried in this order where nobody names a trainer.
TRAINER_ROWS: dict[str, TrainerRow] = {
    row.name: row
    for row in (
        # trl 1.16 sft_trainer.py: casts LoRA weights of a quantised base; bf16 defaults to True.
        TrainerRow(
            name="trl-sft",
            **_TRL,
            losses=_TRL_LOSSES,
            usual="the usual; its loss needs no whole logits",
            instead="hf-trainer",
            last_upcasting=_TRL_LAST_UPCASTING,
            shards=True,
            loss_beside_head=True,
            own_options=("packing", "activation_offloading"),
            launches=True,
            prepares_rows=True,
            formats=("trl",),
            other_names=("trl", "sft", "sfttrainer"),
        ),
        TrainerRow(
            name="hf-trainer",
            losses=_model_loss("hf-trainer"),
            classifies=True,
            usual="transformers' own",
            loss_kernels=_OF_MODELS,
            autocast=True,
            adapters_bfloat16=False,
            keeps_outputs=False,
            micro_batches_stay=False,
            embeddings_32bit=True,
            clips_gradients=True,
            frees_cache_first=True,  # Trainer._inner_training_loop begins with accelerator.free_memory()
            shards=True,
            launches=True,
            formats=("axolotl", "llama-factory"),
            other_names=("hf", "transformers", "trainer"),
        ),
        TrainerRow(
            name="loop",
            losses=_model_loss("loop"),
            usual="the plain PyTorch loop",
            loss_kernels=_OF_MODELS,
            autocast=False,
            adapters_bfloat16=False,
            keeps_outputs=True,
            micro_batches_stay=True,
            embeddings_32bit=False,
            clips_gradients=False,
            frees_cache_first=False,
            launches=False,
            other_names=("pytorch", "torch"),
        ),
        _preference_trainer(
            "trl-dpo",
            trl_class="DPO",
            stages={"axolotl": "dpo", "llama-factory": "dpo"},
            passes=(POLICY, REFERENCE),
            sequences_per_row=2,
            batch_unit="pairs",
            loss_types=_DPO_LOSSES,
            usual="pairs of completions against the model without its adapters",
            other_names=("dpo", "dpotrainer"),
        ),
        _preference_trainer(
            "trl-kto",
            trl_class="KTO",
            stages={"axolotl": "kto", "llama-factory": "kto"},
            passes=(DIVERGENCE, POLICY, REFERENCE, REFERENCE),
            batch_unit="completions",
            loss_types=_KTO_LOSSES,
            without_divergence=("apo_zero_unpaired",),
            row_shapes=("unpaired", "preference"),
            usual="completions with a label against the model without its adapters",
            other_names=("kto", "ktotrainer"),
        ),
        # trl 1.16 experimental/orpo: no reference, whole logits, a quantised base prepared as PEFT does.
        _preference_trainer(
            "trl-orpo",
            trl_class="ORPO",
            trl_module="trl.experimental.orpo",
            stages={"axolotl": "orpo", "llama-factory": "orpo"},
            modelled_since=(1, 16),
            sequences_per_row=2,
            pads_sides=True,
            batch_unit="pairs",
            losses=(((0, 0), LossMemory(kind="full", why="ORPO holds the whole logits, several times over")),),
            closed_forms=False,
            adapters_bfloat16=False,
            prepares_quantized=True,
            own_options=("prompt_len", "completion_len", "max_length", "beta"),
            usual="pairs of completions in one loss, without a reference",
            other_names=("orpo", "orpotrainer"),
        ),
        # trl 1.16 reward_trainer.py: a classifier with one label, whose whole rows are scored once.
        _preference_trainer(
            "trl-reward",
            trl_class="Reward",
            stages={"llama-factory": "rm"},
            modelled_since=(1, 7),
            sequences_per_row=2,
            batch_unit="pairs",
            scores_completions=False,
            score_labels=1,
            losses=(((0, 0), LossMemory(kind="full", why="a score for each token, of which the last one counts")),),
            own_options=("activation_offloading", "prompt_len", "completion_len", "max_length"),
            usual="a score for each of two texts, the better one higher",
            other_names=("reward", "rewardtrainer"),
        ),
        # trl 1.16 grpo_trainer.py, grpo_config.py
        TrainerRow(
            name="trl-grpo",
            **_TRL_ONLINE,
            trl_class="GRPO",
            own_options=(*_ONLINE_OPTIONS, "loss_type", "scale_rewards"),
            loss_types=("dapo", "grpo", "bnpo", "dr_grpo", "cispo", "sapo", "vespo", "luspo"),
            generation=Generation(completion_len=512, num_generations=8, beta=0.0, always_scores=False),
            other_names=("grpo", "grpotrainer"),
        ),
        # trl 1.16 rloo_trainer.py, rloo_config.py
        TrainerRow(
            name="trl-rloo",
            **_TRL_ONLINE,
            trl_class="RLOO",
            own_options=_ONLINE_OPTIONS,
            generation=Generation(completion_len=512, num_generations=2, beta=0.05, always_scores=True),
            other_names=("rloo", "rlootrainer"),
        ),
        # unsloth 2026.10.9 and unsloth_zoo 2026.10.9: prepare_model_for_training in training_utils.py (16-bit weights
        # stay as they are, adapters become float32), fused_losses/fused_linear.py (logits of some rows at a time),
        # models/rl.py (its SFTTrainer is trl's, without trl's casts and with the model's own loss).
        TrainerRow(
            name="unsloth",
            packages=("unsloth", "unsloth_zoo", "trl", "datasets"),
            # As Liger's: a chunk's logits become their gradient in place and are multiplied with the head at once.
            losses=(((0, 0), LossMemory(kind="liger", why="Unsloth holds the logits of some rows at a time")),),
            automatic=False,
            closed_forms=False,
            default_dropout=0.0,
            usual="its own kernels, loss and checkpointing",
            autocast=True,
            adapters_bfloat16=False,
            keeps_outputs=False,
            micro_batches_stay=False,
            embeddings_32bit=True,
            clips_gradients=True,
            frees_cache_first=True,
            first_step_differs=True,
            offloads_inputs=True,
            multiplies_at_import=True,  # live bytes after loading on an H200 are its workspace more, in all of 32 runs
            alloc_conf="expandable_segments:True",  # unsloth_zoo/__init__.py, but on Windows, WSL and Tegra
            frees_cache_before_backward=True,  # models/rl.py: torch_empty_cache_steps is 250 unless one is given
            compiles_layers=True,
            joins_rows=True,
            measured=False,
            patches_libraries=True,
            reads_saved_folders=True,
            quantizes_experts=True,
            trace_environment=_UNSLOTH_WITHOUT_CARD,
            traced_types=("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2"),  # models/loader.py
            only=_OF_UNSLOTH,
            own_options=("packing",),
            launches=True,
            prepares_rows=True,
            switches={"llama-factory": "use_unsloth"},
            other_names=("fastlanguagemodel", "unslothsfttrainer"),
        ),
    )
}
