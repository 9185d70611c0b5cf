"""Do the compute dtype of the 4-bit layers and the dtype of training agree? Rows over one run's choices."""

from __future__ import annotations

from collections.abc import Callable

from qlora_planner.catalog.trainers import trainer_named
from qlora_planner.diagnose.facts import Finding, Status
from qlora_planner.record import record


@record
class DtypeChoice:
    """What a run says about dtypes; the names are those of the run options and of TrainingArguments."""

    compute_dtype: str
    bf16: bool
    fp16: bool
    load_dtype: str | None
    quant: str
    trainer: str | None
    card_bf16: bool | None

    @property
    def four_bit(self) -> bool:
        """Whether the base model's linears are 4-bit."""
        return self.quant in ("nf4", "fp4")

    @property
    def casts_adapters(self) -> bool:
        """Whether the trainer that was named casts the adapters of such a base to bfloat16."""
        return self.trainer is not None and trainer_named(self.trainer).adapters_bfloat16

    @property
    def autocast(self) -> bool:
        """Whether training runs under autocast, as far as is known."""
        return self.trainer is None or trainer_named(self.trainer).autocast


@record
class _Row:
    code: str
    status: Status
    when: Callable[[DtypeChoice], bool]
    message: str
    fix: str
    source: str | None = None


_UNSCALE = "https://github.com/huggingface/trl/issues/4901"
_ROWS = (
    _Row(
        code="both-amp",
        status="problem",
        when=lambda run: run.bf16 and run.fp16,
        message="bf16 and fp16 are both on; seen as 'At most one of fp16 and bf16 can be True'",
        fix="bf16=True, fp16=False (the other way round on a card without bf16)",
    ),
    _Row(
        code="bf16-card",
        status="problem",
        when=lambda run: run.card_bf16 is False and (run.bf16 or run.compute_dtype == "bfloat16"),
        message='this card has no bf16; seen as "Your setup doesn\'t support bf16/gpu"',
        fix="--compute-dtype float16 with fp16=True and --trainer hf-trainer",
    ),
    _Row(
        code="fp16-trl-sft",
        status="problem",
        when=lambda run: run.fp16 and run.four_bit and run.casts_adapters,
        message="trl-sft casts LoRA to bf16 on a 4-bit model and the GradScaler of fp16 cannot unscale it; seen as "
        "'\"_amp_foreach_non_finite_check_and_unscale_cuda\" not implemented for 'BFloat16''",
        fix="--trainer hf-trainer, or bf16=True with --compute-dtype bfloat16",
        source=_UNSCALE,
    ),
    _Row(
        code="compute-fp16-train-bf16",
        status="warning",
        when=lambda run: run.four_bit and run.compute_dtype == "float16" and run.bf16,
        message="4-bit layers compute in float16 while the rest trains in bf16: each layer casts in and out, and "
        "values that bf16 holds overflow in float16",
        fix="--compute-dtype bfloat16",
    ),
    _Row(
        code="compute-bf16-train-fp16",
        status="warning",
        when=lambda run: run.four_bit and run.compute_dtype == "bfloat16" and run.fp16 and not run.casts_adapters,
        message="4-bit layers compute in bf16 while the rest trains in fp16: each layer casts in and out, and fp16's "
        "loss scaling is still needed",
        fix="bf16=True, fp16=False; or --compute-dtype float16",
    ),
    _Row(
        code="compute-fp32",
        status="warning",
        when=lambda run: run.four_bit and run.compute_dtype == "float32" and (run.bf16 or run.fp16),
        message="4-bit layers compute in float32, which is BitsAndBytesConfig's default: a dequantised layer takes 4 "
        "bytes a weight instead of 2, and no tensor cores",
        fix="--compute-dtype bfloat16 (float16 on a card without bf16)",
    ),
    _Row(
        code="no-amp",
        status="warning",
        when=lambda run: not run.bf16 and not run.fp16 and run.compute_dtype != "float32" and run.autocast,
        message="neither bf16 nor fp16 training is on: activations of upcast models stay float32, and float32 "
        "attention with grouped heads keeps its scores, sequence x sequence",
        fix="bf16=True (fp16=True on a card without bf16)",
    ),
    _Row(
        code="fp16-weights",
        status="problem",
        when=lambda run: run.fp16 and run.load_dtype == "float16" and not run.four_bit,
        message="fp16 training of parameters that are themselves fp16; seen as 'Attempting to unscale FP16 gradients'",
        fix="keep trainable parameters in float32 (PEFT's autocast_adapter_dtype), or train in bf16",
        source="https://github.com/huggingface/peft/issues/341",
    ),
)


def check_dtypes(
    *,
    compute_dtype: str,
    bf16: bool = False,
    fp16: bool = False,
    load_dtype: str | None = None,
    quant: str = "nf4",
    trainer: str | None = None,
    card_bf16: bool | None = None,
) -> list[Finding]:
    """Where these choices disagree with each other or with the card; one ok row when they do not.

    `compute_dtype` is bfloat16, float16 or float32; `bf16` and `fp16` are the trainer's mixed precision.
    """
    run = DtypeChoice(
        compute_dtype=compute_dtype,
        bf16=bf16,
        fp16=fp16,
        load_dtype=load_dtype,
        quant=quant,
        trainer=trainer,
        card_bf16=card_bf16,
    )
    disagreements = [
        Finding(code=row.code, status=row.status, message=row.message, fix=row.fix, source=row.source)
        for row in _ROWS
        if row.when(run)
    ]
    return disagreements or [Finding(code="dtypes", status="ok", message="compute dtype and training dtype agree")]
