"""The one door to NVML (package nvidia-ml-py): what the driver says about cards and processes.

Units are bytes, watts and degrees Celsius. A reading that this driver, card or container does not give is `None`;
only a missing library or driver is an error. The package is imported when a function is called, never before.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import date
from importlib import import_module
from typing import Any

from qlora_planner.errors import MissingError
from qlora_planner.evidence.calibration import card_slug
from qlora_planner.record import record
from qlora_planner.spec.machine import Fact, GpuSpec

# "This card, driver or permission does not give it": one reading is unknown, the others still hold.
_NO_READING = (
    *(f"NVMLError_{name}" for name in ("NotSupported", "NoPermission", "FunctionNotFound", "ArgumentVersionMismatch")),
    *(f"NVMLError_{name}" for name in ("Deprecated", "NotFound", "NoData", "NotReady", "GpuIsLost", "ResetRequired")),
    *("NVMLError_Unknown", "NVMLLibraryMismatchError"),
)
_INIT_FAULTS = {
    "NVMLError_LibraryNotFound": "no NVIDIA driver is installed here (libnvidia-ml is not found); "
    "install one from https://www.nvidia.com/drivers, or start the container with --gpus all",
    "NVMLError_DriverNotLoaded": "the NVIDIA driver is installed but not loaded; "
    "run `sudo modprobe nvidia`, or reboot after a kernel or driver update",
    "NVMLError_LibRmVersionMismatch": "driver/library version mismatch: the driver was updated while the old one "
    "stays loaded; reboot",
    "NVMLError_NoPermission": "no permission on /dev/nvidia*; add this user to the group that owns them",
    "NVMLError_Unknown": "NVML answers 'unknown error', as after a suspend or in a container that lost its devices; "
    "restart the container, or reboot",
}
_PROCESS_LISTS = tuple(f"nvmlDeviceGet{kind}RunningProcesses" for kind in ("Compute", "Graphics", "MPSCompute"))


@record
class ProcessReading:
    """A process on a card. `used_bytes` is None where the driver hides it (WSL, Windows, most containers)."""

    pid: int
    used_bytes: int | None


@record
class DeviceReading:
    """One card now. With MIG on, memory and processes are those of its first visible slice.

    `used_bytes` leaves out `reserved_bytes`, what the driver keeps for itself, where the driver tells them apart
    (`reserved_bytes` is None where it does not). `processes` leaves out the process that asks; None is: not told.
    """

    index: int
    name: str | None
    uuid: str | None
    total_bytes: int | None
    free_bytes: int | None
    used_bytes: int | None
    reserved_bytes: int | None = None
    driver_version: str | None = None
    cuda_driver_version: str | None = None
    compute_capability: str | None = None
    mig: bool | None = None
    processes: tuple[ProcessReading, ...] | None = None
    temperature_c: int | None = None
    power_w: float | None = None


@record
class LocalGpu:
    """The card of this machine as a GpuSpec, and the bytes that others hold on it now."""

    spec: GpuSpec
    reserve_bytes: int
    reading: DeviceReading


@contextmanager
def session() -> Iterator[Any]:
    """NVML initialised, and shut down at the end. Raises MissingError with the line that gets it."""
    try:
        nvml: Any = import_module("pynvml")
    except ImportError as error:
        raise MissingError("NVML: the package nvidia-ml-py is missing; pip install nvidia-ml-py") from error
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        raise MissingError(f"NVML: {_INIT_FAULTS.get(type(error).__name__, str(error))}") from error
    try:
        yield nvml
    finally:
        with suppress(nvml.NVMLError):  # the card may be lost by now; the answer is not
            nvml.nvmlShutdown()


def devices() -> list[DeviceReading]:
    """Every card that NVML sees, in its order (by PCI bus, whatever CUDA_VISIBLE_DEVICES says).

    Raises MissingError when the library or the driver is missing.
    """
    with session() as nvml:
        return [_device(nvml, index) for index in range(_ask(nvml, "nvmlDeviceGetCount") or 0)]


def visible_devices() -> list[DeviceReading]:
    """The cards that CUDA_VISIBLE_DEVICES leaves to this process, in the order it names them.

    Raises MissingError when the library or the driver is missing.
    """
    cards = devices()
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return cards
    visible: list[DeviceReading] = []
    for name in (part.strip() for part in chosen.split(",")):
        match = [card for card in cards if _is_named(card, name)]
        if not match:  # CUDA stops at the first name that it does not know
            break
        visible.append(match[0])
    return visible


def process_bytes(pid: int, index: int) -> int | None:
    """Bytes that process `pid` holds on card `index`; None where the driver does not list it.

    None is not zero: a container often sees other process ids than the driver does.
    Raises MissingError when the library, the driver or the card is missing.
    """
    with session() as nvml:
        _check_index(index, _ask(nvml, "nvmlDeviceGetCount") or 0)
        listed = _processes(nvml, _memory_handle(nvml, index)[0])
    return next((entry.used_bytes for entry in listed or () if entry.pid == pid), None)


def local_gpu(index: int = 0) -> LocalGpu:
    """Visible card `index` of this machine, with NVML's total and the bytes in use that are not ours.

    Raises MissingError when the library, the driver or the card is missing, or NVML knows no size.
    """
    visible = visible_devices()
    _check_index(index, len(visible))
    reading = visible[index]
    if reading.total_bytes is None:
        raise MissingError(
            f"GPU {reading.index} ({reading.name}): NVML reports no memory size, as where CPU and GPU share "
            "one; name the card (--gpu gb10) or give what the machine has left for it, as --gpu 64GiB"
        )
    capability = reading.compute_capability
    name = reading.name or "GPU"
    ours = process_bytes(os.getpid(), reading.index) or 0
    spec = GpuSpec(
        name=card_slug(name),
        label=name,
        memory_bytes=reading.total_bytes,
        form="local",
        compute_capability=capability,
        bf16=None if capability is None else int(capability.split(".")[0]) >= 8,
        facts={"memory_bytes": Fact(source=f"NVML, driver {reading.driver_version}", date=date.today().isoformat())},
    )
    return LocalGpu(spec=spec, reserve_bytes=max(0, (reading.used_bytes or 0) - ours), reading=reading)


def _is_named(card: DeviceReading, name: str) -> bool:
    """Whether CUDA_VISIBLE_DEVICES means this card by `name`: an index, a UUID or its beginning, a slice's UUID."""
    if name.startswith("MIG-"):
        return card.mig is True
    return name == str(card.index) or bool(name and card.uuid and card.uuid.startswith(name))


def _check_index(index: int, count: int) -> None:
    if not 0 <= index < count:
        raise MissingError(f"GPU {index} is not here: {count} visible; see nvidia-smi -L and CUDA_VISIBLE_DEVICES")


def _ask(nvml: Any, function: str, *arguments: Any) -> Any:
    """One reading, or None where it is not given."""
    call = getattr(nvml, function, None)
    if call is None:  # an older nvidia-ml-py
        return None
    refusals = tuple(getattr(nvml, name) for name in _NO_READING if hasattr(nvml, name))
    try:
        return call(*arguments)
    except refusals:
        return None


def _text(value: Any) -> str | None:
    """Releases of nvidia-ml-py before 11.515 answer in bytes."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _memory_handle(nvml: Any, index: int) -> tuple[Any, bool | None]:
    """The handle whose memory a process can have, and whether MIG is on: the whole card, or its first slice."""
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    mode = _ask(nvml, "nvmlDeviceGetMigMode", handle)
    mig = None if mode is None else bool(mode[0])
    slices = (_ask(nvml, "nvmlDeviceGetMaxMigDeviceCount", handle) or 0) if mig else 0
    handles = (_ask(nvml, "nvmlDeviceGetMigDeviceHandleByIndex", handle, number) for number in range(slices))
    return next((part for part in handles if part is not None), handle), mig


def _processes(nvml: Any, handle: Any) -> tuple[ProcessReading, ...] | None:
    """Every process once: one that computes and draws is in two lists with the same figure."""
    lists = [_ask(nvml, name, handle) for name in _PROCESS_LISTS]
    if all(listed is None for listed in lists):
        return None
    held: dict[int, int | None] = {}
    for entry in (entry for listed in lists if listed for entry in listed):
        other_list_bytes = held.get(entry.pid)
        held[entry.pid] = (
            entry.usedGpuMemory if other_list_bytes is None else max(other_list_bytes, entry.usedGpuMemory or 0)
        )
    return tuple(ProcessReading(pid=pid, used_bytes=used) for pid, used in sorted(held.items()))


def _memory(nvml: Any, handle: Any) -> Any:
    """The second version of the call tells what the driver keeps for itself from what programs use."""
    version = getattr(nvml, "nvmlMemory_v2", None)
    memory = _ask(nvml, "nvmlDeviceGetMemoryInfo", handle, version) if version else None
    return memory or _ask(nvml, "nvmlDeviceGetMemoryInfo", handle)


def _device(nvml: Any, index: int) -> DeviceReading:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    memory_handle, mig = _memory_handle(nvml, index)
    memory = _memory(nvml, memory_handle)
    capability = _ask(nvml, "nvmlDeviceGetCudaComputeCapability", handle)
    cuda = _ask(nvml, "nvmlSystemGetCudaDriverVersion_v2")
    listed = _processes(nvml, memory_handle)
    milliwatts = _ask(nvml, "nvmlDeviceGetPowerUsage", handle)
    return DeviceReading(
        index=index,
        name=_text(_ask(nvml, "nvmlDeviceGetName", handle)),
        uuid=_text(_ask(nvml, "nvmlDeviceGetUUID", handle)),
        total_bytes=None if memory is None else int(memory.total),
        free_bytes=None if memory is None else int(memory.free),
        used_bytes=None if memory is None else int(memory.used),
        reserved_bytes=getattr(memory, "reserved", None),
        driver_version=_text(_ask(nvml, "nvmlSystemGetDriverVersion")),
        cuda_driver_version=None if not cuda else f"{cuda // 1000}.{cuda % 1000 // 10}",
        compute_capability=None if capability is None else f"{capability[0]}.{capability[1]}",
        mig=mig,
        processes=None if listed is None else tuple(entry for entry in listed if entry.pid != os.getpid()),
        temperature_c=_ask(nvml, "nvmlDeviceGetTemperature", handle, getattr(nvml, "NVML_TEMPERATURE_GPU", 0)),
        power_w=None if milliwatts is None else milliwatts / 1000,
    )


@record
class CardSample:
    """One moment of a card: bytes in use, and every process that the driver lists (None: it lists none)."""

    used_bytes: int | None
    processes: dict[int, int | None] | None


@contextmanager
def watched_card(index: int) -> Iterator[Callable[[], CardSample]]:
    """A function that reads card `index` now, quickly: NVML stays initialised while it is watched.

    Raises MissingError when the library, the driver or the card is missing.
    """
    with session() as nvml:
        _check_index(index, _ask(nvml, "nvmlDeviceGetCount") or 0)
        handle = _memory_handle(nvml, index)[0]

        def read() -> CardSample:
            memory = _memory(nvml, handle)
            listed = _processes(nvml, handle)
            return CardSample(
                used_bytes=None if memory is None else int(memory.used),
                processes=None if listed is None else {entry.pid: entry.used_bytes for entry in listed},
            )

        yield read
