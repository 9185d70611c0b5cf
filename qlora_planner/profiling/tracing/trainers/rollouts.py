"""Completions as trl's online trainers generate them and score them before they train on them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes

from qlora_planner.memory.sweep.validity import scores_first, uses_vllm
from qlora_planner.profiling.tracing.segments import SegmentMarker
from qlora_planner.profiling.tracing.spec import TraceSpec
from qlora_planner.profiling.tracing.trainers import sft
from qlora_planner.profiling.tracing.trainers.common import Batch, fake, loss_by_row, without_cache
from qlora_planner.spec.trace import PREFILL, SCORE, TOKENS
from qlora_planner.train.options import checkpointing_options

patches, evaluated = sft.patches, loss_by_row


def prepare(base: nn.Module, spec: TraceSpec) -> None:
    """See TracedTrainer; grpo_trainer.py and rloo_trainer.py, __init__."""
    from trl.trainer.utils import add_fused_lm_head

    add_fused_lm_head(base, temperature=1.0, outputs=("log_probs", "entropy"))
    without_cache(base)


def inputs(spec: TraceSpec, vocabulary: int) -> Batch:
    """No micro-batch comes from a data set: all are generated."""
    raise NotImplementedError("completions come from `rollout`")


def generate(model: nn.Module, spec: TraceSpec, marker: SegmentMarker, vocabulary: int, prompt_len: int) -> None:
    """_generate_single_turn: the prompts' pass and the first tokens, as far as they are traced.

    What is made of the completions after it, some masks and lists on the host, is smaller than what generation holds.
    """
    run, any_model = spec.run, model
    if uses_vllm(run):
        marker.mark(PREFILL, "all")
        _merge_adapters(any_model, spec)
        return
    from transformers import GenerationConfig

    rows = run.batch_size * (run.steps_per_generation or 1)
    config: Any = GenerationConfig(
        max_new_tokens=run.completion_len, do_sample=True, pad_token_id=vocabulary - 1, bos_token_id=None,
        eos_token_id=[vocabulary - 2], temperature=1.0, top_p=1.0, top_k=0, min_p=None, repetition_penalty=1.0,
        cache_implementation=None, disable_compile=True,
    )  # fmt: skip
    marker.mark(PREFILL, "embedding")
    prompts = _prompts(spec, rows, prompt_len, vocabulary)
    with _without_checkpointing(any_model, spec), torch.no_grad(), _some_tokens(spec, marker):
        any_model.generate(**prompts, generation_config=config)


def _merge_adapters(model: Any, spec: TraceSpec) -> None:
    """VLLMGeneration.sync_weights merges adapters before it sends weights, and takes them out again.

    Layer by layer: the weight in 16 bits, the adapter's product and it scaled, their sum, and the sum again, which PEFT
    quantises from a copy on the host (peft 0.21, tuners/lora/bnb.py). Each is as large as the whole weight.
    """
    from bitsandbytes.nn import Linear4bit

    def whole(layer: Any) -> torch.Tensor:
        shape = (layer.out_features, layer.in_features)
        return torch.empty(shape, dtype=spec.load_dtype, device=spec.device_name)

    bases = [module.get_base_layer() for module in model.modules() if hasattr(module, "lora_A")]
    for layer in (base for base in bases if isinstance(base, nn.Linear)):
        weight, product = whole(layer), whole(layer)
        scaled = whole(layer)
        del product
        merged = whole(layer)
        if isinstance(layer, Linear4bit):
            again = whole(layer)
            packed = torch.empty((layer.in_features * layer.out_features // 2,), dtype=torch.uint8, device=again.device)
            del again, packed
        del weight, scaled, merged


def _prompts(spec: TraceSpec, rows: int, length: int, vocabulary: int) -> Batch:
    with _disable_current_modes():
        ids = torch.arange(rows * length).remainder(max(vocabulary - 8, 1)).add(3).view(rows, length)
        mask = torch.ones((rows, length), dtype=torch.int64)
        if spec.run.padding and rows > 1:
            mask[:: spec.run.batch_size, 0] = 0  # one token of a row of each micro-batch: most tokens are scored
    return {"input_ids": fake(ids, spec.device_name), "attention_mask": fake(mask, spec.device_name)}


@contextlib.contextmanager
def _some_tokens(spec: TraceSpec, marker: SegmentMarker) -> Iterator[None]:
    """Generation stops after the tokens of TOKENS; each of them is a stage."""
    from transformers.generation.utils import GenerationMixin

    tokens = iter(TOKENS[: (spec.run.completion_len or 1) - 1])
    started = False

    def unfinished(*_args: Any, **_kwargs: Any) -> bool:
        nonlocal started
        if not started:
            started = True
            return True
        stage = next(tokens, None)
        marker.mark(*((PREFILL, "all") if stage is None else (stage, "embedding")))
        return stage is not None

    with mock.patch.object(GenerationMixin, "_has_unfinished_sequences", unfinished):
        yield


@contextlib.contextmanager
def _without_checkpointing(model: Any, spec: TraceSpec) -> Iterator[None]:
    """trl/models/utils.py, disable_gradient_checkpointing."""
    if spec.run.gradient_checkpointing:
        model.gradient_checkpointing_disable()
    try:
        yield
    finally:
        if spec.run.gradient_checkpointing:
            model.gradient_checkpointing_enable(checkpointing_options(spec.run))


def completed(spec: TraceSpec, vocabulary: int) -> Batch:
    """_generate_and_score_completions: prompts and completions put on the device again, padded to their longest."""
    run = spec.run
    rows = run.batch_size * (run.steps_per_generation or 1)
    prompt_len, completion_len = run.prompt_len or 0, run.completion_len or 0
    batch = {f"prompt_{name}": value for name, value in _named(_prompts(spec, rows, prompt_len, vocabulary))}
    with _disable_current_modes():
        ids = torch.arange(rows * completion_len).remainder(max(vocabulary - 8, 1)).add(3).view(rows, completion_len)
        mask = torch.ones((rows, completion_len), dtype=torch.int64)
        if run.padding and rows > 1:
            mask[:: run.batch_size, -1] = 0
    batch |= {"completion_ids": fake(ids, spec.device_name), "completion_mask": fake(mask, spec.device_name)}
    return batch


def _named(prompts: Batch) -> Iterator[tuple[str, Any]]:
    yield "ids", prompts["input_ids"]
    yield "mask", prompts["attention_mask"]


def score(
    forward: Callable[..., Any], model: Any, spec: TraceSpec, marker: SegmentMarker, batch: Batch, trainer_class: Any
) -> dict[str, Any]:
    """Log-probabilities of all completions under the policy, where the trainer takes them, and without adapters.

    In chunks of a micro-batch, without gradients and without checkpointing.
    """
    run = spec.run
    scores: dict[str, Any] = {}
    wanted = {"old_per_token_logps": scores_first(run)}
    wanted["ref_per_token_logps"] = bool(run.beta)
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    trainer = self_of(spec, model, trainer_class)

    def chunk(*args: Any, **kwargs: Any) -> Any:
        marker.mark(SCORE, "embedding")
        return forward(*args, **kwargs)

    with torch.no_grad(), _without_checkpointing(model, spec):
        for name in (name for name, on in wanted.items() if on):
            without = model.disable_adapter() if name.startswith("ref") else contextlib.nullcontext()
            with without:
                scores[name], _, _ = trainer._get_per_token_logps_and_entropies(
                    chunk, ids, mask, batch["completion_ids"].size(1), batch_size=run.batch_size
                )
    marker.mark(PREFILL, "all")
    return scores


def micro_batches(batch: Batch, spec: TraceSpec) -> list[Batch]:
    """_prepare_inputs: completions shuffled, a copy of each tensor, and cut into micro-batches."""
    size, rows = spec.run.batch_size, batch["prompt_ids"].size(0)
    with _disable_current_modes():
        positions = torch.arange(rows)
    order = fake(positions, spec.device_name)
    shuffled = {name: value[order] if value.dim() else value for name, value in batch.items()}
    return [
        {name: value[start : start + size] if value.dim() else value for name, value in shuffled.items()}
        for start in range(0, rows, size)
    ]


def self_of(spec: TraceSpec, model: Any, trainer_class: Any) -> Any:
    """A trainer of the installed class with as much as its scoring and its loss look at."""
    from collections import defaultdict

    config: Any = model.config
    text = config.get_text_config()
    run = spec.run
    accelerator = SimpleNamespace(
        autocast=lambda: torch.autocast("cuda", dtype=spec.compute_dtype, enabled=not spec.on_cpu),
        gather=lambda tensor: tensor, gather_for_metrics=lambda tensor: tensor,
        reduce=lambda tensor, reduction: tensor, num_processes=1, sync_gradients=True, is_main_process=False,
    )  # fmt: skip
    trainer = object.__new__(trainer_class)
    vars(trainer).update(
        accelerator=accelerator, model=model, beta=run.beta, loss_type=run.loss_type,
        aux_loss_enabled=hasattr(text, "output_router_logits") and getattr(text, "router_aux_loss_coef", 0.0) != 0.0,
        router_aux_loss_coef=getattr(text, "router_aux_loss_coef", 0.0), _metrics={"train": defaultdict(list)},
        current_gradient_accumulation_steps=run.grad_accum, max_completion_length=run.completion_len,
        epsilon_low=0.2, epsilon_high=0.2,
        args=SimpleNamespace(
            steps_per_generation=run.steps_per_generation, delta=None, use_bias_correction_kl=False,
            sapo_temperature_pos=1.0, sapo_temperature_neg=1.05, vespo_k_pos=2.0, vespo_lambda_pos=3.0,
            vespo_k_neg=3.0, vespo_lambda_neg=2.0,
        ),
        top_entropy_quantile=1.0, off_policy_mask_threshold=None, importance_sampling_level="token",
        use_vllm=uses_vllm(run), vllm_importance_sampling_correction=True, _entropy_bonus_enabled=False,
    )  # fmt: skip
    return trainer
