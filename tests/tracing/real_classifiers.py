"""transformers' own sequence classifiers as profiles, to hold what is worked out without torch against."""

from __future__ import annotations

from dataclasses import replace

import torch
from transformers import PreTrainedModel

from qlora_planner.memory.weights.classifier import LABELS
from qlora_planner.profiling import adapters
from qlora_planner.profiling.build import ConfigSource, supports_of
from qlora_planner.profiling.inventory import Layers, pattern, tensor_groups
from qlora_planner.profiling.meta_model import build_on_meta, quantize_on_meta, skipped_modules
from qlora_planner.profiling.text_part import text_part
from qlora_planner.spec.model import ModelProfile
from qlora_planner.train.adapters import attention_modules


def build_classifier(source: ConfigSource, profile: ModelProfile, labels: int) -> ModelProfile:
    """`profile` as transformers' own sequence classifier of its config has it, with `labels` labels.

    What `memory.weights.classifier` works out without torch, read off the class. Raises InputError where there is none.
    """
    raw, _ = text_part(source.config, source.id)

    def quantized() -> PreTrainedModel:
        return quantize_on_meta(build_on_meta(raw, source.id, labels=labels)[0])

    model, plan_bfloat16 = build_on_meta(raw, source.id, labels=labels)
    replaced = frozenset(name for name, part in quantized().named_modules() if type(part).__name__ == "Linear4bit")
    layers = Layers(model, replaced)
    plans = {"bfloat16": plan_bfloat16, "float16": dict(model._get_dtype_plan(torch.float16))}
    target = next(iter(profile.adapters))
    names = target if target == "all-linear" else target.split(",")
    every = adapters.single_target(quantized, names, layers, task_type="SEQ_CLS")
    added = tuple(
        tensor for tensor in every if tensor.name != "modules_to_save"
    )  # PEFT trains those whole for the task
    by_target = {target: added}
    if "attention" in profile.adapters:
        patterns = {pattern(name) for name in attention_modules(model)}
        by_target["attention"] = tuple(tensor for tensor in added if tensor.module in patterns)
    return replace(
        profile,
        class_name=type(model).__name__,
        params=sum(parameter.numel() for parameter in model.parameters()),
        dims={**profile.dims, LABELS: labels},
        supports=supports_of(model),
        layer_kinds=layers.kinds,
        layer_order=layers.order(),
        tensors=tensor_groups(model, layers, replaced, frozenset(skipped_modules(model)), plans),
        adapters=by_target,
    )
