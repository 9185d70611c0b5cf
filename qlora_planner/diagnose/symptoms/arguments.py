"""Known error lines of names that changed between versions of transformers and trl."""

from __future__ import annotations

from qlora_planner.diagnose.symptoms.row import TRANSFORMERS, TRL, Symptom

ROWS = (
    Symptom(
        "trl-processing-class",
        r"Trainer\.__init__\(\) got an unexpected keyword argument '(?:tokenizer|processor)'|Trainer' "
        r"object has no attribute 'tokenizer'",
        "the argument has another name: trl 0.12 and newer call it processing_class, and so does Trainer "
        "of transformers 5",
        "processing_class=tokenizer",
        "https://github.com/huggingface/trl/pull/2162",
        ("trl", "transformers"),
    ),
    Symptom(
        "trl-max-length",
        r"__init__\(\) got an unexpected keyword argument 'max_seq_length'",
        "trl 0.20 and newer call it max_length, and it stands in SFTConfig, not in SFTTrainer",
        "SFTConfig(max_length=2048)",
        f"{TRL}/trainer/sft_config.py",
        ("trl",),
    ),
    Symptom(
        "trl-moved",
        r"SFTTrainer\.__init__\(\) got an unexpected keyword argument "
        r"'(?P<name>dataset_text_field|packing|dataset_kwargs|dataset_num_proc|dataset_batch_size|"
        r"neftune_noise_alpha|model_init_kwargs|eval_packing|num_of_sequences|chars_per_token|"
        r"formatting_prompts_func)'",
        "trl takes {name} in SFTConfig, no longer in SFTTrainer; some of these are gone altogether",
        "SFTConfig({name}=...) in place of TrainingArguments",
        f"{TRL}/trainer/sft_config.py",
        ("trl",),
    ),
    Symptom(
        "trl-collator",
        r"cannot import name "
        r"'(?P<name>DataCollatorForCompletionOnlyLM|ConstantLengthDataset|setup_chat_format)'",
        "trl 0.20 and newer have no {name}",
        "completion_only_loss=True with prompt and completion columns, or assistant_only_loss=True with "
        "messages; packing=True packs; clone_chat_template copies a template",
        f"{TRL}/trainer/sft_config.py",
        ("trl",),
    ),
    Symptom(
        "training-arguments",
        r"(?:TrainingArguments|Seq2SeqTrainingArguments|\w{2,10}Config)\.__init__\(\) got an unexpected "
        r"keyword argument "
        r"'(?P<name>evaluation_strategy|no_cuda|overwrite_output_dir|group_by_length|warmup_ratio|"
        r"logging_dir|save_safetensors|per_gpu_train_batch_size|half_precision_backend|use_mps_device|"
        r"include_tokens_per_second|push_to_hub_token|dispatch_batches|use_ipex|torchdynamo|jit_mode_eval|"
        r"tpu_num_cores|past_index)'",
        "transformers 5 has no {name}: evaluation_strategy is eval_strategy since 4.46, no_cuda is "
        "use_cpu, group_by_length is train_sampling_strategy='group_by_length', warmup_ratio is "
        "warmup_steps with a fraction; the rest is gone",
        "rename or delete {name}; a script for 4.x also runs with pip install 'transformers<5'",
        f"{TRANSFORMERS}/training_args.py",
        ("transformers", "trl"),
    ),
    Symptom(
        "load-in-4bit",
        r"unexpected keyword argument '(?:load_in_4bit|load_in_8bit)'",
        "transformers 5 takes no load_in_4bit: quantisation is a config of its own",
        "from_pretrained(..., quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type='nf4'))",
        f"{TRANSFORMERS}/utils/quantization_config.py",
        ("transformers",),
    ),
    Symptom(
        "token-argument",
        r"unexpected keyword argument '(?:use_auth_token|torch_dtype|dtype)'",
        "renamed: use_auth_token is token; torch_dtype is dtype since transformers 4.56, and an older one "
        "does not know dtype",
        "use the name of the installed version, or pip install -U transformers",
        f"{TRANSFORMERS}/modeling_utils.py",
        ("transformers",),
    ),
    Symptom(
        "import-name",
        r"cannot import name '(?P<name>\w{1,80})' from '?(?:partially initialized module "
        r"'?)?(?:transformers|peft|trl|accelerate|huggingface_hub|datasets|tokenizers|bitsandbytes|torch)\b",
        "two libraries of different ages meet: one asks the other for {name}, which it does not have yet, "
        "or no longer; or a file of yours is called like the library",
        "pip install -U transformers peft trl accelerate datasets huggingface_hub together, then restart "
        "the notebook's kernel",
        "https://huggingface.co/docs/transformers/installation",
        ("transformers", "peft", "trl", "accelerate", "huggingface-hub"),
    ),
    Symptom(
        "compute-loss-argument",
        r"compute_loss\(\) got an unexpected keyword argument 'num_items_in_batch'",
        "a Trainer subclass of one's own overrides compute_loss as it was before transformers 4.46",
        "def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None)",
        f"{TRANSFORMERS}/trainer.py",
        ("transformers",),
    ),
    Symptom(
        "preference-arguments",
        r"(?:DPO|KTO|ORPO|CPO|GRPO|Reward)Trainer\.__init__\(\) got an unexpected keyword argument "
        r"'(?P<name>\w{1,40})'",
        "trl takes {name} in the trainer's config (DPOConfig and so on), no longer in the trainer",
        "DPOConfig({name}=...), processing_class=tokenizer in the trainer",
        f"{TRL}/trainer/dpo_config.py",
        ("trl",),
    ),
    Symptom(
        "deprecated-tokenizer",
        r"`tokenizer` is deprecated and will be removed",
        "a warning: the argument is called processing_class since trl 0.12 and transformers 4.46",
        "processing_class=tokenizer",
        "https://github.com/huggingface/trl/pull/2162",
        ("trl", "transformers"),
    ),
    Symptom(
        "training-arguments-sft",
        r"'(?:Seq2Seq)?TrainingArguments' object has no attribute '(?P<name>\w{1,40})'",
        "the trainer wants its own config: TrainingArguments has no {name}",
        "SFTConfig(...) (DPOConfig, ...) in place of TrainingArguments",
        f"{TRL}/trainer/sft_config.py",
        ("trl",),
    ),
    Symptom(
        "cache-method",
        r"'(?:Dynamic|Static|Hybrid|EncoderDecoder)Cache' object has no attribute "
        r"'(?P<name>\w{1,40})'|object has no attribute '(?:get_max_length|get_usable_length|seen_tokens)'",
        "model code from a repository (trust_remote_code) or a patch is written for an older cache of transformers",
        "drop trust_remote_code where transformers has the model itself; else the transformers that its card names",
        f"{TRANSFORMERS}/cache_utils.py",
        ("transformers",),
    ),
    Symptom(
        "attention-signature",
        r"\w{1,40}\.forward\(\) (?:missing \d required positional|got an unexpected keyword|got multiple "
        r"values)",
        "a layer is called in another way than it is written: kernels that patch the model (Liger, "
        "Unsloth, flash-attn) or remote code of another transformers",
        "pip install -U liger-kernel unsloth peft with transformers; without the patch to see that it is it",
        "https://github.com/linkedin/Liger-Kernel/issues",
        ("transformers", "liger-kernel", "peft"),
    ),
)
