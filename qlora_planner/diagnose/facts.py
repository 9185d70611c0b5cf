"""What the doctor knows about a machine, and what it says. Records only: invented machines are made of these too."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import field
from typing import Literal

from qlora_planner.measure.nvml import DeviceReading
from qlora_planner.record import record

Status = Literal["ok", "warning", "problem", "unknown"]

# Trainers whose pins exclude the versions that [train] needs, by their distributions' names (read 2026-11-28): axolotl
# 0.21 wants trl 1.14.1 and datasets 5.0.1, llamafactory 0.9.5 transformers to 5.6, peft to 0.18.1, trl to 0.24.
PINNING_TOOLS = {"axolotl": "trl and datasets", "llamafactory": "transformers, peft and trl"}
TRAIN_PACKAGES = ("torch", "transformers", "accelerate", "bitsandbytes", "peft", "trl", "datasets")


@record
class Finding:
    """One answer. `fix` is a line to type or a thing to do; `source` says where the fact was published."""

    code: str
    status: Status
    message: str
    fix: str | None = None
    source: str | None = None


@record
class TorchFacts:
    """How the installed torch was built, and what it says of this machine."""

    version: str
    cuda: str | None = None  # of the build; None: no CUDA in it
    hip: str | None = None
    available: bool = False
    bf16: bool | None = None  # in hardware, not emulated; None without a card
    arch_list: tuple[str, ...] = ()  # sm_80, compute_90, ...
    error: str | None = None  # what CUDA's start said


@record
class BitsandbytesFacts:
    """Which native library bitsandbytes loaded, or why it loaded none."""

    library: str | None = None  # file name
    error: str | None = None


@record
class Facts:
    """One machine. `None` is unknown; a package that is not installed has version None."""

    python: tuple[int, int]
    system: str  # Linux, Windows, Darwin
    packages: Mapping[str, str | None]
    driver_version: str | None = None
    cuda_driver_version: str | None = None
    devices: tuple[DeviceReading, ...] = ()
    nvml_error: str | None = None
    nvidia_hardware: bool | None = None  # a card on the PCI bus, whether a driver answers or not
    torch: TorchFacts | None = None
    bitsandbytes: BitsandbytesFacts | None = None
    probe_error: str | None = None  # why torch could not be asked
    bitsandbytes_libraries: tuple[str, ...] | None = None  # file names in the package
    cuda_libraries: tuple[str, ...] = ()  # paths of libcudart files, and of one that bitsandbytes missed
    environment: Mapping[str, str] = field(default_factory=dict)  # the variables that matter, never a secret
    wsl: bool = False
    container: str | None = None
    cache_dir: str | None = None
    cache_free_bytes: int | None = None
    hub_token: bool = False

    def version(self, package: str) -> tuple[int, ...] | None:
        """The release of an installed package as numbers, None when it is missing."""
        installed = self.packages.get(package)
        return None if installed is None else release(installed)

    @property
    def capabilities(self) -> tuple[tuple[int, int], ...]:
        """Compute capability of each card that tells it."""
        capabilities = (release(card.compute_capability) for card in self.devices if card.compute_capability)
        return tuple(
            (capability[0], capability[1] if len(capability) > 1 else 0) for capability in capabilities if capability
        )


def release(version: str) -> tuple[int, ...]:
    """`2.13.0+cpu` as (2, 13, 0): the numbers up to the first thing that is not one."""
    match = re.match(r"\d+(?:\.\d+)*", version.strip())
    return tuple(int(part) for part in match.group().split(".")) if match else ()


def within(version: tuple[int, ...] | None, low: str, below: str) -> bool:
    """Whether low <= version < below, compared as releases; an unknown version is not within."""
    return version is not None and release(low) <= version < release(below)
