"""What to trace: the options of a run that change the graph or its sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from qlora_planner.catalog.trainers import DEFAULT_TRAINER, TrainerRow, trainer_named
from qlora_planner.profiling.tracing.cuda.semantics import CudaTraits
from qlora_planner.spec.run import RunConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceSpec:
    """One training run in full detail; names follow RunConfig where both have them."""

    method: str = "qlora"  # qlora, lora, full
    quant: str = "nf4"  # nf4, fp4, int8, none
    double_quant: bool = True
    compute_dtype: str = "bfloat16"
    load_dtype: str = "bfloat16"
    batch_size: int = 1
    seq_len: int = 1024
    grad_accum: int = 1
    rank: int = 16
    target_modules: str | tuple[str, ...] = "all-linear"
    lora_dropout: float = 0.05
    dora: bool = False
    gradient_checkpointing: bool = True
    use_reentrant: bool = False
    attention: str | None = "sdpa"  # None: the class's own choice
    optimizer: str = "paged_adamw_8bit"
    trainer: str = DEFAULT_TRAINER
    upcast: bool = True  # prepare_model_for_kbit_training
    liger: bool = False
    activation_offloading: bool = False
    padding: bool = False
    packing: bool = False
    modules_to_save: tuple[str, ...] = ()
    eval_batch_size: int | None = None
    trl: str = "1.16.0"
    device: CudaTraits = field(default_factory=CudaTraits)
    on_cpu: bool = False  # what a CPU allocates: no rule of the cuda_* modules, so that real CPU events can judge it

    @property
    def device_name(self) -> str:
        """Where tensors are."""
        return "cpu" if self.on_cpu else "cuda"

    @property
    def row(self) -> TrainerRow:
        """The facts of the trainer."""
        return trainer_named(self.trainer)

    @property
    def trl_version(self) -> tuple[int, ...]:
        """TRL's version as numbers."""
        return tuple(int(part) for part in self.trl.split(".")[:2])

    @classmethod
    def of(cls, run: RunConfig, stack: Mapping[str, str], device: CudaTraits | None = None) -> TraceSpec:
        """From a resolved run on these library versions and this device."""
        targets = run.target_modules or "all-linear"
        saved = (name.strip() for name in (run.modules_to_save or "").split(","))
        return cls(
            method=run.method,
            quant=run.quant or "none",
            double_quant=run.double_quant,
            compute_dtype=run.compute_dtype or "bfloat16",
            load_dtype=run.load_dtype or "bfloat16",
            batch_size=run.batch_size,
            seq_len=run.seq_len,
            grad_accum=run.grad_accum,
            rank=run.rank,
            target_modules=targets if targets == "all-linear" else tuple(targets.split(",")),
            lora_dropout=run.lora_dropout or 0.0,
            dora=run.dora,
            gradient_checkpointing=run.gradient_checkpointing,
            use_reentrant=run.use_reentrant,
            attention=run.attention,
            optimizer=run.optimizer,
            trainer=run.trainer or DEFAULT_TRAINER,
            upcast=bool(run.upcast),
            liger=run.liger,
            activation_offloading=run.activation_offloading,
            padding=bool(run.padding),
            packing=run.packing,
            modules_to_save=tuple(name for name in saved if name),
            eval_batch_size=run.eval_batch_size,
            trl=stack.get("trl", "1.16.0"),
            device=device or CudaTraits(),
        )
