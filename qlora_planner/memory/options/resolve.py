"""Turn every auto option into something that runs, and say what it became and why."""

from __future__ import annotations

from dataclasses import dataclass, field

from qlora_planner.catalog import OPTIMIZERS, TRAINER_ROWS, LossMemory, TrainerRow, find_optimizer, trainer_row
from qlora_planner.catalog.attention import nearest_kernel, sdpa_changed
from qlora_planner.catalog.classifiers import DEFAULT_LABELS, labels_of
from qlora_planner.catalog.losses import loss_of, refused_kernel
from qlora_planner.catalog.stack import Stack, changes, stack_of
from qlora_planner.catalog.trainers import expert_stack, trainer_named
from qlora_planner.errors import InputError
from qlora_planner.memory.options.images import settle_images
from qlora_planner.memory.options.parallel import parallel_problems, settled
from qlora_planner.memory.options.preferences import settle_preferences
from qlora_planner.memory.options.refusals import on_parameters, refusals
from qlora_planner.memory.options.stored_checkpoint import stored_options
from qlora_planner.memory.records import Problem
from qlora_planner.memory.weights.classifier import profile_for
from qlora_planner.memory.weights.placement import fuses_experts
from qlora_planner.memory.weights.targets import WHOLE_SETS, targets_of
from qlora_planner.record import record
from qlora_planner.spec.machine import GpuSpec
from qlora_planner.spec.model import ModelProfile
from qlora_planner.spec.run import RunConfig
from qlora_planner.text import listed, quoted


@record
class Resolution:
    """A run without unknowns, the reason for each auto option, what stands against it, and the facts of its trainer."""

    run: RunConfig
    why: dict[str, str]
    problems: tuple[Problem, ...]
    stack: dict[str, str]
    trainer: TrainerRow
    loss: LossMemory

    @classmethod
    def resolved(cls, run: RunConfig, stack: dict[str, str], why: dict[str, str] | None = None) -> Resolution:
        """Of a run that is resolved already and that nothing stands against."""
        trainer, own = trainer_row(run.trainer, stack)
        trainer = trainer.of_run(run)
        loss = loss_of(run, trainer, own)
        return cls(run=run, why=why or {}, problems=(), stack=stack, trainer=trainer, loss=loss)


@dataclass(slots=True)
class _Draft:
    profile: ModelProfile
    asked: RunConfig
    gpu: GpuSpec | None
    values: dict[str, object] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def settle(self, option: str, value: object, why: str) -> None:
        self.values[option] = value
        self.why[option] = why

    def refuse(self, code: str, message: str, fix: str) -> None:
        self.problems.append(Problem(code=code, message=message, fix=fix, blocking=True))

    def advise(self, code: str, message: str, fix: str) -> None:
        self.problems.append(Problem(code=code, message=message, fix=fix))


def resolve(profile: ModelProfile, run: RunConfig, gpu: GpuSpec | None = None) -> Resolution:
    """Resolve `run` for this model and card.

    Explicit choices that the stack refuses become blocking problems. Raises InputError for an unknown optimizer, for
    target modules of which none is there, and for a quantisation that contradicts the method.
    """
    profile = profile_for(profile, run)
    draft = _Draft(profile, run, gpu)
    held = stack_of(profile.counted, run.stack)
    stack = dict(held.versions)
    _task(draft)
    _quantization(draft)
    _compute_dtype(draft)
    _adapters(draft)
    _attention(draft, stack)
    trainer, loss = _trainer(draft, stack)
    _experts(draft, trainer)
    settle_preferences(draft.settle, draft.asked, trainer)
    _rest(draft, trainer)
    stored = "quant" in stored_options(profile)
    for option, (value, why) in settled(run.with_(**draft.values), stored=stored).items():
        draft.settle(option, value, why)
    settle_images(draft, trainer)
    resolved = run.with_(**draft.values)
    trainer = trainer.of_run(resolved)
    _named_versions(draft, held, trainer.name, stack)
    draft.problems += refusals(profile, resolved, trainer, loss, gpu)
    draft.problems += parallel_problems(resolved, stack, stored=stored)
    return Resolution(
        run=resolved, why=draft.why, problems=tuple(draft.problems), stack=stack, trainer=trainer, loss=loss
    )


def _task(draft: _Draft) -> None:
    run = draft.asked
    if run.num_labels is not None and run.task is None:
        raise InputError(f"--num-labels {run.num_labels} is of --task classification: give both, or neither")
    if run.task is None:
        return
    if run.num_labels is None:
        draft.settle("num_labels", DEFAULT_LABELS, "transformers' own default, where --num-labels says nothing")
    elif run.num_labels < 2:
        raise InputError("--num-labels 1 is a regression, which is not planned: a classifier has 2 labels or more")


def _quantization(draft: _Draft) -> None:
    run, stored = draft.asked, stored_options(draft.profile)
    if "double_quant" in stored:
        draft.settle("double_quant", stored["double_quant"], "the checkpoint is stored so")
    if run.quant is None and run.method == "qlora" and "quant" in stored:
        draft.settle("quant", stored["quant"], "the checkpoint is stored so")
    elif run.quant is None:
        draft.settle("quant", "nf4" if run.method == "qlora" else "none", f"the usual for {run.method}")
    elif run.method == "qlora" and run.quant == "none":
        raise InputError("--quant none is no QLoRA: use --method lora for a 16-bit base, or --quant nf4, fp4 or int8")
    elif run.method == "full" and run.quant != "none":
        raise InputError(f"--method full trains the weights themselves, which {run.quant} cannot: use --quant none")
    if run.optimizer not in OPTIMIZERS:
        raise InputError(f"--optimizer {quoted(run.optimizer)} is not known; known: {', '.join(OPTIMIZERS)}")


def _compute_dtype(draft: _Draft) -> None:
    run, gpu = draft.asked, draft.gpu
    if run.compute_dtype is None:
        if gpu is not None and gpu.bf16 is False:
            draft.settle("compute_dtype", "float16", f"{gpu.label} has no bfloat16")
        else:
            draft.settle("compute_dtype", "bfloat16", "every card since compute capability 8.0 has it")
    if run.load_dtype is None:
        half = draft.values.get("compute_dtype", run.compute_dtype)
        if half == "float16" and gpu is not None and gpu.bf16 is False:
            draft.settle("load_dtype", "float16", f"{gpu.label} has no bfloat16")
        else:
            draft.settle("load_dtype", "bfloat16", "as checkpoints are published")
    if run.compute_dtype == "bfloat16" and gpu is not None and gpu.bf16 is False:
        draft.refuse(
            "no-bfloat16",
            f"{gpu.label} (compute capability {gpu.compute_capability}) has no bfloat16 matrix units",
            "--compute-dtype float16",
        )


def _adapters(draft: _Draft) -> None:
    run, profile = draft.asked, draft.profile
    if run.alpha is None:
        draft.settle("alpha", 2 * run.rank, "2 x rank")
    widest = next(iter(profile.adapters), "all-linear")
    if run.method == "full":
        draft.settle("target_modules", None, "a full fine-tune has no adapters")
        draft.settle("lora_dropout", 0.0, "a full fine-tune has no adapters")
        return
    if run.target_modules is None:
        draft.settle("target_modules", widest, "every linear layer that PEFT accepts here")
    elif run.target_modules == "all-linear" and "all-linear" in profile.refusals:
        draft.refuse("targets-refused", profile.refusals["all-linear"], f"--target-modules {widest}")
        draft.values["target_modules"] = widest
    _named_targets(draft)
    refused = profile.refusals.get("lora_dropout")
    own = trainer_named(run.trainer).default_dropout
    takes_experts = on_parameters(
        profile, run.with_(target_modules=draft.values.get("target_modules", run.target_modules))
    )
    if run.lora_dropout is None:
        if refused and takes_experts:
            draft.settle("lora_dropout", 0.0, f"PEFT refuses dropout here: {refused}")
        elif own is not None:
            draft.settle("lora_dropout", own, f"the default of {run.trainer}")
        else:
            draft.settle("lora_dropout", 0.05, "the usual for QLoRA")
    elif run.lora_dropout > 0 and refused and takes_experts:
        draft.refuse("dropout-refused", refused, "--lora-dropout 0")


def _named_targets(draft: _Draft) -> None:
    """Say which names match nothing: PEFT passes over them in silence as long as one matches."""
    wanted = draft.asked.target_modules
    # Facts of a class alone have no modules to look names up in; PEFT says by itself what it does not find.
    if wanted is None or wanted in WHOLE_SETS or not draft.profile.layer_kinds:
        return
    targets = targets_of(draft.profile, wanted)
    if targets.unmatched:
        matched, verb = ",".join(targets.matched), "matches" if len(targets.unmatched) == 1 else "match"
        draft.advise(
            "targets-unmatched",
            f"{listed(targets.unmatched)} {verb} nothing in {draft.profile.id}: PEFT passes over such names, so"
            f" adapters go on {listed(targets.matched)} alone",
            f"--target-modules {matched}",
        )


def _attention(draft: _Draft, stack: dict[str, str]) -> None:
    run, profile = draft.asked, draft.profile
    supports, changed = dict(profile.supports), sdpa_changed(profile.model_type, stack)
    if changed is not None:
        supports["sdpa"] = changed[0]
    since = "" if changed is None else f" {changed[1]}"
    if run.attention is None:
        kernel = "sdpa" if supports.get("sdpa") else "eager"
        why = "the class has it" if kernel == "sdpa" else f"{profile.class_name} has no SDPA{since}"
        draft.settle("attention", kernel, why)
    elif not supports.get(near.kernel if (near := nearest_kernel(run.attention)) else run.attention, False):
        usable = ", ".join(name for name in ("sdpa", "eager", "flash_attention_2") if supports.get(name))
        draft.refuse(
            "attention-refused",
            f"{profile.class_name} does not support {run.attention}{since}",
            f"--attention {usable}",
        )
    if run.gradient_checkpointing and not profile.supports.get("gradient_checkpointing", True):
        draft.refuse(
            "checkpointing-refused",
            f"{profile.class_name} has no gradient checkpointing",
            "--no-gradient-checkpointing",
        )


def _trainer(draft: _Draft, stack: dict[str, str]) -> tuple[TrainerRow, LossMemory]:
    run = draft.asked
    name = run.trainer
    if name is None:
        name, why = _automatic_trainer(draft)
        draft.settle("trainer", name, why)
    row, own = trainer_row(name, stack)
    if run.upcast is None and labels_of(run) is not None and _half(draft) and run.method != "full":
        why = "a score head in 16 bits has gradients that the float16 GradScaler cannot unscale"
        draft.settle("upcast", row.autocast, why)
    elif run.upcast is None and row.prepares_quantized and _is_quantized(draft):
        draft.settle("upcast", True, f"{name} prepares a quantised base as PEFT does")
    elif run.upcast is None:
        why = f"{name} casts to float32 by itself" if row.upcasts else f"{name} does not need it"
        draft.settle("upcast", row.upcasts, why)
    model_type = draft.profile.model_type
    refused = refused_kernel(run.with_(upcast=draft.values.get("upcast", run.upcast)), row, own, model_type)
    if refused is not None:
        draft.refuse("loss-refused", *refused)
    return row, loss_of(run, row, own, model_type)


def _experts(draft: _Draft, trainer: TrainerRow) -> None:
    """In what fused experts are stored by a trainer that decides it itself."""
    run = draft.asked
    four_bit = draft.values.get("quant", run.quant) in ("nf4", "fp4")
    if run.expert_quant is None and trainer.quantizes_experts and four_bit and fuses_experts(draft.profile):
        draft.settle("expert_quant", "nf4", f"{trainer.name} stores fused experts in 4 bits by itself")


def _is_quantized(draft: _Draft) -> bool:
    return draft.values.get("quant", draft.asked.quant) != "none"


def _half(draft: _Draft) -> bool:
    return draft.values.get("compute_dtype", draft.asked.compute_dtype) == "float16"


def _automatic_trainer(draft: _Draft) -> tuple[str, str]:
    """The first trainer that nothing speaks against, and why it is that one."""
    against = None
    for row in TRAINER_ROWS.values():
        if not row.automatic:
            continue
        why, against = against or row.usual, _against(row, draft)
        if against is None:
            return row.name, why
    raise InputError("no trainer can run this: name one with --trainer")


def _against(row: TrainerRow, draft: _Draft) -> str | None:
    """What speaks against choosing a trainer that nobody named."""
    run = draft.asked
    if run.task is not None and not row.classifies:
        return f"{row.name} trains no classifier"
    if _half(draft) and row.autocast:
        if run.method == "full":
            return "the trainers' GradScaler cannot unscale 16-bit gradients"
        if draft.values.get("quant", run.quant) != "none" and row.adapters_bfloat16:
            return f"{row.name} cannot train float16 on a quantised base"
    if run.expert_quant == "nf4" and expert_stack(row) is None and fuses_experts(draft.profile):
        return f"{row.name} leaves fused experts in 16 bits"
    if run.loss_kernel not in (None, "full", "chunked", *row.loss_kernels):
        return f"{row.name} computes its loss in its own way"
    # Options that it alone has would be lost on another: there its refusal stands.
    if row.name in draft.profile.refusals and not any(getattr(run, option) for option in row.own_options):
        return f"{row.name} breaks on this model: {draft.profile.refusals[row.name]}"
    return None


def _named_versions(draft: _Draft, held: Stack, trainer: str, stack: dict[str, str]) -> None:
    """Say of every version that was named whether it moved the figures, and of which nothing is known."""
    if not held.named:
        return
    said = []
    for named in held.modelled:
        how = changes(named.package, named.version, draft.profile.counted.get(named.package), trainer)
        if named.package == "transformers" and how is None:
            changed = sdpa_changed(draft.profile.model_type, stack)
            how = None if changed is None else changed[1]
        said.append(
            f"{named.package} {named.version} " + (f"changes them: {how}" if how else "changes nothing in them")
        )
    said += [
        f"{named.package} {named.version} is not modelled, they are those of {named.instead}"
        for named in held.unmodelled
    ]
    fix = ",".join(f"{named.package}={named.instead}" for named in held.unmodelled)
    draft.advise("stack", f"figures for the versions named: {'. '.join(said)}", f"--stack {fix}" if fix else "")


def _rest(draft: _Draft, trainer: TrainerRow) -> None:
    run, profile = draft.asked, draft.profile
    seq_len = draft.values.get("seq_len", run.seq_len)
    assert isinstance(seq_len, int)
    if run.padding is None:
        # Of completions that are generated together, each is padded to the longest.
        alone = trainer.generation is None and (run.batch_size * trainer.sequences_per_row == 1 or run.packing)
        draft.settle(
            "padding", not alone, "one sequence per row" if alone else "a batch holds sequences of unequal length"
        )
    limit = profile.dims.get("max_position_embeddings")
    if limit and seq_len > limit and not profile.dims.get("position_rows"):
        draft.advise(
            "beyond-model-length",
            f"{profile.id} was trained for {int(limit):,} positions; {seq_len:,} is beyond it",
            f"--seq-len {int(limit)} or less, unless you extend its positions on purpose",
        )
    if run.alloc_conf is None and trainer.alloc_conf is not None:
        draft.settle("alloc_conf", trainer.alloc_conf, f"{trainer.name} sets it at import, where nothing is set")
    optimizer = find_optimizer(run.optimizer)
    if optimizer is not None and draft.gpu is not None and draft.gpu.vendor != "nvidia" and optimizer.paged:
        draft.advise("paged-on-amd", "paged optimizers rely on CUDA managed memory", "--optimizer adamw_8bit")
