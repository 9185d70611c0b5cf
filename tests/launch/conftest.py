"""Tiny models and their task, made once; the program as a process of its own, on one core, with a home of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("trl")

from examples.toy_model import rows, write_model, write_rows
from qlora_planner.runs.child.callbacks import Stop
from qlora_planner.runs.child.main import attempt
from qlora_planner.runs.child.training import Training
from qlora_planner.runs.spec import LaunchSpec
from qlora_planner.spec.run import RunConfig
from qlora_planner.train.settings import Settings
from tests.hostile import lay_traps

ROOT = Path(__file__).parents[2]
# Resolved, as a plan holds it.
RUN = RunConfig(
    quant="nf4", compute_dtype="bfloat16", load_dtype="bfloat16", seq_len=64, batch_size=4, rank=8, alpha=16,
    target_modules="all-linear", lora_dropout=0.05, attention="sdpa", trainer="trl-sft", upcast=False, padding=True,
)  # fmt: skip
STEPS, SAVED = 12, 4
SETTINGS = Settings(max_steps=STEPS, save_steps=SAVED, learning_rate=5e-3)

Start = Callable[..., "subprocess.Popen[str]"]
Make = Callable[..., LaunchSpec]
Trained = tuple[dict[str, Any], list[tuple[str, dict[str, Any]]]]


class Home:
    """Folders of one test session, and what was made in them."""

    def __init__(self, path: Path) -> None:
        self.path = lay_traps(path)  # no run may import what lies beside its data
        self.data = write_rows(path / "train.jsonl", rows(64))

    def model(self, family: str) -> Path:
        """The model folder of a family."""
        folder = self.path / family
        if not folder.exists():
            write_model(folder, family)
        return folder

    def plan(self, family: str, run: RunConfig = RUN) -> Path:
        """A plan file beside the model."""
        path = self.path / f"{family}-plan.yaml"
        document = {"schema": "qlora-plan/plan/1", "model": {"id": family}, "gpu": None, "run": run.to_dict()}
        path.write_text(json.dumps(document))
        return path

    def environment(self, hook: str | None = None, **more: str) -> dict[str, str]:
        """Of a process: one thread, nobody's home, no network; `hook` is Python that it runs at its start."""
        path = str(ROOT)
        if hook is not None:
            folder = self.path / f"hook-{abs(hash(hook))}"
            folder.mkdir(exist_ok=True)
            (folder / "sitecustomize.py").write_text(hook)
            path = f"{folder}{os.pathsep}{path}"
        own = {"XDG_CACHE_HOME": "cache", "XDG_DATA_HOME": "data", "HF_HOME": "hf"}
        return {
            **os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "PYTHONUTF8": "1",
            "QLORA_PLANNER_TRACE": "never", **{name: str(self.path / folder) for name, folder in own.items()}, **more,
        }  # fmt: skip


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """One for the session."""
    return Home(tmp_path_factory.mktemp("launch"))


@pytest.fixture(scope="session")
def start(home: Home) -> Start:
    """Start `qlora-plan train` in the session's folder."""

    def started(*args: str, hook: str | None = None, **more: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "qlora_planner", "train", *args], cwd=home.path, stdin=subprocess.DEVNULL,
            env=home.environment(hook, **more), stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8",
        )  # fmt: skip

    return started


def finished(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    out, err = process.communicate(timeout=600)  # seconds of work, which a machine that is shared takes minutes for
    return process.returncode, out, err


def interrupt_at(process: subprocess.Popen[str], metrics: Path, step: int) -> None:
    """SIGTERM as soon as metrics.jsonl tells of that step."""
    wait_for(process, metrics, step)
    process.send_signal(signal.SIGTERM)


def wait_for(process: subprocess.Popen[str], metrics: Path, step: int) -> None:
    """Until metrics.jsonl tells of that step."""
    until = time.monotonic() + 120
    while time.monotonic() < until and process.poll() is None:
        if metrics.exists() and f'"step": {step},' in metrics.read_text():
            return
        time.sleep(0.01)
    raise AssertionError(f"never came to step {step}: {process.communicate()}")


@pytest.fixture
def make(home: Home, tmp_path: Path) -> Make:
    """A specification over a tiny Llama, in a folder of the test's own."""

    def made(family: str = "llama", *, run: RunConfig = RUN, settings: Settings = SETTINGS, **more: Any) -> LaunchSpec:
        output = tmp_path / "run"
        output.mkdir(exist_ok=True)
        known = {"weights": str(home.model(family)), "data": str(home.data), "output": str(output), "device": "cpu"}
        return LaunchSpec(run=run, settings=settings, model_id=family, **{**known, **more})

    return made


def trained(spec: LaunchSpec, stop: Stop | None = None) -> Trained:
    """Train in this process: the result's facts, and every event that was told."""
    import torch

    torch.set_num_threads(1)
    told: list[tuple[str, dict[str, Any]]] = []
    stop = stop or Stop()
    facts = attempt(Training(spec, lambda event, facts: told.append((event, dict(facts))), stop), stop)
    return facts, told


def tensors(adapter: Path) -> dict[str, Any]:
    """The weights of a saved adapter."""
    from safetensors.torch import load_file

    found: dict[str, Any] = load_file(adapter / "adapter_model.safetensors")
    return found


def same(one: Path, other: Path) -> bool:
    """Whether two adapters are equal to the bit."""
    import torch

    first, second = tensors(one), tensors(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
