"""The recipes that structures of the catalogue are traced for: each alone beside the default, and the usual pairs."""

from __future__ import annotations

from typing import Any

from qlora_planner.spec.run import RunConfig

# The default, and what others are made of. `upcast` is what prepare_model_for_kbit_training does.
_QLORA = RunConfig()
_HF = RunConfig(trainer="hf-trainer")
_LORA = RunConfig(method="lora")
_UPCAST, _HF_UPCAST = _QLORA.with_(upcast=True), _HF.with_(upcast=True)
_KEPT = {"gradient_checkpointing": False}
_TRL_1_7 = {"trl": "1.10.0"}  # whose loss trl has from 1.7 to 1.13
_DPO, _KTO, _ORPO, _REWARD, _GRPO, _RLOO = (
    RunConfig(trainer=f"trl-{name}") for name in ("dpo", "kto", "orpo", "reward", "grpo", "rloo")
)
_CLASSIFY = RunConfig(task="classification")
_EVEN = {"padding": False}  # rows of one length; several rows are padded by default
_PLAIN: dict[str, Any] = {"lora_dropout": 0.0}
_FLASH: dict[str, Any] = {"attention": "flash_attention_2"}
_PACKED: dict[str, Any] = {**_FLASH, "packing": True}  # as axolotl and trl ask for it: rows that see no other
_HELD_OUT: dict[str, Any] = {"eval_batch_size": 1}  # an evaluation alone, of as many rows as a batch
_QV: dict[str, Any] = {"target_modules": "q_proj,v_proj"}

_UNGATED = "down_proj,k_proj,o_proj,q_proj,up_proj,v_proj"  # as axolotl's examples for Mistral list them

_CUT = _HF.with_(loss_kernel="cut-cross-entropy")  # axolotl's plugin, with transformers' trainer
_FUSED = _HF.with_(loss_kernel="liger-fused")
_ATTENTION: dict[str, Any] = {"target_modules": "attention"}

_SAVED: dict[str, Any] = {"modules_to_save": "embed_tokens,lm_head"}  # as for tokens that are new

# By name, in the order in which they are traced; those that are marked are for cards before compute capability 8.0.
RECIPES: dict[str, tuple[RunConfig, bool]] = {
    "default": (_QLORA, False),
    "hf": (_HF, False),
    "upcast": (_UPCAST, False),
    "upcast-even": (_UPCAST.with_(**_EVEN), False),
    "kept": (_QLORA.with_(**_KEPT), False),
    "hf-kept": (_HF.with_(**_KEPT), False),
    "hf-upcast": (_HF_UPCAST, False),
    "hf-upcast-even": (_HF_UPCAST.with_(**_EVEN), False),
    "upcast-kept": (_UPCAST.with_(**_KEPT), False),
    "upcast-kept-even": (_UPCAST.with_(**_KEPT, **_EVEN), False),
    "even": (_QLORA.with_(**_EVEN), False),
    "hf-even": (_HF.with_(**_EVEN), False),
    "t4-hf": (_HF, True),
    "lora": (_LORA, False),
    "kept-even": (_QLORA.with_(**_KEPT, **_EVEN), False),
    "hf-upcast-kept": (_HF_UPCAST.with_(**_KEPT), False),
    "hf-upcast-kept-even": (_HF_UPCAST.with_(**_KEPT, **_EVEN), False),
    "hf-kept-even": (_HF.with_(**_KEPT, **_EVEN), False),
    "lora-even": (_LORA.with_(**_EVEN), False),
    "lora-kept": (_LORA.with_(**_KEPT), False),
    "upcast-eager": (_UPCAST.with_(attention="eager"), False),
    "upcast-flat": (_UPCAST.with_(double_quant=False), False),
    "upcast-int8": (_UPCAST.with_(quant="int8"), False),
    "hf-upcast-int8": (_HF_UPCAST.with_(quant="int8"), False),
    "upcast-reentrant": (_UPCAST.with_(use_reentrant=True), False),
    "upcast-dora": (_UPCAST.with_(dora=True), False),
    "upcast-plain-kept-even": (_UPCAST.with_(lora_dropout=0.0, **_KEPT, **_EVEN), False),
    "plain": (_QLORA.with_(lora_dropout=0.0), False),
    "loop-plain": (_QLORA.with_(trainer="loop", lora_dropout=0.0), False),
    "loop-upcast-plain-even": (_UPCAST.with_(trainer="loop", lora_dropout=0.0, **_EVEN), False),
    "attention": (_QLORA.with_(target_modules="attention"), False),
    "upcast-attention": (_UPCAST.with_(target_modules="attention"), False),
    "eager": (_QLORA.with_(attention="eager"), False),
    "upcast-eager-even": (_UPCAST.with_(attention="eager", **_EVEN), False),
    "upcast-eager-kept": (_UPCAST.with_(attention="eager", **_KEPT), False),
    "full": (_QLORA.with_(method="full"), False),
    "hf-upcast-liger": (_HF_UPCAST.with_(liger=True), False),
    "hf-upcast-float16": (_HF_UPCAST.with_(compute_dtype="float16"), False),
    "lora-float16": (_LORA.with_(compute_dtype="float16"), False),
    "hf-liger": (_HF.with_(liger=True), False),
    "liger": (_QLORA.with_(liger=True), False),
    "int8": (_QLORA.with_(quant="int8"), False),
    "hf-int8": (_HF.with_(quant="int8"), False),
    "flat": (_QLORA.with_(double_quant=False), False),
    "hf-attention": (_HF.with_(target_modules="attention"), False),
    "hf-lora": (_HF.with_(method="lora"), False),
    "packed": (_QLORA.with_(packing=True), False),
    "plain-kept": (_QLORA.with_(lora_dropout=0.0, **_KEPT), False),
    "dora": (_QLORA.with_(dora=True), False),
    "reentrant": (_QLORA.with_(use_reentrant=True), False),
    "hf-float16": (_HF.with_(compute_dtype="float16"), False),
    "t4-hf-eager": (_HF.with_(attention="eager"), True),
    "loop": (_QLORA.with_(trainer="loop"), False),
    "trl-1.7": (_QLORA.with_(stack=_TRL_1_7), False),
    "trl-1.7-upcast": (_UPCAST.with_(stack=_TRL_1_7), False),
    "eager-kept": (_QLORA.with_(attention="eager", **_KEPT), False),
    "hf-plain": (_HF.with_(**_PLAIN), False),
    "flash-packed": (_QLORA.with_(**_PACKED), False),
    "flash-packed-plain": (_QLORA.with_(**_PACKED, **_PLAIN), False),
    "hf-flash": (_HF.with_(**_FLASH), False),
    "hf-flash-even": (_HF.with_(**_FLASH, **_EVEN), False),
    "flash": (_QLORA.with_(**_FLASH), False),
    "flash-plain": (_QLORA.with_(**_FLASH, **_PLAIN), False),
    "hf-flash-plain": (_HF.with_(**_FLASH, **_PLAIN), False),
    "attention-plain": (_QLORA.with_(target_modules="attention", **_PLAIN), False),
    "qv": (_QLORA.with_(**_QV), False),
    "flash-packed-attention-plain": (_QLORA.with_(target_modules="attention", **_PACKED, **_PLAIN), False),
    "packed-plain": (_QLORA.with_(packing=True, **_PLAIN), False),
    "lora-plain": (_LORA.with_(**_PLAIN), False),
    "hf-lora-plain": (_HF.with_(method="lora", **_PLAIN), False),
    "hf-attention-plain": (_HF.with_(target_modules="attention", **_PLAIN), False),
    "hf-qv": (_HF.with_(**_QV), False),
    "qv-plain": (_QLORA.with_(**_QV, **_PLAIN), False),
    "hf-plain-even": (_HF.with_(**_PLAIN, **_EVEN), False),
    "plain-even": (_QLORA.with_(**_PLAIN, **_EVEN), False),
    "hf-flash-plain-even": (_HF.with_(**_FLASH, **_PLAIN, **_EVEN), False),
    "flash-packed-kept": (_QLORA.with_(**_PACKED, **_KEPT), False),
    "hf-plain-kept": (_HF.with_(**_PLAIN, **_KEPT), False),
    "flat-plain": (_QLORA.with_(double_quant=False, **_PLAIN), False),
    "hf-flat-plain": (_HF.with_(double_quant=False, **_PLAIN), False),
    "hf-lora-flash": (_HF.with_(method="lora", **_FLASH), False),
    "lora-flash-packed": (_LORA.with_(**_PACKED), False),
    "hf-flash-attention-plain": (_HF.with_(target_modules="attention", **_FLASH, **_PLAIN), False),
    "hf-flash-attention-plain-kept": (_HF.with_(target_modules="attention", **_FLASH, **_PLAIN, **_KEPT), False),
    "flash-packed-ungated-plain": (_QLORA.with_(target_modules=_UNGATED, **_PACKED, **_PLAIN), False),
    "attention-kept": (_QLORA.with_(target_modules="attention", **_KEPT), False),
    "flat-kept": (_QLORA.with_(double_quant=False, **_KEPT), False),
    "int8-kept": (_QLORA.with_(quant="int8", **_KEPT), False),
    "save": (_QLORA.with_(**_SAVED), False),
    "hf-save": (_HF.with_(**_SAVED), False),
    "flash-packed-save": (_QLORA.with_(**_SAVED, **_PACKED), False),
    "hf-flash-attention-plain-kept-save": (
        _HF.with_(target_modules="attention", **_SAVED, **_FLASH, **_PLAIN, **_KEPT),
        False,
    ),
    "flash-packed-qv": (_QLORA.with_(**_QV, **_PACKED), False),
    "flash-packed-upcast": (_UPCAST.with_(**_PACKED), False),
    "packed-kept": (_QLORA.with_(packing=True, **_KEPT), False),
    "hf-flash-upcast": (_HF_UPCAST.with_(**_FLASH), False),
    "hf-flash-kept": (_HF.with_(**_FLASH, **_KEPT), False),
    "eval": (_QLORA.with_(**_HELD_OUT), False),
    "hf-eval": (_HF.with_(**_HELD_OUT), False),
    "hf-flash-eval": (_HF.with_(**_FLASH, **_HELD_OUT), False),
    "flash-packed-eval": (_QLORA.with_(**_PACKED, **_HELD_OUT), False),
    "hf-eval-even": (_HF.with_(**_EVEN, **_HELD_OUT), False),
    "hf-flash-eval-even": (_HF.with_(**_FLASH, **_EVEN, **_HELD_OUT), False),
    "flash-eval": (_QLORA.with_(**_FLASH, **_HELD_OUT), False),
    "eval-even": (_QLORA.with_(**_EVEN, **_HELD_OUT), False),
    "packed-eval": (_QLORA.with_(packing=True, **_HELD_OUT), False),
    "flash-packed-attention-eval": (_QLORA.with_(target_modules="attention", **_PACKED, **_HELD_OUT), False),
    "lora-eval": (_LORA.with_(**_HELD_OUT), False),
    "hf-lora-eval": (_HF.with_(method="lora", **_HELD_OUT), False),
    "t4-hf-plain": (_HF.with_(**_PLAIN), True),
    "t4-hf-kept": (_HF.with_(**_KEPT), True),
    "t4-hf-upcast": (_HF_UPCAST, True),
    "t4-hf-lora": (_HF.with_(method="lora"), True),
    "t4-hf-attention": (_HF.with_(**_ATTENTION), True),
    "t4-hf-qv": (_HF.with_(**_QV), True),
    "cut": (_CUT, False),
    "cut-flash": (_CUT.with_(**_FLASH), False),
    "cut-flash-even": (_CUT.with_(**_FLASH, **_EVEN), False),
    "cut-flash-plain": (_CUT.with_(**_FLASH, **_PLAIN), False),
    "cut-flash-plain-even": (_CUT.with_(**_FLASH, **_PLAIN, **_EVEN), False),
    "cut-flash-attention-plain": (_CUT.with_(**_ATTENTION, **_FLASH, **_PLAIN), False),
    "cut-flash-attention-plain-even": (_CUT.with_(**_ATTENTION, **_FLASH, **_PLAIN, **_EVEN), False),
    "cut-flash-eval": (_CUT.with_(**_FLASH, **_HELD_OUT), False),
    "cut-flash-eval-even": (_CUT.with_(**_FLASH, **_EVEN, **_HELD_OUT), False),
    "cut-flash-attention-eval": (_CUT.with_(**_ATTENTION, **_FLASH, **_HELD_OUT), False),
    "cut-flash-attention-eval-even": (_CUT.with_(**_ATTENTION, **_FLASH, **_EVEN, **_HELD_OUT), False),
    "cut-plain": (_CUT.with_(**_PLAIN), False),
    "cut-even": (_CUT.with_(**_EVEN), False),
    "cut-flash-ungated-plain": (_CUT.with_(target_modules=_UNGATED, **_FLASH, **_PLAIN), False),
    "cut-flash-kept": (_CUT.with_(**_FLASH, **_KEPT), False),
    "cut-flash-kept-even": (_CUT.with_(**_FLASH, **_KEPT, **_EVEN), False),
    "cut-flash-attention-plain-kept": (_CUT.with_(**_ATTENTION, **_FLASH, **_PLAIN, **_KEPT), False),
    "cut-flash-attention-plain-kept-even": (_CUT.with_(**_ATTENTION, **_FLASH, **_PLAIN, **_KEPT, **_EVEN), False),
    "cut-flash-ungated-plain-kept": (_CUT.with_(target_modules=_UNGATED, **_FLASH, **_PLAIN, **_KEPT), False),
    "cut-eval": (_CUT.with_(**_HELD_OUT), False),
    "cut-eval-even": (_CUT.with_(**_EVEN, **_HELD_OUT), False),
    "cut-kept": (_CUT.with_(**_KEPT), False),
    "fused": (_FUSED, False),
    "fused-flash-plain": (_FUSED.with_(**_FLASH, **_PLAIN), False),
    "fused-flash-plain-even": (_FUSED.with_(**_FLASH, **_PLAIN, **_EVEN), False),
    "fused-flash": (_FUSED.with_(**_FLASH), False),
    "fused-even": (_FUSED.with_(**_EVEN), False),
    "fused-plain": (_FUSED.with_(**_PLAIN), False),
    "dpo": (_DPO, False),
    "grpo": (_GRPO, False),
    "kto": (_KTO, False),
    "reward": (_REWARD, False),
    "classify": (_CLASSIFY, False),
    "rloo": (_RLOO.with_(steps_per_generation=1), False),
    "dpo-kept": (_DPO.with_(**_KEPT), False),
    "dpo-lora": (_DPO.with_(method="lora"), False),
    "dpo-flat": (_DPO.with_(double_quant=False), False),
    "dpo-precomputed": (_DPO.with_(precompute_ref_log_probs=True), False),
    "grpo-kept": (_GRPO.with_(**_KEPT), False),
    "grpo-lora": (_GRPO.with_(method="lora"), False),
    "reward-kept": (_REWARD.with_(**_KEPT), False),
    "kto-kept": (_KTO.with_(**_KEPT), False),
    "classify-kept": (_CLASSIFY.with_(**_KEPT), False),
    "classify-lora": (_CLASSIFY.with_(method="lora"), False),
    "rloo-kept": (_RLOO.with_(steps_per_generation=1, **_KEPT), False),
    "orpo": (_ORPO, False),
    "orpo-kept": (_ORPO.with_(**_KEPT), False),
    "dpo-plain": (_DPO.with_(**_PLAIN), False),
    "grpo-plain": (_GRPO.with_(**_PLAIN), False),
    "reward-plain": (_REWARD.with_(**_PLAIN), False),
    "classify-plain": (_CLASSIFY.with_(**_PLAIN), False),
    "dpo-even": (_DPO.with_(**_EVEN), False),
    "grpo-even": (_GRPO.with_(**_EVEN), False),
    "kto-even": (_KTO.with_(**_EVEN), False),
    "orpo-even": (_ORPO.with_(**_EVEN), False),
    "reward-even": (_REWARD.with_(**_EVEN), False),
    "classify-even": (_CLASSIFY.with_(**_EVEN), False),
    "dpo-flash": (_DPO.with_(**_FLASH), False),
    "kto-flash": (_KTO.with_(**_FLASH), False),
    "orpo-flash": (_ORPO.with_(**_FLASH), False),
    "rloo-even": (_RLOO.with_(steps_per_generation=1, **_EVEN), False),
}


def batches_only(recipe: str) -> bool:
    """Whether a recipe differs from another only where several rows are trained at once."""
    return RECIPES[recipe][0].padding is False


# Those of a trainer that changes the libraries for whoever imports it, made by `tools.families.joined`.
_JOINED = RunConfig(trainer="unsloth")
JOINED: dict[str, RunConfig] = {
    "joined": _JOINED,
    "joined-kept": _JOINED.with_(**_KEPT),
    "joined-attention": _JOINED.with_(**_ATTENTION),
    "joined-flat": _JOINED.with_(double_quant=False),
}
