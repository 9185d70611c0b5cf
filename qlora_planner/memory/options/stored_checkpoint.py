"""What it means for a run that the published weights are already quantised."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qlora_planner.memory.records import STORED_QUANTIZED, Problem
from qlora_planner.record import record
from qlora_planner.spec.model import ModelProfile
from qlora_planner.spec.run import RunConfig

_BITSANDBYTES = "bitsandbytes-"
_BF16 = "a bf16 copy of the model: one of another repository, or one dequantised and saved by yourself"


@record
class Checkpoint:
    """How a checkpoint is stored, and what that does to a QLoRA run. `works`: bitsandbytes can hold it.

    `fix` is what to use instead.
    """

    scheme: str
    label: str
    works: bool
    message: str
    fix: str | None


# transformers 5.17 quantizers/auto.py merge_quantization_configs: a checkpoint's own quantization_config wins over a
# BitsAndBytesConfig, and one of another class is a ValueError. Its mxfp4 and fp8 quantizers say is_trainable = False.
_KNOWN = {
    "mxfp4": (
        "MXFP4",
        "the checkpoint is stored in MXFP4, which transformers cannot train, and it refuses a BitsAndBytesConfig on top"
        " (`The model is quantized with Mxfp4Config but you are passing a BitsAndBytesConfig`)",
        "a bf16 copy of the model, saved once through Mxfp4Config(dequantize=True)",
    ),
    "fp8": (
        "FP8",
        "the checkpoint is stored in FP8, which transformers cannot train, and it refuses a BitsAndBytesConfig on top",
        f"{_BF16} (FineGrainedFP8Config(dequantize=True))",
    ),
}
# The other methods of the same file's AUTO_QUANTIZATION_CONFIG_MAPPING, and what people call them.
_OTHERS = {
    "gptq": "GPTQ", "awq": "AWQ", "hqq": "HQQ", "eetq": "EETQ", "aqlm": "AQLM", "quanto": "Quanto", "gguf": "GGUF",
    "compressed-tensors": "compressed-tensors", "fbgemm_fp8": "FBGEMM FP8", "torchao": "torchao", "bitnet": "BitNet",
    "vptq": "VPTQ", "spqr": "SpQR", "higgs": "HIGGS", "quark": "Quark", "auto-round": "AutoRound", "nvfp4": "NVFP4",
    "mxfp8": "MXFP8", "fp_quant": "FP-Quant", "sinq": "SINQ", "metal": "Metal",
}  # fmt: skip


def stored_quantization(raw: Mapping[str, Any]) -> str | None:
    """How the checkpoint says its weights are already quantised: `mxfp4`, `fp8`, ...; None where they are not.

    Of bitsandbytes with what its size hangs on: `bitsandbytes-8bit`, `bitsandbytes-nf4`, `bitsandbytes-nf4-double`, ...
    """
    stored = raw.get("quantization_config")
    if not isinstance(stored, Mapping):
        return None
    method = str(stored.get("quant_method") or ("bitsandbytes" if "load_in_4bit" in stored else "unknown"))
    if method == "bitsandbytes" or "load_in_8bit" in stored:
        if stored.get("load_in_8bit"):
            return "bitsandbytes-8bit"
        kind = f"bitsandbytes-{stored.get('bnb_4bit_quant_type') or 'fp4'}"  # fp4: BitsAndBytesConfig's own default
        return f"{kind}-double" if stored.get("bnb_4bit_use_double_quant") else kind
    return method.lower()


def checkpoint_of(profile: ModelProfile) -> Checkpoint | None:
    """What the profile knows of the published weights; None for ordinary 16- and 32-bit ones."""
    return None if profile.checkpoint_quantization is None else checkpoint_stored(profile.checkpoint_quantization)


def checkpoint_stored(scheme: str) -> Checkpoint:
    """What weights that are stored by `scheme` (as `quant_method` names it) mean for a run."""
    key = scheme.lower()
    if key.startswith(_BITSANDBYTES):
        bits = "8-bit" if key == f"{_BITSANDBYTES}8bit" else "4-bit"
        return Checkpoint(
            scheme=scheme,
            label=f"{bits} already, by bitsandbytes",
            works=True,
            message=f"the checkpoint is already {bits} by bitsandbytes: it loads in its final size without a 16-bit"
            " tensor on the way, and its own settings win over --quant and --double-quant",
            fix=None,
        )
    for name, (label, message, fix) in _KNOWN.items():
        if key == name or key.startswith((name + "-", name + "_")):
            return Checkpoint(scheme=scheme, label=label, works=False, message=message, fix=fix)
    for name, label in _OTHERS.items():
        if key == name or key.startswith((name + "-", name + "_")):
            message = f"the checkpoint is stored in {label}: transformers refuses a BitsAndBytesConfig on top"
            return Checkpoint(scheme=scheme, label=label, works=False, message=message, fix=_BF16)
    return Checkpoint(
        scheme=scheme,
        label=scheme,
        works=False,
        message=f"the checkpoint is stored by {scheme}, about which nothing is known here",
        fix=_BF16,
    )


def stored_problem(profile: ModelProfile, run: RunConfig) -> Problem | None:
    """Why no run that bitsandbytes quantises, or whose weights are whole, can start from the published weights.

    None where they are ordinary, or bitsandbytes' own.
    """
    checkpoint = checkpoint_of(profile)
    if checkpoint is None or checkpoint.works or checkpoint.fix is None:
        return None
    message = checkpoint.message
    if run.method == "lora":
        message = (
            f"the checkpoint is stored in {checkpoint.label}, so this would be LoRA on its packed weights, through the"
            " library that made them: it is not modelled here, and with bitsandbytes such a checkpoint will not run"
        )
    elif run.method == "full":
        message = f"the checkpoint is stored in {checkpoint.label}, whose packed weights cannot be trained whole"
    return Problem(code=STORED_QUANTIZED, message=message, fix=checkpoint.fix, blocking=True)


def stored_options(profile: ModelProfile) -> dict[str, Any]:
    """The options that a checkpoint of bitsandbytes has settled, as far as they are known; none for any other."""
    scheme = (profile.checkpoint_quantization or "").lower()
    if not scheme.startswith(_BITSANDBYTES):
        return {}
    kind, _, double = scheme.removeprefix(_BITSANDBYTES).partition("-")
    if kind == "8bit":
        return {"method": "qlora", "quant": "int8"}
    if kind not in ("nf4", "fp4"):
        return {"method": "qlora"}
    return {"method": "qlora", "quant": kind, "double_quant": double == "double"}
