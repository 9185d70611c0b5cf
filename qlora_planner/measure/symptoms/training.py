"""Known error lines of steps: losses, devices, checkpoints."""

from __future__ import annotations

from qlora_planner.measure.symptoms.row import TORCH, TRANSFORMERS, Symptom

ROWS = (
    Symptom(
        "loss-zero-nan",
        r"'loss': '?(?:0\.0|nan)'?\b[^}\n]{0,80}'grad_norm': '?(?:nan|inf|0\.0)|'grad_norm': '?nan|\bloss "
        r"(?:is|becomes|became|turned|=|:) ?nan\b|\bnan loss\b",
        "most likely the run diverged or overflowed in float16; else every label is masked (-100), so that "
        "the loss is 0 and has no gradient",
        "bf16=True with --compute-dtype bfloat16, a lower learning rate (1e-4), max_grad_norm 0.3; print "
        "one batch's labels: not all may be -100",
        "https://github.com/huggingface/transformers/issues/35407",
        (
            "transformers",
            "trl",
        ),
    ),
    Symptom(
        "loss-flat",
        r"\bloss (?!scale)[^\n]{0,30}?(?:not|n't|never|isnt|doesnt)[^\n]{0,20}?"
        r"(?:decreas|going down|goes? down|improv|chang|converg|drop)"
        r"|loss (?:is |stays |remains |keeps )?(?:stuck|constant|flat|increasing|the same|plateau)",
        "most likely the adapters get no gradient (frozen input under reentrant checkpointing, adapters "
        "not trainable), or the learning rate is one for full fine-tuning (LoRA wants 1e-4 to 2e-4, ten "
        "times more); else labels are masked, or the template has no end token",
        "model.print_trainable_parameters() and grad_norm in the log must not be 0; "
        "gradient_checkpointing_kwargs={'use_reentrant': False}; learning_rate=2e-4",
        "https://thinkingmachines.ai/blog/lora/",
        (
            "peft",
            "trl",
        ),
    ),
    Symptom(
        "never-stops",
        r"(?:does not|doesn'?t|never|won'?t) stop (?:generating|talking)|keeps? "
        r"(?:generating|repeating|talking)|endless(?:ly)? generat|generates? (?:endlessly|forever|until max)",
        "the model never learnt an end: the pad token is the end token and is masked in the labels, or the "
        "template writes none",
        "a pad token of its own; see that the last label of a row is the end token; eos_token='<|im_end|>' "
        "in SFTConfig for ChatML",
        "https://github.com/huggingface/trl/issues/3318",
        ("trl",),
    ),
    Symptom(
        "device-assert",
        r"device-side assert triggered|index out of range in self|srcIndex < "
        r"srcSelectDimSize|vectorized_gather_kernel|Assertion `t >= 0 && t < "
        r"n_classes`|IndexKernel\.cu[^\n]{0,120}index out of bounds",
        "most likely a token id beyond the vocabulary: tokens or a pad token were added and the embedding "
        "was not resized; else a label out of range, or a tokenizer of another model",
        "model.resize_token_embeddings(len(tokenizer)) before the adapters; CUDA_LAUNCH_BLOCKING=1, or one "
        "batch on the CPU, names the place",
        "https://github.com/huggingface/transformers/issues/6263",
    ),
    Symptom(
        "two-cards",
        r"at least two devices, cuda:\d{1,2} and cuda:\d{1,2}|on different "
        r"devices?[^\n]{0,40}cuda:\d[^\n]{0,20}cuda:\d",
        "device_map='auto' spread the model over the cards, and a tensor (labels, a cache, an adapter) is "
        "on another than its layer",
        "device_map={'': 0} puts it on one card; for all cards start a process a card with device_map={'': "
        "LOCAL_RANK}; CUDA_VISIBLE_DEVICES=0 hides the others",
        "https://huggingface.co/docs/accelerate/usage_guides/big_modeling",
        (
            "accelerate",
            "transformers",
        ),
    ),
    Symptom(
        "cpu-and-card",
        r"Expected all tensors to be on the same device(?![^\n]{0,80}cuda:\d{1,2} and cuda)",
        "a part of the model is on the host (offloaded for want of memory, or made after the model was "
        "placed), or inputs were not moved to it",
        "inputs.to(model.device); device_map={'': 0}; model.hf_device_map shows what is where",
        f"{TORCH}/torch/_subclasses/fake_tensor.py",
        ("accelerate",),
    ),
    Symptom(
        "use-cache",
        r"`?use_cache=True`? is incompatible with gradient checkpointing",
        "harmless: the cache of keys and values is for generating, and checkpointing turns it off",
        "model.config.use_cache = False silences it",
        f"{TRANSFORMERS}/modeling_layers.py",
    ),
    Symptom(
        "checkpoint-metadata",
        r"Recomputed values for the following tensors have different metadata|A different number of tensors "
        r"was saved during the original forward",
        "checkpointing's second forward differs from the first: autocast, dropout of a random routing, a "
        "hook or compiled code",
        "pip install -U torch transformers peft; use_reentrant=True tolerates it; no torch_compile",
        f"{TORCH}/torch/utils/checkpoint.py",
        (
            "torch",
            "transformers",
        ),
    ),
    Symptom(
        "backward-twice",
        r"Trying to backward through the graph a second time|modified by an inplace operation",
        "a tensor of the step is used again or changed in place: a loss kept over steps, or a patched kernel",
        "detach what is kept (loss.item()); turn liger or unsloth kernels off to find it",
        "https://docs.pytorch.org/docs/stable/notes/autograd.html",
    ),
    Symptom(
        "resume-missing",
        r"Can'?t find a valid checkpoint at|No valid checkpoint found in output directory",
        "the folder has no checkpoint-N that holds weights and trainer_state.json",
        "resume_from_checkpoint='out/checkpoint-N'; qlora-plan train --resume for runs of its own",
        f"{TRANSFORMERS}/trainer.py",
    ),
    Symptom(
        "no-eval-data",
        r"You have set `?args\.eval_strategy`? to|evaluation requires an eval_dataset",
        "an evaluation is asked for and there are no rows for it",
        "eval_dataset=..., or eval_strategy='no'",
        f"{TRANSFORMERS}/trainer.py",
    ),
    Symptom(
        "illegal-access",
        r"illegal memory access was encountered|unspecified launch failure|misaligned address",
        "a kernel went out of bounds: mostly a library that does not suit this card or torch (flash-attn, "
        "xformers, bitsandbytes, triton), else ids or lengths beyond their limits, else an unstable card",
        "CUDA_LAUNCH_BLOCKING=1 names the kernel; update that library; lower the card's clock or power "
        "limit when it comes at random",
        "https://docs.pytorch.org/docs/stable/notes/cuda.html#asynchronous-execution",
        (
            "torch",
            "bitsandbytes",
        ),
    ),
    Symptom(
        "segfault",
        r"Segmentation fault|\bSIGSEGV\b|Signal 11\b|exitcode ?: ?-11\b",
        "native code crashed: libraries of different builds in one process are the usual cause",
        "python -X faulthandler train.py names the place; a fresh environment with one pip install for all",
        "https://docs.python.org/3/library/faulthandler.html",
        ("torch",),
    ),
)
