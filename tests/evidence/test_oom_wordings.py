"""Memory failures in other words, what looks like one and is none, and other makers' cards."""

from __future__ import annotations

import pytest

from qlora_planner.diagnose.oom import explain
from qlora_planner.diagnose.oom.wordings import wording
from qlora_planner.diagnose.oom.wordings_card import CARD
from qlora_planner.diagnose.oom.wordings_host import HOST
from qlora_planner.errors import InputError
from qlora_planner.report.parts.oom_words import advice, facts, headline
from qlora_planner.units import GIB, MIB

LINES: dict[str, str] = {
    "RuntimeError: CUDA error: out of memory": "cuda",
    "torch.AcceleratorError: CUDA driver error: out of memory": "cuda",
    "RuntimeError: cuda runtime error (2) : out of memory at /pytorch/aten/src/THC/x.cu:66": "cuda",
    "cudaErrorMemoryAllocation: out of memory": "cuda",
    "numba.cuda.cudadrv.driver.CudaAPIError: [2] Call to cuMemAlloc results in CUDA_ERROR_OUT_OF_MEMORY": "cuda",
    "RuntimeError: HIP error: out of memory": "hip",
    "torch.cuda.OutOfMemoryError": "exception",
    "node1:88:90 [0] misc/strongstream.cc:53 NCCL WARN Cuda failure 2 'out of memory'": "nccl",
    "NCCL WARN Failed to CUDA calloc async 4 bytes": "nccl",
    "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`": "cublas",
    "RuntimeError: cuDNN error: CUDNN_STATUS_ALLOC_FAILED": "cublas",
    "RuntimeError: CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`": "cublas-handle",
    "RuntimeError: HIP error: HIPBLAS_STATUS_ALLOC_FAILED when calling `hipblasCreate`": "rocblas",
    "Error out of memory at line 380 in file /src/csrc/pythonInterface.cpp": "bitsandbytes",
    "RuntimeError: Native API failed. Native API returns: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)": "xpu",
    "RuntimeError: Invalid buffer size: 19.45 GiB": "metal",
    "failed assertion `[MPSNDArray initWithDevice:descriptor:] Error: total bytes of NDArray > 2**32'": "metal",
    "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`": "vllm",
    "jaxlib.xla_extension.XlaRuntimeError: RESOURCE_EXHAUSTED: Out of memory while trying to allocate 8 bytes": "xla",
    "triton.runtime.errors.OutOfResources: out of resource: shared memory, Required: 180224": "kernel-shared-memory",
    "RuntimeError: CUDA error: too many resources requested for launch": "kernel-shared-memory",
    "Your notebook tried to allocate more memory than is available. It has restarted.": "notebook-ram",
    "Your session crashed after using all available RAM.": "notebook-ram",
    "RuntimeError: DataLoader worker (pid 77) is killed by signal: Bus error. It is possible that": "shared-memory",
    "RuntimeError: unable to write to file </torch_812_1>: No space left on device (28)": "shared-memory",
    "Error while creating shared memory segment /dev/shm/nccl-x (size 9637888)": "shared-memory",
    "OSError: The paging file is too small for this operation to complete. (os error 1455)": "paging-file",
    "OSError: [WinError 1455] Die Auslagerungsdatei ist zu klein": "paging-file",
    "RuntimeError: unable to mmap 4969539560 bytes from file <model.safetensors>": "mapped",
    "OSError: [Errno 12] Cannot allocate memory": "mapped",
    "RuntimeError: [enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"
    " to allocate 234881024 bytes.": "host-allocator",
    "RuntimeError: [..] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes.":
        "host-allocator",
    "MemoryError": "memory-error",
    "numpy._core._exceptions._ArrayMemoryError: Unable to allocate 3.20 GiB for an array": "memory-error",
    "terminate called after throwing an instance of 'std::bad_alloc'": "memory-error",
    "pyarrow.lib.ArrowMemoryError: malloc of size 68719476736 failed": "memory-error",
    "cudaHostAlloc(&ptr, size) failed: out of memory": "pinned",
    "Killed": "killed",
    "zsh: killed     python train.py": "killed",
    "[1]+  Killed                  python train.py": "killed",
    "  exitcode  : -9 (pid: 1234)": "killed",
    "slurmstepd: error: Detected 1 oom_kill event in StepId=99.batch.": "killed",
    "[ 123.4] Out of memory: Killed process 812 (python) total-vm:1kB": "killed",
    "DataLoader worker (pid(s) 17, 18) exited unexpectedly": "killed",
}  # fmt: skip


@pytest.mark.parametrize(("line", "cause"), LINES.items())
def test_it_is_known_in_other_words(line: str, cause: str) -> None:
    report = explain(f"Traceback (most recent call last):\n  1/2\n{line}\nmore\n")
    row = wording(cause)
    assert row is not None
    assert (report.cause, report.kind) == (cause, row.kind)
    assert headline(report).startswith(row.headline)
    assert list(advice(report))
    assert list(facts(report))


def test_every_row_is_tried_and_says_where_it_comes_from() -> None:
    rows = (*CARD, *HOST)
    assert {row.cause for row in rows} == set(LINES.values())
    assert all(row.source.startswith("https://") and row.advice for row in rows)


@pytest.mark.parametrize(
    "text",
    [
        "Killed in action: 4 of them",
        "    except torch.cuda.OutOfMemoryError:",
        '        "CUDA out of memory.",  # CUDA OOM',
        "hint: lower the batch size if you see CUDA out of memory",
        "sampled: the memory error of the author",
        "learning_rate 1e-9, exit code 0",
        "RuntimeError: CUDA error: an illegal memory access was encountered",
    ],
)
def test_a_mention_is_no_failure(text: str) -> None:
    with pytest.raises(InputError, match="no out-of-memory failure"):
        explain(f"step 1\n{text}\nstep 2\n")


def test_a_mention_does_not_hide_the_failure_behind_it() -> None:
    text = (
        '   "CUDA out of memory.",  # CUDA OOM\n'
        "CUDA out of memory. Tried to allocate 3.00 GiB. GPU 0 has a total capacity of 14.74 GiB"
    )
    report = explain(text)
    assert (report.requested_bytes, report.times) == (3 * GIB, 1)


def test_a_kernel_that_wants_more_shared_memory_is_no_shortage() -> None:
    report = explain("triton.runtime.errors.OutOfResources: out of resource: shared memory, Required: 180224, Hardware")
    assert headline(report).startswith("no shortage of the card's memory")
    assert not any("batch" in one for one in advice(report))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            "CUDA out of memory. Tried to allocate 3145728.00 GiB. GPU 0 has a total capacity of 23.52 GiB",
            "fault of shapes",
        ),
        ("CUDA out of memory. Tried to allocate more than 1EB memory.", "fault of shapes"),
        ("CUDA out of memory. Tried to allocate 400.00 GiB (GPU 0; 23.52 GiB total capacity)", "fault of shapes"),
        ("numpy._core._exceptions._ArrayMemoryError: Unable to allocate 1.20 PiB for an array", "fault of shapes"),
        (
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9223372036854775807 bytes",
            "fault of shapes",
        ),
        (
            "CUDA out of memory. Tried to allocate 30.00 GiB. GPU 0 has a total capacity of 23.52 GiB",
            "ran out of memory",
        ),
    ],
)
def test_a_request_beyond_all_sense_is_told_as_one(line: str, words: str) -> None:
    report = explain(f"RuntimeError: {line}")
    assert words in headline(report)
    assert ("[N] against [N, 1]" in " ".join(advice(report))) == (words == "fault of shapes")


def test_apples_gpu_gets_advice_of_its_own() -> None:
    report = explain(
        "RuntimeError: MPS backend out of memory (MPS allocated: 17.41 GB, other allocations: 412.30 MB, max allowed:"
        " 18.13 GB). Tried to allocate 501.00 MB on private pool. Use PYTORCH_MPS_HIGH_WATERMARK_RATIO=0.0 to disable"
    )
    assert (report.metal_bytes, report.requested_bytes) == (int(412.3 * MIB), 501 * MIB)
    said = f"{headline(report)} {dict(facts(report))} {' '.join(advice(report))}"
    assert "Apple's GPU" in said and "Metal's watermark" in said and "no 4-bit training kernels" in said
    for wrong in ("set_per_process_memory_fraction", "--optimizer", "expandable_segments", "nvidia-smi", "card 0"):
        assert wrong not in said


def test_the_allocator_of_cuda_itself_prints_a_line_a_figure() -> None:
    report = explain(
        "torch.OutOfMemoryError: Allocation on device 0 would exceed allowed memory. (out of memory)\n"
        "Currently allocated     : 21.90 GiB\nRequested               : 64.00 MiB\n"
        "Device limit            : 23.64 GiB\n"
        "Free (according to CUDA): 25.00 MiB\nPyTorch limit (set by user-supplied memory fraction)\n"
        "                        : 17179869184.00 GiB\n"
    )
    assert (report.requested_bytes, report.free_bytes, report.device) == (64 * MIB, 25 * MIB, 0)
    assert report.allocated_bytes == pytest.approx(21.90 * GIB, abs=1)
    assert report.allowed_bytes is None


def test_other_makers_cards_get_their_own_tools() -> None:
    text = (
        "torch.OutOfMemoryError: HIP out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.98 GiB"
        " of which 88.00 MiB is free. Process 5 has 12.00 GiB memory in use. Including non-PyTorch memory, this process"
        " has 11.80 GiB memory in use. Of the allocated memory 8.00 GiB is allocated by PyTorch, and 3.00 GiB is"
        " reserved by PyTorch but unallocated."
    )
    said = " ".join(advice(explain(text)))
    assert "rocm-smi" in said and "PYTORCH_HIP_ALLOC_CONF" in said and "nvidia-smi" not in said


def test_a_line_of_json_ends_the_message_where_it_ends() -> None:
    text = (
        '{"error": "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.98 GiB\\n\\n'
        'the next run: 9.00 GiB already allocated", "level": "Error"}'
    )
    report = explain(f"Error {text}")
    assert (report.requested_bytes, report.allocated_bytes) == (2 * GIB, None)
