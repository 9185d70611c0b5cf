"""The recipes that structures of the catalogue are traced for: each alone beside the default, and the usual pairs."""

from __future__ import annotations

from qlora_planner.spec.run import RunConfig

# The default, and what others are made of.
_QLORA = RunConfig()
_HF = RunConfig(trainer="hf-trainer")
_LORA = RunConfig(method="lora")

# By name, in the order in which they are traced; those that are marked are for cards before compute capability 8.0.
RECIPES: dict[str, tuple[RunConfig, bool]] = {
    "default": (_QLORA, False),
    "hf": (_HF, False),
    "kept": (_QLORA.with_(gradient_checkpointing=False), False),
    "hf-kept": (_HF.with_(gradient_checkpointing=False), False),
    "t4-hf": (_HF, True),
    "lora": (_LORA, False),
    "lora-kept": (_LORA.with_(gradient_checkpointing=False), False),
    "t4": (_QLORA, True),
    "padded": (_QLORA.with_(padding=True), False),
    "hf-padded": (_HF.with_(padding=True), False),
    "plain": (_QLORA.with_(lora_dropout=0.0), False),
    "plain-kept": (_QLORA.with_(lora_dropout=0.0, gradient_checkpointing=False), False),
    "attention": (_QLORA.with_(target_modules="attention"), False),
    "hf-attention": (_HF.with_(target_modules="attention"), False),
    "eager": (_QLORA.with_(attention="eager"), False),
    "eager-kept": (_QLORA.with_(attention="eager", gradient_checkpointing=False), False),
    "not-upcast": (_QLORA.with_(upcast=False), False),
    "hf-not-upcast": (_HF.with_(upcast=False), False),
    "int8": (_LORA.with_(quant="int8"), False),
    "hf-int8": (_HF.with_(method="lora", quant="int8"), False),
    "hf-lora": (_HF.with_(method="lora"), False),
    "t4-hf-eager": (_HF.with_(attention="eager"), True),
    "flat": (_QLORA.with_(double_quant=False), False),
    "fp4": (_QLORA.with_(quant="fp4"), False),
    "packed": (_QLORA.with_(packing=True), False),
    "reentrant": (_QLORA.with_(use_reentrant=True), False),
    "float16": (_QLORA.with_(compute_dtype="float16"), False),
    "hf-float16": (_HF.with_(compute_dtype="float16"), False),
    "full": (_QLORA.with_(method="full"), False),
    "loop": (_QLORA.with_(trainer="loop"), False),
    "loop-plain": (_QLORA.with_(trainer="loop", lora_dropout=0.0), False),
    "hf-liger": (_HF.with_(liger=True), False),
    "liger": (_QLORA.with_(liger=True), False),
}
