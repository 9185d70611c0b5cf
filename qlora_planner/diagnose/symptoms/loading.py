"""Known error lines of loading a model, its tokenizer and its attention."""

from __future__ import annotations

from qlora_planner.diagnose.symptoms.row import TORCH, TRANSFORMERS, Symptom

ROWS = (
    Symptom(
        "model-too-new",
        r"Transformers does not recognize this architecture|KeyError: "
        r"'(?:llama|qwen|gemma|phi|mistral|mixtral|deepseek|glm|gpt_oss|granite|cohere|smollm|olmo|falcon|"
        r"exaone|minimax|kimi|nemotron|ernie|hunyuan|lfm)\w{0,30}'|Tokenizer class \w{1,60} does not exist "
        r"or is not currently imported",
        "the installed transformers is older than the model; else the model is run by code in its own repository",
        "pip install -U transformers; trust_remote_code=True only for a repository whose code you have read",
        f"{TRANSFORMERS}/models/auto/configuration_auto.py",
        ("transformers",),
    ),
    Symptom(
        "rope-scaling",
        r"`?rope_scaling`? must be a dictionary with two fields",
        "transformers older than 4.43 does not know Llama 3.1's way of stretching positions",
        "pip install -U 'transformers>=4.43'",
        "https://github.com/huggingface/transformers/issues/32337",
        ("transformers",),
    ),
    Symptom(
        "tokenizers-too-old",
        r"data did not match any variant of untagged enum|Cannot instantiate this tokenizer from a slow "
        r"version",
        "tokenizer.json was written by a newer tokenizers than reads it; else sentencepiece is missing",
        "pip install -U transformers tokenizers sentencepiece",
        "https://github.com/huggingface/tokenizers/issues/1562",
        ("tokenizers", "transformers"),
    ),
    Symptom(
        "tokenizer-backend",
        r"Couldn'?t instantiate the backend tokenizer|requires the (?:SentencePiece|protobuf|tiktoken) "
        r"library",
        "the repository has only the slow form of its tokenizer, and the package that converts it is missing",
        "pip install sentencepiece protobuf tiktoken; restart the kernel",
        f"{TRANSFORMERS}/tokenization_utils_tokenizers.py",
        ("tokenizers",),
    ),
    Symptom(
        "already-quantised",
        r"is quantized with \w{1,40} but you are passing a \w{1,40} config",
        "the checkpoint is already quantised (GPTQ, AWQ, FP8, MXFP4, ...), and a second quantisation on top is refused",
        "drop quantization_config to train on it as stored, or name the 16-bit repository of the same model for QLoRA",
        f"{TRANSFORMERS}/quantizers/auto.py",
        ("transformers",),
    ),
    Symptom(
        "remote-code",
        r"contains custom code which must be executed|trust_remote_code=True",
        "the model is defined by Python files in its repository, which run with your rights",
        "read them first; then trust_remote_code=True with revision='<commit>', or take a model that "
        "transformers has itself",
        f"{TRANSFORMERS}/dynamic_module_utils.py",
    ),
    Symptom(
        "sdpa-missing",
        r"does not support an attention implementation through "
        r"torch\.nn\.functional\.scaled_dot_product_attention",
        "this class has no SDPA attention",
        "attn_implementation='eager' (--attention eager)",
        f"{TRANSFORMERS}/modeling_utils.py",
        ("transformers",),
    ),
    Symptom(
        "flash-attention-card",
        r"FlashAttention only supports Ampere GPUs or newer",
        "FlashAttention-2 needs compute capability 8.0 (RTX 30, A100 and newer); this card is older (T4, "
        "V100, RTX 20, GTX)",
        "attn_implementation='sdpa' (--attention sdpa), which is as lean in memory",
        "https://github.com/Dao-AILab/flash-attention#installation-and-features",
    ),
    Symptom(
        "flash-attention-missing",
        r"flash_?attn seems to be not installed|FlashAttention\d? has been toggled on, but it cannot be "
        r"used|No module named 'flash_attn",
        "the flash-attn package is not there, is older than 2.3.3, or torch sees no card",
        "attn_implementation='sdpa'; else a wheel for your torch and CUDA: pip install flash-attn --no-build-isolation",
        f"{TRANSFORMERS}/modeling_utils.py",
        ("flash-attn", "torch"),
    ),
    Symptom(
        "flash-attention-dtype",
        r"Flash ?Attention (?:2 )?only supports? (?:torch\.)?(?:float16|fp16)",
        "the model, or an input of attention, is float32: loaded without a dtype, or cast up by "
        "prepare_model_for_kbit_training outside autocast",
        "dtype=torch.bfloat16 in from_pretrained, bf16=True in the arguments",
        f"{TRANSFORMERS}/modeling_utils.py",
    ),
    Symptom(
        "flash-attention-symbol",
        r"flash_attn_2_cuda[^\n]{0,200}undefined symbol|undefined symbol: _ZN\d{1,4}(?:c10|at|torch)",
        "a compiled package was built against another torch than the installed one",
        "pip uninstall flash-attn, then reinstall it (or xformers, torchvision, vllm) for this torch",
        "https://github.com/Dao-AILab/flash-attention/issues/919",
        ("torch", "flash-attn"),
    ),
    Symptom(
        "to-quantised",
        r"`?\.(?:to|cuda|half|float)(?:\(\))?`? is not supported for (?:`?(?:4|8)-bit`?|quantized)|Calling "
        r"`cuda\(\)` is not supported for",
        "a 4-bit or 8-bit model is placed while it is loaded, and is not moved or cast afterwards",
        "drop .to(...), .cuda(), .half(); device_map={'': 0} in from_pretrained; pip install -U accelerate",
        f"{TRANSFORMERS}/modeling_utils.py",
        ("accelerate", "bitsandbytes"),
    ),
    Symptom(
        "meta-tensor",
        r"Cannot copy out of meta tensor",
        "part of the model was never loaded: it was left on the meta device, because memory did not "
        "suffice or a layer's name is not in the checkpoint",
        "device_map={'': 0}; see the warning about missing keys; qlora-plan estimate tells whether it fits",
        f"{TORCH}/torch/nn/modules/module.py",
    ),
    Symptom(
        "torch-load",
        r"Due to a serious vulnerability issue in `?torch\.load`?",
        "transformers reads .bin files only with torch 2.6 and newer",
        "pip install -U 'torch>=2.6', or a repository (or revision) that has safetensors",
        f"{TRANSFORMERS}/utils/import_utils.py",
        ("torch", "transformers"),
    ),
    Symptom(
        "weights-only",
        r"Weights only load failed",
        "torch 2.6 reads pickles of plain tensors alone; a file holds more, as rng_state.pth or "
        "scheduler.pt of an older run do",
        "pip install -U transformers accelerate; load with weights_only=False only what you wrote yourself",
        f"{TORCH}/torch/serialization.py",
        ("torch", "transformers"),
    ),
    Symptom(
        "safetensors-broken",
        r"Error while deserializing "
        r"header|(?:HeaderTooLarge|MetadataIncompleteBuffer|InvalidHeader\w{0,20}|"
        r"InvalidHeaderDeserialization)\b",
        "a weight file is cut off, or is a Git LFS pointer of 130 bytes in place of the weights",
        "delete it and fetch again: hf download MODEL --force-download; in a git clone, git lfs pull",
        "https://github.com/huggingface/safetensors/issues/362",
    ),
    Symptom(
        "weights-missing",
        r"no file named (?:pytorch_model\.bin|model\.safetensors)|does not appear to have a file named",
        "the folder holds no weights: an adapter's folder, a checkpoint that was not finished, a GGUF "
        "repository, or a wrong path",
        "name the folder with model*.safetensors; for an adapter, PeftModel.from_pretrained on its base",
        f"{TRANSFORMERS}/modeling_utils.py",
    ),
    Symptom(
        "unrecognised-model",
        r"Unrecognized model in |Should have a `?model_type`? key in its config\.json",
        "its config.json has no model_type: an adapter's folder, a GGUF repository, or a config of another tool",
        "name the base model; adapters are loaded with PeftModel",
        f"{TRANSFORMERS}/models/auto/configuration_auto.py",
        ("transformers",),
    ),
    Symptom(
        "tokenizer-missing",
        r"Can'?t load (?:tokenizer|the configuration of|image processor|feature extractor|the model) "
        r"for|Can'?t load the configuration of",
        "the folder or repository lacks that file (an adapter's or a checkpoint's folder), a local folder "
        "has the repository's name, or it cannot be fetched",
        "load the tokenizer from the base model; save it beside the adapter; hf auth login",
        f"{TRANSFORMERS}/utils/hub.py",
    ),
    Symptom(
        "modeling-packages",
        r"This modeling file requires the following packages",
        "the repository's own code imports packages that are not here",
        "install what it names; or load without trust_remote_code where transformers has the model",
        f"{TRANSFORMERS}/dynamic_module_utils.py",
        ("transformers",),
    ),
    Symptom(
        "quantiser-package",
        r"Loading (?:a|an) (?:AWQ|GPTQ|HQQ|AQLM|EETQ)|requires (?:AutoGPTQ|gptqmodel|autoawq|optimum)|GPU "
        r"is required to quantize or run quantize model",
        "the checkpoint is stored by another quantiser, whose package is missing (or which sees no card)",
        "for QLoRA name the 16-bit repository of the model; else pip install what it names (gptqmodel, "
        "compressed-tensors)",
        f"{TRANSFORMERS}/quantizers/auto.py",
        ("transformers",),
    ),
    Symptom(
        "fp8-card",
        r"FP8 quantized models? (?:is|are) only supported on GPUs|MXFP4 quantization requires|default to "
        r"dequantizing the model to bf16",
        "the checkpoint is in FP8 or MXFP4, which this card or this triton does not run; it is unpacked to "
        "16 bits, and then is two to four times as large",
        "a bf16 repository of the same model with --quant nf4; qlora-plan audit MODEL tells what it takes",
        f"{TRANSFORMERS}/quantizers",
        ("transformers", "triton"),
    ),
    Symptom(
        "head-missing",
        r"KeyError: '(?:base_model\.model\.)?(?:model\.)?lm_head\.weight'|model weights are not tied",
        "the head shares the embedding's weights and is not stored on its own",
        "model.tie_weights() after loading; pip install -U transformers accelerate",
        f"{TRANSFORMERS}/modeling_utils.py",
        ("transformers", "accelerate"),
    ),
    Symptom(
        "weights-not-initialised",
        r"Some weights of [^\n]{0,120}(?:were not initialized from|were not used when initializing)|newly "
        r"initialized: \[",
        "the class and the checkpoint differ: harmless for a new classification head, fatal for layers of "
        "the model itself",
        "the class of its config's architectures; for an adapter PeftModel.from_pretrained",
        f"{TRANSFORMERS}/modeling_utils.py",
        ("transformers",),
    ),
)
