"""What a traceback tells of the moment: which phase of training, and what was being computed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from qlora_planner.evidence.oom import Frame

# `File "x.py", line 3, in f`, and IPython's `File x.py:3, in f(...)`.
_PLAIN = re.compile(r'File "([^"\n]+)", line (\d+), in ([^\n]+)')
_IPYTHON = re.compile(r"File ([^\s\"]+\.py):(\d+), in ([\w.<>]+)")
_BEGINS = re.compile(r"Traceback \(most recent call last\)")
# Phase -> what a frame of it looks like, as `file::function`. The first phase with a frame counts: an evaluation has a
# forward of its own, and a backward may recompute one.
_PHASES: tuple[tuple[str, str], ...] = (
    ("merge", r"::(merge_and_unload|_unload_and_optionally_merge|merge_adapter|merge)$"),
    ("save", r"::(save_pretrained|save_model|_save|_save_checkpoint|save_checkpoint|save_file|save_state)$"),
    ("eval", r"::(evaluate|evaluation_loop|prediction_loop|prediction_step|_maybe_log_save_evaluate)$"),
    ("optimizer", r"(torch/optim/|bitsandbytes/optim/|accelerate/optimizer\.py|apex/optim|torchao/optim).*::"),
    ("optimizer", r"::(optimizer_step|clip_grad_norm_|_clip_grad_norm|_get_grad_norm)$"),
    ("backward", r"::(backward|_engine_run_backward|run_backward|apply)$"),
    ("generate", r"transformers/generation/.*::(generate|_sample|_beam_search|_prefill)$"),
    (
        "loss",
        r"(loss/loss_utils|cross_entropy|fused_linear).*::|::(fixed_cross_entropy|ForCausalLMLoss|cross_entropy)$",
    ),
    ("loss", r"::(entropy_from_logits|selective_log_softmax|loss_function|nll_loss)$"),
    ("prepare", r"::prepare_model_for_kbit_training$"),
    ("adapters", r"::(get_peft_model|inject_adapter|inject_adapter_in_model|_create_and_replace|update_layer)$"),
    ("load", r"::(from_pretrained|_load_pretrained_model|load_state_dict|_load_state_dict_into_meta_model)$"),
    ("load", r"::(caching_allocator_warmup|convert_and_load_state_dict_in_model|set_module_tensor_to_device)$"),
    ("load", r"::(_move_model_to_device|dispatch_model)$"),
    ("forward", r"(transformers/models/|modeling_).*::forward$|::(compute_loss|training_step)$"),
    ("data", r"torch/utils/data/.*::"),
)
# What was computed, by a frame or its source line; the innermost frame that says so counts.
_DOING: tuple[tuple[str, str], ...] = (
    (r"dequantize_(4bit|blockwise|fp4|nf4)|::dequantize", "a 4-bit matrix was being unpacked to 16 bits"),
    (r"quantize_4bit|::_quantize$|Params4bit", "a matrix was being quantised to 4 bits"),
    (r"int8_|MatMul8bit|igemmlt", "an 8-bit matrix was being multiplied"),
    (r"cross_entropy|nll_loss|loss_utils|logits\.float\(\)|upcast", "logits were being turned into the loss"),
    (r"entropy_from_logits|log_softmax", "logits were being turned into probabilities"),
    (r"lm_head|get_output_embeddings|embed_out", "logits were being computed"),
    (r"caching_allocator_warmup", "transformers was reserving room for the whole model before loading it"),
    (r"eager_attention_forward|softmax\(attn|attn_weights", "attention scores of every pair of tokens were computed"),
    (r"sdpa_attention|scaled_dot_product|flash_attn", "attention was being computed"),
    (r"(gate|up|down)_proj|::mlp\b|\bmlp\(|experts", "a feed-forward block was being computed"),
    (r"(q|k|v|o|qkv)_proj|c_attn", "attention's projections were being computed"),
    (r"lora_[AB]|peft/tuners/lora", "an adapter was being computed"),
    (r"exp_avg|init_state|state_steps|_init_group", "the optimizer was making its states, which happens in step one"),
    (r"nested_concat|pad_across_processes|gather_function", "predictions of an evaluation were being kept on the card"),
    (r"\.to\(torch\.float32\)|\.float\(\)", "a tensor was being cast to float32"),
)
_RECOMPUTES = re.compile(r"torch/utils/checkpoint\.py::(unpack_hook|recompute_fn|recompute|backward|_checkpoint_hook)")


def frames_before(text: str, place: int) -> tuple[Frame, ...]:
    """The frames of the traceback that ends in the message at `place`, the outermost first."""
    begins = [match.start() for match in _BEGINS.finditer(text, 0, place)]
    part = text[begins[-1] if begins else 0 : place]
    found: list[tuple[int, Frame]] = []
    for pattern in (_PLAIN, _IPYTHON):
        for match in pattern.finditer(part):
            rest = part[match.end() :].split("\n", 2)
            code = rest[1].strip() if len(rest) > 1 else ""
            usable = code and not code.startswith(("File ", "^", "~"))
            found.append(
                (
                    match.start(),
                    Frame(file=match[1], line=int(match[2]), function=match[3].strip(), code=code if usable else None),
                )
            )
    return tuple(frame for _, frame in sorted(found, key=lambda pair: pair[0]))


def told_by(frames: Sequence[Frame], kind: str) -> dict[str, Any]:
    """`phase`, `doing`, `recomputing` and `frame` of an OomReport."""
    named = [f"{frame.file.replace(chr(92), '/')}::{frame.function}" for frame in frames]
    phase = next((name for name, pattern in _PHASES if any(re.search(pattern, one) for one in named)), None)
    recomputing = phase == "backward" and any(_RECOMPUTES.search(one) for one in named)
    return {
        "phase": phase,
        "doing": _doing(frames, named, phase),
        "recomputing": recomputing,
        "frame": frames[-1] if frames else None,
    }


def _doing(frames: Sequence[Frame], named: Sequence[str], phase: str | None) -> str | None:
    for frame, name in zip(reversed(frames), reversed(named), strict=True):
        seen = f"{name} {frame.code or ''}"
        for pattern, words in _DOING:
            if re.search(pattern, seen):
                return words
    return None
