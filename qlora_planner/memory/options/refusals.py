"""Explicit choices that the stack refuses: each a blocking problem with its cause and the nearest run that works.

What a class or PEFT refuses was asked of the installed code when the model was profiled (`ModelProfile.refusals`); here
are the rules of trainers, optimizers and kernels, each from the library's own check.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from qlora_planner.catalog import TRAINER_ROWS, LossMemory, TrainerRow, find_optimizer
from qlora_planner.catalog.attention import nearest_kernel
from qlora_planner.catalog.trainers import DIVERGENCE, owner_of, parse_version
from qlora_planner.errors import InputError, MissingError
from qlora_planner.memory.options.rollouts import rollout_refusals
from qlora_planner.memory.options.stored_checkpoint import stored_options, stored_problem
from qlora_planner.memory.records import Problem
from qlora_planner.memory.weights.placement import Placement
from qlora_planner.memory.weights.targets import targeted
from qlora_planner.memory.weights.trainable import Trainable, training_dtype
from qlora_planner.spec.machine import GpuSpec
from qlora_planner.spec.model import ModelProfile
from qlora_planner.spec.run import RunConfig

# flash-attn's forward refuses wider heads (flash_api.cpp, mha_fwd).
FLASH_WIDEST_HEAD = 256
# bitsandbytes: LLM.int8 needs Turing's int8 tensor cores; FlashAttention-2 needs Ampere.
INT8_CAPABILITY, FLASH_CAPABILITY = 7.5, 8.0


def refusals(
    profile: ModelProfile, run: RunConfig, trainer: TrainerRow, loss: LossMemory, gpu: GpuSpec | None
) -> Iterator[Problem]:
    """Every reason why `run`, resolved, does not work with this trainer and its loss on this card."""
    yield from _of_checkpoint(profile, run)
    yield from _of_class(profile, run)
    yield from _of_checkpointing(run)
    if run.expert_quant == "nf4" and run.quant not in ("nf4", "fp4"):
        yield _refuse(
            "experts-refused", "experts are stored in 4 bits beside 4-bit linear layers alone", "--expert-quant none"
        )
    yield from _of_trainer(profile, run, trainer, loss, lacks_bf16=gpu is not None and gpu.bf16 is False)
    yield from _of_card(run, gpu)
    yield from _of_optimizer(profile, run, trainer)


def _refuse(code: str, message: str, fix: str) -> Problem:
    return Problem(code=code, message=message, fix=fix, blocking=True)


def refusal(error: Exception) -> Problem:
    """What tracing met in the installed libraries, as a problem."""
    return _refuse("library-refused", str(error), "another --target-modules, --attention, --quant or --trainer")


def on_parameters(profile: ModelProfile, run: RunConfig) -> bool:
    """Whether the run's adapters wrap bare parameters (fused experts), for which PEFT has fewer options."""
    try:
        return any(tensor.on_parameter for tensor in targeted(profile, run))
    except (InputError, MissingError):  # refused where the names are used, with what exists
        return False


def _of_checkpoint(profile: ModelProfile, run: RunConfig) -> Iterator[Problem]:
    """A checkpoint's own quantisation wins over what `from_pretrained` is told."""
    if (problem := stored_problem(profile, run)) is not None:
        yield problem
    stored = stored_options(profile)
    for option in ("method", "quant"):
        wanted = stored.get(option)
        if wanted is not None and wanted != getattr(run, option):
            kind = stored.get("quant", "4-bit")
            yield _refuse(
                "stored-otherwise",
                f"the checkpoint is stored as {kind} by bitsandbytes, and is loaded so whatever is asked for",
                f"--{option} {wanted}",
            )
            return


def _of_class(profile: ModelProfile, run: RunConfig) -> Iterator[Problem]:
    if run.quant == "int8" and "int8" in profile.refusals:
        yield _refuse("int8-refused", profile.refusals["int8"], "--quant nf4")
    if run.method != "full" and run.dora and "dora" in profile.refusals and on_parameters(profile, run):
        yield _refuse("dora-refused", profile.refusals["dora"], "--no-dora, or --target-modules attention")
    rows = profile.dims.get("position_rows")
    if rows and run.seq_len > rows:
        yield _refuse(
            "beyond-positions",
            f"{profile.class_name} has {int(rows):,} positions and fails on the next one",
            f"--seq-len {int(rows)}",
        )
    widest = max(int(profile.dims.get(name) or 0) for name in ("head_dim", "global_head_dim"))
    if _flash(run.attention) and widest > FLASH_WIDEST_HEAD:
        yield _refuse(
            "attention-refused",
            f"FlashAttention-2 takes heads of at most {FLASH_WIDEST_HEAD} dimensions and this model has {widest}",
            "--attention sdpa" if profile.supports.get("sdpa") else "--attention eager",
        )


def _flash(attention: str | None) -> bool:
    """Whether a kernel is FlashAttention, in this package or from the Hub."""
    return attention == "flash_attention_2" or (nearest_kernel(attention) is not None and "flash" in str(attention))


def _of_checkpointing(run: RunConfig) -> Iterator[Problem]:
    options = [
        ("--checkpoint-every", (5, 16), run.checkpoint_every is not None),
        ("--checkpoint-offload", (5, 17), run.checkpoint_offload),
    ]
    named = run.stack.get("transformers")
    for option, since, given in options:
        if given and not run.gradient_checkpointing:
            yield _refuse(
                "checkpointing-off", f"{option} says which layer inputs are kept, and checkpointing is off",
                "--gradient-checkpointing",
            )  # fmt: skip
        elif given and named is not None and parse_version(named) < since:
            version = ".".join(map(str, since))
            yield _refuse(
                "checkpointing-refused", f"{option} is in transformers from {version} on, not in {named}",
                f"--stack transformers={version}",
            )  # fmt: skip


def _of_trainer(
    profile: ModelProfile, run: RunConfig, trainer: TrainerRow, loss: LossMemory, *, lacks_bf16: bool
) -> Iterator[Problem]:
    if run.task is not None and not trainer.classifies:
        instead = next(row.name for row in TRAINER_ROWS.values() if row.classifies)
        yield _refuse("task-refused", f"{trainer.name} trains no sequence classifier", f"--trainer {instead}")
        return
    for option in trainer.lacks(run):
        name = option.replace("_", "-")
        fix = f"--seq-len {run.max_length}" if option == "max_length" else f"--trainer {owner_of(option).name}"
        yield _refuse(f"{name}-refused", f"{trainer.name} has no {name}", fix)
    yield from rollout_refusals(run, trainer)
    if trainer.prepares_quantized and run.quant != "none" and not run.upcast:
        yield _refuse(
            "upcast-refused",
            f"{trainer.name} prepares a quantised base by itself, whatever it is told, which casts it to float32",
            "--upcast",
        )
    for option, values in trainer.only.items():
        if getattr(run, option) not in values:
            name = option.replace("_", "-")
            choices = [str(value) for value in values if value is not None and not isinstance(value, bool)]
            yield _refuse(
                f"{name}-refused",
                f"{trainer.name} {'has' if choices else 'is modelled'} "
                + (f"--{name} {' and '.join(choices)} alone" if choices else f"without --{name}"),
                f"--{name} {choices[0]}" if choices else f"another trainer, or no --{name}",
            )
    named, since = run.stack.get(trainer.versioned_by or ""), trainer.modelled_since
    if named is not None and since is not None and parse_version(named) < since:
        first = ".".join(map(str, since))
        yield _refuse(
            "stack-refused",
            f"{trainer.name} is modelled as {trainer.versioned_by} has it from {first} on",
            f"--stack {trainer.versioned_by}={first}",
        )
    if trainer.name in profile.refusals:
        yield _refuse("trainer-refused", profile.refusals[trainer.name], f"--trainer {trainer.instead}")
    if loss.kind == "fused" and _adapts_head(profile, run):
        yield _refuse(
            "targets-refused",
            "trl from 1.15 reads the output head's weight itself, so an adapter on it would never be trained",
            "--target-modules all-linear"
            if trainer.instead is None
            else f"--trainer {trainer.instead}, or --target-modules all-linear",
        )
    if DIVERGENCE in trainer.passes_of(run) and run.batch_size < 2:
        yield _refuse(
            "batch-refused",
            f"{trainer.name} pairs prompts with completions of others in the batch, so a batch of one says nothing",
            f"--batch-size 2, or --loss-type {trainer.without_divergence[0]}",
        )
    if "exo_pair" in (run.loss_type or "").split(","):
        yield _refuse(
            "loss-refused",
            f"{trainer.name} needs label smoothing for the loss exo_pair, and its default is none",
            f"--loss-type {trainer.loss_types[0]}",
        )
    if run.compute_dtype != "float16" or not trainer.autocast:
        return
    # torch.amp.GradScaler unscales float32 gradients only: bfloat16 has no kernel, float16 is refused outright.
    dtypes = {training_dtype(tensor.dtype, run, trainer, tensor.shape) for tensor in _trainable(profile, run)}
    if not dtypes - {"float32"}:
        return
    if run.method == "full":
        why, fix = "full fine-tuning trains 16-bit weights", "--trainer loop, or --compute-dtype bfloat16"
    elif run.quant != "none" and trainer.adapters_bfloat16:
        why, fix = (
            f"{trainer.name} casts the adapters of a quantised base to bfloat16",
            _instead(trainer, "--method lora --quant none" if lacks_bf16 else "--compute-dtype bfloat16"),
        )
    else:
        why, fix = "modules_to_save trains 16-bit copies", "--upcast, or --compute-dtype bfloat16"
    yield _refuse("float16-gradients", f"{why}, whose gradients the float16 GradScaler cannot unscale", fix)


def _instead(trainer: TrainerRow, other: str) -> str:
    return other if trainer.instead is None else f"--trainer {trainer.instead}"


def _trainable(profile: ModelProfile, run: RunConfig) -> Iterable[Trainable]:
    try:
        return Placement(profile, run).trained
    except (InputError, MissingError):  # refused where the names are used
        return ()


def _adapts_head(profile: ModelProfile, run: RunConfig) -> bool:
    wanted = (run.target_modules or "").split(",")
    heads = profile.modules_of("output_head")
    return any(head == name or head.endswith("." + name) for head in heads for name in wanted if name)


def _of_card(run: RunConfig, gpu: GpuSpec | None) -> Iterator[Problem]:
    if gpu is None or gpu.compute_capability is None or gpu.vendor != "nvidia":
        return
    capability = float(gpu.compute_capability)
    if _flash(run.attention) and capability < FLASH_CAPABILITY:
        yield _refuse(
            "attention-refused",
            f"FlashAttention-2 needs compute capability {FLASH_CAPABILITY} and {gpu.label} has {capability}",
            "--attention sdpa",
        )
    if run.quant == "int8" and capability < INT8_CAPABILITY:
        yield _refuse(
            "int8-refused",
            f"LLM.int8 needs compute capability {INT8_CAPABILITY} and {gpu.label} has {capability}",
            "--quant nf4",
        )


def _of_optimizer(profile: ModelProfile, run: RunConfig, trainer: TrainerRow) -> Iterator[Problem]:
    optimizer = find_optimizer(run.optimizer)
    if optimizer is None or optimizer.bfloat16_gradients:
        return
    for tensor in _trainable(profile, run):
        wide = not optimizer.in_8_bits(tensor.shape, tensor.forced_32bit(trainer))
        if wide and training_dtype(tensor.dtype, run, trainer, tensor.shape) == "bfloat16":
            yield _refuse(
                "optimizer-refused",
                f"bitsandbytes has no 32-bit {run.optimizer} step for bfloat16 gradients, which this run has",
                "--optimizer paged_adamw_8bit, or --trainer hf-trainer",
            )
            return
