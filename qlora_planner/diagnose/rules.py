"""The doctor's rules on driver, torch build, card and room: each looks at Facts and answers with findings, or none."""

from __future__ import annotations

from qlora_planner.catalog.gpus.remarks import LEGACY_WHEEL, NO_KERNEL, PYPI_WHEELS_BEGIN_AT, wheel_line
from qlora_planner.diagnose.facts import Facts, Finding, release
from qlora_planner.units import GIB, MIB, format_gib

CUDA_COMPATIBILITY = "https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html"
TORCH_MATRIX = "https://github.com/pytorch/pytorch/blob/main/RELEASE.md#pytorch-cuda-support-matrix"
NVML_PROCESSES = "https://docs.nvidia.com/deploy/nvml-api/structnvmlProcessInfo__v1__t.html"

# CUDA major -> the first Linux driver that runs any release of it (NVIDIA, read 2026-11).
MINIMUM_DRIVER = {11: "450.80.02", 12: "525.60.13", 13: "580"}
_OTHERS_WORTH_A_WORD = GIB
_ROOM_FOR_A_CHECKPOINT = 20 * GIB  # an 8B model's 16-bit files are 16 GB


def torch_wheel(driver: str | None, capabilities: tuple[tuple[int, int], ...]) -> str:
    """The pip line for the newest CUDA build of torch that this driver and these cards run.

    CUDA 13 needs driver 580 and Turing; below either, 12.6 is the build that PyTorch keeps for older cards.
    """
    old_card = any(capability < PYPI_WHEELS_BEGIN_AT[0][1] for capability in capabilities)
    old_driver = driver is not None and release(driver) < release(MINIMUM_DRIVER[13])
    return wheel_line(LEGACY_WHEEL if old_card or old_driver else "cu130", force=True)


def python_version(host: Facts) -> list[Finding]:
    """Training is tried on 3.11 and 3.12, planning on 3.11 to 3.13."""
    name = ".".join(map(str, host.python))
    if host.python < (3, 11):
        fix = "create an environment with Python 3.12: uv venv --python 3.12"
        return [Finding(code="python", status="problem", message=f"Python {name} is too old; 3.11 is needed", fix=fix)]
    if host.python > (3, 12):
        message = f"Python {name}: planning is tested up to 3.13, training on 3.11 and 3.12 only"
        fix = "to train, use Python 3.12: uv venv --python 3.12"
        return [Finding(code="python", status="warning", message=message, fix=fix)]
    return [Finding(code="python", status="ok", message=f"Python {name}")]


def driver(host: Facts) -> list[Finding]:
    """Does an NVIDIA driver answer, and is there a card under it?"""
    if host.devices:
        cards = "; ".join(f"{card.name}, {format_gib(card.total_bytes)}" for card in host.devices)
        message = f"driver {host.driver_version} (CUDA up to {host.cuda_driver_version}): {cards}"
        return [Finding(code="driver", status="ok", message=message)]
    if host.nvml_error is None:
        message = "the NVIDIA driver runs but shows no card (torch: 'No CUDA GPUs are available')"
        fix = "check nvidia-smi -L; in a container, --gpus all"
        return [Finding(code="driver", status="problem", message=message, fix=fix)]
    if host.torch is not None and host.torch.hip and host.torch.available:
        message = "an AMD card through ROCm: this tool's figures are not verified on AMD"
        return [Finding(code="driver", status="warning", message=message)]
    if host.nvidia_hardware is False and not host.wsl:
        message = "no NVIDIA card in this machine: planning works without, and toys train on the CPU (--device cpu)"
        return [Finding(code="driver", status="problem", message=message, fix="plan for a card: qlora-plan --gpu 24GB")]
    if "nvidia-ml-py" in host.nvml_error:
        fix = "pip install nvidia-ml-py"
    elif host.nvidia_hardware and host.container:
        fix = "start the container with `docker run --gpus all`, with nvidia-container-toolkit on the host"
    elif host.wsl:
        fix = "install the driver on Windows (never inside WSL), then `wsl --shutdown`"
    elif "mismatch" in host.nvml_error:
        fix = "sudo reboot"
    else:
        fix = "sudo ubuntu-drivers install && sudo reboot   (others: https://www.nvidia.com/drivers)"
    there = "a card is on the PCI bus but " if host.nvidia_hardware else ""
    cause = host.nvml_error.removeprefix("NVML: ").split(";")[0]
    message = f"{there}{cause}; planning works without, training and verifying do not"
    return [Finding(code="driver", status="problem", message=message, fix=fix)]


def driver_for_torch(host: Facts) -> list[Finding]:
    """Is the driver new enough for the CUDA that torch was built with?"""
    torch = host.torch
    if torch is None or torch.cuda is None or host.driver_version is None:
        return []
    needed = MINIMUM_DRIVER.get(release(torch.cuda)[0])
    if needed is None:
        message = f"torch is built for CUDA {torch.cuda}; its minimum driver is not known here"
        return [Finding(code="driver-for-torch", status="unknown", message=message, source=CUDA_COMPATIBILITY)]
    pair = f"driver {host.driver_version}, torch {torch.version} for CUDA {torch.cuda} (needs {needed})"
    # NVIDIA's forward-compatibility package lets data-centre cards run ahead of their driver: believe torch.
    if release(host.driver_version) >= release(needed) or torch.available:
        return [Finding(code="driver-for-torch", status="ok", message=pair, source=CUDA_COMPATIBILITY)]
    return [
        Finding(
            code="driver-for-torch",
            status="problem",
            message=f"the driver is too old for this torch: {pair}; seen as 'The NVIDIA driver on your system is too "
            "old' or 'CUDA driver version is insufficient for CUDA runtime version'",
            fix=f"update the driver to {needed} or newer, or {torch_wheel(host.driver_version, host.capabilities)}",
            source=CUDA_COMPATIBILITY,
        )
    ]


def torch_build(host: Facts) -> list[Finding]:
    """CPU-only builds, builds that cannot start CUDA, builds that cannot be asked."""
    installed = host.packages.get("torch")
    if installed is None:
        return []  # the packages rule names it
    torch = host.torch
    if torch is None:
        message = f"torch {installed} is installed but did not answer: {host.probe_error or 'not asked'}"
        fix = "python -c 'import torch' shows the fault" if host.probe_error else None
        return [Finding(code="torch", status="problem" if host.probe_error else "unknown", message=message, fix=fix)]
    if torch.cuda is None and torch.hip is None:
        message = f"torch {torch.version} is CPU-only: no CUDA in this build"
        if host.driver_version is None:
            return [Finding(code="torch-cpu-only", status="warning", message=f"{message}, and no NVIDIA driver here")]
        message += " though an NVIDIA driver is; seen as 'Torch not compiled with CUDA enabled'"
        fix = torch_wheel(host.driver_version, host.capabilities)
        return [Finding(code="torch-cpu-only", status="problem", message=message, fix=fix)]
    build = f"CUDA {torch.cuda}" if torch.cuda else f"ROCm {torch.hip}"
    if torch.available:
        return [Finding(code="torch", status="ok", message=f"torch {torch.version} for {build} sees the card")]
    if not host.devices:
        message = f"torch {torch.version} for {build} sees no card"
        return [Finding(code="torch-no-cuda", status="warning", message=message, fix="see the driver's line")]
    hidden = host.environment.get("CUDA_VISIBLE_DEVICES")
    said = f": {torch.error}" if torch.error else ""
    fix = "python -m torch.utils.collect_env; in a container restart it, after a suspend reload nvidia_uvm or reboot"
    if hidden is not None and hidden.strip() in ("", "-1", "none"):
        said, fix = f": CUDA_VISIBLE_DEVICES={hidden!r} hides every card", "unset CUDA_VISIBLE_DEVICES"
    message = f"torch.cuda.is_available() is False though the driver sees {len(host.devices)} card(s){said}"
    return [Finding(code="torch-no-cuda", status="problem", message=message, fix=fix)]


def torch_kernels(host: Facts) -> list[Finding]:
    """Was this torch compiled for this card?"""
    torch = host.torch
    if torch is None or not torch.arch_list or not host.capabilities or torch.cuda is None:
        return []
    built = [(name.partition("_")[0], _architecture(name)) for name in torch.arch_list]
    # A binary runs on later cards of its own generation, PTX ("compute") on every later card.
    missing = [
        card
        for card in host.capabilities
        if not any(arch <= card and (kind == "compute" or arch[0] == card[0]) for kind, arch in built)
    ]
    if not missing:
        return []
    cards = ", ".join(f"{major}.{minor}" for major, minor in missing)
    message = (
        f"torch {torch.version} has no kernels for compute capability {cards} (it has {' '.join(torch.arch_list)}); "
        f"seen as '{NO_KERNEL}'"
    )
    fix = torch_wheel(host.driver_version, host.capabilities)
    return [Finding(code="torch-kernels", status="problem", message=message, fix=fix, source=TORCH_MATRIX)]


def _architecture(name: str) -> tuple[int, int]:
    digits = "".join(letter for letter in name if letter.isdigit())
    return int(digits[:-1] or 0), int(digits[-1:] or 0)


def card_bf16(host: Facts) -> list[Finding]:
    """Which dtype pair to use on this machine, and what it costs on a card without bf16."""
    has_bf16 = host.torch.bf16 if host.torch and host.torch.available else None
    if has_bf16 is None and host.capabilities:
        has_bf16 = all(capability >= (8, 0) for capability in host.capabilities)
    if has_bf16 is None:
        return []
    if has_bf16:
        message = "the card has bf16: compute dtype bfloat16 with bf16=True, the default"
        return [Finding(code="bf16", status="ok", message=message)]
    return [
        Finding(
            code="bf16",
            status="warning",
            message="the card has no bf16 (compute capability below 8.0; seen as \"Your setup doesn't support "
            'bf16/gpu"): use compute dtype float16 with fp16=True. trl-sft breaks on that pair in 4-bit (it casts '
            "LoRA to bf16, which the GradScaler of fp16 cannot unscale), so train with hf-trainer",
            fix="--compute-dtype float16 --trainer hf-trainer",
            source="https://github.com/huggingface/trl/issues/4901",
        )
    ]


def gpu_memory(host: Facts) -> list[Finding]:
    """What is free on each card now, and who holds the rest."""
    return [_memory_of(host, number) for number in range(len(host.devices))]


def _memory_of(host: Facts, number: int) -> Finding:
    card = host.devices[number]
    name = f"GPU {card.index}"
    if card.total_bytes is None or card.free_bytes is None:
        return Finding(code="gpu-memory", status="unknown", message=f"{name}: NVML gives no memory figures")
    message = f"{name}: {format_gib(card.free_bytes)} of {format_gib(card.total_bytes)} free"
    if card.mig:
        message += " in its first MIG slice; a run gets this slice, not the card"
    holders = ", ".join(
        f"pid {process.pid}" + ("" if process.used_bytes is None else f" ({format_gib(process.used_bytes)})")
        for process in card.processes or ()
    )
    message += f"; also on it: {holders}" if holders else ""
    used = card.used_bytes or 0
    if used < _OTHERS_WORTH_A_WORD:
        return Finding(code="gpu-memory", status="ok", message=message)
    fix = f"end those processes, or plan around them with --reserve {used // MIB}MiB"
    return Finding(code="gpu-memory", status="warning", message=message, fix=fix)


def place(host: Facts) -> list[Finding]:
    """WSL and containers: what NVML hides there."""
    if host.wsl or (host.system == "Windows" and host.devices):
        message = (
            "under Windows' driver model NVML has no memory figure per process: peaks are measured as the card's "
            "total, so other programs count in; Windows itself holds some memory of the card"
        )
        fix = "close other GPU programs while measuring; plan with --reserve 1GiB"
        return [Finding(code="wsl", status="warning", message=message, fix=fix, source=NVML_PROCESSES)]
    if host.container and host.devices:
        listed = any(card.processes for card in host.devices)
        message = f"inside a {host.container} container: NVML may list processes by the host's ids, or not at all"
        return [] if listed else [Finding(code="container", status="ok", message=message, source=NVML_PROCESSES)]
    return []


def cache_room(host: Facts) -> list[Finding]:
    """Room for a checkpoint where the Hub's files go."""
    if host.cache_free_bytes is None:
        return []
    message = f"{format_gib(host.cache_free_bytes, 0)} free for Hub files in {host.cache_dir}"
    if host.cache_free_bytes >= _ROOM_FOR_A_CHECKPOINT:
        return [Finding(code="disk", status="ok", message=message)]
    message += ": an 8B model's 16-bit files need 16 GB (seen as 'No space left on device')"
    return [Finding(code="disk", status="warning", message=message, fix="export HF_HOME=/a/larger/disk")]


def hub_token(host: Facts) -> list[Finding]:
    """Gated models need a token; whether one is set, never which."""
    if host.hub_token:
        return [Finding(code="hub-token", status="ok", message="a Hugging Face token is set")]
    message = "no Hugging Face token: gated models (Llama, Gemma) answer '401' or 'Cannot access gated repo'"
    return [Finding(code="hub-token", status="warning", message=message, fix="hf auth login")]
