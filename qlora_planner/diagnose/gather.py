"""Reads this machine into Facts without importing torch here: metadata, NVML, files, and one bounded subprocess."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from glob import glob
from importlib import util
from pathlib import Path
from typing import Any

from qlora_planner.diagnose.facts import PINNING_TOOLS, TRAIN_PACKAGES, BitsandbytesFacts, Facts, TorchFacts
from qlora_planner.errors import MissingError
from qlora_planner.installing import installed_versions
from qlora_planner.isolation import child_environment
from qlora_planner.measure import nvml

_PACKAGES = (*TRAIN_PACKAGES, "liger-kernel", "flash-attn", "nvidia-ml-py", *PINNING_TOOLS)
_VARIABLES = (
    "BNB_CUDA_VERSION",
    "CUDA_VISIBLE_DEVICES",
    "LD_LIBRARY_PATH",
    "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_ALLOC_CONF",
    "HF_DEACTIVATE_ASYNC_LOAD",
    "HF_HUB_OFFLINE",
)
_SYSTEM_CUDA = ("/usr/local/cuda*/lib64", "/usr/local/cuda*/targets/*/lib", "/usr/lib/*-linux-gnu", "/usr/lib64")
_PCI_VENDOR_NVIDIA = "0x10de"


def gather(*, probe: bool = True, timeout_s: float = 30.0) -> Facts:
    """The facts of this machine. `probe` asks torch in a subprocess, at most `timeout_s` seconds, when installed."""
    packages = dict.fromkeys(_PACKAGES) | installed_versions(_PACKAGES)
    cards, nvml_error = _cards()
    answers = _ask_torch(timeout_s) if probe and packages["torch"] else {}
    torch_raw, library_raw = answers.get("torch"), answers.get("bitsandbytes")
    library_error = answers.get("bitsandbytes_error")
    cache = _cache_dir()
    return Facts(
        python=(sys.version_info.major, sys.version_info.minor),
        system=platform.system(),
        packages=packages,
        driver_version=cards[0].driver_version if cards else None,
        cuda_driver_version=cards[0].cuda_driver_version if cards else None,
        devices=cards,
        nvml_error=nvml_error,
        nvidia_hardware=_nvidia_on_bus(),
        torch=TorchFacts(**{**torch_raw, "arch_list": tuple(torch_raw["arch_list"])}) if torch_raw else None,
        bitsandbytes=(
            BitsandbytesFacts(**(library_raw or {"error": library_error}))
            if packages["bitsandbytes"] and (library_raw or library_error)
            else None
        ),
        probe_error=answers.get("torch_error"),
        bitsandbytes_libraries=_bitsandbytes_libraries(),
        cuda_libraries=_cuda_libraries(_missing_library(answers)),
        environment={name: os.environ[name] for name in _VARIABLES if name in os.environ},
        wsl="microsoft" in platform.uname().release.lower(),
        container=_container(),
        cache_dir=str(cache),
        cache_free_bytes=_free_bytes(cache),
        hub_token=_hub_token(),
    )


def _cards() -> tuple[tuple[nvml.DeviceReading, ...], str | None]:
    try:
        return tuple(nvml.devices()), None
    except MissingError as error:
        return (), str(error)


def _ask_torch(timeout_s: float) -> dict[str, Any]:
    """What the probe printed before it ended, crashed or ran out of time."""
    script = Path(__file__).with_name("probe.py")
    # -P keeps this folder, with its nvml.py, out of the probe's import path.
    command = [sys.executable, "-P", str(script)]
    fault = None
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=child_environment(),
            timeout=timeout_s,
            check=False,
        )
        printed = done.stdout
        if done.returncode < 0:
            fault = f"the process was ended by signal {-done.returncode}"
        elif done.returncode:
            fault = (done.stderr.decode(errors="replace").strip().splitlines() or ["it failed without a word"])[-1]
    except subprocess.TimeoutExpired as late:
        printed, fault = late.stdout or b"", f"no answer within {timeout_s:.0f} s"
    except OSError as error:
        printed, fault = b"", str(error)
    answers: dict[str, Any] = {}
    for line in printed.decode(errors="replace").splitlines():
        if line.startswith("{"):  # a library may print something of its own
            answers.update(json.loads(line))
    missing = "torch" if not answers.keys() & {"torch", "torch_error"} else "bitsandbytes"
    if fault and not answers.keys() & {missing, f"{missing}_error"}:
        answers[f"{missing}_error"] = fault
    return answers


def _package_dir(package: str) -> Path | None:
    spec = util.find_spec(package)  # finds a top-level package without running it
    return Path(spec.origin).parent if spec and spec.origin else None


def _bitsandbytes_libraries() -> tuple[str, ...] | None:
    folder = _package_dir("bitsandbytes")
    if folder is None:
        return None
    return tuple(sorted(file.name for file in folder.glob("libbitsandbytes_*") if file.suffix in (".so", ".dll")))


def _missing_library(answers: dict[str, Any]) -> tuple[str, ...]:
    """The library that the loader did not find, when bitsandbytes says so."""
    said = (answers.get("bitsandbytes") or {}).get("error") or ""
    match = re.search(r"(lib[\w.+-]+\.so[.\d]*): cannot open shared object", said)
    return (match.group(1),) if match else ()


def _cuda_libraries(missed: tuple[str, ...]) -> tuple[str, ...]:
    """Every libcudart that a loader could meet, and the missed library: pip's, LD_LIBRARY_PATH's, the system's."""
    names = ("libcudart.so*", "libcudart-*.so*", "cudart64_*.dll", *missed)
    folders = [folder for folder in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep) if folder]
    torch_dir = _package_dir("torch")
    if torch_dir is not None:
        folders += [str(torch_dir / "lib"), str(torch_dir.parent / "nvidia" / "*" / "lib")]
    patterns = [os.path.join(folder, name) for folder in (*folders, *_SYSTEM_CUDA) for name in names]
    return tuple(sorted({path for pattern in patterns for path in glob(pattern)}))


def _nvidia_on_bus() -> bool | None:
    vendors = glob("/sys/bus/pci/devices/*/vendor")
    if not vendors:
        return None
    return any(_read(Path(vendor)).strip() == _PCI_VENDOR_NVIDIA for vendor in vendors)


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _container() -> str | None:
    if os.path.exists("/.dockerenv"):
        return "docker"
    if os.path.exists("/run/.containerenv"):
        return "podman"
    if "KUBERNETES_SERVICE_HOST" in os.environ:
        return "kubernetes"
    if "APPTAINER_CONTAINER" in os.environ or "SINGULARITY_CONTAINER" in os.environ:
        return "apptainer"
    return None


def _hub_home() -> Path:
    base = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(os.environ.get("HF_HOME") or os.path.join(base, "huggingface")).expanduser()


def _cache_dir() -> Path:
    return Path(os.environ.get("HF_HUB_CACHE") or _hub_home() / "hub").expanduser()


def _hub_token() -> bool:
    """Whether a Hub token is set. Its text is never read."""
    if os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN"):
        return True
    path = Path(os.environ.get("HF_TOKEN_PATH") or _hub_home() / "token").expanduser()
    try:
        return path.stat().st_size > 0
    except OSError:
        return False


def _free_bytes(folder: Path) -> int | None:
    """Free bytes where the folder is, or will be."""
    for ancestor in (folder, *folder.parents):
        try:
            return shutil.disk_usage(ancestor).free
        except OSError:
            continue
    return None
