"""verify and calibrate as commands, with an invented card and runner: exit codes, one line for each fault, evidence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qlora_planner.errors import MissingError
from qlora_planner.evidence import CardReading, Measurement, NvmlReading, PhaseReading
from qlora_planner.measure.children import Progress
from qlora_planner.measure.nvml import DeviceReading, LocalGpu, ProcessReading
from qlora_planner.measure.spec import ChildSpec
from qlora_planner.sources.evidence import read_all
from qlora_planner.sources.locations import evidence_path, user_profiles
from qlora_planner.spec.machine import GpuSpec
from qlora_planner.units import GIB, MIB
from tests.cli.conftest import Invoke, Process
from tests.hostile import imported, lay_traps

pytest.importorskip("torch")

MODEL = "llama-3.1-8b"
Fake = Callable[..., list[ChildSpec]]


def local(others_bytes: int = 0, memory_bytes: int = 24564 * MIB, name: str = "rtx-4090") -> LocalGpu:
    capability, label = ("7.5", "Tesla T4") if name == "t4" else ("8.9", "NVIDIA GeForce RTX 4090")
    spec = GpuSpec(
        name=name, label=label, memory_bytes=memory_bytes, form="local", compute_capability=capability,
        bf16=name != "t4",
    )  # fmt: skip
    reading = DeviceReading(
        index=0, name=spec.label, uuid=None, total_bytes=memory_bytes, free_bytes=None, used_bytes=others_bytes,
        processes=(ProcessReading(pid=4242, used_bytes=others_bytes),) if others_bytes else (),
    )  # fmt: skip
    return LocalGpu(spec=spec, reserve_bytes=others_bytes, reading=reading)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Puts a card and a runner in place; what the runner was asked is in the list that it gives."""

    def put(card: LocalGpu | Exception | None = None, outcome: str = "ok", raises: BaseException | None = None,
            **changes: Any) -> list[ChildSpec]:  # fmt: skip
        asked: list[ChildSpec] = []
        there = card or local()

        def local_gpu(index: int = 0) -> LocalGpu:
            if isinstance(there, Exception):
                raise there
            return there

        def run(spec: ChildSpec, *, tell: Any = None, timeout_s: float | None = None) -> Measurement:
            asked.append(spec)
            tell(Progress(event="phase", elapsed_s=1.0, facts={"phase": "load"}))
            tell(Progress(event="memory", elapsed_s=1.5, facts={"process_bytes": 3 * GIB, "device_bytes": 4 * GIB}))
            tell(Progress(event="step", elapsed_s=2.0, facts={"step": 1, "step_s": 0.5}))
            if raises is not None:
                raise raises
            held = 9 * GIB + 600 * MIB
            assert isinstance(there, LocalGpu)
            fields: dict[str, Any] = {
                "gpu": CardReading(name=there.spec.label, capacity_bytes=24564 * MIB, compute_capability="8.9"),
                "phases": {
                    "load": PhaseReading(allocated_bytes=6 * GIB, reserved_bytes=6 * GIB, live_bytes=5 * GIB),
                    "training": PhaseReading(allocated_bytes=8 * GIB, reserved_bytes=9 * GIB, live_bytes=6 * GIB),
                },
                "nvml": NvmlReading(
                    context_bytes=400 * MIB, process_peak_bytes=held, process_end_bytes=held,
                    device_peak_bytes=10 * GIB, others_bytes=0, source="nvml",
                ),
                "step_s": (1.0, 0.5), "tokens_per_s": 4000.0, **changes,
            }  # fmt: skip
            return Measurement(
                created=spec.date, model=spec.model_id, config_sha256=spec.config_sha256, config=spec.config,
                run=spec.run, outcome=outcome, device=spec.device, cap_bytes=spec.cap_bytes, predicted=spec.predicted,
                **fields,
            )  # fmt: skip

        monkeypatch.setattr("qlora_planner.measure.nvml.local_gpu", local_gpu)
        monkeypatch.setattr("qlora_planner.measure.verify.verify", run)
        return asked

    return put


def test_predicted_beside_measured_and_evidence_kept(invoke: Invoke, fake: Fake) -> None:
    asked = fake()
    result = invoke("verify", MODEL, "--seq-len", "1024", "--rank", "8", "--steps", "4")
    assert result.exit_code == 0, result.stderr
    assert "measured" in result.stdout.splitlines()[0] + result.stdout.splitlines()[1]
    spec = asked[0]
    assert (spec.run.seq_len, spec.run.rank, spec.steps, spec.device, spec.cap_bytes) == (1024, 8, 4, "cuda", None)
    assert spec.run.trainer is not None  # resolved: the child does not choose
    assert spec.config is not None
    assert spec.predicted is not None
    assert spec.predicted["fit"]["gpu"] == "rtx-4090"
    kept = read_all(evidence_path())
    assert [one.model for one in kept] == ["meta-llama/Llama-3.1-8B"]
    assert "loading, 1 s" in result.stderr
    assert "step 1 done, 2 s, 3.00 GiB of 23.99 GiB" in result.stderr


def test_python_verifies_what_the_command_line_does(invoke: Invoke, fake: Fake) -> None:
    from qlora_planner import Session

    asked = fake()
    assert invoke("verify", MODEL, "--gpu", "12GB", "--rank", "8").exit_code == 0
    measured = Session().on("12GB").verify(MODEL, rank=8)
    assert measured.outcome == "ok"
    typed, called = asked
    assert (called.run, called.cap_bytes, called.steps) == (typed.run, typed.cap_bytes, typed.steps)
    assert called.cap_bytes is not None
    assert called.predicted == typed.predicted
    assert len(read_all(evidence_path())) == 2


def test_json_holds_measurement_and_comparison(invoke: Invoke, fake: Fake) -> None:
    fake()
    result = invoke("verify", MODEL, "--json", "--quiet")
    assert (result.exit_code, result.stderr) == (0, "")
    document = json.loads(result.stdout)
    assert document["schema"] == "qlora-plan/verification/1"
    assert document["measurement"]["schema"] == "qlora-plan/measurement/1"
    training = next(row for row in document["comparison"]["reserved"] if row["name"] == "training")
    assert training["measured_bytes"] == 9 * GIB
    assert training["residual"] == pytest.approx(9 * GIB / training["predicted_bytes"] - 1)
    assert document["floor"] is None


def test_a_smaller_card_is_a_limit_on_torch(invoke: Invoke, fake: Fake) -> None:
    asked = fake()
    result = invoke("verify", MODEL, "--gpu", "16GB")
    assert result.exit_code == 0, result.stderr
    cap = asked[0].cap_bytes
    assert cap is not None
    # 16GB is taken as 15,360 MiB; the driver keeps some, and this card's context comes first.
    assert 13 * GIB < cap < 15360 * MIB - 800 * MIB
    assert asked[0].predicted is not None
    fit = asked[0].predicted["fit"]
    assert fit["usable_bytes"] == cap + 572 * MIB
    invoke("verify", MODEL, "--gpu", "16GB", "--cap", "8GiB")
    assert asked[1].cap_bytes == 8 * GIB


def test_out_of_memory_is_a_finding_not_a_crash(invoke: Invoke, fake: Fake) -> None:
    fake(outcome="out-of-memory", failed_phase="backward", requested_bytes=GIB, error="out of memory")
    result = invoke("verify", MODEL, "--cap", "9GiB")
    assert result.exit_code == 1
    assert "out of memory" in result.stdout
    assert "backward" in result.stdout
    assert len(read_all(evidence_path())) == 1


def test_a_failed_run_exits_with_4_and_is_told(invoke: Invoke, fake: Fake) -> None:
    fake(outcome="error", failed_phase="adapters", error="ValueError: refused")
    result = invoke("verify", MODEL)
    assert result.exit_code == 4
    assert "ValueError: refused" in " ".join(result.stdout.split())


def test_control_c(invoke: Invoke, fake: Fake) -> None:
    fake(raises=KeyboardInterrupt())
    result = invoke("verify", MODEL, "--quiet")
    assert (result.exit_code, result.stdout) == (130, "")
    assert result.stderr.strip() == "qlora-plan: interrupted"
    assert read_all(evidence_path()) == []


FAULTS = [
    (MissingError("NVML: no NVIDIA driver is installed here"), ["verify", MODEL], 3, "no NVIDIA driver"),
    (local(others_bytes=20 * GIB), ["verify", MODEL], 3, "in use by others (processes 4242)"),
    (local(memory_bytes=4 * GIB), ["verify", MODEL], 3, "too small"),
    (local(memory_bytes=15360 * MIB, name="t4"), ["verify", MODEL, "--compute-dtype", "bfloat16"], 3, "no bfloat16"),
    (local(), ["verify", MODEL, "--gpu", "h100"], 3, "81,559 MiB"),
    (local(), ["verify", MODEL, "--cap", "30GiB"], 2, "--cap"),
    (local(), ["verify", MODEL, "--cap", "30GB"], 2, "30GiB"),
    (local(), ["verify", MODEL, "--attention", "flash_attention_2"], 3, "flash_attn"),
    (local(), ["verify", MODEL, "--device", "cpu", "--cap", "3GiB"], 2, "--device cpu"),
    (local(), ["verify", MODEL, "--steps", "0"], 2, "--steps"),
    (local(), ["verify", "nonesuch-model"], 3, "nonesuch-model"),
    (local(), ["verify", MODEL, "--save", "--profiles", "/nonexistent"], 2, "/nonexistent"),
]


@pytest.mark.parametrize(("card", "args", "code", "says"), FAULTS, ids=[" ".join(one[1][1:]) for one in FAULTS])
def test_faults_are_one_line(invoke: Invoke, fake: Fake, card: Any, args: list[str], code: int, says: str) -> None:
    asked = fake(card)
    result = invoke(*args, "--quiet")
    assert result.exit_code == code, result.stderr
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert says in result.stderr
    assert asked == []


def test_others_that_leave_room_are_told_of(invoke: Invoke, fake: Fake) -> None:
    asked = fake(local(others_bytes=2 * GIB))
    result = invoke("verify", MODEL)
    assert result.exit_code == 0
    assert "others hold 2,048 MiB" in result.stderr
    assert len(asked) == 1


def test_the_floor_is_looked_for_with_more_runs(invoke: Invoke, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    from qlora_planner.measure import floor

    tried: list[int] = []

    def find_floor(spec: ChildSpec, low: int, high: int, **_: Any) -> floor.Floor:
        tried.extend((low, high))
        tries = ((7 * GIB, measured_under(spec, 7 * GIB)), (6 * GIB, measured_under(spec, 6 * GIB)))
        return floor.Floor(works_bytes=7 * GIB, fails_bytes=7 * GIB - MIB, tries=tries)

    def measured_under(spec: ChildSpec, cap_bytes: int) -> Measurement:
        return Measurement(
            created=spec.date, model=spec.model_id, config_sha256=None, run=spec.run, outcome="ok", cap_bytes=cap_bytes
        )

    monkeypatch.setattr("qlora_planner.measure.floor.find_floor", find_floor)
    fake()
    result = invoke("verify", MODEL, "--floor")
    assert "works under a limit of 7,168 MiB on torch" in " ".join(result.stdout.split())
    assert tried[1] == 9 * GIB
    assert 4 * GIB < tried[0] < 7 * GIB
    assert [one.cap_bytes for one in read_all(evidence_path())] == [None, 7 * GIB, 6 * GIB]


def test_saved_evidence_goes_into_the_profiles(invoke: Invoke, fake: Fake, tmp_path: Path) -> None:
    (tmp_path / "measurements").mkdir()
    fake()
    result = invoke("verify", MODEL, "--save", "--profiles", str(tmp_path))
    assert result.exit_code == 0, result.stderr
    assert len(read_all(tmp_path / "measurements" / "rtx-4090-verified.jsonl")) == 1


def test_a_row_is_shown_and_asked_for_before_it_is_shared(invoke: Invoke, fake: Fake, tmp_path: Path) -> None:
    fake()
    words = ("verify", MODEL, "--share", "--profiles", str(tmp_path))
    (tmp_path / "measurements").mkdir()
    silent = invoke(*words)
    assert (silent.exit_code, "add --yes" in silent.stderr) == (2, True)
    capped = invoke("verify", MODEL, "--share", "--yes", "--cap", "9GiB")
    assert (capped.exit_code, "a whole card" in capped.stderr) == (2, True)
    result = invoke(*words, "--yes")
    assert result.exit_code == 0, result.stderr
    (path,) = (tmp_path / "measurements" / "shared" / "rtx-4090").iterdir()
    (row,) = read_all(path)
    assert (row.model, row.config, row.predicted) == ("meta-llama/Llama-3.1-8B", None, None)
    assert '"training": {' in result.stderr, "what is written is shown"
    assert f"{path.name}: add it to a pull request" in result.stderr.replace("\n", "")


def test_a_plan_file_is_a_run(invoke: Invoke, fake: Fake, tmp_path: Path) -> None:
    asked = fake()
    plan = invoke(MODEL, "--gpu", "24GB", "--seq-len", "512", "--json").stdout
    path = tmp_path / "plan.json"
    path.write_text(plan)
    assert invoke("verify", str(path)).exit_code == 0
    assert invoke("verify", str(path), "--rank", "32").exit_code == 0
    assert [(spec.model_id, spec.run.seq_len, spec.run.rank) for spec in asked] == [
        ("meta-llama/Llama-3.1-8B", 512, 16), ("meta-llama/Llama-3.1-8B", 512, 32),
    ]  # fmt: skip


def test_calibrate_learns_what_estimates_then_use(invoke: Invoke, fake: Fake) -> None:
    assert invoke("calibrate").exit_code == 3
    fake()
    invoke("verify", MODEL, "--seq-len", "1024")
    invoke("verify", MODEL, "--seq-len", "2048")
    result = invoke("calibrate")
    assert result.exit_code == 0, result.stderr
    assert "calibrated from 2 of 2 verifications" in result.stdout
    assert (user_profiles() / "calibrations" / "user.json").exists()
    after = json.loads(invoke("estimate", MODEL, "--gpu", "rtx-4090", "--json").stdout)
    assert after["components"]["cuda_context"] == 600 * MIB
    assert after["basis"]["cuda_context"] == "calibrated"
    other = json.loads(invoke("estimate", MODEL, "--gpu", "rtx-3090", "--json").stdout)
    assert other["basis"]["cuda_context"] == "assumed"
    document = json.loads(invoke("calibrate", "--json").stdout)
    assert document["calibration"]["contexts"]["rtx-4090"]["count"] == 2
    schema = (Path(__file__).parents[2] / "qlora_planner" / "schemas" / "calibrated.json").read_text()
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(document, json.loads(schema))
    del document["calibration"]["contexts"]["rtx-4090"]["kernels_bytes"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, json.loads(schema))


def test_a_damaged_line_of_evidence_is_named(invoke: Invoke, fake: Fake) -> None:
    fake()
    invoke("verify", MODEL)
    with evidence_path().open("a") as file:
        file.write("{}\n")
    result = invoke("calibrate")
    assert result.exit_code == 2
    assert "evidence.jsonl:2" in result.stderr
    assert len(evidence_path().read_text().splitlines()) == 2


def test_a_real_four_bit_step_on_the_cpu(process: Process, tmp_path: Path) -> None:
    """The whole way: the builder that training uses, a child process, bitsandbytes, events, the comparison.

    Nothing that lies beside the data is imported on it.
    """
    pytest.importorskip("trl")
    command = ["verify", "qwen2.5-0.5b", "--device", "cpu", "--seq-len", "256", "--json"]
    done = process(*command, folder=lay_traps(tmp_path / "data"), OMP_NUM_THREADS="1")
    assert imported(tmp_path / "data") == []
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    measured = document["measurement"]
    assert (measured["outcome"], measured["device"], measured["toy"], measured["gpu"]) == ("ok", "cpu", True, None)
    assert len(measured["step_s"]) == 3
    assert measured["phases"]["training"]["allocated_bytes"] > measured["phases"]["load"]["live_bytes"] > 0
    parts = {row["name"]: row for row in document["comparison"]["components"]}
    for name in ("quantized_weights", "adapters"):
        assert parts[name]["measured_bytes"] == parts[name]["predicted_bytes"] > 0
    assert "training, step 3 done" in done.stderr
