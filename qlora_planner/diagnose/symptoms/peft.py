"""Known error lines of adapters: PEFT's own errors, and what keeps adapters from training."""

from __future__ import annotations

from qlora_planner.diagnose.symptoms.row import PEFT, TORCH, Symptom

ROWS = (
    Symptom(
        "no-adapters",
        r"fine-tuning on purely quantized models",
        "the 4-bit model has no adapters: its own weights cannot train",
        "get_peft_model before the trainer, or give the trainer a peft_config",
        "https://github.com/huggingface/transformers/blob/main/src/transformers/trainer_utils.py",
    ),
    Symptom(
        "no-grad",
        r"does not require grad and does not have a grad_fn|None of the inputs have requires_grad=True",
        "gradient checkpointing (reentrant) over a frozen embedding: no input asks for a gradient",
        "gradient_checkpointing_kwargs={'use_reentrant': False}, and model.enable_input_require_grads()",
        "https://github.com/huggingface/transformers/issues/42489",
    ),
    Symptom(
        "expert-dropout",
        r"ParamWrapper does not work with lora_dropout",
        "LoRA on fused experts takes no dropout",
        "--lora-dropout 0, or --target-modules attention",
        "https://github.com/huggingface/peft/blob/main/src/peft/tuners/lora/layer.py",
    ),
    Symptom(
        "target-modules",
        r"Target modules? [^\n]{0,400}not found in the base model",
        "those names belong to another architecture: no module of this model is called so (GPT-2 says "
        "c_attn, Falcon query_key_value, Phi-3 qkv_proj)",
        "qlora-plan audit MODEL lists its names; or target_modules='all-linear' (--target-modules all-linear)",
        f"{PEFT}/tuners/tuners_utils.py",
        ("peft",),
    ),
    Symptom(
        "target-kind",
        r"Target module [^\n]{0,400}is not supported\. Currently, only",
        "a name matches a module that is no linear layer, embedding or convolution: mostly a whole block "
        "(mlp, self_attn) or a vision tower's wrapper",
        "name the linear layers inside it (qlora-plan audit MODEL), or target_modules='all-linear'",
        f"{PEFT}/tuners/lora/model.py",
        ("peft",),
    ),
    Symptom(
        "target-unnamed",
        r"Please specify `?target_modules`?[^\n]{0,40} ?in `?peft_config`?",
        "PEFT has no default names for this architecture",
        "target_modules='all-linear'",
        f"{PEFT}/tuners/lora/model.py",
        ("peft",),
    ),
    Symptom(
        "adapter-twice",
        r"Already found a `?peft_config`? attribute in the model|passed a `?PeftModel`? instance together "
        r"with a `?peft_config`?",
        "the model has adapters already: get_peft_model was called, and the trainer got a peft_config as "
        "well (or a notebook cell ran twice)",
        "drop one of the two; load the base model anew before adding other adapters",
        f"{PEFT}/tuners/tuners_utils.py",
        ("peft", "trl"),
    ),
    Symptom(
        "adapter-config-newer",
        r"(?:Lora|Peft)Config\.__init__\(\) got an unexpected keyword argument '(?P<name>\w{1,60})'",
        "the adapter was saved by a newer PEFT than reads it ({name} is unknown here)",
        "pip install -U peft; or take {name} out of adapter_config.json",
        f"{PEFT}/config.py",
        ("peft",),
    ),
    Symptom(
        "adapter-missing",
        r"Can'?t find '?adapter_config\.json'?",
        "that folder or repository holds no adapter: mostly the run's folder where its last checkpoint, or "
        "the merged model, is meant",
        "give the folder that has adapter_config.json in it (checkpoint-N)",
        f"{PEFT}/config.py",
    ),
    Symptom(
        "adapter-shape",
        r"size mismatch for [^\n]{0,200}(?:lora_|base_model|embed_tokens|lm_head)",
        "adapter and base differ: another base model or size, another rank, or tokens were added while "
        "training and the embedding not resized here",
        "load the base of adapter_config.json; with added tokens "
        "model.resize_token_embeddings(len(tokenizer)) before the adapter",
        f"{TORCH}/torch/nn/modules/module.py",
    ),
    Symptom(
        "adapter-keys",
        r"Found missing adapter keys while loading the checkpoint",
        "the adapter's names are not those of the model: saved from a wrapped or compiled model, by "
        "another PEFT or transformers, or for another class (text part of a vision model)",
        "load it into the class that it was trained in; pip install -U peft",
        f"{PEFT}/peft_model.py",
        ("peft", "transformers"),
    ),
    Symptom(
        "merge-4bit",
        r"Merge lora module to (?:4|8)-bit linear may get different generations",
        "a warning: merging into 4-bit weights rounds once more and loses quality",
        "merge into a 16-bit copy of the base: qlora-plan merge RUN",
        f"{PEFT}/tuners/lora/bnb.py",
    ),
    Symptom(
        "merge-quantised",
        r"Cannot merge (?:LORA|DORA) layers when (?:the model is|base model)",
        "the base is stored in a form that nothing can be added to (GPTQ, AWQ, 8-bit of old PEFT)",
        "load the 16-bit base on the CPU and merge there: qlora-plan merge RUN",
        f"{PEFT}/tuners/lora/model.py",
    ),
    Symptom(
        "vocabulary-shape",
        r"size of tensor a \(\d{4,7}\) must match the size of tensor b \(\d{4,7}\)|save_embedding_layers` "
        r"to `True`",
        "embeddings differ by added tokens between the base, the adapter and the tokenizer; PEFT then "
        "saves the whole embedding",
        "resize_token_embeddings(len(tokenizer)) on both sides before the adapter; trainable_token_indices "
        "trains new rows alone (PEFT 0.15 and newer)",
        f"{PEFT}/utils/save_and_load.py",
        ("peft",),
    ),
    Symptom(
        "base-config-warning",
        r"Could not find a config file in [^\n]{0,200}will assume that the vocabulary was not modified",
        "a warning while saving: the base's config could not be fetched (gated, or offline) to see whether "
        "the vocabulary grew",
        "harmless without added tokens; else save_embedding_layers=True",
        f"{PEFT}/utils/save_and_load.py",
        ("peft",),
    ),
)
