"""What a traceback tells of the moment: which phase of training, and what was being computed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from qlora_planner.diagnose.oom.records import Frame

# Phase -> what a frame of it looks like, as `file::function`. The first phase with a frame counts: an evaluation has a
# forward of its own, and a backward may recompute one.
_PHASES: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (phase, re.compile(pattern))
    for phase, pattern in (
        ("merge", r"::(merge_and_unload|_unload_and_optionally_merge|merge_adapter|merge|save_pretrained_merged)$"),
        ("save", r"::(save_pretrained|save_model|_save|_save_checkpoint|save_checkpoint|save_file|save_state)$"),
        ("eval", r"::(evaluate|evaluation_loop|prediction_loop|prediction_step|_maybe_log_save_evaluate)$"),
        ("optimizer", r"(torch/optim/|bitsandbytes/optim/|accelerate/optimizer\.py|apex/optim|torchao/optim)"),
        ("optimizer", r"::(optimizer_step|clip_grad_norm_|_clip_grad_norm|_get_grad_norm)$"),
        ("backward", r"::(backward|_engine_run_backward|run_backward|apply)$"),
        ("generate", r"transformers/generation/|::(fast_generate|unsloth_fast_generate|_generate_single_turn)$"),
        ("generate", r"vllm/"),
        ("loss", r"(loss/loss_utils|cross_entropy|fused_linear)|::(fixed_cross_entropy|ForCausalLMLoss)$"),
        ("loss", r"::(entropy_from_logits|selective_log_softmax|loss_function|nll_loss)$"),
        # Autocast's wrapper of a model's forward casts what it gives back, which are the logits.
        ("loss", r"accelerate/utils/operations\.py::(_convert_to_fp32|convert_to_fp32)$"),
        ("prepare", r"::prepare_model_for_kbit_training$"),
        ("adapters", r"::(get_peft_model|inject_adapter|inject_adapter_in_model|_create_and_replace|update_layer)$"),
        ("load", r"::(from_pretrained|_load_pretrained_model|load_state_dict|_load_state_dict_into_meta_model)$"),
        ("load", r"::(caching_allocator_warmup|convert_and_load_state_dict_in_model|set_module_tensor_to_device)$"),
        ("load", r"::(_move_model_to_device|dispatch_model)$"),
        ("forward", r"(transformers/models/|modeling_|unsloth/models/|unsloth_compiled).*::\w*forward$"),
        ("forward", r"::(compute_loss|training_step)$"),
        ("data", r"torch/utils/data/|datasets/arrow_"),
    )
)
LOGITS_TO_FLOAT32 = (
    "the model's output, its logits, was being cast to float32, as accelerate does under mixed precision"
)
LOGITS = (
    LOGITS_TO_FLOAT32,
    "logits were being turned into the loss",
    "logits were being turned into probabilities",
    "logits were being computed",
)
ATTENTION_SCORES = "attention scores of every pair of tokens were computed"
# What was computed, by a frame or its source line; the innermost frame that says so counts.
_DOING: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), words)
    for pattern, words in (
        (r"::(_convert_to_fp32|convert_to_fp32)\b", LOGITS_TO_FLOAT32),
        (r"dequantize_(4bit|blockwise|fp4|nf4)|(::|fast_)dequantize", "a 4-bit matrix was being unpacked to 16 bits"),
        (r"quantize_4bit|::_quantize\b|Params4bit", "a matrix was being quantised to 4 bits"),
        (r"int8_|MatMul8bit|igemmlt", "an 8-bit matrix was being multiplied"),
        (r"cross_entropy|nll_loss|loss_utils|logits\.float\(\)|upcast", LOGITS[1]),
        (r"entropy_from_logits|log_softmax", LOGITS[2]),
        (r"lm_head|get_output_embeddings|embed_out", LOGITS[3]),
        (r"caching_allocator_warmup", "transformers was reserving room for the whole model before loading it"),
        (r"eager_attention_forward|softmax\(attn|attn_weights", ATTENTION_SCORES),
        (r"sdpa_attention|scaled_dot_product|flash_attn", "attention was being computed"),
        (r"(gate|up|down)_proj|::mlp\b|\bmlp\(|experts|swiglu", "a feed-forward block was being computed"),
        (r"(q|k|v|o|qkv)_proj|c_attn", "attention's projections were being computed"),
        (r"lora_[AB]\b|peft/tuners/lora", "an adapter was being computed"),
        (r"exp_avg|init_state|state_steps|_init_group", "the optimizer was making its states, as in step one"),
        (r"nested_concat|pad_across_processes|gather_function", "an evaluation's outputs were kept on the card"),
        (r"pin_memory|get_paged|cudaHostAlloc", "host memory was being pinned: that is the host's, not the card's"),
        (r"\.to\(torch\.float32\)|\.float\(\)", "a tensor was being cast to float32"),
    )
)  # fmt: skip
_RECOMPUTES = re.compile(r"torch/utils/checkpoint\.py::(unpack_hook|recompute_fn|recompute|backward|_checkpoint_hook)")
# Frames further out than these tell nothing more of the moment.
_INNERMOST = 120


def moment_of(frames: Sequence[Frame]) -> dict[str, Any]:
    """`phase`, `doing`, `recomputing` and `frame` of an OomReport."""
    near = frames[-_INNERMOST:]
    named = [f"{frame.file.replace(chr(92), '/')}::{frame.function.rpartition('.')[2]}" for frame in near]
    phase = next((name for name, pattern in _PHASES if any(map(pattern.search, named))), None)
    return {
        "phase": phase,
        "doing": _doing(near, named),
        "recomputing": phase == "backward" and any(map(_RECOMPUTES.search, named)),
        "frame": frames[-1] if frames else None,
    }


def _doing(frames: Sequence[Frame], named: Sequence[str]) -> str | None:
    for frame, name in zip(reversed(frames), reversed(named), strict=True):
        seen = f"{name} {frame.code or ''}"
        for pattern, words in _DOING:
            if pattern.search(seen):
                return words
    return None
