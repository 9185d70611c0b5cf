"""axolotl's keys by what they do to memory, as its config models define them from 0.18 to 0.21.

Source: axolotl-ai-cloud/axolotl 067b021, src/axolotl/utils/schemas/ and src/axolotl/integrations/*/args.py; the same
files of the wheels 0.18.0 to 0.21.0.
"""

from __future__ import annotations

from collections.abc import Mapping

from qlora_planner.exchange.effects import SLIGHT, Effect, either, less, more, rows

# With checkpointing what they save is in the one layer that is being computed: of an 8B model about 0.1 MiB for each
# token (an MLP of three linear layers keeps 147 MiB less or more at 2,048 tokens), a few percent of a peak.
KERNELS_KEEP_LESS = less("axolotl's fused LoRA kernels keep less of a layer than PEFT's code", 0.1)

# Key -> what it decides of a run.
USED: Mapping[str, str] = {
    "base_model": "the model",
    "adapter": "method: qlora or lora; without it every weight is trained",
    "load_in_4bit": "quant: nf4, for adapter qlora alone",
    "load_in_8bit": "quant: int8, for adapter lora alone",
    "bnb_config_kwargs": "double_quant and quant (fp4), over the defaults of true and nf4",
    "quantize_moe_experts": "expert_quant: nf4",
    "sequence_len": "seq_len; 512 where it is absent",
    "micro_batch_size": "batch_size",
    "gradient_accumulation_steps": "grad_accum",
    "batch_size": "sequences per optimizer step: grad_accum = batch_size / micro_batch_size",
    "lora_r": "rank",
    "lora_alpha": "alpha",
    "lora_dropout": "lora_dropout; 0 where it is absent",
    "lora_target_linear": "target_modules: all-linear",
    "lora_target_modules": "target_modules by name",
    "lora_modules_to_save": "modules_to_save",
    "peft_use_dora": "dora",
    "peft_use_rslora": "rslora",
    "gradient_checkpointing": "gradient_checkpointing; off where it is absent",
    "gradient_checkpointing_kwargs": "use_reentrant, checkpoint_every and checkpoint_offload",
    "embeddings_skip_upcast": "whether 16-bit weights are in float32 for a moment while preparing",
    "attn_implementation": "attention; transformers' choice where it is absent",
    "flash_attention": "attention: flash_attention_2 (deprecated)",
    "sdp_attention": "attention: sdpa (deprecated)",
    "eager_attention": "attention: eager (deprecated)",
    "xformers_attention": "attention: xformers (deprecated)",
    "flex_attention": "attention: flex_attention (deprecated)",
    "sage_attention": "attention: sage (deprecated)",
    "optimizer": "optimizer; adamw_torch_fused where it is absent",
    "image_size": "image_size, with processor_type: one image a row, resized, or padded to a square of that side",
    "processor_type": "rows hold images, which are counted with image_size",
    "sample_packing": "full rows: padding off, one row of them all with FlashAttention, else a mask of each",
    "bf16": "compute_dtype and load_dtype; auto where it is absent",
    "fp16": "compute_dtype and load_dtype",
    "bfloat16": "load_dtype, without autocast",
    "float16": "load_dtype, without autocast",
    "val_set_size": "evaluation, with eval_steps, evals_per_epoch or eval_strategy",
    "test_datasets": "evaluation, with eval_steps, evals_per_epoch or eval_strategy",
    "eval_batch_size": "eval_batch_size; micro_batch_size where it is absent",
    "eval_steps": "whether it evaluates",
    "evals_per_epoch": "whether it evaluates",
    "eval_strategy": "whether it evaluates",
    "rl": "the trainer: dpo and ipo are trl-dpo, kto is trl-kto, orpo is trl-orpo; others are not modelled",
    "rl_beta": "beta",
    "dpo_loss_type": "loss_type",
    "precompute_ref_log_probs": "precompute_ref_log_probs",
    "plugins": "liger, with all of its fused kernels; the loss without whole logits of cut cross-entropy",
    "cut_cross_entropy": "with its plugin, a loss without whole logits; on where it is absent",
    "liger_rope": "liger",
    "liger_rms_norm": "liger",
    "liger_glu_activation": "liger",
    "liger_swiglu": "liger",
    "liger_fused_linear_cross_entropy": "liger; alone, a loss without whole logits",
    "fsdp": "parallel, on several cards: fsdp1 or fsdp2 by fsdp_version",
    "fsdp_config": "how FSDP shares, offloads and loads",
    "fsdp_version": "parallel: 2 is fsdp2, 1 and none are fsdp1",
    "deepspeed": "parallel: zero2 or zero3 by the stage in the file that it names",
    "ddp": "parallel: ddp",
}

_LOSS = "another loss than a language model's, over other rows"
_FUSED = "other code, of which it is not known what it keeps"
_SEVERAL = "several cards share the work, which is not planned here"
_GENERATES = "generates beside training"

# Of `processor_type` without the size of images.
IMAGES = more("rows may hold images, each of hundreds to thousands of tokens")
# Of `rl` where it names no trainer that is modelled.
RL = either("preference or reward training: other rows, a reference pass, another loss")
# Key -> what it does that is not in the estimate. It counts only where it is switched on.
NOT_MODELLED: Mapping[str, Effect] = rows((
    ("context_parallel", either(_SEVERAL)),
    ("deepcompile", either("DeepSpeed's compiler decides what is kept")),
    ("tensor_parallel_size context_parallel_size sequence_parallel_degree expert_parallel_size dp_shard_size",
     either(_SEVERAL, off=(1,))),
    ("dp_replicate_size", more("each card holds all of it, and buckets of gradients beside them", 0.1, off=(1,))),
    ("trl ebft vllm", either("options of preference and reward training")),
    ("reward_model process_reward_model num_labels kd_trainer trainer_cls use_eaft", either(_LOSS)),
    ("use_dft diffusion_lm diffusion_decision", either(_LOSS)),
    ("torch_compile torch_compile_regional", either("the compiler decides what is kept")),
    ("use_kernels fused_attn_kernel flash_attn_fuse_mlp flash_attn_rms_norm flash_attn_d512", either(_FUSED)),
    ("use_scattermoe use_sonicmoe", either(_FUSED)),
    ("tiled_mlp", less("the MLP is worked through in tiles")),
    ("lora_mlp_kernel lora_qkv_kernel lora_o_kernel lora_embedding_kernel", KERNELS_KEEP_LESS),
    ("activation_offloading layer_offloading", less("activations or layers wait in host memory")),
    ("selective_checkpointing", either("keeps other activations on the card than checkpointing does")),
    ("chunked_cross_entropy liger_cross_entropy flash_attn_cross_entropy",
     less("another loss kernel, which keeps less of the logits")),
    ("liger_layer_norm liger_rms_norm_gated liger_use_token_scaling liger_kernel_impl",
     less("a part of Liger alone", SLIGHT)),
    ("gptq use_onebitllms model_quantization_config qat quantization fp8 nvfp4_merge_aware",
     either("another quantisation")),
    ("nf4_backend", either("torchao stores NF4 in its own way", off=("bitsandbytes",))),
    ("lora_fp32_gradients", more("gradients of adapters in float32, as they are here", SLIGHT)),
    ("ple_cpu_offload", less("embeddings of each layer wait in host memory")),
    ("full_determinism", more("cuBLAS takes the workspace that deterministic algorithms ask for", SLIGHT)),
    ("llama4_linearized_experts", less("experts are stored in fewer bits than is said")),
    ("experts_implementation", either("other code for experts")),
    ("unfrozen_parameters lisa_n_layers peft_layers_to_transform", less("only a part is trained")),
    ("lora_target_parameters peft_layer_replication", more("more is adapted than is said")),
    ("peft_trainable_token_indices", more("some rows of the embedding are trained", SLIGHT)),
    ("lora_rank_pattern relora peft", either("other adapters than plain LoRA")),
    ("lora_on_cpu", less("adapters wait in host memory", SLIGHT)),
    ("tokens", more("rows are added to the embedding; they are trained with lora_modules_to_save alone", SLIGHT)),
    ("added_tokens_overrides resize_token_embeddings_to_32x", more("the embedding grows by some rows", SLIGHT)),
    ("shrink_embeddings", less("the embedding loses the rows that the tokenizer does not use", 0.1)),
    ("overrides_of_model_config model_config overrides_of_model_kwargs model_kwargs", either("changes the model")),
    ("auto_find_batch_size", less("the batch is halved while it does not fit")),
    ("max_memory gpu_memory_limit", less("layers that do not fit are held in host memory")),
    ("batch_flattening", less("rows of a batch are joined without padding", 0.1)),
    ("pretraining_dataset pretraining_sample_concatenation", either("rows are joined as they stream", SLIGHT)),
    ("optim_target_modules", either("the optimizer projects gradients")),
    ("fp32_norms", more("norms in float32", 0.25)),
    ("peft_autocast_adapter_dtype", either("adapters in another dtype", 0.1)),
    ("float32", more("everything in float32")),
    ("eval_sequence_len", either("evaluation at another length")),
    ("generate_samples do_causal_lm_eval do_bench_eval", more(_GENERATES)),
    ("lora_model_dir", either("starts from an adapter, whose own rank counts")),
    ("flash_optimum large_head_attention sdpa_varlen gemma4_hybrid_attn_impl s2_attention",
     either("other attention code")),
    ("use_pose max_packed_sequence_len", either("rows are cut in another way")),
))  # fmt: skip

# Part of a plugin's name -> what it does. The first that matches counts.
PLUGINS: Mapping[str, Effect] = {
    "integrations.lm_eval": less("evaluates after training", SLIGHT),
    "integrations.swanlab": less("reports", SLIGHT),
    "integrations.spectrum": less("only some layers are trained"),
    "integrations.kd": either(_LOSS),
    "integrations.grokfast": more("keeps an average of the gradients"),
    "integrations.llm_compressor": either("sparse or quantised weights"),
}
PLUGIN = either("a plugin, of which it is not known what it changes")

# Known, and they take no memory on the card.
_NEUTRAL = """
accelerator_config adam_beta1 adam_beta2 adam_beta3 adam_epsilon adam_epsilon2 auto_resume_from_checkpoints
axolotl_config_path base_model_config bench_dataset bench_split center_rewards_coefficient chat_template
chat_template_jinja chat_template_kwargs chunked_cross_entropy_num_chunks cls_model_config cosine_constant_lr_ratio
cosine_min_lr_ratio curriculum_sampling cut_cross_entropy_accum_c_fp32 cut_cross_entropy_c_grad_chunk_size datasets
ddp_broadcast_buffers ddp_bucket_cap_mb ddp_find_unused_parameters ddp_timeout debug default_system_message device
device_map dynamic_checkpoint early_stopping_patience embedding_lr embedding_lr_scale eot_tokens eta_min
eval_causal_lm_metrics eval_max_new_tokens eval_on_start eval_sample_packing eval_table_size evaluation_strategy
excess_length_strategy experimental_skip_move_to_device fa_varlen_kwargs_in_collator fix_untrained_tokens
flex_attn_compile_kwargs fp32_norm_classes fp8_config fp8_enable_fsdp_float8_all_gather freeze_mm_modules
fsdp_final_state_dict_type gc_collect_steps gc_steps generation_max_new_tokens greater_is_better group_by_length
heads_k_stride hf_use_auth_token image_resize_algorithm include_tkps include_tokens_per_second is_falcon_derived_model
is_llama_derived_model is_mistral_derived_model is_preprocess is_qwen_derived_model jagged_restart_anneal_steps
jagged_restart_steps jagged_restart_warmup_steps learning_rate load_best_model_at_end local_rank log_multimodal
logging_nan_inf_filter logging_steps lora_alpha_pattern lora_fan_in_fan_out loraplus_lr_embedding loraplus_lr_ratio
loss_watchdog_patience loss_watchdog_threshold low_cpu_mem_usage lr_div_factor lr_groups lr_quadratic_warmup
lr_scheduler lr_scheduler_kwargs max_grad_norm max_prompt_len max_steps mean_resizing_embeddings merge_lora
merge_method metric_for_best_model min_sample_len model_quantization_config_kwargs model_revision model_type
multipack_real_batches neftune_noise_alpha noisy_embedding_alpha num_dataset_shards_to_save num_epochs
num_generation_samples optim_args output_dir pad_to_multiple_of pad_to_sequence_len peft_ensure_weight_tying
peft_init_lora_weights peft_layers_pattern pose_max_context_len pose_num_chunks pose_split_on_token_ids
prepared_cache_verify preprocess_iterable pretrain_multipack_attn pretrain_multipack_buffer_size processor_kwargs
profiler_steps profiler_steps_start qlora_sharded_model_loading reinit_weights relora_cpu_offload relora_prune_method
relora_prune_ratio remove_unused_columns resources_per_worker resume_from_checkpoint revision_of_model ring_attn_func
role_boundaries rope_scaling rpo_alpha save_first_step save_only_model save_safetensors save_steps save_strategy
save_total_limit saves_per_epoch scaling_softmax scaling_softmax_bias scaling_softmax_factor seed
shuffle_before_merging_datasets shuffle_merged_datasets skip_prepare_dataset special_tokens streaming
streaming_multipack_buffer_size strict sync_profiler_start_step sync_profiler_steps tf32 tiled_mlp_num_shards
tiled_mlp_use_original_mlp torch_compile_backend torch_compile_mode torch_compile_options torch_empty_cache_steps
torchdistx_path total_num_tokens total_supervised_tokens train_on_inputs trust_remote_code type_of_model use_comet
use_mlflow use_otel_metrics use_ray use_swanlab use_tensorboard use_trackio use_wandb warmup_ratio warmup_steps
weight_decay world_size
"""
NEUTRAL = frozenset(_NEUTRAL.split())
# Whole families of such keys.
FAMILIES = (
    "wandb_", "mlflow_", "hf_mlflow_", "comet_", "trackio_", "otel_", "gradio_", "ray_", "swanlab_", "hub_",
    "push_dataset_", "dataset_", "dataloader_", "tokenizer_", "sample_packing_", "dpo_", "kto_", "orpo_", "simpo_",
    "cpo_", "rl_", "kd_", "dion_", "qgalore_", "generation_", "eaft_", "lisa_",
)  # fmt: skip
