"""Rows of `wordings.py` for what a host, its shell and its notebooks say."""

from __future__ import annotations

from qlora_planner.diagnose.oom.wordings import Wording

_LESS = (
    "more host memory, or less of it: fewer dataloader workers, a streamed dataset, weights as safetensors, no"
    " offloading to the host. `dmesg` shows who was killed."
)
_TORCH = "https://github.com/pytorch/pytorch/blob/main"

HOST = (
    Wording(
        cause="notebook-ram", kind="host",
        needles=("more memory than is available", "all available RAM", "ran out of memory and was restarted"),
        says=(
            r"tried to allocate more memory than is available",
            r"all available RAM",
            r"ran out of memory and was",
        ),
        headline="the notebook's host memory ran out, and its kernel was restarted",
        advice=("it was the host's memory, not the card's.", _LESS),
        source="https://www.kaggle.com/docs/notebooks#technical-specifications", rank=3,
    ),
    Wording(
        cause="shared-memory", kind="host",
        needles=("shared memory", "signal: Bus error", "</torch_", "/dev/shm", "posix_fallocate failed"),
        says=(
            r"insufficient shared memory \(shm\)",
            r"killed by signal: Bus error",
            r"(?:write to|mmap|open shared memory) [^\n]{0,60}</torch_",
            r"</torch_[^\n]{0,120}(?:No space left|Cannot allocate|Too many open files)",
            r"[Ee]rror while creating shared memory segment",
            r"posix_fallocate failed: No space left",
            r"/dev/shm[^\n]{0,120}No space left",
        ),
        headline="/dev/shm ran out: memory that data loader workers or NCCL share, 64 MiB in a Docker container",
        advice=(
            "docker run --shm-size 16g (or --ipc host; in Kubernetes an emptyDir of medium Memory at /dev/shm), or"
            " dataloader_num_workers=0. The card and the model have nothing to do with it.",
        ),
        source="https://docs.pytorch.org/docs/stable/multiprocessing.html#sharing-strategies", rank=3,
    ),
    Wording(
        cause="paging-file", kind="host",
        needles=("paging file", "os error 1455", "WinError 1455", "error 1455"),
        says=(
            r"paging file is too small",
            r"(?:os error|WinError|error) 1455",
        ),
        headline="Windows could not back a memory request: its paging file is too small",
        advice=(
            "set the paging file to a fixed 64 GB or more (System > Advanced > Performance > Virtual memory) on a disk"
            " with room, and restart; fewer dataloader workers, each loads the libraries anew.",
        ),
        source="https://learn.microsoft.com/windows/win32/debug/system-error-codes--1300-1699-", rank=3,
    ),
    Wording(
        cause="mapped", kind="host", needles=("unable to mmap", "Cannot allocate memory", "cannot allocate memory"),
        says=(
            r"unable to mmap \d{1,20} bytes from file",
            r"(?<!can't )[Cc]annot allocate memory",
        ),
        headline="the host could not give the memory that was asked for",
        advice=(
            "files of weights are mapped into the host's address space: see `free -g` and `ulimit -v`; a batch system"
            " counts mapped files to the job (Slurm: --mem). sysctl vm.overcommit_memory=1 where it is 2.",
            _LESS,
        ),
        source=f"{_TORCH}/aten/src/ATen/MapAllocator.cpp", rank=4,
    ),
    Wording(
        cause="host-allocator", kind="host", needles=("DefaultCPUAllocator", "DefaultCPUAllocator: not enough"),
        says=(
            r"DefaultCPUAllocator:[^\n]{0,60}(?:can't allocate memory|not enough memory)",
        ),
        headline="the host's memory ran out: a tensor on the CPU could not be made",
        advice=("it was a tensor in the host's memory, not on the card.", _LESS),
        source=f"{_TORCH}/c10/core/impl/alloc_cpu.cpp", rank=3,
    ),
    Wording(
        cause="memory-error", kind="host",
        needles=("MemoryError", "std::bad_alloc", "malloc of size", "realloc of size"),
        says=(
            r"(?:^|[\s._])(?:Array)?MemoryError(?::|\s*$)",
            r"std::bad_alloc",
            r"(?:malloc|realloc) of size \d{1,20} failed",
        ),
        headline="the host's memory ran out: Python, NumPy or Arrow could not get what it asked for",
        advice=("it was the host's memory, not the card's.", _LESS),
        source="https://docs.python.org/3/library/exceptions.html#MemoryError", rank=3,
    ),
    Wording(
        cause="pinned", kind="host", needles=("cudaHostAlloc", "cudaHostRegister", "cuMemHostAlloc", "cudaMallocHost"),
        says=(
            r"(?:cudaHost(?:Alloc|Register)|cuMemHostAlloc|cudaMallocHost)[^\n]{0,120}(?:out of memory|failed|error)",
        ),
        headline="page-locked host memory ran out: what is offloaded or paged to the host must be pinned there",
        advice=(
            "less to the host (no --activation-offloading, an optimizer that is not paged, no pin_memory), or more:"
            " `ulimit -l`; under WSL raise memory= in .wslconfig.",
        ),
        source=f"{_TORCH}/aten/src/ATen/cuda/CachingHostAllocator.cpp", rank=3,
    ),
    Wording(
        cause="killed", kind="host",
        needles=(
            *("Killed", "killed", "OOMKilled", "oom-kill", "oom_kill", "OUT_OF_MEMORY", "SIGKILL", "exitcode"),
            *("xit code", "xit status", "xited with", "exited unexpectedly", "out-of-memory handler"),
        ),
        says=(
            r"^(?:[^\n]{0,200}: line \d{1,9}: {1,9}\d{1,9} |\[\d{1,4}\][+-]? {1,9}(?:\d{1,9} {1,9})?)?Killed(?:: 9)?"
            r"(?:\s*$| {2,}\S| +(?:python|accelerate|torchrun|deepspeed|bash|sh|axolotl|llamafactory|timeout)\b)",
            r"^zsh: killed\b",
            r"OOMKilled",
            r"\boom[-_]kill",
            r"Out of memory: Kill",
            r"Killed process \d",
            r"out-of-memory handler",
            r"State: OUT_OF_MEMORY",
            r"DataLoader worker \(pid(?:\(s\))? [\d, ]{1,200}\) (?:is killed by signal: Killed|exited unexpectedly)",
            r"Signal 9 \(SIGKILL\)",
            r"died with <Signals\.SIGKILL: 9>",
            r"(?:exitcode|[Ee]xit(?:ed with)?(?: code| status)?|returned non-zero exit status)[ :=]{1,4}(?:-9|137)\b",
        ),
        headline="the host ran out of memory, and the system killed the process",
        advice=(_LESS,),
        source="https://docs.kernel.org/admin-guide/mm/concepts.html#oom-killer", rank=5,
    ),
)  # fmt: skip
