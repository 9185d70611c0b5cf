"""Known error lines of bitsandbytes: its library, its kernels, its weights."""

from __future__ import annotations

from qlora_planner.diagnose.symptoms.row import BITSANDBYTES, TRANSFORMERS, Symptom

ROWS = (
    Symptom(
        "missing-library",
        r"(?P<name>lib(?:cudart|nvJitLink|cusparse|cublas\w*|cudnn)[\w.]*)(?:: cannot open shared| not "
        r"found)|did not contain \['?libcudart",
        "bitsandbytes does not find one of CUDA's own libraries ({name}): the CUDA major of torch and of the "
        "library differ, or the folder is not searched",
        "pip install -U torch bitsandbytes; if it stays, put the folder that `find / -name '{name}*' "
        "2>/dev/null` prints into LD_LIBRARY_PATH",
        "https://github.com/bitsandbytes-foundation/bitsandbytes/issues/1905",
    ),
    Symptom(
        "bitsandbytes-library",
        r"(?:Required library version not found|No compatible CUDA binary found|CUDA binary not found|Could "
        r"not find the bitsandbytes CUDA binary)[^\n]{0,300}?(?P<name>libbitsandbytes_\w+)",
        "this bitsandbytes ships no library for the CUDA that torch is built with ({name})",
        "pip install -U bitsandbytes, and unset BNB_CUDA_VERSION",
        "https://github.com/bitsandbytes-foundation/bitsandbytes/issues/1518",
    ),
    Symptom(
        "bitsandbytes-library",
        r"CUDA Setup failed despite (?:GPU|CUDA) being available|CUDA VERSION MISMATCH",
        "torch sees the card but bitsandbytes loaded no CUDA library: an old release, a CUDA that it has no "
        "library for, or a library that it cannot open",
        "pip install -U bitsandbytes; then `python -m bitsandbytes` names the file",
        "https://github.com/bitsandbytes-foundation/bitsandbytes/issues/1522",
    ),
    Symptom(
        "bitsandbytes-cpu",
        r"compiled without GPU support|'?NoneType'? object has no attribute 'c\w+|undefined symbol: "
        r"c(?:quantize|adam|get)\w*|not available in CPU-only version of bitsandbytes",
        "bitsandbytes loaded its CPU library: torch is CPU-only, sees no card, or bitsandbytes is old",
        "python -c 'import torch; print(torch.version.cuda, torch.cuda.is_available())'; then pip install -U "
        "bitsandbytes",
        "https://github.com/bitsandbytes-foundation/bitsandbytes/issues/1210",
    ),
    Symptom(
        "bitsandbytes-version",
        r"4.bit quantization requires|_is_hf_initialized",
        "bitsandbytes is older than this transformers needs (5.x: 0.46.1, and 0.50 for device_map='auto')",
        "pip install -U bitsandbytes",
        "https://github.com/huggingface/transformers/pull/41283",
    ),
    Symptom(
        "does-not-fit-loading",
        r"Some modules are dispatched on the CPU or the disk",
        "the 4-bit model does not fit what accelerate counts as free, nine tenths of it; experts that stay "
        "16-bit count in",
        "qlora-plan audit MODEL shows what stays 16-bit; free the card, or device_map={'': 0}",
        "https://github.com/bitsandbytes-foundation/bitsandbytes/issues/881",
    ),
    Symptom(
        "device-map",
        r"loaded in 8-bit (?:or 4-bit )?precision on (?:a different device|multiple devices)",
        "the quantised model was spread over devices, or put on another than the one that trains",
        "device_map={'': local_rank}; pip install -U accelerate",
        "https://github.com/huggingface/accelerate/issues/1515",
    ),
    Symptom(
        "triton-ops",
        r"No module named 'triton\.ops'",
        "bitsandbytes older than 0.45 with triton 3.2 or newer",
        "pip install -U bitsandbytes",
        f"{BITSANDBYTES}/issues/1492",
        ("bitsandbytes", "triton"),
    ),
    Symptom(
        "quantise-twice",
        r"Blockwise (?:4bit )?quantization only supports 16/32-bit floats, but got|does not contain "
        r"`?bitsandbytes__\*`?",
        "4-bit weights are quantised once more, or a 4-bit file lacks its constants: a checkpoint saved "
        "from a 4-bit model by another tool",
        "load the 16-bit base with quantization_config; save adapters, not the 4-bit model",
        f"{BITSANDBYTES}/blob/main/bitsandbytes/functional.py",
        ("bitsandbytes", "transformers"),
    ),
    Symptom(
        "quant-state",
        r"FP4 quantization state not initialized|object has no attribute 'quant_state'",
        "a 4-bit layer was never moved to a card, which is when bitsandbytes quantises it",
        "device_map={'': 0}; do not build the model on meta or copy its layers",
        f"{BITSANDBYTES}/blob/main/bitsandbytes/nn/modules.py",
        ("bitsandbytes",),
    ),
    Symptom(
        "compute-float32",
        r"bnb_4bit_compute_dtype=torch\.float32",
        "a warning: multiplications run in float32, several times slower, because the compute dtype was "
        "left at its default",
        "BitsAndBytesConfig(bnb_4bit_compute_dtype=torch.bfloat16)",
        f"{BITSANDBYTES}/blob/main/bitsandbytes/nn/modules.py",
        ("bitsandbytes",),
    ),
    Symptom(
        "cublas-failed",
        r"CUBLAS_STATUS_(?:NOT_SUPPORTED|EXECUTION_FAILED|INVALID_VALUE|ARCH_MISMATCH|INTERNAL_ERROR)|"
        r"cublasLt ran into an error",
        "a multiplication failed: an int8 or bf16 kernel on a card without it (8-bit needs Turing), "
        "NaN-producing or out-of-range inputs, or two versions of cuBLAS (LD_LIBRARY_PATH)",
        "unset LD_LIBRARY_PATH; --quant nf4 in place of int8; CUDA_LAUNCH_BLOCKING=1 names the place",
        "https://docs.nvidia.com/cuda/cublas/#cublasstatus-t",
        ("torch", "bitsandbytes"),
    ),
    Symptom(
        "packed-shape",
        r"mat1 and mat2 shapes cannot be multiplied \(\d{1,9}x\d{1,9} and 1x\d{4,12}\)",
        "a 4-bit weight is multiplied as it is stored (a row of packed bytes): its layer is no Linear4bit "
        "any more, or lost its quantisation state",
        "load with quantization_config in from_pretrained; do not copy or replace 4-bit layers; pip "
        "install -U peft bitsandbytes",
        f"{BITSANDBYTES}/blob/main/bitsandbytes/nn/modules.py",
        ("bitsandbytes", "peft"),
    ),
    Symptom(
        "bnb-accelerate",
        r"(?:8|4)-bit quantization requires [Aa]ccelerate|requires the latest version of bitsandbytes",
        "accelerate or bitsandbytes is missing or too old for this transformers (or was installed after "
        "the notebook's kernel started)",
        "pip install -U accelerate bitsandbytes, then restart the kernel",
        f"{TRANSFORMERS}/quantizers/quantizer_bnb_4bit.py",
        ("accelerate", "bitsandbytes", "transformers"),
    ),
)
