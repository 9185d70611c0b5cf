"""What to know about a card beside its size: whether torch's wheels have kernels for it, and whose memory it has."""

from __future__ import annotations

from collections.abc import Mapping

from qlora_planner.catalog.trainers import parse_version
from qlora_planner.record import record
from qlora_planner.spec.machine import GpuSpec
from qlora_planner.units import format_mib

# PyTorch's support matrix (RELEASE.md and the pull requests that changed it, read 2026-11-29): since a release of
# torch, the lowest compute capability that the wheels on PyPI have kernels for. 2.8: CUDA 12.8 without Maxwell and
# Pascal; 2.11: CUDA 13, which begins with Turing.
PYPI_WHEELS_BEGIN_AT: tuple[tuple[tuple[int, int], tuple[int, int]], ...] = (((2, 11), (7, 5)), ((2, 8), (7, 0)))
# The CUDA 12.6 build, from PyTorch's own index, has Maxwell (5.0) to Hopper; 2.15 is to ship without it (pytorch issue
# 190385).
LEGACY_WHEEL = "cu126"
LEGACY_UNTIL = (2, 15)
# bitsandbytes' library for CUDA 12.6 (its installation guide, read 2026-11-29).
BITSANDBYTES_FIRST = (6, 0)
NO_KERNEL = "no kernel image is available for execution on the device"


@record
class Remark:
    """Something about a card that its figures do not show, and what to do about it."""

    code: str
    message: str
    fix: str


def wheel_line(tag: str, *, force: bool = False) -> str:
    """The pip line for the build of torch with this tag, such as cu126."""
    again = "--force-reinstall " if force else ""
    return f"pip install {again}torch --index-url https://download.pytorch.org/whl/{tag}"


def remarks(gpu: GpuSpec | None, stack: Mapping[str, str] | None = None) -> tuple[Remark, ...]:
    """What to know about training on this card with this torch (by `stack`, else today's)."""
    if gpu is None:
        return ()
    both = (_kernels(gpu, (stack or {}).get("torch")), _shared(gpu))
    return tuple(remark for remark in both if remark is not None)


def _kernels(gpu: GpuSpec, torch: str | None) -> Remark | None:
    """The remark on a card that the wheels which pip installs were not compiled for."""
    if gpu.vendor != "nvidia" or gpu.compute_capability is None:
        return None
    capability = parse_version(gpu.compute_capability)
    release = parse_version(torch) if torch else PYPI_WHEELS_BEGIN_AT[0][0]
    first = next((lowest for since, lowest in PYPI_WHEELS_BEGIN_AT if release >= since), None)
    if first is None or capability >= first:
        return None
    message = (
        f"torch {torch or 'of today'} as pip installs it has no kernels for {gpu.label} (compute capability"
        f" {gpu.compute_capability}): its wheels begin at {first[0]}.{first[1]}; seen as '{NO_KERNEL}'"
    )
    fix = f"{wheel_line(LEGACY_WHEEL)}   (CUDA 12.6, the build that still has them; torch 2.15 is to drop it)"
    if release >= LEGACY_UNTIL:
        fix = f"torch 2.14: {wheel_line(LEGACY_WHEEL)}   (CUDA 12.6, the last build that has them)"
    if capability < BITSANDBYTES_FIRST:
        message += "; bitsandbytes begins at 6.0, so 4-bit and 8-bit do not run on it at all"
        fix += "; and compile bitsandbytes from source, or take another card"
    return Remark(code="torch-kernels", message=message, fix=fix)


def _shared(gpu: GpuSpec) -> Remark | None:
    """The remark on a card without a memory of its own."""
    if not gpu.shared_with_host:
        return None
    return Remark(
        code="shared-memory",
        message=f"{gpu.label} has no memory of its own: {format_mib(gpu.memory_bytes)} are all that CPU and GPU have"
        " together. What the system, the data and this process hold on the host comes off it, paged and offloaded bytes"
        " save nothing, and running out can stop the whole machine",
        fix="--reserve what the host holds, as --reserve 8GiB (`free -m` shows it under used)",
    )
