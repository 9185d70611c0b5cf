"""Known error lines of dtypes that do not go together."""

from __future__ import annotations

from qlora_planner.measure.symptoms.row import Symptom

ROWS = (
    Symptom(
        "fp16-unscale-bf16",
        r"_amp_foreach_non_finite_check_and_unscale_cuda",
        "fp16 training with bf16 gradients: trl-sft casts LoRA to bf16 on 4-bit models, and fp16's "
        "GradScaler cannot unscale that",
        "bf16=True with --compute-dtype bfloat16; on a card without bf16, --trainer hf-trainer",
        "https://github.com/huggingface/trl/issues/4901",
    ),
    Symptom(
        "fp16-weights",
        r"Attempting to unscale FP16 gradients",
        "trainable parameters are themselves fp16 (a model loaded in float16 with modules_to_save, or no PEFT)",
        "keep trainable parameters in float32, or load and train in bf16",
        "https://github.com/huggingface/peft/issues/341",
    ),
    Symptom(
        "dtype-mismatch",
        r"mat1 and mat2 (?:must|to) have the same dtype|expected scalar type (?:Half|BFloat16|Float) but found",
        "a layer in one dtype meets an input in another: an upcast model used outside autocast, as in "
        "generate() within a callback, or compute and training dtype that differ",
        "run it under torch.autocast('cuda', dtype=torch.bfloat16), and keep --compute-dtype and bf16/fp16 the same",
        "https://github.com/huggingface/peft/issues/1515",
    ),
)
