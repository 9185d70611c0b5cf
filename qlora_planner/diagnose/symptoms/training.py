"""Known error lines of steps: losses, devices, checkpoints."""

from __future__ import annotations

from qlora_planner.diagnose.symptoms.row import ACCELERATE, PEFT, TORCH, TRANSFORMERS, Symptom

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
        ("transformers", "trl"),
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
        ("peft", "trl"),
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
        ("accelerate", "transformers"),
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
        ("torch", "transformers"),
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
        ("torch", "bitsandbytes"),
    ),
    Symptom(
        "segfault",
        r"Segmentation fault|\bSIGSEGV\b|Signal 11\b|exitcode ?: ?-11\b",
        "native code crashed: libraries of different builds in one process are the usual cause",
        "python -X faulthandler train.py names the place; a fresh environment with one pip install for all",
        "https://docs.python.org/3/library/faulthandler.html",
        ("torch",),
    ),
    Symptom(
        "no-batch-size",
        r"No executable batch size found, reached zero",
        "auto_find_batch_size halved down to nothing: even one sample does not fit (or the error was "
        "another one, taken for a memory failure)",
        "qlora-plan MODEL --gpu CARD for a run that fits; auto_find_batch_size=False shows the first error",
        f"{ACCELERATE}/utils/memory.py",
        ("accelerate",),
    ),
    Symptom(
        "cuda-fork",
        r"Cannot re-initialize CUDA in forked subprocess|CUDA error: initialization error",
        "CUDA was used before worker processes were forked: dataset.map(num_proc=...) with a model, or a "
        "notebook_launcher after a cell that used the card",
        "restart the kernel and touch no card before; set_start_method('spawn'); num_proc=1",
        "https://docs.pytorch.org/docs/stable/notes/multiprocessing.html",
        ("torch",),
    ),
    Symptom(
        "compile-failed",
        r"BackendCompilerFailed|torch\._dynamo\.exc\.\w{1,40}|InductorError",
        "torch.compile could not compile a part: triton or a compiler is missing, or the code cannot be traced",
        "torch_compile=False; TORCHDYNAMO_DISABLE=1 to see that it is it; UNSLOTH_COMPILE_DISABLE=1 under Unsloth",
        "https://docs.pytorch.org/docs/stable/torch.compiler_troubleshooting.html",
        ("torch", "triton"),
    ),
    Symptom(
        "attention-kernel",
        r"cutlassF: no kernel found|No available kernel\. Aborting execution|No operator found for "
        r"`?memory_efficient_attention",
        "no attention kernel suits this dtype and card: float32 or bf16 on a card without it, an odd head "
        "size, or xformers built for another torch",
        "dtype=torch.float16 on cards below 8.0; attn_implementation='eager' to see; reinstall xformers for this torch",
        f"{TORCH}/aten/src/ATen/native/transformers/cuda/sdp_utils.cpp",
        ("torch", "xformers"),
    ),
    Symptom(
        "gradient-zero",
        r"grad_?norm (?:is|=|stays) ?0(?:\.0)?\b|training loss is (?:0|zero)\b|loss is (?:always "
        r")?(?:0|zero)(?:\.0)?\b",
        "most likely no label is left (all -100: masked prompts cut at max_length, wrong response "
        "markers), else the adapters get no gradient",
        "print one batch's labels; model.print_trainable_parameters(); "
        "gradient_checkpointing_kwargs={'use_reentrant': False}",
        "https://github.com/unslothai/unsloth/issues/2900",
        ("trl", "peft"),
    ),
    Symptom(
        "loss-spikes",
        r"loss (?:goes|went|turns|jumps) to (?:nan|inf)|loss (?:spikes?|explodes?|diverges?|jumps)\b",
        "most likely the learning rate is too high for this batch (LoRA: 1e-4 to 2e-4, less for rank 64 "
        "and more), else float16 overflows, else broken or very short rows",
        "a warmup of 3 %, max_grad_norm=0.3, bf16, half the learning rate; look at the rows of that step",
        "https://arxiv.org/abs/2305.14314",
        ("transformers",),
    ),
    Symptom(
        "no-effect",
        r"(?:same|identical) (?:output|answer|result)s? (?:as|to) (?:the )?base|adapter (?:has|had) no "
        r"effect|(?:fine-?tun|train)ing (?:has|had) no effect|outputs? are the same as (?:the )?base",
        "the adapter is not in what answers: the base was loaded, the adapter's keys did not match (see "
        "warnings), or too few steps at too low a rate",
        "PeftModel.from_pretrained(base, folder) and look for missing keys; model.active_adapters; "
        "qlora-plan generate RUN --prompt T",
        f"{PEFT}/peft_model.py",
        ("peft",),
    ),
    Symptom(
        "garbage",
        r"(?:output|generated text|model) is (?:garbage|gibberish|nonsense)|(?:garbage|gibberish) "
        r"(?:output|text|after)",
        "most likely another chat template than in training, or a merge into 4-bit weights; else a "
        "diverged run, or a base model asked as a chat",
        "the tokenizer's chat template of the run; merge into a 16-bit base (qlora-plan merge RUN); "
        "compare with the unmerged adapter",
        "https://huggingface.co/docs/transformers/chat_templating",
    ),
    Symptom(
        "slow",
        r"(?:gpu|GPU) util(?:ization|isation)? (?:is )?(?:low|0|zero)|training is (?:very |too |so "
        r")?slow|s/it is (?:very )?high",
        "most likely memory spills (Windows' shared memory, a CPU part of device_map='auto'), else float32 "
        "compute, eager attention, batch 1 with short rows, or a slow dataloader",
        "model.hf_device_map must hold no cpu; bnb_4bit_compute_dtype=bfloat16; sdpa; packing=True; "
        "qlora-plan verify MODEL measures this card",
        "https://huggingface.co/docs/transformers/perf_train_gpu_one",
        fallback=True,
    ),
    Symptom(
        "old-kernel",
        r"Detected kernel version [\d.]{1,12}, which is below the recommended minimum",
        "a warning of accelerate: Linux below 5.5 can hang several processes",
        "harmless on one card; else a newer kernel",
        f"{ACCELERATE}/utils/other.py",
        ("accelerate",),
    ),
)
