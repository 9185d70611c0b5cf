"""What a trainer that generates completions does where it is not told, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from qlora_planner.catalog.trainers import VLLM_SHARE, TrainerRow
from qlora_planner.errors import InputError
from qlora_planner.memory.records import Problem
from qlora_planner.spec.run import RunConfig
from qlora_planner.text import quoted


def settle_rollouts(settle: Callable[[str, object, str], None], run: RunConfig, trainer: TrainerRow) -> None:
    """Settle the lengths of prompts and completions, and how many completions are generated together.

    Raises InputError for a loss that the trainer does not have and for lengths that leave no prompt.
    """
    generation = trainer.generation
    assert generation is not None
    default = f"the default of {trainer.name}"
    completion = run.completion_len
    if completion is None:
        completion = generation.completion_len
        if run.prompt_len is None:
            completion = min(completion, max(1, run.seq_len // 2))
        settle("completion_len", completion, default)
    if run.prompt_len is None:
        if completion >= run.seq_len:
            raise InputError(
                f"--completion-len {completion:,} leaves no prompt of --seq-len {run.seq_len:,}: say --prompt-len"
            )
        settle("prompt_len", run.seq_len - completion, "what completion-len leaves of seq-len")
    else:
        settle("seq_len", run.prompt_len + completion, "prompt-len and completion-len")
    if run.loss_type is not None and run.loss_type not in trainer.loss_types:
        names = ", ".join(trainer.loss_types) or "one loss, which has no name"
        raise InputError(f"--loss-type {quoted(run.loss_type)}: {trainer.name} has {names}")
    if run.loss_type is None and trainer.loss_types:
        settle("loss_type", trainer.loss_types[0], default)
    if run.beta is None:
        settle("beta", generation.beta, default)
    _settle_vllm(settle, run)
    if run.num_generations is None:
        settle("num_generations", generation.num_generations, default)
    if run.num_iterations is None:
        settle("num_iterations", 1, default)
    if run.steps_per_generation is None:
        settle("steps_per_generation", run.grad_accum, "as many micro-batches as one optimizer step has")


def _settle_vllm(settle: Callable[[str, object, str], None], run: RunConfig) -> None:
    colocated = run.vllm == "colocate"
    for option in ("vllm_gpu_memory_utilization", "vllm_enable_sleep_mode"):
        if getattr(run, option) and not colocated:
            raise InputError(f"--{option.replace('_', '-')} is of --vllm colocate: give both, or neither")
    if colocated and run.vllm_gpu_memory_utilization is None:
        settle("vllm_gpu_memory_utilization", VLLM_SHARE, "the default of trl")


def rollout_refusals(run: RunConfig, trainer: TrainerRow) -> Iterator[Problem]:
    """What the trainer's config refuses, and what is not modelled, of a resolved run."""
    if trainer.generation is None:
        return
    together = run.batch_size * (run.steps_per_generation or 1)
    group = run.num_generations or 1
    if group < 2:  # trl 1.16: grpo_config.py and rloo_config.py, __post_init__
        yield _refuse(
            "generations-refused",
            f"{trainer.name} compares the completions of a prompt with each other, and of one there are no others",
            "--num-generations 2",
        )
    elif together % group:
        steps = run.steps_per_generation or 1
        whole = next(size for size in range(run.batch_size, run.batch_size + group + 1) if size * steps % group == 0)
        yield _refuse(
            "generations-refused",
            f"{together} {'completion is' if together == 1 else 'completions are'} generated together, which {group} of"
            " each prompt do not divide",
            f"--batch-size {whole}",
        )
    if run.vllm == "colocate" and run.quant == "int8":
        yield _refuse("vllm-refused", "vLLM takes no 8-bit weights from a trainer", "--quant nf4, or --vllm server")
    if run.method == "full" and run.beta:
        yield _refuse(
            "reference-refused",
            f"{trainer.name} keeps a second model as the reference of a full fine-tune, which is not modelled",
            "--beta 0, or train adapters",
        )
    if (run.checkpoint_every or 1) > 1 and run.gradient_checkpointing:
        yield _refuse(
            "checkpointing-refused",
            f"{trainer.name} switches checkpointing off to generate and on again for every layer",
            "--checkpoint-every 1",
        )
    if run.parallel not in (None, "ddp"):
        yield _refuse(
            "parallel-refused",
            f"{trainer.name} gathers a sharded model to generate, which is not modelled",
            "--parallel ddp",
        )
    if run.eval_batch_size is not None:
        yield _refuse(
            "evaluation-refused",
            f"{trainer.name} generates completions to evaluate, which is not modelled",
            "no --eval-batch-size",
        )


def _refuse(code: str, message: str, fix: str) -> Problem:
    return Problem(code=code, message=message, fix=fix, blocking=True)
