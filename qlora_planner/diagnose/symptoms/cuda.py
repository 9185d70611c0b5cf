"""Known error lines of driver, CUDA build and card."""

from __future__ import annotations

from qlora_planner.diagnose.symptoms.row import Symptom

ROWS = (
    Symptom(
        "kernels",
        r"named symbol not found|no kernel image is available|not compatible with the current PyTorch "
        r"installation",
        "the library was not compiled for this card: older than its oldest target (Pascal and Volta with "
        "CUDA 12.8 or 13) or newer than its newest (Blackwell with CUDA 12.6)",
        "pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/cu126 (older "
        "cards) or .../cu130 (newer), then pip install -U bitsandbytes",
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
        "two versions of the driver meet: it was updated while the old module is loaded, or a container "
        "brings its own libcuda",
        "reboot; in a container, remove its cuda-compat folder from LD_LIBRARY_PATH",
        "https://github.com/NVIDIA/nvidia-docker/issues/1256",
    ),
    Symptom(
        "no-driver",
        r"Found no NVIDIA driver|No CUDA GPUs are available|NVML Shared Library Not Found|No GPU found\. A "
        r"GPU is needed",
        "no driver answers in this environment, or CUDA_VISIBLE_DEVICES hides the cards",
        "nvidia-smi must work first; in a container start it with --gpus all",
        "https://github.com/NVIDIA/nvidia-container-toolkit/issues/871",
    ),
    Symptom(
        "container-gpu",
        r"could not select device driver",
        "docker has no NVIDIA runtime",
        "install nvidia-container-toolkit, then sudo nvidia-ctk runtime configure --runtime=docker && sudo "
        "systemctl restart docker",
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
        "smi-failed",
        r"(?:nvidia-smi|NVIDIA-SMI) has failed because it couldn'?t communicate",
        "the driver's module is not loaded: a kernel update, secure boot, or the nouveau driver",
        "reinstall the driver (dkms), reboot; mokutil --sb-state tells of secure boot",
        "https://docs.nvidia.com/datacenter/tesla/driver-installation-guide/",
    ),
    Symptom(
        "card-lost",
        r"GPU is lost|Unable to determine the device handle|fallen off the bus|\bXid "
        r"\(?[^\n]{0,40}(?:79|48|63|64|94|95)\b|uncorrectable ECC error",
        "the card itself failed: power, heat, its seat or its memory",
        "dmesg | grep -i xid; reboot; another slot or cable; ask for another machine in a cloud",
        "https://docs.nvidia.com/deploy/xid-errors/",
    ),
    Symptom(
        "cudnn-missing",
        r"Could not load library libcudnn\w{0,30}|libcudnn\w{0,30}\.so[\d.]{0,8}: cannot "
        r"open|CUDNN_STATUS_(?:NOT_SUPPORTED|VERSION_MISMATCH|SUBLIBRARY_\w{1,30})",
        "two versions of cuDNN meet: LD_LIBRARY_PATH or a system copy comes before the one that torch brings",
        "unset LD_LIBRARY_PATH; pip install --force-reinstall nvidia-cudnn-cu12 as torch asks for it",
        "https://github.com/pytorch/pytorch/issues/104591",
        ("torch",),
    ),
)
