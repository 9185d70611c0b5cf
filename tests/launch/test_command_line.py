"""Runs through the command line, each in processes of its own: trained, interrupted, killed, out of memory."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from qlora_planner.exchange.plan_file import read_plan
from qlora_planner.runs.checkpoints import checkpoints, fault_of
from qlora_planner.runs.directory import RunDirectory, open_new
from qlora_planner.runs.record import read_metrics
from tests.hostile import imported
from tests.launch.conftest import RUN, SAVED, STEPS, Home, Make, Start, finished, interrupt_at, same, trained, wait_for

OPTIONS = ("--device", "cpu", "--max-steps", str(STEPS), "--save-steps", str(SAVED), "--learning-rate", "5e-3")
# What stands in a child's sitecustomize: it patches the trainer when that is imported.
_WHEN_IMPORTED = """
import sys
if "qlora_planner.runs.child.main" in sys.orig_argv:
    import importlib.abc, importlib.machinery, importlib.util
    class Finder(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path, target=None):
            if name != "transformers.trainer":
                return None
            sys.meta_path.remove(self)
            spec = importlib.util.find_spec(name)
            inner = spec.loader.exec_module
            def load(module):
                inner(module)
                patch(module.Trainer)
            spec.loader.exec_module = load
            return spec
    sys.meta_path.insert(0, Finder())
"""
KILLED_WHILE_SAVING = (
    _WHEN_IMPORTED
    + """
    def patch(trainer):
        import os, signal
        inner = trainer._save_rng_state
        def save(self, folder):
            if self.state.global_step == 8:
                os.kill(os.getpid(), signal.SIGKILL)
            inner(self, folder)
        trainer._save_rng_state = save
"""
)
SLOWED = (
    _WHEN_IMPORTED
    + """
    def patch(trainer):
        import time
        inner = trainer.training_step
        def step(self, *rest, **more):
            time.sleep(0.15)
            return inner(self, *rest, **more)
        trainer.training_step = step
"""
)
OUT_OF_MEMORY = (
    _WHEN_IMPORTED
    + """
    def patch(trainer):
        import torch
        inner = trainer.training_step
        def step(self, model, inputs, *rest, **more):
            step, rows = self.state.global_step, len(inputs["input_ids"])
            if step >= 5 and rows > 2 or step >= 9 and rows > 1:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return inner(self, model, inputs, *rest, **more)
        trainer.training_step = step
"""
)


@pytest.fixture(scope="module")
def run(home: Home, start: Start) -> tuple[Path, str, str]:
    """A whole run of a MODEL: its folder, what it answered, what it said."""
    model = home.model("llama")
    code, out, err = finished(start(
        f"./{model.name}", "--data", home.data.name, "--yes", "--output", "whole", "--eval-split", "0.1",
        "--batch-size", "4", "--rank", "8", "--json", *OPTIONS,
    ))  # fmt: skip
    assert code == 0, err
    return home.path / "whole", out, err


def test_a_model_is_trained_in_4_bit_and_its_loss_falls(run: tuple[Path, str, str]) -> None:
    folder, out, err = run
    summary = json.loads(out)
    assert summary == json.loads((folder / "summary.json").read_text())
    assert summary["outcome"] == "ok" and (summary["steps"], summary["of"]) == (STEPS, STEPS)
    assert summary["run"]["quant"] == "nf4" and summary["run"]["seq_len"] == 64
    assert summary["loss"]["last"] < 0.75 * summary["loss"]["first"]
    assert summary["loss"]["evaluation"] < summary["loss"]["first"]
    assert summary["data"]["rows"] + summary["data"]["eval_rows"] == 64
    assert summary["memory"]["predicted"] is None and summary["memory"]["host_bytes"] > 0
    assert "the longest batch works: 4 x 19 of 64 tokens" in err
    assert "quantised where the plan counts" not in err  # the profile counts as many as there are
    assert f"step {STEPS}/{STEPS}: loss" in err


def test_a_training_a_generation_and_a_merge_import_nothing_beside_the_data(
    run: tuple[Path, str, str], home: Home
) -> None:
    for command in (["generate", "whole", "--prompt", "hello", "--max-new-tokens", "2"],
                    ["merge", "whole", "--output", "merged"]):  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-P", "-m", "qlora_planner", *command], cwd=home.path, env=home.environment(),
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert imported(home.path) == []


def test_what_a_run_leaves_behind(run: tuple[Path, str, str]) -> None:
    folder, _, _ = run
    assert {path.name for path in folder.iterdir()} == {
        "plan.yaml", "run.json", "checkpoints", "adapter", "metrics.jsonl", "log.txt", "summary.json", "report.html",
    }  # fmt: skip
    assert read_plan(folder / "plan.yaml").run.rank == 8
    assert [path.name for path in checkpoints(folder / "checkpoints")] == ["checkpoint-12", "checkpoint-8"]
    assert len(list((folder / "checkpoints").iterdir())) == 2
    assert all(fault_of(path) is None for path in checkpoints(folder / "checkpoints"))
    adapter = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"].endswith("/llama") and adapter["r"] == 8
    assert (folder / "adapter" / "tokenizer.json").exists()
    steps = [row["step"] for row in read_metrics(folder / "metrics.jsonl") if row["kind"] == "step"]
    assert steps == list(range(1, STEPS + 1))
    page = (folder / "report.html").read_text()
    assert page.count("<svg") == 4 and "<polyline" in page and "http" not in page


@pytest.mark.fault(
    "`--resume` of a run that is finished",
    said="is finished: ",
    does="says how to train on; nothing on the disk changes",
    exit=0,
    part="resumed",
)
def test_a_finished_run_is_left_alone(run: tuple[Path, str, str], home: Home, start: Start) -> None:
    folder, _, _ = run
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}
    code, out, err = finished(start("whole", "--resume"))
    assert (code, err) == (0, "")
    assert f"whole is finished: {STEPS} of {STEPS} steps; the adapter is in whole/adapter" in out
    assert f"train on: qlora-plan train whole --resume --max-steps {2 * STEPS}" in out
    after = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}
    assert after == before


@pytest.mark.fault(
    "`--resume` with more `--epochs` or `--max-steps`",
    said="going on from checkpoint-",
    does="with a note about the learning rate",
    exit=0,
    part="resumed",
)
def test_a_finished_run_is_trained_on_for_longer(run: tuple[Path, str, str], home: Home, start: Start) -> None:
    shutil.copytree(run[0], home.path / "longer")
    code, out, err = finished(start("longer", "--resume", "--max-steps", str(STEPS + 2), "--json"))
    assert code == 0, err
    assert f"max steps was {STEPS} and is {STEPS + 2}" in err and f"going on from checkpoint-{STEPS}" in err
    summary = json.loads(out)
    assert (summary["steps"], summary["of"]) == (STEPS + 2, STEPS + 2)
    record = json.loads((home.path / "longer" / "run.json").read_text())
    assert record["settings"]["max_steps"] == STEPS + 2
    steps = [row["step"] for row in read_metrics(home.path / "longer" / "metrics.jsonl") if row["kind"] == "step"]
    assert steps == list(range(1, STEPS + 3))


def test_all_that_a_run_left_is_proven_to_be_its_own(run: tuple[Path, str, str], home: Home) -> None:
    forced = shutil.copytree(run[0], home.path / "forced")
    open_new(RunDirectory(forced), force=True)
    assert list(forced.iterdir()) == []


def test_the_folder_of_a_run_is_not_written_over(run: tuple[Path, str, str], home: Home, start: Start) -> None:
    code, out, err = finished(start(str(home.plan("llama")), "--data", home.data.name, "--output", "whole", *OPTIONS))
    assert (code, out) == (2, "")
    assert "whole holds a run already; --resume goes on with it, --force starts it anew" in err


@pytest.mark.fault(
    "the parent is killed (`kill -9`)",
    does="the child ends with it within a second (Linux); `--resume` goes on to the same bits",
    exit="-",
    part="begun",
)
@pytest.mark.fault(
    "killed amid a save",
    said="checkpoint-8 was not finished: passed over",
    does="the resumed run ends bit for bit as if nothing had been",
    exit=4,
    part="begun",
)
def test_interrupted_killed_while_saving_and_resumed_is_as_if_nothing_had_been(
    home: Home, start: Start, make: Make
) -> None:
    folder, arguments = home.path / "broken", (str(home.plan("qwen3")), "--data", home.data.name, "--output", "broken")
    home.model("qwen3")
    process = start(*arguments, *OPTIONS, hook=SLOWED)
    interrupt_at(process, folder / "metrics.jsonl", 5)
    code, out, err = finished(process)
    assert code == 130 and "~ interrupted" in out.replace("≈", "~")
    assert "qlora-plan train broken --resume" in out, err
    reached = json.loads((folder / "summary.json").read_text())
    assert 5 <= reached["steps"] < STEPS and reached["checkpoint"].endswith(f"checkpoint-{reached['steps']}")

    process = start("broken", "--resume", hook=SLOWED)
    wait_for(process, folder / "metrics.jsonl", reached["steps"] + 1)
    (child,) = psutil.Process(process.pid).children()
    process.kill()
    process.communicate(timeout=5)  # both ends of the pipes are closed as well
    child.wait(timeout=5)  # the kernel ends it with its parent: nothing goes on on the card

    code, out, err = finished(start("broken", "--resume", hook=KILLED_WHILE_SAVING))
    assert code == 4 and "ended by SIGKILL" in out, err
    assert f"going on from checkpoint-{reached['steps']}" in err
    assert "checkpoint-8 was not finished: passed over" in err
    assert fault_of(folder / "checkpoints" / "checkpoint-8") == "was not finished"

    code, out, err = finished(start(*arguments, *OPTIONS, "--resume"))
    assert code == 0, err
    reference, _ = trained(make("qwen3"))
    assert reference["outcome"] == "ok"
    assert same(folder / "adapter", Path(make("qwen3").output) / "adapter")


@pytest.mark.fault(
    "memory runs out in a step",
    said="micro-batches of 2, 2 of them a step: the same effective batch and schedule",
    does="from the last checkpoint, with the same steps and learning rates",
    exit="0 or 1",
    part="begun",
)
def test_out_of_memory_twice_and_finished_as_the_same_training(home: Home, start: Start) -> None:
    """Each time one rung lower from the last checkpoint: the same effective batch, steps and learning rates."""
    home.model("gemma")
    folder = home.path / "short"
    arguments = (str(home.plan("gemma")), "--data", home.data.name, "--output", "short", *OPTIONS)
    code, out, err = finished(start(*arguments, hook=OUT_OF_MEMORY))
    assert code == 0, err
    summary = json.loads((folder / "summary.json").read_text())
    first, second, third = summary["attempts"]
    for attempt in (first, second):
        assert attempt["outcome"] == "out-of-memory" and "asking for 2.00 GiB" in attempt["says"]
        assert "; most is held by " in attempt["says"]  # on the CPU nothing is planned that could be beaten
    assert first["rung"] == "micro-batches of 2, 2 of them a step: the same effective batch and schedule"
    assert second["rung"] == "micro-batches of 1, 4 of them a step: the same effective batch and schedule"
    assert (second["from_step"], third["from_step"], third["outcome"]) == (4, 8, "ok")
    assert (summary["run"]["batch_size"], summary["run"]["grad_accum"]) == (1, 4)
    assert (summary["steps"], summary["of"]) == (STEPS, STEPS)
    assert summary["loss"]["last"] < summary["loss"]["first"]
    assert out.count("recovered") == 2 and "went on with micro-batches of 1" in (folder / "report.html").read_text()
    record = json.loads((folder / "run.json").read_text())
    assert record["run"]["batch_size"] == RUN.batch_size and record["rung"]["batch_size"] == 1
    rows = [row for row in read_metrics(folder / "metrics.jsonl") if row["kind"] == "step"]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    # One warm-up step, then a cosine to the end, as without any interruption.
    rates = [row["learning_rate"] for row in rows]
    assert rates[0] == 0.0 and rates[1] == max(rates) == 5e-3 and rates[1:] == sorted(rates[1:], reverse=True)
