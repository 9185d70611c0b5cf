"""The parent, with children that tell what the test wants: recovery, its limits, deaths, stops, and the post-mortem."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qlora_planner.cli.train_live import draw, spark
from qlora_planner.errors import MissingError
from qlora_planner.measure.children import Progress
from qlora_planner.report.parts.theme import Theme
from qlora_planner.runs import supervise
from qlora_planner.runs.checkpoints import seal
from qlora_planner.runs.directory import RunDirectory
from qlora_planner.runs.post_mortem import beaten, verdict
from qlora_planner.runs.preflight import version_notes
from qlora_planner.runs.record import Metrics, check_same, evidence, read_metrics
from qlora_planner.runs.spec import LaunchSpec
from qlora_planner.runs.supervise import Attempt, StopAsked, stop_signals
from qlora_planner.runs.watch import Watch
from qlora_planner.spec.run import RunConfig
from tests.launch.conftest import RUN, SETTINGS

OOM = 'tell(event="result", outcome="out-of-memory", phase="training")'
# `spec` is what the child was told, `tell` writes one line.
CHILD = """
import json, os, signal, sys, time
spec = json.load(open(sys.argv[1]))
def tell(**facts): print(json.dumps(facts), flush=True)
"""


@pytest.fixture
def supervised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """Supervise children of this text; what came of it."""

    def run(text: str, *, run: RunConfig = RUN, asked: StopAsked | None = None, **more: Any) -> list[Any]:
        script = tmp_path / "child.py"
        script.write_text(CHILD + text)
        monkeypatch.setattr(supervise, "CHILD", (sys.executable, str(script)))
        spec = LaunchSpec(
            run=run, settings=SETTINGS, model_id="m", weights="w", data="d", output=str(tmp_path), device="cpu"
        )
        return list(supervise.supervise(spec, stop=asked or StopAsked(), **more))

    return run


def attempts(items: list[Any]) -> list[Attempt]:
    return [item for item in items if isinstance(item, Attempt)]


@pytest.mark.fault(
    "memory runs out again",
    does="on from the last checkpoint one rung lower, three times at most",
    exit="0 or 1",
    part="begun",
)
def test_three_recoveries_and_no_more(supervised: Callable[..., list[Any]]) -> None:
    found = attempts(supervised(OOM, run=RUN.with_(batch_size=32)))
    assert [one.run.batch_size for one in found] == [32, 16, 8, 4]
    assert [one.run.grad_accum for one in found] == [1, 2, 4, 8]
    assert [one.rung is None for one in found] == [False, False, False, True]
    assert {one.outcome for one in found} == {"out-of-memory"}
    (only,) = attempts(supervised(OOM, recover=False))
    assert only.rung is None


def test_rungs_that_are_not_predicted_to_help_are_passed_over(supervised: Callable[..., list[Any]]) -> None:
    def predict(run: RunConfig) -> Mapping[str, Any]:
        return {"floor_bytes": 5 if run.activation_offloading else 9, "components": {}}

    first, second = attempts(supervised(OOM, predict=predict))
    assert second.run.activation_offloading and second.run.batch_size == 1
    assert second.rung is None  # nothing below is predicted to need less
    assert first.rung == "activations kept in host memory: slower, the same result"


def test_a_recovery_goes_on_from_the_newest_complete_checkpoint(
    supervised: Callable[..., list[Any]], tmp_path: Path
) -> None:
    for step in (3, 5):
        folder = tmp_path / "checkpoints" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "trainer_state.json").write_text("{}")
        if step == 3:
            seal(folder, optimizer="paged_adamw_8bit")
    text = f'{OOM} if spec["resume"] is None else tell(event="result", outcome="ok", spec=spec)'
    _, second = attempts(supervised(text))
    assert second.facts["spec"]["resume"].endswith("checkpoint-3") and second.from_step == 3
    assert second.facts["spec"]["fresh_optimizer"] is False
    assert not (tmp_path / "checkpoints" / "checkpoint-5").exists()


@pytest.mark.fault(
    "a rung with another optimizer", does="its states start anew, the schedule goes on", exit=0, part="begun"
)
def test_optimizer_states_that_do_not_fit_are_left_behind(supervised: Callable[..., list[Any]], tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "checkpoint-3"
    folder.mkdir(parents=True)
    (folder / "trainer_state.json").write_text("{}")
    seal(folder, optimizer="adamw_torch")
    text = f'{OOM} if spec["resume"] is None else tell(event="result", outcome="ok", spec=spec)'
    _, second = attempts(supervised(text, run=RUN.with_(batch_size=1, optimizer="adamw_torch")))
    assert second.run.optimizer == "paged_adamw_8bit" and second.facts["spec"]["fresh_optimizer"] is True


@pytest.mark.fault(
    "the child is killed (`kill -9`, host memory)",
    said="ended by SIGKILL",
    does="resuming goes on from the last sealed checkpoint",
    exit=4,
    part="begun",
)
def test_a_child_that_dies_without_a_word(supervised: Callable[..., list[Any]]) -> None:
    (one,) = attempts(supervised("os.kill(os.getpid(), signal.SIGKILL)"))
    assert one.outcome == "killed" and "ended by SIGKILL (the system ends processes so" in one.says
    (one,) = attempts(supervised("sys.exit(1)"))
    assert one.outcome == "error" and "ended with code 1" in one.says


def test_what_a_child_refuses_is_raised(supervised: Callable[..., list[Any]]) -> None:
    with pytest.raises(MissingError, match="no tokenizer"):
        supervised('tell(event="refused", message="no tokenizer", exit_code=3); sys.exit(3)')


@pytest.mark.fault("Ctrl-C twice", does="ended at once", exit=130, part="begun")
def test_a_stop_is_passed_on_and_a_second_one_does_not_wait(supervised: Callable[..., list[Any]]) -> None:
    asked = StopAsked()
    asked.times = 1
    text = """
def stop(*_):
    tell(event="result", outcome="interrupted", steps=4)
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
tell(event="phase", phase="training")
time.sleep(30)
"""
    # The signal comes before the handler may be there: either way the run counts as interrupted.
    (one,) = attempts(supervised(text, asked=asked))
    assert one.outcome == "interrupted"
    asked.times = 2
    (one,) = attempts(supervised("signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(30)", asked=asked))
    assert one.outcome == "interrupted"


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"])
@pytest.mark.fault(
    "SIGHUP of a closed terminal, SIGUSR1 of a scheduler",
    does="as SIGTERM: a checkpoint after the step that runs; under `nohup` it trains on",
    exit=130,
    part="begun",
)
def test_every_signal_that_asks_a_run_to_end_lets_it_save(name: str) -> None:
    number = getattr(signal, name)
    before = signal.getsignal(number)
    with stop_signals() as asked:
        os.kill(os.getpid(), number)
        assert asked.times == 1
    assert signal.getsignal(number) is before


def test_a_closed_terminal_ends_no_run_at_once_though_it_sends_its_signal_twice() -> None:
    with stop_signals() as asked:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGHUP)
        assert asked.times == 1
        os.kill(os.getpid(), signal.SIGINT)
        assert asked.times == 2


def test_a_run_under_nohup_is_not_ended_by_its_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_signals() as asked:
            os.kill(os.getpid(), signal.SIGHUP)
            assert asked.times == 0
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.fault(
    "the parent has gone, on a system that does not end children with it",
    does="the child saves a checkpoint and ends",
    exit="-",
    part="begun",
)
def test_a_child_without_a_parent_asks_itself_to_stop() -> None:
    """As where the kernel ends no child with its parent: what stops a run saves a checkpoint."""
    text = (
        "import time; from qlora_planner.measure.process import stop_without_parent;"
        " stop_without_parent(1, every_s=0.01); time.sleep(30)"
    )
    assert subprocess.run([sys.executable, "-c", text], timeout=20).returncode == -signal.SIGTERM


PREDICTED = {
    "floor_bytes": 100,
    "peak": {"device_bytes": 1000, "low_bytes": 900, "high_bytes": 1100},
    "components": {
        "adapters": 50, "optimizer_states": 10, "checkpoints": 100, "activations": 200, "logits_and_loss": 60,
    },
}  # fmt: skip


def test_the_post_mortem_names_what_beat_the_plan() -> None:
    alive = {"adapters": 50, "optimizer_states": 40, "activations": 500}
    assert beaten(alive, None, PREDICTED) == ("activations, logits and everything else of the step", 500, 360)
    assert beaten(alive, 4096, PREDICTED) == ("other processes", 4096, 0)
    assert beaten({"adapters": 50}, 0, PREDICTED) is None and beaten(alive, 1, None) is None
    said = verdict({"phase": "training", "requested_bytes": 2 << 30, "alive": alive}, RUN, PREDICTED)
    assert said == (
        "out of memory in a training step (4 x 64 tokens), asking for 2.00 GiB; activations, logits and everything else"
        " of the step beat the plan: 500 B where 360 B were planned"
    )
    assert "no component is above its plan" in verdict({"phase": "rehearsal", "alive": {}}, RUN, PREDICTED)
    # A run that was started although it was not predicted to fit has no component to blame.
    small = {**PREDICTED, "floor_bytes": 16 << 30, "fit": {"verdict": "does-not-fit", "usable_bytes": 9 << 30}}
    said = verdict({"phase": "rehearsal", "alive": alive}, RUN, small)
    assert said.endswith("as predicted: it needs 16.00 GiB and 9.00 GiB can be used")


def watch(folder: Path, **more: Any) -> tuple[Watch, list[str]]:
    said: list[str] = []
    known = {"whole_bytes": 2000, "predicted": PREDICTED, "card": None, **more}
    found = Watch("m", metrics=Metrics(folder / "metrics.jsonl"), folder=RunDirectory(folder), out=said.append, **known)
    return found, said


def event(name: str, **facts: Any) -> Progress:
    return Progress(event=name, elapsed_s=0.0, facts=facts)


@pytest.mark.fault(
    "the peak passes the plan's interval", said="above what was planned", does="a note, once", exit=0, part="begun"
)
def test_a_peak_above_the_plan_is_warned_of_once(tmp_path: Path) -> None:
    found, said = watch(tmp_path)
    for size in (1000, 1100, 1101, 1500):
        found.hear(event("memory", process_bytes=size, device_bytes=size))
    assert [line for line in said if "above what was planned" in line] == found.notes and len(found.notes) == 1
    assert "1500" not in found.notes[0]


def test_a_step_of_pairs_tells_its_margin_and_how_many_are_ranked_right(tmp_path: Path) -> None:
    found, said = watch(tmp_path)
    for step, margin in ((1, -0.125), (2, 0.25)):
        found.hear(event("step", step=step, of=2, loss=0.5, reward_margin=margin, reward_accuracy=0.75))
    assert found.rewards == [-0.125, 0.25]
    assert "margin 0.2500, 75% ranked right" in said[-1]
    assert '"reward_margin": 0.25' in (tmp_path / "metrics.jsonl").read_text()


def test_of_several_ranks_the_fullest_card_is_shown_and_warned_of(tmp_path: Path) -> None:
    found, _ = watch(tmp_path)
    for rank, size in ((0, 700), (1, 900), (0, 800), (1, 1200), (0, 1150)):
        found.hear(event("memory", process_bytes=size, device_bytes=size, rank=rank))
    assert (found.used_bytes, found.peak_bytes) == (1200, 1200)
    assert len(found.notes) == 1 and found.notes[0].startswith("the peak of rank 1 of ")


def test_what_others_hold_of_a_card_is_no_peak_of_a_rank(tmp_path: Path) -> None:
    """As on two cards that others used: a rank had no figure of its own before its first tensor."""
    found, _ = watch(tmp_path)
    for rank, used, device in ((1, None, 50_000), (0, 700, 50_000), (1, 900, 50_000)):
        found.hear(event("memory", process_bytes=used, device_bytes=device, rank=rank))
    assert found.notes == []


def test_each_phase_is_held_against_its_own_prediction(tmp_path: Path) -> None:
    phases = [{"name": "load", "device_bytes": 400}, {"name": "save", "device_bytes": 900}]
    found, _ = watch(tmp_path, predicted={**PREDICTED, "phases": phases})
    planned = {}
    for phase, sizes in (("load", (300, 410, 405)), ("rehearsal", (950,)), ("training", (1001,)), ("save", (800,))):
        found.hear(event("phase", phase=phase))
        planned[phase] = found.planned_bytes()
        for size in sizes:
            found.hear(event("memory", process_bytes=size, device_bytes=size))
    assert planned == {"load": 400, "rehearsal": 1000, "training": 1000, "save": 900}
    found.ended(Attempt(number=1, run=RUN, outcome="ok", facts={}, from_step=0, says="", checkpoint=None))
    rows = [row for row in read_metrics(tmp_path / "metrics.jsonl") if row["kind"] == "phase"]
    assert [(row["phase"], row["device_bytes"]) for row in rows] == [
        ("load", 410), ("rehearsal", 950), ("training", 1001), ("save", 800),
    ]  # fmt: skip
    # The next attempt is a smaller run: its peak is another's.
    found.plans({**PREDICTED, "peak": {"device_bytes": 700, "low_bytes": 600, "high_bytes": 800}})
    found.hear(event("phase", phase="training"))
    assert (found.planned_bytes(), found.peak_bytes) == (700, None)


def test_what_vllm_holds_beside_the_trainer_is_planned_too(tmp_path: Path) -> None:
    phases = [{"name": "load", "device_bytes": 400}, {"name": "save", "device_bytes": 900}]
    found, _ = watch(tmp_path, predicted={**PREDICTED, "phases": phases, "fit": {"vllm_bytes": 5000}})
    planned = {}
    for phase in ("load", "training", "save"):
        found.hear(event("phase", phase=phase))
        planned[phase] = found.planned_bytes()
    assert planned == {"load": 400, "training": 6000, "save": 5900}


def test_steps_that_are_short_do_not_bury_what_is_said(tmp_path: Path) -> None:
    found, said = watch(tmp_path)
    found.hear(event("begin", step=0, of=500))
    for step in range(1, 501):
        found.hear(event("step", step=step, of=500, loss=1.0, step_s=0.01))
    assert len(said) < 40 and said[-1].startswith("step 500/500")
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 500


def test_the_view_and_the_lines(tmp_path: Path) -> None:
    found, said = watch(tmp_path)
    found.hear(event("begin", step=0, of=4))
    found.hear(event("memory", process_bytes=1000, device_bytes=1200))
    for step, loss in ((1, 3.0), (2, 1.0)):
        told = {"step": step, "of": 4, "loss": loss, "learning_rate": 1e-4, "tokens_per_s": 1234.0, "step_s": 30.0}
        found.hear(event("step", **told))
    assert said[-1] == "step 2/4: loss 1.0000, lr 1.00e-04, 1,234 tokens/s, 0.00 GiB, 1 min 00 s left"
    text = draw(found, Theme(color=True, unicode=True)).plain
    assert "2/4" in text and "█▁" in text and "1,234 tokens/s" in text and "predicted" in text
    assert spark([1.0, 1.0]) == "▄▄"
    assert "step 2/4" in (tmp_path / "log.txt").read_text()


def test_metrics_of_steps_done_again_count_once(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "metrics.jsonl")
    metrics.add("attempt", {"number": 1, "from_step": 0})
    for step in (1, 2, 3):
        metrics.add("step", {"step": step, "loss": 1.0})
    metrics.add("attempt", {"number": 2, "from_step": 2})
    metrics.add("step", {"step": 3, "loss": 0.5})
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"kind": "step", "st')
    found = [(row["step"], row["loss"]) for row in read_metrics(tmp_path / "metrics.jsonl") if row["kind"] == "step"]
    assert found == [(1, 1.0), (2, 1.0), (3, 0.5)]


def test_evidence_is_of_the_longest_batch_on_a_card_alone(tmp_path: Path) -> None:
    facts = {
        "longest": 48, "params": 10, "trainable_params": 1, "versions": {"torch": "2"},
        "gpu": {"name": "T4", "capacity_bytes": 16 << 30, "compute_capability": "7.5"},
        "phases": {"training": {"allocated_bytes": 5, "reserved_bytes": 6, "live_bytes": 4}},
        "nvml": {"process_peak_bytes": 9, "source": "nvml"}, "rss_peak_bytes": 1, "paged_bytes": 0,
    }  # fmt: skip
    one = Attempt(number=1, run=RUN, outcome="ok", facts=facts, from_step=0, says="", checkpoint=None)
    spec = LaunchSpec(run=RUN, settings=SETTINGS, model_id="m", weights="w", data="d", output="o")
    given = {"created": "2026-01-01T00:00:00Z", "config": {"a": 1}, "config_sha256": None, "predicted": PREDICTED}
    found = evidence(spec, one, **given)  # type: ignore[arg-type]
    assert found is not None and found.run.seq_len == 48 and found.predicted is None
    assert found.figures()["train_peak"] == 5 and found.step_s == ()
    assert json.loads(json.dumps(found.to_dict()))["nvml"]["process_peak_bytes"] == 9
    assert evidence(spec, replace(one, run=RUN.with_(eval_batch_size=1)), **given) is None  # type: ignore[arg-type]
    assert evidence(LaunchSpec.from_dict(spec.to_dict() | {"device": "cpu"}), one, **given) is None  # type: ignore[arg-type]


@pytest.mark.fault(
    "a line of metrics.jsonl or log.txt cannot be written",
    said="metrics.jsonl cannot be written",
    does="a note, once",
    exit=0,
    part="begun",
)
def test_lines_that_cannot_be_kept_do_not_end_a_run(tmp_path: Path) -> None:
    found, said = watch(tmp_path / "gone")
    found.hear(event("step", step=1, of=4, loss=2.0, step_s=1.0))
    found.hear(event("step", step=2, of=4, loss=1.0, step_s=1.0))
    assert len([line for line in said if "metrics.jsonl cannot be written" in line]) == 1
    assert len([line for line in said if "log.txt cannot be written" in line]) == 1
    assert said[-1].startswith("step 2/4: loss 1.0000")


@pytest.mark.fault(
    "other library versions than planned or begun with",
    said="planned for trl 1.15.0, 1.16.0 is installed: memory may differ",
    does="a note",
    exit=0,
    part="begun",
)
def test_other_versions_are_noted() -> None:
    planned = {"torch": "2.13.0+cu130", "trl": "1.15.0", "liger-kernel": "0.8"}
    assert list(version_notes(planned, {"torch": "2.13.0+cpu", "trl": "1.16.0"})) == [
        "planned for trl 1.15.0, 1.16.0 is installed: memory may differ"
    ]
    then = {"run": RUN.to_dict(), "settings": SETTINGS.to_dict(), "model": {"id": "m"}, "data": {"files": []}}
    old, now = ({**then, "versions": {"trl": version}} for version in ("1.15.0", "1.16.0"))
    assert check_same(old, now, RunDirectory(Path("run"))) == [
        "trl was 1.15.0 and is 1.16.0: going on, not bit for bit"
    ]
