"""The doctor on invented machines: every rule fires where it should and stays quiet where it should not."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlora_planner.diagnose import gather as doctor_gather
from qlora_planner.diagnose.doctor import (
    RULES,
    Facts,
    Finding,
    TorchFacts,
    check_dtypes,
    diagnose,
    examine,
    explain_symptom,
    gather,
)
from qlora_planner.diagnose.facts import BitsandbytesFacts, release, within
from qlora_planner.diagnose.symptom_search import SYMPTOMS
from qlora_planner.diagnose.versions import TRAPS
from qlora_planner.measure.nvml import DeviceReading, ProcessReading
from qlora_planner.report.doctor import render_doctor, render_findings
from qlora_planner.units import GIB, MIB

PACKAGES = {
    "torch": "2.13.0+cu130",
    "transformers": "5.17.0",
    "accelerate": "1.15.0",
    "bitsandbytes": "0.50.2",
    "peft": "0.21.0",
    "trl": "1.16.0",
    "datasets": "5.2.0",
}
LIBRARIES = tuple(f"libbitsandbytes_{tag}.so" for tag in ("cpu", "cuda118", "cuda124", "cuda126", "cuda128", "cuda130"))
CARD = DeviceReading(
    index=0,
    name="NVIDIA GeForce RTX 4090",
    uuid="GPU-1",
    total_bytes=24564 * MIB,
    free_bytes=24000 * MIB,
    used_bytes=164 * MIB,
    driver_version="580.95.05",
    cuda_driver_version="13.0",
    compute_capability="8.9",
    processes=(),
)
TORCH = TorchFacts(
    version="2.13.0+cu130",
    cuda="13.0",
    available=True,
    bf16=True,
    arch_list=("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"),
)
WELL = Facts(
    python=(3, 12),
    system="Linux",
    packages=PACKAGES,
    driver_version="580.95.05",
    cuda_driver_version="13.0",
    devices=(CARD,),
    nvidia_hardware=True,
    torch=TORCH,
    bitsandbytes=BitsandbytesFacts(library="libbitsandbytes_cuda130.so"),
    bitsandbytes_libraries=LIBRARIES,
    cuda_libraries=("/venv/nvidia/cu13/lib/libcudart.so.13",),
    cache_dir="/home/user/.cache/huggingface/hub",
    cache_free_bytes=300 * GIB,
    hub_token=True,
)


def with_packages(**versions: str | None) -> Facts:
    """The well machine with other versions; names as keywords."""
    return replace(WELL, packages={**PACKAGES, **versions})


def with_torch(**changes: Any) -> Facts:
    """The well machine with another torch."""
    return replace(WELL, torch=replace(TORCH, **changes))


def with_card(**changes: Any) -> Facts:
    """The well machine with another card."""
    return replace(WELL, devices=(replace(CARD, **changes),))


NO_DRIVER = replace(
    WELL,
    driver_version=None,
    cuda_driver_version=None,
    devices=(),
    nvml_error="NVML: no NVIDIA driver is installed here (libnvidia-ml is not found); install one",
    torch=replace(TORCH, available=False, bf16=None, arch_list=()),
    bitsandbytes=BitsandbytesFacts(library="libbitsandbytes_cpu.so"),
)
CPU_TORCH = replace(TORCH, version="2.13.0+cpu", cuda=None, available=False, bf16=None, arch_list=())
OLD_DRIVER = replace(
    WELL,
    driver_version="550.54.14",
    devices=(replace(CARD, driver_version="550.54.14"),),
    torch=replace(TORCH, available=False, bf16=None, arch_list=()),
)
T4 = replace(
    with_card(compute_capability="7.5", name="Tesla T4"),
    torch=replace(TORCH, bf16=False),
)
NO_CARD = replace(NO_DRIVER, nvidia_hardware=False)

# machine, the finding's code, its status, and words that its message or fix must hold
SICK: list[tuple[Facts, str, str, tuple[str, ...]]] = [
    (replace(WELL, python=(3, 10)), "python", "problem", ("3.11",)),
    (replace(WELL, python=(3, 13)), "python", "warning", ("3.12",)),
    (with_packages(peft=None, trl=None), "packages", "problem", ("pip install peft trl", ".[train]")),
    (NO_DRIVER, "driver", "problem", ("on the PCI bus", "ubuntu-drivers")),
    (replace(NO_DRIVER, container="docker"), "driver", "problem", ("--gpus all", "nvidia-container-toolkit")),
    (replace(NO_DRIVER, wsl=True), "driver", "problem", ("wsl --shutdown",)),
    (NO_CARD, "driver", "problem", ("no NVIDIA card", "--gpu 24GB")),
    (
        replace(NO_DRIVER, nvml_error="NVML: the package nvidia-ml-py is missing; pip install nvidia-ml-py"),
        "driver",
        "problem",
        ("pip install nvidia-ml-py",),
    ),
    (
        replace(NO_DRIVER, nvml_error="NVML: driver/library version mismatch: reboot"),
        "driver",
        "problem",
        ("mismatch", "reboot"),
    ),
    (replace(WELL, devices=()), "driver", "problem", ("No CUDA GPUs are available",)),
    (replace(NO_DRIVER, torch=replace(TORCH, cuda=None, hip="7.2")), "driver", "warning", ("AMD",)),
    (OLD_DRIVER, "driver-for-torch", "problem", ("needs 580", "driver on your system is too old", "whl/cu126")),
    (with_torch(cuda="10.2"), "driver-for-torch", "unknown", ("10.2",)),
    (replace(WELL, torch=CPU_TORCH), "torch-cpu-only", "problem", ("not compiled with CUDA", "whl/cu130")),
    (replace(OLD_DRIVER, torch=CPU_TORCH), "torch-cpu-only", "problem", ("whl/cu126",)),
    (replace(NO_CARD, torch=CPU_TORCH), "torch-cpu-only", "warning", ("CPU-only",)),
    (replace(WELL, torch=None, probe_error="no answer within 30 s"), "torch", "problem", ("30 s",)),
    (replace(WELL, torch=None), "torch", "unknown", ("not asked",)),
    (with_torch(available=False, error="Error 803"), "torch-no-cuda", "problem", ("is_available() is False", "803")),
    (
        replace(with_torch(available=False), environment={"CUDA_VISIBLE_DEVICES": ""}),
        "torch-no-cuda",
        "problem",
        ("unset CUDA_VISIBLE_DEVICES",),
    ),
    (with_card(compute_capability="6.1"), "torch-kernels", "problem", ("no kernel image", "whl/cu126")),
    (
        replace(with_card(compute_capability="12.0"), torch=replace(TORCH, arch_list=("sm_80", "sm_90"))),
        "torch-kernels",
        "problem",
        ("12.0",),
    ),
    (
        replace(with_torch(available=False), cuda_libraries=("/usr/lib/libcudart.so.12",)),
        "libcudart",
        "problem",
        ("libcudart.so.13", "libcudart.so.12", "LD_LIBRARY_PATH"),
    ),
    (with_packages(axolotl="0.21.0"), "own-environment", "warning", ("axolotl 0.21.0", "trl and datasets", "-m venv")),
    (with_packages(bitsandbytes="0.45.0"), "bitsandbytes-version", "problem", ("0.46.1",)),
    (with_packages(bitsandbytes="0.49.2"), "bitsandbytes-version", "warning", ("_is_hf_initialized",)),
    (
        replace(WELL, bitsandbytes_libraries=LIBRARIES[:-1], bitsandbytes=None),
        "bitsandbytes-library",
        "problem",
        ("libbitsandbytes_cuda130", "118, 124, 126, 128", "CUDA Setup failed", "Required library version not found"),
    ),
    (
        replace(with_packages(bitsandbytes="0.48.0"), torch=replace(TORCH, cuda="12.9"), bitsandbytes=None),
        "bitsandbytes-library",
        "problem",
        ("libbitsandbytes_cuda129", "BNB_CUDA_VERSION=128"),
    ),
    (
        replace(
            WELL,
            bitsandbytes=BitsandbytesFacts(error="libnvJitLink.so.13: cannot open shared object file: No such file"),
            cuda_libraries=("/venv/nvidia/cu13/lib/libnvJitLink.so.13",),
        ),
        "bitsandbytes-library",
        "problem",
        ("libnvJitLink.so.13", "export LD_LIBRARY_PATH=/venv/nvidia/cu13/lib:"),
    ),
    (
        replace(WELL, bitsandbytes=BitsandbytesFacts(error="libcusparse.so.12: cannot open shared object file")),
        "bitsandbytes-library",
        "problem",
        ("whl/cu130",),
    ),
    (
        replace(WELL, bitsandbytes=BitsandbytesFacts(error="file too short")),
        "bitsandbytes-library",
        "problem",
        ("file too short",),
    ),
    (
        replace(WELL, bitsandbytes=BitsandbytesFacts(library="libbitsandbytes_cpu.so")),
        "bitsandbytes-library",
        "problem",
        ("compiled without GPU support",),
    ),
    (
        replace(WELL, environment={"BNB_CUDA_VERSION": "124"}),
        "bitsandbytes-override",
        "warning",
        ("CUDA 130", "unset BNB_CUDA_VERSION"),
    ),
    (
        replace(WELL, environment={"BNB_CUDA_VERSION": "117"}),
        "bitsandbytes-override",
        "problem",
        ("does not have",),
    ),
    (with_card(compute_capability="7.0"), "bitsandbytes-kernels", "problem", ("named symbol not found", "7.0")),
    (T4, "bf16", "warning", ("fp16=True", "hf-trainer", "setup doesn't support bf16")),
    (with_packages(transformers="5.2.0"), "loads-16-bit", "warning", ("16-bit", "transformers>=5.4")),
    (with_packages(transformers="4.57.6"), "experts", "warning", ("experts",)),
    (with_packages(trl="0.24.0"), "trl-upcast", "warning", ("float32",)),
    (with_packages(trl="1.3.0"), "trl-logits", "warning", ("12 bytes",)),
    (with_packages(trl="1.13.0"), "trl-head-copy", "warning", ("lm_head",)),
    (with_packages(peft="0.19.1"), "peft-prepare", "warning", ("820 MB",)),
    (with_packages(bitsandbytes="0.43.1"), "bitsandbytes-activations", "warning", ("second copy",)),
    (
        with_card(free_bytes=18 * GIB, used_bytes=5 * GIB, processes=(ProcessReading(pid=77, used_bytes=4 * GIB),)),
        "gpu-memory",
        "warning",
        ("pid 77 (4.00 GiB)", "--reserve 5120MiB"),
    ),
    (with_card(free_bytes=None, total_bytes=None), "gpu-memory", "unknown", ("no memory figures",)),
    (replace(WELL, wsl=True), "wsl", "warning", ("per process", "--reserve")),
    (replace(WELL, cache_free_bytes=3 * GIB), "disk", "warning", ("No space left", "HF_HOME")),
    (replace(WELL, hub_token=False), "hub-token", "warning", ("gated", "hf auth login")),
]


def findings(facts: Facts, code: str) -> list[Finding]:
    """What the doctor says under this code."""
    return [one for one in diagnose(facts).findings if one.code == code]


@pytest.mark.parametrize(
    ("facts", "code", "status", "words"), SICK, ids=[f"{row[1]}-{i}" for i, row in enumerate(SICK)]
)
def test_a_sick_machine(facts: Facts, code: str, status: str, words: tuple[str, ...]) -> None:
    (found,) = findings(facts, code)
    said = f"{found.message} {found.fix}"
    assert found.status == status
    assert [word for word in words if word not in said] == []
    assert diagnose(facts).exit_code == (3 if any(f.status == "problem" for f in diagnose(facts).findings) else 0)
    if status == "problem":
        assert found.fix
        assert diagnose(facts).exit_code == 3


def test_a_well_machine_has_nothing_to_fix() -> None:
    doctor = diagnose(WELL)
    assert {one.status for one in doctor.findings} == {"ok"}
    assert doctor.exit_code == 0
    assert doctor.summary == "nothing stands in the way of training here; 0 warnings"


def test_every_code_is_seen_both_firing_and_quiet() -> None:
    """The table above covers every rule and every trap; the well machine has none of their warnings."""
    fired = {row[1] for row in SICK}
    assert {trap.code for trap in TRAPS} <= fired
    said_nothing = [rule.__name__ for rule in RULES if not any(rule(row[0]) for row in SICK)]
    assert said_nothing == []


@pytest.mark.parametrize(
    "facts",
    [
        replace(WELL, environment={"HF_DEACTIVATE_ASYNC_LOAD": "1"}, packages={**PACKAGES, "transformers": "5.2.0"}),
        with_packages(transformers="5.4.0"),
    ],
)
def test_the_16_bit_loading_is_quiet_when_cured(facts: Facts) -> None:
    assert findings(facts, "loads-16-bit") == []


@pytest.mark.parametrize(("cuda", "driver", "fits"), [
    ("11.8", "450.80.02", True),
    ("11.8", "450.51", False),
    ("12.6", "525.60.13", True),
    ("12.6", "525.60.11", False),
    ("13.0", "580.65", True),
    ("13.2", "579.99", False),
])  # fmt: skip
def test_minimum_drivers(cuda: str, driver: str, fits: bool) -> None:
    facts = replace(with_torch(cuda=cuda, available=False), driver_version=driver)
    assert findings(facts, "driver-for-torch")[0].status == ("ok" if fits else "problem")


def test_an_old_driver_with_nvidias_forward_compatibility_package() -> None:
    assert findings(replace(WELL, driver_version="550.54.14"), "driver-for-torch")[0].status == "ok"


def test_bitsandbytes_takes_a_library_of_the_same_cuda_major() -> None:
    facts = replace(with_torch(cuda="12.9"), bitsandbytes=BitsandbytesFacts(library="libbitsandbytes_cuda128.so"))
    assert findings(facts, "bitsandbytes-library")[0].status == "ok"


def test_binaries_run_on_later_cards_of_their_generation_and_ptx_on_all() -> None:
    assert findings(with_card(compute_capability="8.9"), "torch-kernels") == []
    ahead = with_card(compute_capability="13.0")
    assert findings(ahead, "torch-kernels")
    assert not findings(replace(ahead, torch=replace(TORCH, arch_list=("sm_90", "compute_120"))), "torch-kernels")


@pytest.mark.parametrize(("name", "pinned"), [("axolotl", "trl and datasets"), ("llamafactory", "peft")])
def test_another_trainer_in_this_environment_asks_for_one_of_its_own(name: str, pinned: str) -> None:
    (found,) = findings(replace(WELL, packages={**PACKAGES, name: "0.9.9"}), "own-environment")
    assert found.status == "warning"
    assert f"{name} 0.9.9 is installed here" in found.message
    assert pinned in found.message
    assert "base install" in found.message
    assert "python -m venv" in (found.fix or "")
    assert findings(WELL, "own-environment") == []
    without = replace(WELL, packages={**dict.fromkeys(PACKAGES), name: "0.9.9"})
    assert findings(without, "own-environment")[0].status == "ok"


def test_a_container_whose_processes_cannot_be_seen() -> None:
    assert findings(replace(WELL, container="docker"), "container")[0].status == "ok"
    assert findings(WELL, "container") == []


def test_without_torch_the_pip_line_is_named() -> None:
    bare = replace(
        NO_CARD,
        packages=dict.fromkeys(PACKAGES),
        torch=None,
        bitsandbytes=None,
        bitsandbytes_libraries=None,
    )
    (found,) = findings(bare, "packages")
    assert found.fix is not None
    assert found.fix.startswith("pip install torch transformers accelerate bitsandbytes peft trl datasets")
    assert findings(bare, "torch") == []
    assert "planning works here; training does not yet" in diagnose(bare).summary


def test_where_only_a_card_is_missing_toys_are_said_to_train() -> None:
    assert "toys train on the CPU, other models on a card" in diagnose(NO_CARD).summary
    assert "training does not yet" in diagnose(NO_DRIVER).summary  # of which the driver can be installed


def processor_s() -> float:
    """Seconds of work by this process and those that it has waited for: other workers do not count."""
    return sum(os.times()[:4])


def test_this_machine_is_read_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    if torch.version.cuda is not None:
        pytest.skip("torch here is built with CUDA")
    monkeypatch.setenv("HF_TOKEN", "hf_never_shown")
    started = processor_s()
    doctor = examine()
    assert processor_s() - started < 12
    assert [one.status for one in doctor.findings if one.code == "torch-cpu-only"]
    assert doctor.facts.hub_token is True
    assert "hf_never_shown" not in json.dumps(doctor.to_dict()) + repr(doctor.facts)
    assert doctor.facts.bitsandbytes_libraries


def test_without_the_probe_torch_is_unknown_and_nothing_is_imported() -> None:
    facts = gather(probe=False)
    assert facts.torch is None
    if facts.packages["torch"]:
        assert findings(facts, "torch")[0].status == "unknown"


def test_a_probe_that_runs_out_of_time_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    if gather(probe=False).packages["torch"] is None:
        pytest.skip("torch is not installed")
    facts = gather(timeout_s=0.01)
    assert facts.torch is None
    assert facts.probe_error is not None and "no answer" in facts.probe_error
    assert findings(facts, "torch")[0].status == "problem"


@pytest.mark.parametrize(
    ("script", "torch_error", "library_error"),
    [
        ("import os; os.kill(os.getpid(), 11)", "signal 11", None),
        ("raise SystemExit('no luck')", "no luck", None),
        (
            'print(\'noise\'); print(\'{"torch": {"version": "9"}}\', flush=True); import os; os.abort()',
            None,
            "signal 6",
        ),
    ],
)
def test_a_probe_that_crashes_keeps_what_it_printed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, script: str, torch_error: str | None, library_error: str | None
) -> None:
    (tmp_path / "probe.py").write_text(script)
    monkeypatch.setattr(doctor_gather, "__file__", str(tmp_path / "doctor_gather.py"))
    answers = doctor_gather._ask_torch(10)
    assert (torch_error or "") in answers.get("torch_error", "")
    assert ("torch" in answers) is (torch_error is None)
    assert (library_error or "") in answers.get("bitsandbytes_error", "")


DTYPES: list[tuple[dict[str, Any], str, str]] = [
    ({"compute_dtype": "bfloat16", "bf16": True}, "dtypes", "ok"),
    ({"compute_dtype": "float16", "fp16": True, "trainer": "hf-trainer"}, "dtypes", "ok"),
    ({"compute_dtype": "float16", "bf16": True}, "compute-fp16-train-bf16", "warning"),
    ({"compute_dtype": "bfloat16", "fp16": True, "trainer": "hf-trainer"}, "compute-bf16-train-fp16", "warning"),
    ({"compute_dtype": "float32", "bf16": True}, "compute-fp32", "warning"),
    ({"compute_dtype": "bfloat16"}, "no-amp", "warning"),
    ({"compute_dtype": "bfloat16", "trainer": "loop"}, "dtypes", "ok"),
    ({"compute_dtype": "float16", "fp16": True, "trainer": "trl-sft"}, "fp16-trl-sft", "problem"),
    ({"compute_dtype": "float16", "fp16": True, "trainer": "trl-sft", "quant": "none"}, "dtypes", "ok"),
    ({"compute_dtype": "bfloat16", "bf16": True, "fp16": True}, "both-amp", "problem"),
    ({"compute_dtype": "bfloat16", "bf16": True, "card_bf16": False}, "bf16-card", "problem"),
    ({"compute_dtype": "float16", "fp16": True, "load_dtype": "float16", "quant": "none"}, "fp16-weights", "problem"),
]


@pytest.mark.parametrize(("choices", "code", "status"), DTYPES)
def test_compute_and_training_dtype(choices: dict[str, Any], code: str, status: str) -> None:
    assert (code, status) in [(one.code, one.status) for one in check_dtypes(**choices)]
    assert (code == "dtypes") == (len(check_dtypes(**choices)) == 1 and status == "ok")


SEEN = {
    "libcudart.so.12: cannot open shared object file: No such file or directory": "missing-library",
    "CUDA_SETUP: WARNING! libcudart.so not found in any environmental path.": "missing-library",
    "/venv did not contain ['libcudart.so', 'libcudart.so.11.0'] as expected!": "missing-library",
    "CUDA SETUP: Required library version not found: libbitsandbytes_cuda121_nocublaslt.so.": "bitsandbytes-library",
    "RuntimeError: CUDA Setup failed despite GPU being available.": "bitsandbytes-library",
    "RuntimeError: No compatible CUDA binary found at /v/libbitsandbytes_cuda141.so": "bitsandbytes-library",
    "AttributeError: 'NoneType' object has no attribute 'cquantize_blockwise_fp16_nf4'": "bitsandbytes-cpu",
    "libbitsandbytes_cpu.so: undefined symbol: cquantize_blockwise_fp16_nf4": "bitsandbytes-cpu",
    "The installed version of bitsandbytes was compiled without GPU support.": "bitsandbytes-cpu",
    "Error named symbol not found at line 74 in file /csrc/ops.cu": "kernels",
    "CUDA error: no kernel image is available for execution on the device": "kernels",
    "with CUDA capability sm_120 is not compatible with the current PyTorch installation.": "kernels",
    "The NVIDIA driver on your system is too old (found version 11000).": "driver-too-old",
    "CUDA driver version is insufficient for CUDA runtime version": "driver-too-old",
    "Failed to initialize NVML: Driver/library version mismatch": "driver-mismatch",
    "Error 803: system has unsupported display driver / cuda driver combination": "driver-mismatch",
    "RuntimeError: Found no NVIDIA driver on your system.": "no-driver",
    "RuntimeError: No CUDA GPUs are available": "no-driver",
    'could not select device driver "" with capabilities: [[gpu]].': "container-gpu",
    "RuntimeError: CUDA unknown error - this may be due to an incorrectly set up environment": "cuda-unknown",
    "AssertionError: Torch not compiled with CUDA enabled": "torch-cpu-only",
    "ValueError: Your setup doesn't support bf16/gpu.": "bf16-card",
    "\"_amp_foreach_non_finite_check_and_unscale_cuda\" not implemented for 'BFloat16'": "fp16-unscale-bf16",
    "ValueError: Attempting to unscale FP16 gradients.": "fp16-weights",
    "expected mat1 and mat2 to have the same dtype, but got: float != c10::BFloat16": "dtype-mismatch",
    "Params4bit.__new__() got an unexpected keyword argument '_is_hf_initialized'": "bitsandbytes-version",
    "Some modules are dispatched on the CPU or the disk. Make sure you have enough": "does-not-fit-loading",
    "You can't train a model that has been loaded in 8-bit or 4-bit precision on a different device": "device-map",
    "You cannot perform fine-tuning on purely quantized models.": "no-adapters",
    "element 0 of tensors does not require grad and does not have a grad_fn": "no-grad",
    "lora.ParamWrapper does not work with lora_dropout != 0.": "expert-dropout",
    "OSError: [Errno 28] No space left on device": "disk",
    "Cannot access gated repo for url https://huggingface.co/meta-llama/Llama-3.1-8B": "gated-model",
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.96 GiB.": "out-of-memory",
}


@pytest.mark.parametrize(("line", "code"), SEEN.items())
def test_a_pasted_line_finds_its_cause(line: str, code: str) -> None:
    found = explain_symptom(f"Traceback (most recent call last):\n  File 'x.py'\n{line}\n")
    assert found[0].code == code
    assert found[0].fix and found[0].source
    assert "{name}" not in found[0].message + found[0].fix


def test_the_symptom_table_is_covered_and_quiet_otherwise() -> None:
    from tests.measure.test_symptoms import LINES, REPORTED

    tried = {*SEEN.values(), *LINES.values(), *(code for _, code, _ in REPORTED)}
    assert {row.code for row in SYMPTOMS} | {"out-of-memory"} == tried
    assert explain_symptom("Epoch 1/3: loss 0.91") == []
    assert explain_symptom("") == []


def test_what_the_doctor_quotes_it_also_explains() -> None:
    """A message that says what an error looks like is found again from that error."""
    quoting = [one for row in SICK for one in diagnose(row[0]).findings if "seen as" in one.message]
    assert quoting
    assert [one.code for one in quoting if not explain_symptom(one.message)] == []


@given(st.text())
def test_any_text_may_be_pasted(text: str) -> None:
    assert all(one.fix for one in explain_symptom(text))
    release(text)


def test_json_is_plain() -> None:
    raw = diagnose(OLD_DRIVER).to_dict()
    assert json.loads(json.dumps(raw)) == raw
    assert raw["exit_code"] == 3
    assert set(raw["findings"][0]) == {"code", "status", "message", "fix", "source"}


@pytest.mark.parametrize("facts", [row[0] for row in SICK[:12]])
def test_text_is_plain_when_piped_and_fits(facts: Facts) -> None:
    text = render_doctor(diagnose(facts), color=False, width=80)
    assert "\x1b" not in text
    assert [line for line in text.splitlines() if len(line) > 80 and " fix: " not in line] == []
    assert text.splitlines()[-1] == diagnose(facts).summary


def test_the_worst_comes_first_and_colour_changes_no_word() -> None:
    pytest.importorskip("rich")
    doctor = diagnose(OLD_DRIVER)
    plain = render_doctor(doctor, color=False, width=80)
    assert plain.startswith("problem")
    colored = render_doctor(doctor, color=True, width=80)
    assert "\x1b[" in colored
    from rich.text import Text

    assert [row.rstrip() for row in Text.from_ansi(colored).plain.splitlines()] == plain.splitlines()
    assert "fix: " in render_findings(explain_symptom("CUDA out of memory"), color=False, width=80)


def test_versions_are_compared_as_numbers() -> None:
    assert release("2.13.0+cpu") == (2, 13, 0)
    assert release("unknown") == ()
    assert within((5, 10), "5.4", "9999")
    assert not within(None, "0", "9")
