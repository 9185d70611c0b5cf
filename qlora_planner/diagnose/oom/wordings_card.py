"""Rows of `wordings.py` for what cards, their libraries and engines say; torch's own words are in torch_messages.py."""

from __future__ import annotations

from qlora_planner.diagnose.oom.wordings import Wording

_TORCH = "https://github.com/pytorch/pytorch/blob/main"
_SMALLER = "a smaller batch or sequence, or --reserve 1GiB more in the plan: libraries allocate beside torch."

CARD = (
    Wording(
        cause="cuda", kind="cuda", backend="CUDA",
        needles=("out of memory", "OUT_OF_MEMORY", "cudaErrorMemoryAllocation", "memory allocation"),
        says=(
            r"(?i:cuda) (?:driver |runtime |kernel )?(?i:error)[:\s(\d)']{0,8}out of memory",
            r"CUDA_ERROR_OUT_OF_MEMORY",
            r"cudaErrorMemoryAllocation",
            r"cudaMalloc\w{0,20}[^\n]{0,40}out of memory",
        ),
        headline="the card ran out of memory outside torch's allocator",
        advice=(
            "outside torch's allocator: CUDA itself, a library or an expandable segment found nothing left, so others"
            " on the card count as much as this run: nvidia-smi; plan with --reserve.",
        ),
        source=f"{_TORCH}/c10/cuda/CUDAException.cpp",
    ),
    Wording(
        cause="hip", kind="cuda", backend="HIP",
        needles=("out of memory", "hipErrorOutOfMemory", "hipErrorMemoryAllocation"),
        says=(
            r"HIP error: out of memory",
            r"hipError(?:OutOfMemory|MemoryAllocation)",
        ),
        headline="the AMD card ran out of memory outside torch's allocator",
        advice=("rocm-smi --showpids shows who else is on the card.",),
        source=f"{_TORCH}/c10/hip",
    ),
    Wording(
        cause="exception", kind="cuda", backend="CUDA", needles=("OutOfMemoryError",),
        says=(
            r"(?:^|[\s\]>])(?<!except )(?:torch\.(?:cuda\.)?)?OutOfMemoryError(?::|\s*$)",
        ),
        headline="the card ran out of memory; the message itself is not in the log",
        advice=("the figures are in the lines after it: keep the whole message in the log.",),
        source=f"{_TORCH}/torch/csrc/Exceptions.cpp", rank=1,
    ),
    Wording(
        cause="nccl", kind="cuda", backend="CUDA",
        needles=("Cuda failure", "Failed to CUDA", "Failed to Cuda", "Failed to cuda"),
        says=(
            r"Cuda failure \d{0,4} {0,2}'out of memory'",
            r"Failed to (?i:cuda) ?(?:host ?|Host)?(?:calloc|malloc|alloc)",
        ),
        headline="NCCL could not get its buffers: the card was full when the processes first spoke to each other",
        advice=(
            "NCCL takes some hundred MiB a card beside torch: leave them free, and see with nvidia-smi that every"
            " process has a card of its own (LOCAL_RANK, CUDA_VISIBLE_DEVICES).",
        ),
        source="https://github.com/NVIDIA/nccl/blob/master/src/include/checks.h",
    ),
    Wording(
        cause="cublas", kind="cublas", backend="CUDA",
        needles=("STATUS_ALLOC_FAILED", "CUFFT_ALLOC_FAILED", "INSUFFICIENT_RESOURCES"),
        says=(
            r"(?:CUBLAS|CUDNN|CUSOLVER|CUSPARSE)_STATUS_(?:ALLOC_FAILED|INSUFFICIENT_RESOURCES)",
            r"CUFFT_ALLOC_FAILED",
        ),
        headline="a CUDA library could not get its workspace, as on a full card",
        advice=(_SMALLER,),
        source="https://docs.nvidia.com/cuda/cublas/#cublasstatus-t",
    ),
    Wording(
        cause="cublas-handle", kind="cublas", backend="CUDA",
        needles=("STATUS_NOT_INITIALIZED", "CUDNN_STATUS_INTERNAL_ERROR"),
        says=(
            r"(?:CUBLAS|CUDNN|CUSOLVER)_STATUS_NOT_INITIALIZED",
            r"CUDNN_STATUS_INTERNAL_ERROR",
        ),
        headline="a CUDA library could not start, as on a full card",
        advice=(
            "it can also come of a token id beyond the vocabulary or of a broken driver; CUDA_LAUNCH_BLOCKING=1 tells"
            " them apart.",
            _SMALLER,
        ),
        source="https://github.com/pytorch/pytorch/issues/54975", rank=1,
    ),
    Wording(
        cause="rocblas", kind="cublas", backend="HIP", needles=("BLAS_STATUS_",),
        says=(
            r"(?:HIP|ROC)BLAS_STATUS_(?:ALLOC_FAILED|MEMORY_ERROR)",
            r"rocblas_status_memory_error",
        ),
        headline="a library of ROCm could not get its workspace, as on a full card",
        advice=(_SMALLER,),
        source="https://rocm.docs.amd.com/projects/rocBLAS/en/latest/reference/enumerations.html",
    ),
    Wording(
        cause="bitsandbytes", kind="bitsandbytes", backend="CUDA", needles=("Error out of memory",),
        says=(
            r"Error out of memory at line",
        ),
        headline="bitsandbytes could not allocate on the card (its paged memory or its workspace)",
        advice=("a paged optimizer needs host memory that can be pinned: see `ulimit -l` and the host's free memory.",),
        source="https://github.com/bitsandbytes-foundation/bitsandbytes/blob/main/csrc/pythonInterface.cpp",
    ),
    Wording(
        cause="xpu", kind="cuda", backend="XPU",
        needles=("OUT_OF_DEVICE_MEMORY", "OUT_OF_RESOURCES", "OUT_OF_HOST_MEMORY"),
        says=(
            r"(?:UR_RESULT|PI|ZE_RESULT|CL)_?(?:ERROR_)?(?:OUT_OF_DEVICE_MEMORY|OUT_OF_RESOURCES|OUT_OF_HOST_MEMORY)",
        ),
        headline="the Intel card ran out of memory outside torch's allocator",
        advice=("xpu-smi ps shows who else is on the card.",),
        source="https://oneapi-src.github.io/unified-runtime/core/api.html",
    ),
    Wording(
        cause="metal", kind="metal", backend="MPS",
        needles=("Invalid buffer size", "total bytes of NDArray", "CallbackErrorOutOfMemory", "Insufficient Memory"),
        says=(
            r"Invalid buffer size",
            r"total bytes of NDArray > 2\*\*32",
            r"kIOGPUCommandBufferCallbackErrorOutOfMemory",
            r"Insufficient Memory \(",
        ),
        headline="Metal refused: a single buffer larger than Apple's GPU takes, or its memory is used up",
        advice=("one tensor was too large for Metal: a shorter sequence or a smaller batch, logits first of all.",),
        source=f"{_TORCH}/aten/src/ATen/mps/MPSAllocator.mm",
    ),
    Wording(
        cause="vllm", kind="engine", backend="CUDA",
        needles=("No available memory for the cache blocks", "less than desired GPU memory utilization", "KV cache"),
        says=(
            r"No available memory for the cache blocks",
            r"is less than desired GPU memory utilization",
            r"larger than the maximum number of tokens that can be stored in KV cache",
            r"KV cache is needed, which is larger",
        ),
        headline="vLLM found no room for its cache beside what is on the card",
        advice=(
            "vLLM takes its share when it starts: start it before or beside the training with a smaller"
            " gpu_memory_utilization, a smaller max_model_len, or on a card of its own (vllm_mode=server).",
        ),
        source="https://github.com/vllm-project/vllm/blob/main/vllm/v1/core/kv_cache_utils.py",
    ),
    Wording(
        cause="xla", kind="engine", needles=("RESOURCE_EXHAUSTED",),
        says=(
            r"RESOURCE_EXHAUSTED: ?(?:Out of memory|Attempting to (?:allocate|reserve)|Failed to allocate)",
        ),
        headline="XLA or TensorFlow ran out of memory on its device",
        advice=("JAX and TensorFlow take most of a card for themselves: XLA_PYTHON_CLIENT_PREALLOCATE=false.",),
        source="https://docs.jax.dev/en/latest/gpu_memory_allocation.html", rank=1,
    ),
    Wording(
        cause="kernel-shared-memory", kind="kernel",
        needles=("out of resource", "too many resources requested", "OutOfResources"),
        says=(
            r"out of resources?: (?:shared|tensor) memory",
            r"too many resources requested for launch",
            r"\bOutOfResources(?::|\b)",
        ),
        headline="no shortage of the card's memory: a kernel wants more on-chip (shared) memory or registers than this"
        " card has",
        advice=(
            "the run's size does not matter here: the kernel was tuned for a larger chip. Update triton and the library"
            " whose kernel it is (liger-kernel, flash-attn, unsloth, fla), or turn that kernel off (no --liger,"
            " --attention sdpa).",
        ),
        source="https://github.com/triton-lang/triton/blob/main/python/triton/runtime/errors.py", rank=2,
    ),
)  # fmt: skip
