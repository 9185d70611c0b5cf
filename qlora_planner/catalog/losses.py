"""Kernels that compute the loss of a language model: which trainer takes which, and what of the logits each holds."""

from __future__ import annotations

from qlora_planner.catalog.classifiers import labels_of
from qlora_planner.catalog.trainers import LossMemory, TrainerRow
from qlora_planner.spec.run import RunConfig

FULL, CHUNKED, CUT, LIGER_FUSED = "full", "chunked", "cut-cross-entropy", "liger-fused"
# What a run may ask for by a name of its own is what some versions of a trainer do by themselves.
_BY_ITSELF = {FULL: ("full",), CHUNKED: ("chunked", "chunked_no_copy", "fused")}
_CUT_LOSS = LossMemory(kind="cut", why="cut cross-entropy holds no logits (cut_cross_entropy 25.1, cce.py)")
_LIGER_LOSS = LossMemory(
    kind="liger", why="Liger's fused loss holds logits of some rows at a time (ops/fused_linear_cross_entropy.py)"
)
PACKAGES = {CUT: "cut_cross_entropy", LIGER_FUSED: "liger_kernel"}
# Model types whose function in liger-kernel 0.8.5 (transformers/monkey_patch.py, MODEL_TYPE_TO_APPLY_LIGER_FN) fuses
# the head with the loss; on any other it changes nothing, and says so in its log alone.
_FUSED_BY_LIGER = """
deepseek_v2 deepseek_v3 deepseek_v4 exaone4 falcon_h1 gemma gemma2 gemma3 gemma3_text gemma4 gemma4_text glm4 gpt_oss
granite hunyuan_v1_dense hunyuan_v1_moe llama llama4 llama4_text ministral mistral mixtral mllama mllama_text_model
muse_glimmer nemotron olmo2 olmo3 phi3 qwen2 qwen3 qwen3_5 qwen3_5_moe qwen3_5_moe_text qwen3_5_text qwen3_moe
qwen3_next smollm3
"""
FUSED_BY_LIGER = frozenset(_FUSED_BY_LIGER.split())


def loss_of(run: RunConfig, row: TrainerRow, own: LossMemory, model_type: str | None = None) -> LossMemory:
    """What the run's loss holds; `own` is what its trainer does by itself.

    `liger` alone fuses the loss too, where the trainer leaves it to the model and Liger knows the model.
    """
    if labels_of(run) is not None:
        return own
    if run.loss_kernel == CUT:
        return _CUT_LOSS
    fusible = model_type is None or model_type in FUSED_BY_LIGER
    wants_fused = run.loss_kernel == LIGER_FUSED or (run.liger and run.loss_kernel is None)
    return _LIGER_LOSS if wants_fused and fusible and LIGER_FUSED in row.loss_kernels else own


def takes_place(run: RunConfig) -> bool:
    """Whether the kernel that a run names is another than the one it would have without naming it."""
    kernel = run.loss_kernel
    return kernel == CUT or (kernel == FULL and run.liger) or (kernel == LIGER_FUSED and not run.liger)


def refused_kernel(run: RunConfig, row: TrainerRow, own: LossMemory, model_type: str) -> tuple[str, str] | None:
    """Why this trainer cannot compute its loss so, and what to choose; None where it can."""
    kernel = run.loss_kernel
    if kernel is None or own.kind in _BY_ITSELF.get(kernel, ()):
        return None
    if labels_of(run) is not None:
        return (
            "a classifier scores labels and not words, so no kernel takes the place of its loss",
            "--loss-kernel full",
        )
    if kernel not in row.loss_kernels:
        does = f"{row.name} computes its loss in its own way: {own.why}"
        return does, "--trainer hf-trainer" if kernel != CHUNKED else "--trainer trl-sft"
    if kernel == LIGER_FUSED and model_type not in FUSED_BY_LIGER:
        return (
            f"liger-kernel has no fused loss for {model_type}, and would leave the whole logits",
            "--loss-kernel full",
        )
    if kernel == CUT and run.upcast:
        return "cut cross-entropy takes 16-bit hidden states, and upcasting makes them float32", "--no-upcast"
    return None
