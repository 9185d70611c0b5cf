"""Parent and child: progress, outcomes, time limits, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qlora_planner.errors import InputError, MissingError, RunError
from qlora_planner.evidence import Measurement
from qlora_planner.measure import children
from qlora_planner.measure import verify as parent
from qlora_planner.measure.child import set_environment
from qlora_planner.measure.children import Progress
from qlora_planner.measure.floor import find_floor
from qlora_planner.measure.spec import ChildSpec
from qlora_planner.spec.run import RunConfig

CONFIGS = Path(__file__).parents[1] / "data/truth/configs"
LLAMA = json.loads((CONFIGS / "llama-3.2-1b.json").read_text(encoding="utf-8"))
SPEC = ChildSpec(run=RunConfig(quant="nf4", seq_len=64, rank=4), config={"model_type": "llama"}, device="cpu")
WRITES = (
    "import json,sys,os,time,subprocess\n"
    "spec=json.load(open(sys.argv[1]))\n"
    "def tell(**facts): print(json.dumps(facts), flush=True)\n"
    "def write(**facts):\n"
    "    open(sys.argv[2],'w').write(json.dumps({'schema':'qlora-plan/measurement/1','created':'2026-01-01',"
    "'model':'m','config_sha256':None,'run':spec['run'],'outcome':'ok',**facts}))\n"
)


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts a short program in the child's place."""

    def put(program: str) -> None:
        monkeypatch.setattr(parent, "CHILD", (sys.executable, "-c", WRITES + program))

    return put


def alive(pid: int) -> bool:
    """Whether a process still runs (a zombie does not)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_until_gone(pid: int) -> bool:
    deadline = time.monotonic() + 5
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not alive(pid)


def test_progress_is_passed_on_and_the_measurement_comes_last(child: Any) -> None:
    child("print('a library talks'); tell(event='phase', elapsed_s=1.5, phase='load'); write(params=5)")
    items = list(parent.watch(SPEC))
    assert items[0] == Progress(event="phase", elapsed_s=1.5, facts={"phase": "load"})
    assert isinstance(items[-1], Measurement) and items[-1].params == 5
    assert len(items) == 2


@pytest.mark.parametrize(
    ("program", "error", "says"),
    [
        ("sys.stderr.write('spec is wrong\\n'); sys.exit(2)", InputError, "spec is wrong"),
        ("sys.stderr.write('no driver\\n'); sys.exit(3)", MissingError, "no driver"),
        ("sys.stderr.write('a\\nb\\n'); sys.exit(7)", RunError, r"code 7: a \| b"),
        ("pass", RunError, "code 0"),
    ],
)
def test_a_child_without_a_measurement_is_an_error(child: Any, program: str, error: type, says: str) -> None:
    child(program)
    with pytest.raises(error, match=says):
        parent.verify(SPEC)


def test_a_child_that_the_system_kills_is_an_outcome(child: Any) -> None:
    child("os.kill(os.getpid(), 9)")
    found = parent.verify(SPEC)
    assert found.outcome == "error"
    assert "SIGKILL" in (found.error or "") and "host memory" in (found.error or "")


def test_a_time_limit_ends_it(child: Any) -> None:
    child("tell(event='phase', pid=os.getpid()); time.sleep(60)")
    pids: list[int] = []
    started = time.monotonic()
    found = parent.verify(SPEC, tell=lambda item: pids.append(item.facts["pid"]), timeout_s=1.5)
    assert (found.outcome, found.error) == ("interrupted", "still running after 1.5 s")
    assert time.monotonic() - started < 10
    assert wait_until_gone(pids[0])


STUBBORN = (
    "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "other=subprocess.Popen([sys.executable,'-c','import signal,time;signal.signal(signal.SIGTERM,signal.SIG_IGN);"
    "time.sleep(60)'])\n"
    "tell(event='phase', pids=[os.getpid(), other.pid]); time.sleep(60)"
)


def test_an_exception_in_the_parent_ends_the_whole_group(child: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "GRACE_S", 0.3)
    child(STUBBORN)
    pids: list[int] = []

    def interrupt(item: Progress) -> None:
        pids.extend(item.facts["pids"])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        parent.verify(SPEC, tell=interrupt)
    assert len(pids) == 2 and all(wait_until_gone(pid) for pid in pids)


def test_ctrl_c_in_the_parent_leaves_no_process(child: Any) -> None:
    child("tell(event='phase', pid=os.getpid()); time.sleep(60)")
    pids: list[int] = []

    def press(item: Progress) -> None:
        pids.append(item.facts["pid"])
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()

    with pytest.raises(KeyboardInterrupt):
        parent.verify(SPEC, tell=press)
    assert wait_until_gone(pids[0])


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's word for it is Linux's")
def test_a_killed_parent_takes_the_child_with_it(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps(ChildSpec(run=SPEC.run, config=LLAMA, device="cpu", steps=500).to_dict()))
    code = (
        "import subprocess,sys,time\n"
        f"c=subprocess.Popen([*{parent.CHILD!r}, {str(spec)!r}, {str(tmp_path / 'o')!r}, '--with-parent'],"
        "stdout=subprocess.PIPE,stderr=subprocess.DEVNULL)\n"
        "c.stdout.readline(); print(c.pid, flush=True); time.sleep(60)"
    )
    middle = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert middle.stdout is not None
    pid = int(middle.stdout.readline())
    middle.kill()
    middle.wait()
    middle.stdout.close()
    assert wait_until_gone(pid)


def test_a_real_step_on_the_cpu() -> None:
    pytest.importorskip("bitsandbytes")
    spec = ChildSpec(run=RunConfig(seq_len=64, rank=4), config=LLAMA, model_id="llama", device="cpu", save=True)
    heard: list[Progress] = []
    found = parent.verify(spec, tell=heard.append, timeout_s=200)
    assert (found.outcome, found.error, found.toy) == ("ok", None, True)
    assert found.run.trainer == "trl-sft" and found.run.attention == "sdpa"
    phases = {item.facts["phase"] for item in heard if item.event == "phase"}
    assert {"load", "adapters", "forward", "backward", "optimizer", "save"} <= phases
    assert len(found.step_s) == 3 == sum(item.event == "step" for item in heard)
    assert [item.facts["of"] for item in heard if item.event in ("begin", "step")] == [3] * 4
    assert found.tokens_per_s == pytest.approx(64 * 2 / sum(found.step_s[1:]))
    figures = found.figures()
    assert figures["train_reserved"] is None and figures["nvml_peak"] is None
    assert found.phases["training"].allocated_bytes == max(
        found.phases[name].allocated_bytes or 0 for name in ("adapters", "forward", "backward", "optimizer")
    )
    parts = found.components or {}
    assert sum(parts.values()) == found.phases["training"].allocated_bytes
    # 2 layers of 128 wide, 256 in the MLP, 2 heads of 64 over 1: q, o, k, v and three of the MLP, half a byte each.
    assert parts["quantized_weights"] == 2 * (2 * 128 * 128 + 2 * 64 * 128 + 3 * 128 * 256) // 2
    assert parts["adapters"] == 2 * (found.trainable_params or 0)
    assert parts["unattributed"] < 0.01 * sum(parts.values())
    assert (found.host.rss_peak_bytes or 0) > 200 << 20


def test_a_bad_specification_is_refused_by_the_child() -> None:
    pytest.importorskip("torch")
    with pytest.raises(MissingError, match="never-heard-of"):
        parent.verify(ChildSpec(run=SPEC.run, config={"model_type": "never-heard-of"}, device="cpu"))


def test_the_childs_environment_is_the_runs_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64", "CUDA_VISIBLE_DEVICES": "3,5"}
    monkeypatch.setattr(os, "environ", found)
    asked = replace(SPEC, device="cuda", gpu_index=1)
    set_environment(asked.run, device="cuda", gpu_index=1)
    assert "PYTORCH_CUDA_ALLOC_CONF" not in found
    assert found["CUDA_VISIBLE_DEVICES"] == "5"
    with pytest.raises(MissingError, match="GPU 1 is not here"):
        set_environment(asked.run, device="cuda", gpu_index=1)
    set_environment(SPEC.run.with_(alloc_conf="expandable_segments:True"), device="cpu", gpu_index=0)
    assert found["PYTORCH_CUDA_ALLOC_CONF"] == found["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    assert found["CUDA_VISIBLE_DEVICES"] == ""


def test_specification_round_trip_and_faults() -> None:
    assert ChildSpec.from_dict(json.loads(json.dumps(SPEC.to_dict()))) == SPEC
    for raw, says in (
        ([], "must be an object"),
        ({"run": {}, "speed": 1}, "unknown field speed"),
        ({"config": {}}, "lacks run"),
        ({"run": {}}, "either config or model_dir"),
        ({"run": {}, "config": {}, "device": "tpu", "steps": 0}, "device must be.*steps must be"),
        ({"run": {"rank": -1}, "config": {}}, "--rank"),
    ):
        with pytest.raises(InputError, match=says):
            ChildSpec.from_dict(raw)


def measured_under(need: int, outcome: str = "out-of-memory") -> Any:
    """A run that needs `need` bytes."""

    def measure(spec: ChildSpec) -> Measurement:
        assert spec.cap_bytes is not None
        found = "ok" if spec.cap_bytes >= need else outcome
        return Measurement(created="2026-01-01", model="m", config_sha256=None, run=spec.run, outcome=found)

    return measure


def test_the_floor_is_found_by_bisection() -> None:
    floor = find_floor(SPEC, 1_000, 100_000, 10, measure=measured_under(31_337))
    assert 31_337 <= floor.works_bytes < 31_347
    assert floor.fails_bytes is not None and floor.works_bytes - 10 <= floor.fails_bytes < 31_337
    assert len(floor.tries) < 20


def test_a_floor_below_the_lower_limit_or_above_the_upper() -> None:
    assert find_floor(SPEC, 1_000, 9_000, 10, measure=measured_under(5)).works_bytes == 1_000
    with pytest.raises(InputError, match="does not work under 9000"):
        find_floor(SPEC, 1_000, 9_000, 10, measure=measured_under(10_000))
    with pytest.raises(RunError, match="failed"):
        find_floor(SPEC, 1_000, 9_000, 10, measure=measured_under(5_000, "error"))
    with pytest.raises(InputError, match="low <= high"):
        find_floor(SPEC, 9_000, 1_000)
