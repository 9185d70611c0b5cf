"""From a pasted error line to its cause and the line that fixes it: a table, each row with where it was reported."""

from __future__ import annotations

import re
from dataclasses import dataclass

from qlora_planner.measure.doctor_facts import Finding

_BNB = "https://github.com/bitsandbytes-foundation/bitsandbytes"
_TRANSFORMERS = "https://github.com/huggingface/transformers"


@dataclass(frozen=True, slots=True)
class Symptom:
    """`pattern` is searched in the pasted text, whatever the case."""

    code: str
    pattern: str
    cause: str
    fix: str
    source: str


SYMPTOMS = (
    Symptom(
        "missing-library",
        r"(?P<name>lib(?:cudart|nvJitLink|cusparse|cublas\w*|cudnn)[\w.]*)(?:: cannot open shared| not found)|"
        r"did not contain \['?libcudart",
        "bitsandbytes does not find one of CUDA's own libraries ({name}): the CUDA major of torch and of the library "
        "differ, or the folder is not searched",
        "pip install -U torch bitsandbytes; if it stays, put the folder that "
        "`find / -name '{name}*' 2>/dev/null` prints into LD_LIBRARY_PATH",
        f"{_BNB}/issues/1905",
    ),
    Symptom(
        "bitsandbytes-library",
        r"(?:Required library version not found|No compatible CUDA binary found|CUDA binary not found"
        r"|Could not find the "
        r"bitsandbytes CUDA binary)[^\n]*?(?P<name>libbitsandbytes_\w+)",
        "this bitsandbytes ships no library for the CUDA that torch is built with ({name})",
        "pip install -U bitsandbytes, and unset BNB_CUDA_VERSION",
        f"{_BNB}/issues/1518",
    ),
    Symptom(
        "bitsandbytes-library",
        r"CUDA Setup failed despite (?:GPU|CUDA) being available|CUDA VERSION MISMATCH",
        "torch sees the card but bitsandbytes loaded no CUDA library: an old release, a CUDA that it has no "
        "library for, "
        "or a library that it cannot open",
        "pip install -U bitsandbytes; then `python -m bitsandbytes` names the file",
        f"{_BNB}/issues/1522",
    ),
    Symptom(
        "bitsandbytes-cpu",
        r"compiled without GPU support|'?NoneType'? object has no attribute 'c\w+|undefined symbol: c(?:quantize"
        r"|adam|get)\w*"
        r"|not available in CPU-only version of bitsandbytes",
        "bitsandbytes loaded its CPU library: torch is CPU-only, sees no card, or bitsandbytes is old",
        "python -c 'import torch; print(torch.version.cuda, torch.cuda.is_available())'; then pip install -U "
        "bitsandbytes",
        f"{_BNB}/issues/1210",
    ),
    Symptom(
        "kernels",
        r"named symbol not found|no kernel image is available|not compatible with the current PyTorch installation",
        "the library was not compiled for this card: older than its oldest target (Pascal and Volta with CUDA "
        "12.8 or 13) "
        "or newer than its newest (Blackwell with CUDA 12.6)",
        "pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/cu126 (older cards) or "
        ".../cu130 "
        "(newer), then pip install -U bitsandbytes",
        "https://github.com/pytorch/pytorch/issues/157517",
    ),
    Symptom(
        "driver-too-old",
        r"NVIDIA driver on your system is too old|driver version is insufficient for CUDA runtime",
        "torch is built for a newer CUDA than the driver runs: CUDA 13 needs driver 580, CUDA 12 needs 525.60.13",
        "update the driver, or pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/cu126",
        "https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html",
    ),
    Symptom(
        "driver-mismatch",
        r"Driver/library version mismatch|unsupported display driver / cuda driver combination|Error 803",
        "two versions of the driver meet: it was updated while the old module is loaded, or a container brings its own "
        "libcuda",
        "reboot; in a container, remove its cuda-compat folder from LD_LIBRARY_PATH",
        "https://github.com/NVIDIA/nvidia-docker/issues/1256",
    ),
    Symptom(
        "no-driver",
        r"Found no NVIDIA driver|No CUDA GPUs are available|NVML Shared Library Not Found"
        r"|No GPU found\. A GPU is needed",
        "no driver answers in this environment, or CUDA_VISIBLE_DEVICES hides the cards",
        "nvidia-smi must work first; in a container start it with --gpus all",
        "https://github.com/NVIDIA/nvidia-container-toolkit/issues/871",
    ),
    Symptom(
        "container-gpu",
        r"could not select device driver",
        "docker has no NVIDIA runtime",
        "install nvidia-container-toolkit, then sudo nvidia-ctk runtime configure --runtime=docker && "
        "sudo systemctl restart docker",
        "https://github.com/NVIDIA/nvidia-docker/issues/1034",
    ),
    Symptom(
        "cuda-unknown",
        r"CUDA unknown error",
        "the driver's state is broken, most often after a suspend; CUDA_VISIBLE_DEVICES is seldom the cause",
        "sudo rmmod nvidia_uvm && sudo modprobe nvidia_uvm, or reboot",
        "https://github.com/pytorch/pytorch/issues/88639",
    ),
    Symptom(
        "torch-cpu-only",
        r"Torch not compiled with CUDA enabled",
        "this torch is a CPU-only build",
        "pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/cu130 (cu126 below "
        "driver 580)",
        "https://github.com/pytorch/pytorch/issues/28111",
    ),
    Symptom(
        "bf16-card",
        r"setup doesn'?t support bf16|bfloat16 is only supported on GPUs with compute capability",
        "the card has no bf16 (compute capability below 8.0: V100, T4, RTX 20), or torch sees no card",
        "--compute-dtype float16 with fp16=True and --trainer hf-trainer",
        "https://github.com/tatsu-lab/stanford_alpaca/issues/133",
    ),
    Symptom(
        "fp16-unscale-bf16",
        r"_amp_foreach_non_finite_check_and_unscale_cuda",
        "fp16 training with bf16 gradients: trl-sft casts LoRA to bf16 on 4-bit models, and fp16's GradScaler cannot "
        "unscale that",
        "bf16=True with --compute-dtype bfloat16; on a card without bf16, --trainer hf-trainer",
        "https://github.com/huggingface/trl/issues/4901",
    ),
    Symptom(
        "fp16-weights",
        r"Attempting to unscale FP16 gradients",
        "trainable parameters are themselves fp16 (a model loaded in float16 with modules_to_save, or no PEFT)",
        "keep trainable parameters in float32, or load and train in bf16",
        "https://github.com/huggingface/peft/issues/341",
    ),
    Symptom(
        "dtype-mismatch",
        r"mat1 and mat2 (?:must|to) have the same dtype|expected scalar type (?:Half|BFloat16|Float) but found",
        "a layer in one dtype meets an input in another: an upcast model used outside autocast, as in generate() "
        "within a "
        "callback, or compute and training dtype that differ",
        "run it under torch.autocast('cuda', dtype=torch.bfloat16), and keep --compute-dtype and bf16/fp16 the same",
        "https://github.com/huggingface/peft/issues/1515",
    ),
    Symptom(
        "bitsandbytes-version",
        r"4.bit quantization requires|_is_hf_initialized",
        "bitsandbytes is older than this transformers needs (5.x: 0.46.1, and 0.50 for device_map='auto')",
        "pip install -U bitsandbytes",
        f"{_TRANSFORMERS}/pull/41283",
    ),
    Symptom(
        "does-not-fit-loading",
        r"Some modules are dispatched on the CPU or the disk",
        "the 4-bit model does not fit what accelerate counts as free, nine tenths of it; experts that stay "
        "16-bit count in",
        "qlora-plan audit MODEL shows what stays 16-bit; free the card, or device_map={'': 0}",
        f"{_BNB}/issues/881",
    ),
    Symptom(
        "device-map",
        r"loaded in 8-bit (?:or 4-bit )?precision on (?:a different device|multiple devices)",
        "the quantised model was spread over devices, or put on another than the one that trains",
        "device_map={'': local_rank}; pip install -U accelerate",
        "https://github.com/huggingface/accelerate/issues/1515",
    ),
    Symptom(
        "no-adapters",
        r"fine-tuning on purely quantized models",
        "the 4-bit model has no adapters: its own weights cannot train",
        "get_peft_model before the trainer, or give the trainer a peft_config",
        f"{_TRANSFORMERS}/blob/main/src/transformers/trainer_utils.py",
    ),
    Symptom(
        "no-grad",
        r"does not require grad and does not have a grad_fn|None of the inputs have requires_grad=True",
        "gradient checkpointing (reentrant) over a frozen embedding: no input asks for a gradient",
        "gradient_checkpointing_kwargs={'use_reentrant': False}, and model.enable_input_require_grads()",
        f"{_TRANSFORMERS}/issues/42489",
    ),
    Symptom(
        "expert-dropout",
        r"ParamWrapper does not work with lora_dropout",
        "LoRA on fused experts takes no dropout",
        "--lora-dropout 0, or --target-modules attention",
        "https://github.com/huggingface/peft/blob/main/src/peft/tuners/lora/layer.py",
    ),
    Symptom(
        "gated-model",
        r"Cannot access gated repo|401 Client Error|GatedRepoError|access to model .* is restricted",
        "the model is gated: its licence must be accepted with the account whose token is set",
        "accept the licence on the model's page, then hf auth login",
        "https://huggingface.co/docs/hub/models-gated",
    ),
    Symptom(
        "disk",
        r"No space left on device|Errno 28",
        "the disk that holds the Hub's files is full: an 8B model's 16-bit files take 16 GB",
        "export HF_HOME=/a/larger/disk, or `hf cache` to delete what is not needed",
        "https://huggingface.co/docs/huggingface_hub/guides/manage-cache",
    ),
    Symptom(
        "out-of-memory",
        r"CUDA out of memory|OutOfMemoryError|CUDA_ERROR_OUT_OF_MEMORY",
        "the run does not fit; the log tells in which phase",
        "qlora-plan explain-oom LOG; qlora-plan MODEL --gpu CARD for a run that fits; "
        "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True against fragmentation",
        "https://github.com/pytorch/pytorch/issues/35901",
    ),
)


def explain_symptom(text: str) -> list[Finding]:
    """The known causes of a pasted error line or log, most particular first; empty when none is known."""
    found: dict[str, Finding] = {}
    for symptom in SYMPTOMS:
        match = re.search(symptom.pattern, text, re.IGNORECASE)
        if match is None or symptom.code in found:
            continue
        name = (match.groupdict().get("name") or "libcudart.so").rstrip(".")
        found[symptom.code] = Finding(
            code=symptom.code,
            status="problem",
            message=symptom.cause.replace("{name}", name),
            fix=symptom.fix.replace("{name}", name),
            source=symptom.source,
        )
    return list(found.values())
