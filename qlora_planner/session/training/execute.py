"""Running what was prepared: the last looks, the run itself, and what is kept of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlora_planner.bounded import small_json
from qlora_planner.errors import InputError, MissingError, RefusedError, RunError
from qlora_planner.measure import events_file
from qlora_planner.record import record
from qlora_planner.session.measuring.this_card import ThisCard, check_room
from qlora_planner.session.training.finished import finished_summary
from qlora_planner.session.training.onlooker import Onlooker
from qlora_planner.session.training.predictions import Predictions, measured_widths
from qlora_planner.session.training.prepare import Prepared, prepare
from qlora_planner.spec.run import RunConfig
from qlora_planner.text import plain

if TYPE_CHECKING:
    from qlora_planner.memory import MemoryEstimate
    from qlora_planner.runs.directory import RunDirectory
    from qlora_planner.runs.spec import LaunchSpec
    from qlora_planner.runs.supervise import Attempt
    from qlora_planner.session.session import Session
    from qlora_planner.session.training.request import TrainRequest


@record
class Trained:
    """What came of a training: the document `qlora-plan/training/1`, and a line for each file that is not written.

    `finished_before` says that the run had ended well and nothing was done.
    """

    summary: Mapping[str, Any]
    folder: RunDirectory
    unwritten: tuple[str, ...] = ()
    finished_before: bool = False

    @property
    def outcome(self) -> str:
        """ok, interrupted, out-of-memory, disk-full, killed or error."""
        return str(self.summary["outcome"])


def train(session: Session, request: TrainRequest, onlooker: Onlooker) -> Trained:
    """Do what is asked for; of a run that had ended well and is asked for as it was, nothing.

    Raises as `Workbench.train` does.
    """
    summary = finished_summary(request)
    if summary is not None:
        return Trained(summary=summary, folder=request.folder, finished_before=True)
    return execute(session, prepare(session, request, onlooker), onlooker)


def execute(session: Session, prepared: Prepared, onlooker: Onlooker) -> Trained:
    """Look at card and disk, write what is run, run it, and keep what came of it.

    Raises as `Workbench.train` does.
    """
    from qlora_planner.runs.directory import make
    from qlora_planner.runs.lock import held

    request, here = prepared.request, prepared.here
    widths = measured_widths(session, prepared, onlooker)
    predictions = Predictions(session, prepared.profile, here, widths, request.options.risk)
    predicted = predictions.estimate(prepared.spec.run)
    if here is not None and predicted is not None:
        _check_card(session, here, predicted, yes=request.options.yes)
    if request.record is None:
        make(request.folder)
    with held(request.folder.path) as lock:
        return _Execution(session, prepared, predictions, onlooker, lock).run()


@dataclass(slots=True)
class _Execution:
    """One start of a run, in a folder that no other process trains in; `lock` holds it."""

    session: Session
    prepared: Prepared
    predictions: Predictions
    onlooker: Onlooker
    lock: int | None

    @property
    def request(self) -> TrainRequest:
        return self.prepared.request

    @property
    def folder(self) -> RunDirectory:
        return self.prepared.request.folder

    def run(self) -> Trained:
        """To the summary."""
        from qlora_planner.measure.process import versions
        from qlora_planner.runs import record as records
        from qlora_planner.runs.directory import discard
        from qlora_planner.runs.preflight import version_notes

        request, spec = self.request, self.prepared.spec
        created = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        run_record = records.run_record(spec, created=created, versions=versions())
        planned = (request.plan or {}).get("stack")
        notes = list(version_notes(planned, versions())) if isinstance(planned, Mapping) else []
        spec, run_record = self._opened(spec, run_record, notes)
        try:
            self._check_disk(spec)
            self._write_beside(spec)
            attempts, notes, wall_s = self._watched(spec, notes)
        except (InputError, MissingError, RefusedError):
            if request.record is None:
                discard(self.folder)  # refused before it began: nothing is left that would be in the way
            raise
        metrics = records.read_metrics(self.folder.metrics)
        last = attempts[-1]
        summary = records.summary(
            run_record, attempts, metrics, self.predictions.document(last.run),  # of the rung that it ended on
            wall_s=wall_s, folder=self.folder, notes=notes,
            speed=self.predictions.speed(last.run, records.mean_tokens(metrics, last.run, spec.ranks)),
        )  # fmt: skip
        unwritten = self._keep(spec, last, summary, metrics, created)
        summary["notes"] += unwritten  # a full disk: what came of it is answered all the same
        return Trained(summary=summary, folder=self.folder, unwritten=tuple(unwritten))

    def _opened(
        self, spec: LaunchSpec, run_record: dict[str, Any], notes: list[str]
    ) -> tuple[LaunchSpec, dict[str, Any]]:
        """The folder begun, or gone on with; what is run there, and its run.json."""
        from qlora_planner.runs import record as records
        from qlora_planner.runs.directory import check_layout, check_writable, open_new, read_record, write_json

        before = self.request.record
        if before is None:
            open_new(self.folder, force=self.request.options.force)
            write_json(self.folder.record, run_record)  # first: what is ended now can be gone on with, or begun anew
            return spec, run_record
        check_layout(self.folder)
        check_writable(self.folder)
        if read_record(self.folder) != before:
            raise InputError(f"--resume: {plain(self.folder.path)} was gone on with meanwhile; look at it first")
        notes += records.check_same(before, run_record, self.folder)
        run_record = {**run_record, **before, "settings": spec.settings.to_dict()}
        spec = self._going_on(spec, before, notes)
        write_json(self.folder.record, run_record)
        return spec, run_record

    def _going_on(self, spec: LaunchSpec, before: Mapping[str, Any], notes: list[str]) -> LaunchSpec:
        """From the newest complete checkpoint, on the rung that the run had come to."""
        from qlora_planner.runs.checkpoints import newest_complete
        from qlora_planner.runs.supervise import going_on

        newest, broken = newest_complete(self.folder.checkpoints)
        notes += broken
        notes.append(
            "no complete checkpoint is there: starting anew" if newest is None else f"going on from {newest.name}"
        )
        lower = before.get("rung")
        if lower is not None:
            spec = replace(spec, run=RunConfig.from_dict(lower, str(self.folder.record)))
        return going_on(spec, newest)

    def _check_disk(self, spec: LaunchSpec) -> None:
        from qlora_planner.runs.preflight import check_disk, checkpoint_bytes, rows_bytes

        profile = self.prepared.profile
        check_disk(
            self.folder.path, 0 if profile is None else checkpoint_bytes(profile, spec.run), rows_bytes(spec.data)
        )

    def _write_beside(self, spec: LaunchSpec) -> None:
        """plan.yaml, and a mark where the trainer's own reporters will write."""
        from qlora_planner.exchange.files import write_text
        from qlora_planner.exchange.plan_file import render_plan_file
        from qlora_planner.runs.owned import mark

        if not self.folder.plan.exists():
            write_text(self.folder.plan, render_plan_file(self.prepared.document), force=True)
        if spec.settings.report_to:
            mark(self.folder.logs)

    def _watched(self, spec: LaunchSpec, notes: list[str]) -> tuple[list[Attempt], list[str], float]:
        """Run it to its end; every attempt, every note, and the seconds that it took."""
        from qlora_planner.runs.checkpoints import step_of
        from qlora_planner.runs.record import Metrics
        from qlora_planner.runs.supervise import Attempt, supervise
        from qlora_planner.runs.watch import Watch

        begun = time.monotonic()
        attempts: list[Attempt] = []
        here, predict = self.prepared.here, self.predictions.document
        predicted = predict(self.prepared.spec.run)
        events_file.tell("predicted", {"estimate": predicted, "folder": str(self.folder.path)})

        def make(out: Callable[[str], None]) -> Watch:
            return Watch(
                spec.model_id if "/" not in spec.model_id else Path(spec.model_id).name,
                metrics=Metrics(self.folder.metrics), folder=self.folder, predicted=predicted, out=out,
                whole_bytes=None if here is None else here.gpu.memory_bytes, card=None if here is None else 0,
            )  # fmt: skip

        with _stop_signals() as stop, self.onlooker.watching(make) as (watch, draw):
            for note in [*notes, *filter(None, [self.predictions.lacking(self.prepared.spec.run)])]:
                watch.note(note)
            watch.began(1, step_of(spec.resume) if spec.resume else 0)
            for item in supervise(
                spec, stop=stop, profile=self.prepared.profile, predict=predict,
                recover=self.request.options.recover, lock=self.lock,
            ):  # fmt: skip
                if isinstance(item, Attempt):
                    attempts.append(item)
                    events_file.tell("attempt", {"number": item.number, "outcome": item.outcome, "rung": item.rung})
                    watch.ended(item)
                    if item.next_run is not None:
                        watch.plans(predict(item.next_run))
                        watch.began(item.number + 1, step_of(item.checkpoint) if item.checkpoint else 0)
                else:
                    events_file.pass_on(item)
                    watch.hear(item)
                draw()
        return attempts, watch.notes, time.monotonic() - begun

    def _keep(
        self,
        spec: LaunchSpec,
        attempt: Attempt,
        summary: dict[str, Any],
        metrics: list[dict[str, Any]],
        created: str,
    ) -> list[str]:
        """summary.json, report.html, the rung in run.json, and the evidence where there is any; a line for each of
        them that cannot be written."""
        from qlora_planner.exchange.files import write_text
        from qlora_planner.report.pages.training_html import render_html
        from qlora_planner.runs.directory import read_record, write_json
        from qlora_planner.runs.record import evidence
        from qlora_planner.sources.configs import config_sha256
        from qlora_planner.sources.evidence import append
        from qlora_planner.sources.locations import evidence_path

        folder, lost = self.folder, list[str]()

        def attempted(write: Callable[[], None]) -> None:
            try:
                write()
            except (RunError, InputError) as error:
                lost.append(str(error))

        page = render_html(summary, metrics, folder=str(folder.path))
        attempted(lambda: write_text(folder.report, page, force=True))
        if attempt.run != spec.run:
            rung = {**read_record(folder), "rung": attempt.run.to_dict()}
            attempted(lambda: write_json(folder.record, rung))
        config = small_json(Path(spec.weights) / "config.json")
        measurement = evidence(
            spec, attempt, created=created, config=config, config_sha256=config_sha256(config),
            predicted=self.predictions.document(attempt.run),
        )  # fmt: skip
        if measurement is not None:
            try:
                append(evidence_path(), measurement)
            except RunError as error:  # the run lacks nothing
                summary["notes"].append(str(error))
        if not lost:  # last: what has a summary is finished, and is not gone on with
            attempted(lambda: write_json(folder.summary, summary))
        return lost


def _stop_signals() -> Any:
    """Signals ask the child to save; only a program's first thread gets any."""
    from qlora_planner.runs.supervise import StopAsked, stop_signals

    return stop_signals() if threading.current_thread() is threading.main_thread() else nullcontext(StopAsked())


def _check_card(session: Session, here: ThisCard, predicted: MemoryEstimate, *, yes: bool) -> None:
    """Raises MissingError where others hold what the run needs, RefusedError where it does not fit without `yes`."""
    blocking = [problem for problem in predicted.problems if problem.blocking]
    if blocking:
        raise RefusedError(f"{blocking[0].message}; use {blocking[0].fix}")
    check_room(here, predicted, session.tell)
    if predicted.verdict == "does-not-fit" and not yes:
        reasons = "; ".join(predicted.fit.reasons) if predicted.fit else ""
        raise RefusedError(
            f"{predicted.model.id} does not fit {here.gpu.label} so: {reasons}; `qlora-plan check` says what would;"
            " --yes tries all the same"
        )
