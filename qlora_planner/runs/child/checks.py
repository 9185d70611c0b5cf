"""What must hold of a built run before its first step: each broken rule names its fix."""

from __future__ import annotations

from typing import Any

from qlora_planner.catalog.trainers import DEFAULT_TRAINER, TrainerRow
from qlora_planner.errors import InputError, RunError
from qlora_planner.spec.run import RunConfig
from qlora_planner.train.options import compute_dtype, torch_dtype
from qlora_planner.train.ranks import local_part
from qlora_planner.train.settings import Settings
from qlora_planner.units import format_size

_PACKED = ("Params4bit", "Int8Params")


def check_quantized(model: Any, run: RunConfig, expected: int | None) -> str | None:
    """A note where another number of matrices is quantised than was planned. Raises RunError where none is."""
    quantized = sum(type(parameter).__name__ in _PACKED for parameter in model.parameters())
    if run.quant in (None, "none"):
        return None
    if not quantized:
        raise RunError(f"nothing was quantised though the run says {run.quant}; `qlora-plan audit` says why not")
    if expected is not None and quantized != expected:
        counts = f"{quantized} matrices are quantised where the plan counts {expected}"
        return f"{counts}: its memory is that of another model"
    return None


def check_tied(model: Any) -> str | None:
    """A note where the checkpoint has a head of its own though its config ties it to the embedding: transformers keeps
    both where they differ (modeling_utils.py, tie_weights), and the plan, made of the config, counts one."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if not getattr(model.config, "tie_word_embeddings", False) or head is None or head.weight is embedding.weight:
        return None
    more = head.weight.numel() * head.weight.element_size()
    return (
        f"the checkpoint stores a head unlike its embedding, though config.json ties them: {format_size(more)} more"
        " than planned; `tie_word_embeddings: false` in config.json plans for it"
    )


def check_compute_dtype(model: Any, run: RunConfig) -> None:
    """Raises RunError where 4-bit layers compute in another dtype than the trainer."""
    if run.quant not in ("nf4", "fp4"):
        return
    import bitsandbytes

    wanted = torch_dtype(compute_dtype(run))
    for name, module in model.named_modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit) and module.compute_dtype not in (None, wanted):
            raise RunError(
                f"{name} computes in {_short(module.compute_dtype)} and the trainer in {_short(wanted)}:"
                f" --compute-dtype {_short(module.compute_dtype)}, or a checkpoint that is not quantised yet"
            )


def keep_constants(model: Any) -> None:
    """On a CPU with AVX-512 bitsandbytes packs 4-bit weights anew to evaluate, and restores the constants of double
    quantisation only nearly (functional.py, `_convert_weight_packed_for_cpu_inverse`): evaluating would change the
    model. Its other kernel leaves them alone."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def check_gradients(model: Any, run: RunConfig) -> str | None:
    """After a backward pass: a note where some adapters got no gradient. Raises RunError where none did."""
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not trained:
        raise RunError("nothing is trained: no parameter takes a gradient; see --target-modules")
    without = [name for name, parameter in trained if parameter.grad is None]
    check_felt(any(_is_felt(parameter.grad) for _, parameter in trained if parameter.grad is not None), run)
    if without:
        return (
            f"{len(without)} of {len(trained)} trained tensors got no gradient from the longest batch, as {without[0]}"
        )
    return None


def check_felt(felt: bool, run: RunConfig) -> None:
    """Raises RunError where no gradient but zeros came through."""
    if not felt:
        raise RunError(f"gradients do not reach the adapters: {gradient_fix(run)}")


def _is_felt(gradient: Any) -> bool:
    """Whether this rank's part of a gradient, which may be empty, holds anything but zeros."""
    part = local_part(gradient)
    return bool(part.numel()) and bool(part.abs().max() > 0)


def gradient_fix(run: RunConfig) -> str:
    """What to change where no gradient comes through."""
    if run.gradient_checkpointing and run.use_reentrant:
        return "re-entrant checkpointing cuts them off where the inputs need none; use --no-use-reentrant"
    if run.gradient_checkpointing:
        return "the model's inputs must need gradients (enable_input_require_grads); or --no-gradient-checkpointing"
    return "the loss does not depend on the adapters; see --target-modules"


def _short(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def steps_left(state: Any) -> bool:
    """Whether a resumed run has a step to take.

    The trainer takes one before it looks: a run that was ended between its last step and its adapter must not. Raises
    InputError where more steps were taken than are asked for.
    """
    if state.global_step > state.max_steps:
        raise InputError(
            f"--resume: {state.global_step} steps are done and {state.max_steps} are asked for; give at least"
            f" --max-steps {state.global_step}, or more --epochs"
        )
    return bool(state.global_step < state.max_steps)


def check_trainer(trainer: TrainerRow, run: RunConfig, settings: Settings) -> None:
    """Raises InputError for a trainer that is not for training, or that lacks what is asked of it."""
    if not trainer.launches:
        raise InputError(f"--trainer {trainer.name} is for measuring alone; train with --trainer {DEFAULT_TRAINER}")
    if not trainer.prepares_rows and (settings.assistant_only_loss or any(trainer.lacks(run))):
        raise InputError(
            "--packing, --assistant-only-loss and --activation-offloading are"
            f" {DEFAULT_TRAINER}'s; {trainer.name} has none"
        )


def check_any_left(rows: int, data: str, run: RunConfig) -> None:
    """Raises InputError where every answer of the data is cut off."""
    if not rows:
        raise InputError(
            f"{data}: no row is left at --seq-len {run.seq_len}: the prompt fills it and the answer is"
            " cut off everywhere; give a longer --seq-len"
        )
