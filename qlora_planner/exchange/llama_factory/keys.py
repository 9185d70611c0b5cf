"""LLaMA-Factory's keys by what they do to memory, as its argument classes of August 2026 define them.

Source: hiyouga/LLaMA-Factory ff6d4d1, src/llamafactory/hparams/; its training arguments are transformers' own
Seq2SeqTrainingArguments (5.17), whose defaults hold where LLaMA-Factory has none.
"""

from __future__ import annotations

from collections.abc import Mapping

from qlora_planner.exchange.effects import SLIGHT, Effect, either, less, more, rows

# Key -> what it decides of a run.
USED: Mapping[str, str] = {
    "model_name_or_path": "the model",
    "stage": "sft or pt: a language model's own loss; dpo, kto and rm name the trainer",
    "pref_beta": "beta",
    "pref_loss": "loss_type",
    "finetuning_type": "method: lora (with quantization_bit, qlora) or full; lora where it is absent",
    "quantization_bit": "quant: 4 is quantization_type, 8 is int8; none where it is absent",
    "quantization_type": "quant at 4 bits: nf4 or fp4; nf4 where it is absent",
    "quantization_method": "bnb (bitsandbytes) alone is modelled; bnb where it is absent",
    "double_quantization": "double_quant; true where it is absent",
    "cutoff_len": "seq_len; 2048 where it is absent",
    "per_device_train_batch_size": "batch_size; 8 where it is absent",
    "gradient_accumulation_steps": "grad_accum",
    "lora_rank": "rank; 8 where it is absent",
    "lora_alpha": "alpha; 2 x lora_rank where it is absent",
    "lora_dropout": "lora_dropout; 0 where it is absent",
    "lora_target": "target_modules; all linear layers where it is absent",
    "additional_target": "modules_to_save",
    "use_dora": "dora",
    "use_rslora": "rslora",
    "disable_gradient_checkpointing": "gradient_checkpointing; on where it is absent",
    "use_reentrant_gc": "use_reentrant; true where it is absent",
    "use_unsloth": "trainer: unsloth, its own checkpointing with it",
    "use_unsloth_gc": "checkpoint_offload: layer inputs in host memory",
    "flash_attn": "attention: disabled is eager, fa2 is flash_attention_2; transformers' choice where it is absent",
    "optim": "optimizer; adamw_torch_fused where it is absent",
    "bf16": "compute_dtype and load_dtype",
    "fp16": "compute_dtype and load_dtype",
    "pure_bf16": "what is trained stays in bfloat16, and the pass has no autocast",
    "upcast_layernorm": "norms in float32: at most what --upcast takes",
    "upcast_lmhead_output": "logits in float32, which the loss makes of them anyway",
    "enable_liger_kernel": "liger",
    "use_liger_kernel": "liger, by transformers' own option",
    "resize_vocab": "modules_to_save: the embedding and the head, unless additional_target says otherwise",
    "add_tokens": "the same as resize_vocab, which it switches on",
    "add_special_tokens": "the same as resize_vocab, which it switches on",
    "new_special_tokens": "the same as resize_vocab, which it switches on",
    "new_special_tokens_config": "the same as resize_vocab, which it switches on",
    "image_max_pixels": "image_size: one image a row, a square of that area",
    "packing": "full rows: padding off",
    "neat_packing": "full rows: padding off with flash_attn: fa2, else a mask of the whole row",
    "per_device_eval_batch_size": "eval_batch_size; 8 where it is absent",
    "eval_strategy": "whether it evaluates",
    "do_eval": "whether it evaluates",
    "val_size": "evaluation, with eval_strategy or do_eval",
    "eval_dataset": "evaluation, with eval_strategy or do_eval",
    "deepspeed": "parallel, on several cards: zero2 or zero3 by the stage in the file that it names",
    "fsdp": "parallel: fsdp2, or fsdp1 where fsdp_config says version 1",
    "fsdp_config": "how FSDP shares, offloads and loads",
}

_SEVERAL = "several cards share the work, which is not planned here"
_IMAGES = "rows may hold images, each of hundreds to thousands of tokens"

# Key -> what it does that is not in the estimate. It counts only where it is switched on.
NOT_MODELLED: Mapping[str, Effect] = rows((
    ("parallelism_config", either(_SEVERAL)),
    ("use_mca use_megatron_bridge use_hyper_parallel hyper_parallel_args", either(_SEVERAL)),
    ("ray_num_workers", either(_SEVERAL, off=(1,))),
    ("use_v1_kernels use_kt", either("other code than PEFT's")),
    ("use_galore use_apollo use_badam use_adam_mini use_muon optim_target_modules",
     either("an optimizer whose memory is not known here")),
    ("fp8", either("matrix products in float8")),
    ("infer_dtype", either("what it infers in", SLIGHT)),
    ("shift_attn mixture_of_depths", either("other attention than is said")),
    ("rope_scaling", either("positions are stretched", SLIGHT)),
    ("torch_compile", either("the compiler decides what is kept")),
    ("auto_find_batch_size", less("the batch is halved while it does not fit")),
    ("use_asft_loss use_dft_loss use_eaft_loss label_smoothing_factor", more("another loss over the logits")),
    ("use_llama_pro", either("layers are added, and they alone are trained")),
    ("freeze_language_model", either("what sees is trained, not the language model")),
    ("pissa_init", more("adapters begin with a decomposition of each weight", SLIGHT)),
    ("ref_model reward_model", more("a second model on the card")),
    ("predict_with_generate do_predict", more("generates beside training")),
    ("compute_accuracy", more("logits are looked at in evaluation", 0.2)),
    ("adapter_name_or_path", either("starts from an adapter, whose own rank counts")),
    ("train_from_scratch", either("random weights, of the same size", SLIGHT)),
    ("liger_kernel_config", either("a part of Liger alone", 0.5)),
    ("image_min_pixels video_max_pixels video_min_pixels video_maxlen media_dir crop_to_patches",
     more(_IMAGES)),
))  # fmt: skip
STAGES: Mapping[str, Effect] = {
    "rm": either("a reward model: a score on top of the whole language model, of whose kind nothing is known here"),
    "ppo": either("generates, and holds a reward and a reference model beside the trained one"),
    "dpo": more("its own trainer holds the whole logits of both passes in float32, which are not counted"),
    "kto": more("its own trainer holds the whole logits of every pass in float32, which are not counted"),
}
# Of a loss of the stage dpo that trl has a trainer of its own for, which prepares a quantised base.
OWN_LOSS = either("its own trainer holds the whole logits in float32 and leaves the base as it is; trl's is counted")

# Known, and they take no memory on the card.
_NEUTRAL = """
accelerator_config adam_beta1 adam_beta2 adam_epsilon adapter_folder asft_alpha audio_sampling_rate
average_tokens_across_devices batch_eval_metrics bf16_full_eval buffer_size cache_dir create_new_adapter
data_seed data_shared_file_system dataset dataset_dir debug default_system disable_shuffling
disable_tqdm do_sample do_train eaft_alpha early_stopping_steps enable_jit_checkpoint enable_thinking
enable_torch_profiler eval_accumulation_steps eval_delay eval_do_concat_batches eval_num_beams eval_on_each_dataset
eval_on_start eval_steps eval_use_gather_object fp16_full_eval fp8_backend fp8_enable_fsdp_float8_all_gather
freeze_multi_modal_projector freeze_vision_tower full_determinism gradient_checkpointing gradient_checkpointing_kwargs
greater_is_better group_by_length hf_hub_token hyper_parallel_cp_size ignore_data_skip ignore_pad_token_for_loss
image_do_pan_and_scan include_effective_tokens_per_second include_for_metrics
include_num_input_tokens_seen infer_backend init_special_tokens interleave_probs label_names learning_rate
length_column_name length_penalty load_best_model_at_end local_rank log_level log_level_replica log_on_each_node
logging_dir logging_first_step logging_nan_inf_filter logging_steps logging_strategy loraplus_lr_embedding
loraplus_lr_ratio low_cpu_mem_usage lr_scheduler_kwargs lr_scheduler_type mask_history master_addr master_port
max_grad_norm max_length max_new_tokens max_samples max_steps megatron_bridge_args metric_for_best_model
mix_strategy model_revision moe_aux_loss_coef ms_hub_token neftune_noise_alpha num_beams num_train_epochs
offload_folder om_hub_token optim_args output_dir overwrite_cache overwrite_output_dir pissa_convert pissa_iter
plot_loss prediction_loss_only preprocessing_batch_size preprocessing_num_workers preserve_thinking print_param_status
project push_to_hub quantization_device_map ray_init_kwargs remove_unused_columns repetition_penalty report_to
restore_callback_states_from_checkpoint resume_from_checkpoint run_name seed skip_memory_metrics skip_special_tokens
sortish_sampler split_special_tokens streaming temperature template tf32 tokenized_path tool_format top_k top_p
torch_compile_backend torch_compile_mode torch_empty_cache_steps train_on_prompt train_sampling_strategy
trust_remote_code use_audio_in_video use_cache use_cpu use_fast_tokenizer use_kv_cache use_swanlab warmup_ratio
warmup_steps weight_decay
"""
NEUTRAL = frozenset(_NEUTRAL.split())
# Whole families of such keys.
FAMILIES = (
    "save_", "dataloader_", "ddp_", "hub_", "trackio_", "swanlab_", "video_", "vllm_", "sglang_", "export_", "kt_",
    "galore_", "apollo_", "badam_", "freeze_trainable_", "freeze_extra_", "oft_", "module_dropout", "profile",
    "generation_", "ppo_", "pref_", "dpo_", "kto_", "simpo_", "ld_alpha", "ref_model_", "reward_model_",
)  # fmt: skip
