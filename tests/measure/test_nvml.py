"""The door to NVML, with an invented driver behind it: every reading there, some missing, none at all."""

from __future__ import annotations

import os
import subprocess
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from qlora_planner.errors import MissingError
from qlora_planner.measure import nvml
from qlora_planner.units import GIB, MIB

OTHER_PID = 4_000_001


class FakeError(Exception):
    """Stands for pynvml.NVMLError."""


NAMES = ("NotSupported", "GpuIsLost", "LibraryNotFound", "DriverNotLoaded", "LibRmVersionMismatch", "InvalidArgument")
FAULTS: dict[str, type[FakeError]] = {name: type(f"NVMLError_{name}", (FakeError,), {}) for name in NAMES}


def fake_driver(cards: int = 1, **replaced: Any) -> Any:
    """A pynvml whose functions answer like a 24 GB card; `replaced` puts a value or an error in a function's place."""
    module: Any = ModuleType("pynvml")
    module.NVMLError = FakeError
    for fault in FAULTS.values():
        setattr(module, fault.__name__, fault)
    module.calls = []
    module.nvmlMemory_v2 = 2
    total, reserved, used = 24564 * MIB, 400 * MIB, 900 * MIB
    answers: dict[str, Any] = {
        "nvmlInit": None,
        "nvmlShutdown": None,
        "nvmlDeviceGetCount": cards,
        "nvmlDeviceGetName": b"NVIDIA GeForce RTX 4090",
        "nvmlSystemGetDriverVersion": "580.95.05",
        "nvmlSystemGetCudaDriverVersion_v2": 13000,
        "nvmlDeviceGetCudaComputeCapability": (8, 9),
        "nvmlDeviceGetMigMode": FAULTS["NotSupported"](),
        "nvmlDeviceGetMemoryInfo": SimpleNamespace(
            total=total, free=total - reserved - used, used=used, reserved=reserved
        ),
        "nvmlDeviceGetComputeRunningProcesses": [
            SimpleNamespace(pid=OTHER_PID, usedGpuMemory=500 * MIB),
            SimpleNamespace(pid=os.getpid(), usedGpuMemory=300 * MIB),
        ],
        "nvmlDeviceGetGraphicsRunningProcesses": [SimpleNamespace(pid=OTHER_PID, usedGpuMemory=500 * MIB)],
        "nvmlDeviceGetTemperature": 41,
        "nvmlDeviceGetPowerUsage": 23_500,
        **replaced,
    }

    def answering(name: str, answer: Any) -> Any:
        def call(*_: Any) -> Any:
            module.calls.append(name)
            if isinstance(answer, Exception):
                raise answer
            return answer

        return call

    for name, answer in answers.items():
        setattr(module, name, answering(name, answer))
    module.nvmlDeviceGetHandleByIndex = lambda index: index
    module.nvmlDeviceGetUUID = lambda index: f"GPU-{index}abc"
    return module


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts an invented pynvml in place."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def put(module: ModuleType | None) -> ModuleType | None:
        monkeypatch.setitem(sys.modules, "pynvml", module)
        return module

    return put


def test_every_reading_of_a_card(install: Any) -> None:
    driver = install(fake_driver())
    (card,) = nvml.devices()
    assert (card.name, card.uuid, card.index) == ("NVIDIA GeForce RTX 4090", "GPU-0abc", 0)
    assert (card.total_bytes, card.used_bytes, card.reserved_bytes) == (24564 * MIB, 900 * MIB, 400 * MIB)
    assert (card.driver_version, card.cuda_driver_version) == ("580.95.05", "13.0")
    assert (card.compute_capability, card.mig) == ("8.9", None)
    assert (card.temperature_c, card.power_w) == (41, 23.5)
    assert card.processes == (nvml.ProcessReading(pid=OTHER_PID, used_bytes=500 * MIB),)
    assert driver.calls[0] == "nvmlInit" and driver.calls[-1] == "nvmlShutdown"


OPTIONAL: dict[str, str] = {
    "nvmlDeviceGetName": "name",
    "nvmlDeviceGetMemoryInfo": "total_bytes",
    "nvmlDeviceGetCudaComputeCapability": "compute_capability",
    "nvmlDeviceGetTemperature": "temperature_c",
    "nvmlDeviceGetPowerUsage": "power_w",
    "nvmlSystemGetDriverVersion": "driver_version",
    "nvmlSystemGetCudaDriverVersion_v2": "cuda_driver_version",
}


@pytest.mark.parametrize("fault", ["NotSupported", "GpuIsLost"])
@pytest.mark.parametrize("function", OPTIONAL)
def test_a_reading_that_is_not_given_is_none_and_the_others_hold(install: Any, function: str, fault: str) -> None:
    install(fake_driver(**dict[str, Any]({function: FAULTS[fault]()})))
    (card,) = nvml.devices()
    assert getattr(card, OPTIONAL[function]) is None
    assert all(getattr(card, field) is not None for name, field in OPTIONAL.items() if name != function)


def test_an_unforeseen_fault_is_not_swallowed(install: Any) -> None:
    driver = install(fake_driver(nvmlDeviceGetName=FAULTS["InvalidArgument"]()))
    with pytest.raises(FakeError):
        nvml.devices()
    assert driver.calls[-1] == "nvmlShutdown"


def test_a_driver_that_hides_processes(install: Any) -> None:
    refused = FAULTS["NotSupported"]()
    install(
        fake_driver(
            nvmlDeviceGetComputeRunningProcesses=refused,
            nvmlDeviceGetGraphicsRunningProcesses=refused,
        )
    )
    assert nvml.devices()[0].processes is None
    assert nvml.process_bytes(os.getpid(), 0) is None


def test_an_old_driver_with_the_first_memory_call_only(install: Any) -> None:
    module: Any = fake_driver()
    del module.nvmlMemory_v2
    module.nvmlDeviceGetMemoryInfo = lambda _: SimpleNamespace(total=8 * GIB, free=7 * GIB, used=1 * GIB)
    install(module)
    (card,) = nvml.devices()
    assert (card.total_bytes, card.reserved_bytes) == (8 * GIB, None)


def test_bytes_of_one_process(install: Any) -> None:
    install(fake_driver())
    assert nvml.process_bytes(os.getpid(), 0) == 300 * MIB
    assert nvml.process_bytes(OTHER_PID, 0) == 500 * MIB  # in two lists, counted once
    assert nvml.process_bytes(1, 0) is None
    with pytest.raises(MissingError, match="GPU 3"):
        nvml.process_bytes(1, 3)


def test_wsl_lists_a_process_without_its_bytes(install: Any) -> None:
    nameless = [SimpleNamespace(pid=7, usedGpuMemory=None)]
    install(fake_driver(nvmlDeviceGetComputeRunningProcesses=nameless, nvmlDeviceGetGraphicsRunningProcesses=nameless))
    assert nvml.devices()[0].processes == (nvml.ProcessReading(pid=7, used_bytes=None),)


def test_local_gpu_reserves_what_others_hold(install: Any) -> None:
    install(fake_driver())
    local = nvml.local_gpu()
    assert (local.spec.name, local.spec.label) == ("rtx-4090", "NVIDIA GeForce RTX 4090")
    assert (local.spec.memory_bytes, local.spec.compute_capability, local.spec.bf16) == (24564 * MIB, "8.9", True)
    assert local.reserve_bytes == 600 * MIB  # 900 in use, 300 of them ours
    assert local.spec.facts["memory_bytes"].source.startswith("NVML")


def test_local_gpu_without_bf16(install: Any) -> None:
    install(fake_driver(nvmlDeviceGetCudaComputeCapability=(7, 5), nvmlDeviceGetName="Tesla T4"))
    spec = nvml.local_gpu().spec
    assert (spec.name, spec.bf16) == ("t4", False)


def test_local_gpu_that_shares_the_cpus_memory(install: Any) -> None:
    install(fake_driver(nvmlDeviceGetMemoryInfo=FAULTS["NotSupported"]()))
    with pytest.raises(MissingError, match="--gpu 64GiB"):
        nvml.local_gpu()


def test_a_mig_slice_counts_instead_of_its_card(install: Any) -> None:
    module: Any = fake_driver(nvmlDeviceGetMigMode=(1, 1), nvmlDeviceGetMaxMigDeviceCount=2)
    module.nvmlDeviceGetMigDeviceHandleByIndex = lambda _, number: ("slice", number)
    sizes = {0: 80 * GIB, ("slice", 0): 20 * GIB}
    module.nvmlDeviceGetMemoryInfo = lambda handle, _=None: SimpleNamespace(
        total=sizes[handle], free=sizes[handle], used=0
    )
    install(module)
    local = nvml.local_gpu()
    assert local.reading.mig is True
    assert local.spec.memory_bytes == 20 * GIB


@pytest.mark.parametrize(
    ("visible", "indices"),
    [(None, [0, 1]), ("1", [1]), ("1,0", [1, 0]), ("GPU-1", [1]), ("", []), ("-1", []), ("0,9,1", [0])],
)
def test_cuda_visible_devices(
    install: Any, monkeypatch: pytest.MonkeyPatch, visible: str | None, indices: list[int]
) -> None:
    install(fake_driver(cards=2))
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [card.index for card in nvml.visible_devices()] == indices
    assert len(nvml.devices()) == 2
    if indices:
        assert nvml.local_gpu().reading.index == indices[0]
    else:
        with pytest.raises(MissingError, match="CUDA_VISIBLE_DEVICES"):
            nvml.local_gpu()


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("LibraryNotFound", "nvidia.com/drivers"),
        ("DriverNotLoaded", "modprobe nvidia"),
        ("LibRmVersionMismatch", "reboot"),
        ("InvalidArgument", "NVML: "),
    ],
)
def test_no_driver_is_one_line_with_the_way_to_it(install: Any, fault: str, says: str) -> None:
    driver = install(fake_driver(nvmlInit=FAULTS[fault]()))
    with pytest.raises(MissingError, match=says) as caught:
        nvml.devices()
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 3
    assert "nvmlShutdown" not in driver.calls


def test_no_library_names_the_pip_line(install: Any) -> None:
    install(None)  # None in sys.modules makes the import fail
    with pytest.raises(MissingError, match="pip install nvidia-ml-py"):
        nvml.devices()


def test_a_card_lost_at_shutdown_does_not_hide_the_answer(install: Any) -> None:
    install(fake_driver(nvmlShutdown=FAULTS["GpuIsLost"]()))
    assert len(nvml.devices()) == 1


def test_importing_loads_neither_torch_nor_pynvml() -> None:
    code = (
        "import sys; from qlora_planner.measure import nvml; from qlora_planner.diagnose import doctor; "
        "import qlora_planner.report.doctor; "
        "print(sorted({'torch', 'pynvml', 'rich', 'transformers', 'bitsandbytes'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_watched_card_is_read_again_and_again(install: Any) -> None:
    driver: Any = install(fake_driver())
    with nvml.watched_card(0) as read:
        first = read()
        driver.nvmlDeviceGetMemoryInfo = lambda *_: SimpleNamespace(total=1, free=0, used=77, reserved=0)
        assert read().used_bytes == 77
        with pytest.raises(MissingError, match="GPU 5"), nvml.watched_card(5):
            pass
    assert first == nvml.CardSample(used_bytes=900 * MIB, processes={OTHER_PID: 500 * MIB, os.getpid(): 300 * MIB})
    assert driver.calls[-1] == "nvmlShutdown"


def test_a_watched_card_without_processes(install: Any) -> None:
    refused = FAULTS["NotSupported"]()
    install(fake_driver(nvmlDeviceGetComputeRunningProcesses=refused, nvmlDeviceGetGraphicsRunningProcesses=refused))
    with nvml.watched_card(0) as read:
        assert read().processes is None
