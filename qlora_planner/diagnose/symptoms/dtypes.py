"""Known error lines of dtypes that do not go together."""

from __future__ import annotations

from qlora_planner.diagnose.symptoms.row import ACCELERATE, TORCH, Symptom

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
    Symptom(
        "cpu-half",
        r"""\"\w{1,60}\" not implemented for '(?:Half|BFloat16)'""",
        "a half-precision model runs on the CPU, or an operation has no kernel in that dtype: mostly torch "
        "sees no card",
        "python -c 'import torch; print(torch.cuda.is_available())'; on the CPU use float32 or bfloat16",
        f"{TORCH}/aten/src/ATen/Dispatch.h",
        ("torch",),
    ),
    Symptom(
        "amp-device",
        r"fp16 mixed precision requires a GPU|bf16 mixed precision requires PyTorch",
        "fp16=True or bf16=True without a card that has it: torch sees none, or it is Apple's GPU or an old card",
        "qlora-plan doctor shows what torch sees; drop fp16 and bf16 on a CPU",
        f"{ACCELERATE}/accelerator.py",
        ("torch", "accelerate"),
    ),
    Symptom(
        "no-inf-checks",
        r"No inf checks were recorded for this optimizer",
        "fp16's GradScaler saw no gradient: nothing trainable took part in the loss",
        "model.print_trainable_parameters(); gradient_checkpointing_kwargs={'use_reentrant': False}",
        f"{TORCH}/torch/amp/grad_scaler.py",
    ),
    Symptom(
        "integer-gradient",
        r"Only Tensors of floating point(?: and complex)? dtype can require gradients",
        "a 4-bit or 8-bit weight was asked to train: requires_grad_ on the whole model, or modules_to_save "
        "names a quantised layer",
        "freeze the base; keep layers of modules_to_save out of quantisation (llm_int8_skip_modules)",
        "https://github.com/huggingface/peft/issues/1720",
        ("peft", "bitsandbytes"),
    ),
    Symptom(
        "logits-inf",
        r"probability tensor contains either `?inf`?",
        "generation met NaN or inf: float16 overflowed (Gemma, Qwen in fp16), the adapter diverged, or "
        "padding is on the wrong side",
        "dtype=torch.bfloat16; tokenizer.padding_side='left' for generating; do_sample=False shows whether "
        "it is sampling",
        "https://github.com/huggingface/transformers/issues/11267",
        ("transformers",),
    ),
)
