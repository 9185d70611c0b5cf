"""Known error lines of compilers, Windows and system libraries."""

from __future__ import annotations

from qlora_planner.diagnose.symptoms.row import TORCH, Symptom

ROWS = (
    Symptom(
        "cuda-home",
        r"CUDA_HOME environment variable is not set|nvcc(?:: command)? not found|No such file or directory: "
        r"'[^'\n]{0,200}nvcc'",
        "something compiles CUDA code and finds no toolkit: torch's wheels bring libraries, no compiler",
        "install the CUDA toolkit of torch.version.cuda and export CUDA_HOME=/usr/local/cuda; or take a ready wheel",
        f"{TORCH}/torch/utils/cpp_extension.py",
        ("torch",),
    ),
    Symptom(
        "cuda-mismatch",
        r"detected CUDA version \([\d.]{1,8}\) (?:has a minor version mismatch|mismatches)",
        "nvcc and torch are of different CUDA majors",
        "the toolkit of torch.version.cuda, or the torch of your toolkit",
        f"{TORCH}/torch/utils/cpp_extension.py",
        ("torch",),
    ),
    Symptom(
        "build-isolation",
        r"ModuleNotFoundError: No module named 'torch'[^\n]{0,200}(?:setup\.py|build)|Failed building wheel "
        r"for flash[-_]attn|Failed to build flash[-_]attn",
        "flash-attn compiles itself and needs torch, nvcc and ninja in sight",
        "pip install ninja; pip install flash-attn --no-build-isolation; or --attention sdpa, which needs no package",
        "https://github.com/Dao-AILab/flash-attention#installation-and-features",
        ("torch",),
    ),
    Symptom(
        "c-compiler",
        r"Failed to find C compiler|fatal error: Python\.h: No such file",
        "triton compiles a small C file when a kernel first runs, and compiler or Python's headers are missing",
        "apt install build-essential python3-dev (or set CC)",
        "https://github.com/triton-lang/triton/issues/2564",
        ("triton",),
    ),
    Symptom(
        "ptxas",
        r"ptxas (?:fatal|error)[^\n]{0,120}|Value 'sm_\d{2,3}a?' is not defined for option|Unsupported gpu "
        r"architecture|LLVM ERROR: Cannot select: intrinsic",
        "the compiler in triton or the toolkit is older than the card (Blackwell: CUDA 12.8, triton 3.3)",
        "pip install -U torch triton; a newer CUDA toolkit",
        "https://github.com/triton-lang/triton/issues/5824",
        ("triton", "torch"),
    ),
    Symptom(
        "windows-triton",
        r"triton[^\n]{0,60}(?:not available on|is not supported on|doesn'?t support) Windows|No matching "
        r"distribution found for triton|No module named 'triton'",
        "triton has no official wheels for Windows; Liger, Unsloth and torch.compile need it",
        "pip install triton-windows, or WSL 2; without it: no --liger",
        "https://github.com/woct0rdho/triton-windows",
        ("triton", "torch"),
    ),
    Symptom(
        "windows-spill",
        r"shared gpu memory|sys(?:tem)?mem(?:ory)? fallback",
        "Windows' driver spills to the host's memory when the card is full, in place of an out-of-memory "
        "error: each step takes ten times as long",
        "NVIDIA control panel > CUDA - Sysmem Fallback Policy > Prefer No Sysmem Fallback; then a smaller "
        "run: qlora-plan MODEL --gpu CARD --reserve 1GiB",
        "https://nvidia.custhelp.com/app/answers/detail/a_id/5490",
    ),
    Symptom(
        "windows-spawn",
        r"before the current process has finished its bootstrapping phase|freeze_support\(\)",
        "Windows and macOS start worker processes by importing the script again",
        "put the script's body under if __name__ == '__main__':, or num_proc=None and dataloader_num_workers=0",
        "https://docs.python.org/3/library/multiprocessing.html#the-spawn-and-forkserver-start-methods",
    ),
    Symptom(
        "windows-dll",
        r"\[WinError (?:126|127|1114)\]|DLL load failed",
        "a library that torch or bitsandbytes needs is missing: the Visual C++ runtime, or a DLL of "
        "another CUDA on PATH",
        "install Microsoft's Visual C++ Redistributable 2022 (x64) and restart; reinstall torch in a fresh environment",
        f"{TORCH}/torch/__init__.py",
        ("torch",),
    ),
    Symptom(
        "windows-symlink",
        r"\[WinError 1314\]",
        "Windows lets only administrators make symbolic links, which the Hub's cache uses",
        "switch on Developer Mode, or HF_HUB_DISABLE_SYMLINKS=1 (takes more disk)",
        "https://huggingface.co/docs/huggingface_hub/guides/manage-cache",
    ),
    Symptom(
        "windows-encoding",
        r"UnicodeDecodeError: '(?:charmap|gbk|cp\d{3,5}|cp949|shift_jis)' codec",
        "a file in UTF-8 is read in Windows' own encoding",
        "set PYTHONUTF8=1 before Python starts",
        "https://docs.python.org/3/using/windows.html#utf-8-mode",
    ),
    Symptom(
        "numpy-abi",
        r"compiled using NumPy 1\.x cannot be run in|numpy\.dtype size changed",
        "a compiled package was built for NumPy 1 and NumPy 2 is installed (or the reverse)",
        "upgrade that package; else pip install 'numpy<2'; restart the kernel",
        "https://numpy.org/devdocs/user/troubleshooting-importerror.html",
        ("numpy", "torch"),
    ),
    Symptom(
        "glibc",
        r"version [`']?(?:GLIBC|GLIBCXX|CXXABI)_[\d.]{1,10}'? not found",
        "a wheel was built on a newer Linux than this one, or conda's older libstdc++ comes first",
        "conda install -c conda-forge libstdcxx-ng (GLIBCXX), a newer system or container (GLIBC)",
        "https://peps.python.org/pep-0600/",
    ),
    Symptom(
        "open-files",
        r"Too many open files",
        "the limit of open files is reached: many weight files, workers and sockets",
        "ulimit -n 65536 before the start; torch.multiprocessing.set_sharing_strategy('file_system')",
        "https://docs.pytorch.org/docs/stable/multiprocessing.html#sharing-strategies",
    ),
)
