"""The parent of a training run: starts a child for each attempt, passes on what it tells, and recovers when it can."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

from qlora_planner.errors import InputError, MissingError, PlannerError, RefusedError, RunError
from qlora_planner.isolation import python_module
from qlora_planner.measure.children import Progress, end_group, heard, spawn
from qlora_planner.measure.ranks import Gathered, ended_by, launch_command
from qlora_planner.planner.fallbacks import fallbacks, keeps_states
from qlora_planner.record import record
from qlora_planner.runs.checkpoints import newest_complete, optimizer_of, set_aside, step_of
from qlora_planner.runs.directory import RunDirectory
from qlora_planner.runs.post_mortem import verdict
from qlora_planner.runs.spec import LaunchSpec
from qlora_planner.spec.model import ModelProfile
from qlora_planner.spec.run import RunConfig

CHILD = python_module("qlora_planner.runs.child.main")
MOST_RECOVERIES = 3
_TICK_S = 0.25
_ERRORS: Mapping[int, type[PlannerError]] = {1: RefusedError, 2: InputError, 3: MissingError}

Predict = Callable[[RunConfig], Mapping[str, Any] | None]


@record
class Attempt:
    """How one attempt ended: `outcome` is ok, interrupted, out-of-memory, disk-full, killed or error.

    `facts` is what the child reported (empty where it died without a word), `says` one line for people, `rung` what
    the next attempt changes and `next_run` its run (None: there is none), `checkpoint` the newest complete one.
    """

    number: int
    run: RunConfig
    outcome: str
    facts: Mapping[str, Any]
    from_step: int
    says: str
    checkpoint: str | None
    rung: str | None = None
    next_run: RunConfig | None = None


class StopAsked:
    """How often somebody asked to stop."""

    def __init__(self) -> None:
        self.times = 0


@contextmanager
def stop_signals() -> Iterator[StopAsked]:
    """Ctrl-C, SIGTERM, SIGHUP of a terminal that is closed, and SIGUSR1 of a scheduler that is about to end a job count
    instead of breaking off: the child gets to save first. Only the first two, which somebody sends, end it at once when
    they come again: a terminal that is closed sends SIGHUP twice, through its shell and from the kernel. What is
    ignored, as SIGHUP under nohup, stays so."""
    stop = StopAsked()

    def ask(number: int, _frame: FrameType | None) -> None:
        if not stop.times or number in (signal.SIGINT, signal.SIGTERM):
            stop.times += 1

    more = [number for name in ("SIGHUP", "SIGUSR1") if (number := getattr(signal, name, None)) is not None]
    heard = [number for number in more if signal.getsignal(number) is not signal.SIG_IGN]
    handlers = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM, *heard)}
    try:
        yield stop
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def supervise(
    spec: LaunchSpec,
    *,
    stop: StopAsked,
    profile: ModelProfile | None = None,
    predict: Predict = lambda _run: None,
    recover: bool = True,
    lock: int | None = None,
) -> Generator[Progress | Attempt, None, None]:
    """Attempts at a run until one ends it: what each tells as it comes, then how it ended.

    After an attempt that ran out of memory comes one on the next rung of the ladder, from the newest complete
    checkpoint, at most three times. `predict` gives an estimate's document for a run; a rung that is not predicted to
    need less is passed over. `lock` is the descriptor that holds the run's folder.
    A `tick` event comes four times a second while nothing is told, a `remark` with words that
    hold only now.
    Raises what the child refuses (InputError, MissingError, RefusedError, RunError).
    """
    folder = RunDirectory(Path(spec.output))
    predicted = predict(spec.run)
    for number in range(1, MOST_RECOVERIES + 2):
        result, code = yield from _one(spec, folder, stop, lock)
        newest, notes = newest_complete(folder.checkpoints)
        for note in notes:
            yield Progress(event="note", elapsed_s=0.0, facts={"message": note})
        outcome = _outcome(result, code, stop)
        attempt = Attempt(
            number=number,
            run=spec.run,
            outcome=outcome,
            facts=result,
            from_step=step_of(spec.resume) if spec.resume else 0,
            says=_says(outcome, result, code, spec.run, predicted),
            checkpoint=None if newest is None else str(newest),
        )
        rung = None
        if outcome == "out-of-memory" and recover and number <= MOST_RECOVERIES and not stop.times:
            rung = _next_rung(spec.run, profile, str(result.get("phase")), predicted, predict)
        if rung is None:
            yield attempt
            return
        run, says, predicted = rung
        yield replace(attempt, rung=says, next_run=run)
        spec = going_on(replace(spec, run=run), newest)


def going_on(spec: LaunchSpec, checkpoint: Path | None) -> LaunchSpec:
    """`spec` from a complete checkpoint on (None: from the beginning); newer, broken ones are taken out of the way."""
    set_aside(RunDirectory(Path(spec.output)).checkpoints, checkpoint)
    if checkpoint is None:
        return replace(spec, resume=None, fresh_optimizer=False)
    fresh = not keeps_states(optimizer_of(checkpoint), spec.run.optimizer)
    return replace(spec, resume=str(checkpoint.absolute()), fresh_optimizer=fresh)


def _next_rung(
    run: RunConfig, profile: ModelProfile | None, phase: str, before: Mapping[str, Any] | None, predict: Predict
) -> tuple[RunConfig, str, Mapping[str, Any] | None] | None:
    """The first rung below that is predicted to need less, or about which nothing is predicted."""
    for lower, says in fallbacks(run, profile, phase=phase):
        predicted = predict(lower)
        if predicted is None or before is None or predicted["floor_bytes"] < before["floor_bytes"]:
            return lower, says, predicted
    return None


def _one(
    spec: LaunchSpec, folder: RunDirectory, stop: StopAsked, lock: int | None = None
) -> Generator[Progress, None, tuple[Mapping[str, Any], int | None]]:
    """One child from start to end; the facts of its result and its exit code."""
    gathered = Gathered(spec.ranks)
    with TemporaryDirectory(prefix="qlora-plan-train-") as home, folder.log.open("a", encoding="utf-8") as log:
        written = Path(home) / "spec.json"
        written.write_text(json.dumps(spec.to_dict()), encoding="utf-8")
        child = spawn(
            _command(spec, folder, written), stderr=log,
            pass_fds=() if lock is None else (lock,),  # held until both have ended
        )  # fmt: skip
        try:
            for event in _heard(child, stop, gathered):
                if not gathered.take(event):
                    yield event
        finally:
            gathered.end()  # each rank has a group of its own
            end_group(child)
    if gathered.refused is not None:
        raise _ERRORS.get(int(gathered.refused["exit_code"]), RunError)(str(gathered.refused["message"]))
    return gathered.facts(), child.returncode


def _command(spec: LaunchSpec, folder: RunDirectory, written: Path) -> list[str]:
    """What starts one process here, or `accelerate launch` with the run's own config, which stays in its folder."""
    if spec.ranks == 1:
        return [*CHILD, str(written), "--with-parent", str(os.getpid())]
    from qlora_planner.exchange.files import write_text
    from qlora_planner.exchange.scripts.accelerate import launch_config

    write_text(folder.launch, launch_config(spec.run, spec.ranks, spec.device), force=True)
    return launch_command(folder.launch, CHILD[-1], str(written))


def _heard(child: subprocess.Popen[str], stop: StopAsked, gathered: Gathered) -> Iterator[Progress]:
    """What the child tells until it ends; asks it to stop once, and ends it where that is asked for twice, or where
    one of several ranks has ended badly."""
    passed_on = 0
    for event in heard(child, _TICK_S):
        if stop.times > passed_on:
            passed_on = stop.times
            if passed_on > 1 or (gathered.world > 1 and not gathered.ask()):
                return
            if gathered.world == 1:
                child.send_signal(signal.SIGTERM)
            message = "asked to stop: saving a checkpoint after this step; once more to stop at once"
            yield Progress(event="remark", elapsed_s=0.0, facts={"message": message})
        yield event or Progress(event="tick", elapsed_s=0.0)
        if gathered.over:
            return


def _outcome(result: Mapping[str, Any], code: int | None, stop: StopAsked) -> str:
    if result:
        return str(result["outcome"])
    if stop.times:
        return "interrupted"
    return "killed" if code is not None and code < 0 else "error"


def _says(
    outcome: str, result: Mapping[str, Any], code: int | None, run: RunConfig, predicted: Mapping[str, Any] | None
) -> str:
    if outcome == "out-of-memory":
        nvml = result.get("nvml") or {}
        words = verdict({**result, "others_bytes": nvml.get("others_bytes")}, run, predicted)
        return words if result.get("rank") is None else f"rank {result['rank']}: {words}"
    if outcome == "disk-full":
        return "the disk is full; make room, then go on with --resume"
    if outcome == "killed":
        return str(result.get("message") or f"the training process {ended_by(code or 0)}")
    if outcome == "error":
        return str(
            result.get("message") or f"the training process ended with code {code}; its last words are in log.txt"
        )
    return "interrupted" if outcome == "interrupted" else "finished"
