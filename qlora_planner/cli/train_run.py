"""Running what `train` was asked to: the last looks, the run itself, and what is kept of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlora_planner.bounded import small_json
from qlora_planner.cli import events
from qlora_planner.cli.streams import answer, answer_json, say
from qlora_planner.cli.train_asked import Asked
from qlora_planner.cli.values import Output
from qlora_planner.errors import InputError, MissingError, RefusedError, RunError
from qlora_planner.session.this_card import ThisCard, check_room
from qlora_planner.spec.run import RunConfig
from qlora_planner.text import plain

if TYPE_CHECKING:
    from qlora_planner.memory import MemoryEstimate
    from qlora_planner.runs.spec import LaunchSpec
    from qlora_planner.runs.supervise import Attempt
    from qlora_planner.spec.model import ModelProfile

Estimated = Callable[[RunConfig], "MemoryEstimate | None"]
Predict = Callable[[RunConfig], "Mapping[str, Any] | None"]
_COUNTED_BYTES = 16 << 20  # what takes some four seconds to tokenise
_EXIT = {"ok": 0, "out-of-memory": 1, "interrupted": 130}


def execute(
    asked: Asked,
    spec: LaunchSpec,
    profile: ModelProfile | None,
    here: ThisCard | None,
    document: Mapping[str, Any],
    given: Mapping[str, Any],
    output: Output,
) -> int:
    """Look at card and disk, write what is run, run it, keep what came of it, and answer; the exit code."""
    from qlora_planner.runs.directory import make
    from qlora_planner.runs.lock import held

    widths = _widths(document) or (_counted(asked, spec.run, output) if here is not None else ())
    estimated = _estimator(profile, here, output, widths)
    predicted = estimated(spec.run)
    if here is not None and predicted is not None:
        _check_card(here, predicted, given, output)
    if asked.record is None:
        make(asked.folder)
    with held(asked.folder.path) as lock:
        return _executed(asked, spec, profile, here, document, _documents(estimated), given, output, lock)


def _executed(
    asked: Asked,
    spec: LaunchSpec,
    profile: ModelProfile | None,
    here: ThisCard | None,
    document: Mapping[str, Any],
    predict: Predict,
    given: Mapping[str, Any],
    output: Output,
    lock: int | None,
) -> int:
    """The same in a folder that no other process trains in."""
    from qlora_planner.measure.process import versions
    from qlora_planner.runs import record as records
    from qlora_planner.runs.directory import check_layout, check_writable, discard, open_new, read_record, write_json
    from qlora_planner.runs.owned import mark
    from qlora_planner.runs.preflight import version_notes

    predicted = predict(spec.run)
    created = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    record = records.run_record(spec, created=created, versions=versions())
    planned = (asked.plan or {}).get("stack")
    notes = list(version_notes(planned, versions())) if isinstance(planned, Mapping) else []
    if asked.record is None:
        open_new(asked.folder, force=bool(given["force"]))
        write_json(asked.folder.record, record)  # first: what is ended now can be gone on with, or begun anew
    else:
        check_layout(asked.folder)
        check_writable(asked.folder)
        if read_record(asked.folder) != asked.record:
            raise InputError(f"--resume: {plain(asked.folder.path)} was gone on with meanwhile; look at it first")
        notes += records.check_same(asked.record, record, asked.folder)
        record = {**record, **asked.record, "settings": spec.settings.to_dict()}
        spec = _going_on(asked, spec, notes)
        write_json(asked.folder.record, record)
    try:
        _check_disk(asked, spec, profile)
        if not asked.folder.plan.exists():
            _write_plan(asked, document)
        if spec.settings.report_to:
            mark(asked.folder.logs)
        attempts, notes, wall_s = _watched(asked, spec, profile, here, predicted, predict, notes, given, output, lock)
    except (InputError, MissingError, RefusedError):
        if asked.record is None:
            discard(asked.folder)  # refused before it began: nothing is left that would be in the way
        raise
    metrics = records.read_metrics(asked.folder.metrics)
    predicted = predict(attempts[-1].run)  # of the rung that it ended on
    summary = records.summary(
        record, attempts, metrics, predicted, wall_s=wall_s, folder=asked.folder, notes=notes,
        speed=_speed(profile, here, attempts[-1].run, records.mean_tokens(metrics, attempts[-1].run)),
    )  # fmt: skip
    lost = _keep(asked, spec, attempts[-1], summary, metrics, predict, created)
    for text in lost:  # a full disk: what came of it is said all the same
        summary["notes"].append(text)
        say(text)
    if lost and attempts[-1].outcome == "ok":
        say(f"incomplete: the adapter is in {asked.folder.adapter}, and what is named above is not written; make room,"
            " then --resume writes it")  # fmt: skip
    if output.json:
        answer_json(summary)
    else:
        from qlora_planner.report.training import render_training

        answer(render_training(summary, output.theme, folder=str(asked.folder.path)))
    code = _EXIT.get(attempts[-1].outcome, 4)
    return 4 if lost and code == 0 else code


def _widths(plan: Mapping[str, Any] | None) -> tuple[tuple[int, ...], ...]:
    """The widths of batches that a plan counted in its data; none where it was made without."""
    data = (plan or {}).get("data")
    return tuple(tuple(order) for order in data["run"].get("widths_before", ())) if data else ()


def _counted(asked: Asked, run: RunConfig, output: Output) -> tuple[tuple[int, ...], ...]:
    """The same for a plan made without data, from data that is counted in seconds; none of larger ones.

    Data that cannot be read is no matter here: the run reads it too, and says what is wrong with it.
    """
    from qlora_planner.cli.data import summary_from
    from qlora_planner.data.batches.widths import widths_before
    from qlora_planner.data.files import find_files

    given = {"data": asked.data, "tokenizer": asked.tokenizer, "bad_rows": asked.bad_rows}
    try:
        if not Path(asked.data).exists() or sum(one.size_bytes for one in find_files(asked.data)) > _COUNTED_BYTES:
            return ()
        found = summary_from(given, asked.weights, output)
    except (InputError, MissingError):
        return ()
    return () if found is None else widths_before(found, run.batch_size, run.seq_len, run.packing)


def _estimator(
    profile: ModelProfile | None, here: ThisCard | None, output: Output, widths: tuple[tuple[int, ...], ...]
) -> Estimated:
    """The estimate of a run on the card, each made once: what decides whether it starts is what is recorded of it.

    None on the CPU, for which nothing is planned.
    """
    estimates: dict[str, MemoryEstimate] = {}

    def estimated(run: RunConfig) -> MemoryEstimate | None:
        if profile is None or here is None:
            return None
        key = repr(run)
        if key not in estimates:
            from qlora_planner import session

            estimates[key] = session.estimate(
                profile, run, here.gpu, reserve_bytes=here.others_bytes, cap_bytes=here.cap_bytes,
                widths=widths, profiles=output.profiles, tell=output.warn,
            )  # fmt: skip
        return estimates[key]

    return estimated


def _documents(estimated: Estimated) -> Predict:
    """The same estimates as they are recorded."""

    def predict(run: RunConfig) -> Mapping[str, Any] | None:
        estimate = estimated(run)
        return None if estimate is None else estimate.to_dict()

    return predict


def _speed(
    profile: ModelProfile | None, here: ThisCard | None, run: RunConfig, tokens: int | None
) -> Mapping[str, Any] | None:
    """The speed predicted for rows of `tokens`, which is what the steps that were timed had."""
    if profile is None or here is None or not tokens:
        return None
    from qlora_planner import session
    from qlora_planner.memory.options.resolve import resolve
    from qlora_planner.speed.roofline import speed_of

    resolved = resolve(profile, run.with_(seq_len=min(tokens, run.seq_len)), here.gpu)
    found = speed_of(profile, resolved.run, here.gpu, session.calibration(), resolved.stack)
    basis = None if found.basis is None else found.basis.value
    return {"tokens_per_s": found.tokens_per_s, "step_s": found.step_s, "basis": basis}


def _check_card(here: ThisCard, predicted: MemoryEstimate, given: Mapping[str, Any], output: Output) -> None:
    """Raises MissingError where others hold what the run needs, RefusedError where it does not fit without --yes."""
    blocking = [problem for problem in predicted.problems if problem.blocking]
    if blocking:
        raise RefusedError(f"{blocking[0].message}; use {blocking[0].fix}")
    check_room(here, predicted, output.warn)
    if predicted.verdict == "does-not-fit" and not given["yes"]:
        raise RefusedError(
            f"{predicted.model.id} does not fit {here.gpu.label} so: `qlora-plan check` says what would;"
            " --yes tries all the same"
        )


def _check_disk(asked: Asked, spec: LaunchSpec, profile: ModelProfile | None) -> None:
    from qlora_planner.runs.preflight import check_disk, checkpoint_bytes, rows_bytes

    one = 0 if profile is None else checkpoint_bytes(profile, spec.run)
    check_disk(asked.folder.path, one, rows_bytes(spec.data))


def _write_plan(asked: Asked, document: Mapping[str, Any]) -> None:
    from qlora_planner.exchange.files import write_text
    from qlora_planner.exchange.plan_file import render_plan_file

    write_text(asked.folder.plan, render_plan_file(document), force=True)


def _going_on(asked: Asked, spec: LaunchSpec, notes: list[str]) -> LaunchSpec:
    """From the newest complete checkpoint, on the rung that the run had come to."""
    from qlora_planner.runs.checkpoints import newest_complete
    from qlora_planner.runs.supervise import going_on

    newest, broken = newest_complete(asked.folder.checkpoints)
    notes += broken
    notes.append("no complete checkpoint is there: starting anew" if newest is None else f"going on from {newest.name}")
    assert asked.record is not None
    lower = asked.record.get("rung")
    if lower is not None:
        spec = replace(spec, run=RunConfig.from_dict(lower, str(asked.folder.record)))
    return going_on(spec, newest)


def _watched(
    asked: Asked,
    spec: LaunchSpec,
    profile: ModelProfile | None,
    here: ThisCard | None,
    predicted: Mapping[str, Any] | None,
    predict: Any,
    notes: list[str],
    given: Mapping[str, Any],
    output: Output,
    lock: int | None,
) -> tuple[list[Attempt], list[str], float]:
    """Run it to its end; every attempt, every note, and the seconds that it took."""
    from qlora_planner.cli.train_live import shown
    from qlora_planner.cli.train_view import Watch
    from qlora_planner.runs.checkpoints import step_of
    from qlora_planner.runs.record import Metrics
    from qlora_planner.runs.supervise import Attempt, stop_signals, supervise

    begun = time.monotonic()
    attempts: list[Attempt] = []
    events.tell("predicted", {"estimate": predicted, "folder": str(asked.folder.path)})

    def make(out: Any) -> Watch:
        return Watch(
            spec.model_id if "/" not in spec.model_id else Path(spec.model_id).name,
            metrics=Metrics(asked.folder.metrics), folder=asked.folder, predicted=predicted, out=out,
            whole_bytes=None if here is None else here.gpu.memory_bytes, card=None if here is None else 0,
        )  # fmt: skip

    with stop_signals() as stop, shown(make, quiet=output.quiet) as (watch, draw):
        for note in notes:
            watch.note(note)
        watch.began(1, step_of(spec.resume) if spec.resume else 0)
        recover = not given["no_recover"]
        for item in supervise(spec, asked=stop, profile=profile, predict=predict, recover=recover, lock=lock):
            if isinstance(item, Attempt):
                attempts.append(item)
                events.tell("attempt", {"number": item.number, "outcome": item.outcome, "rung": item.rung})
                watch.ended(item)
                if item.next_run is not None:
                    watch.plans(predict(item.next_run))
                    watch.began(item.number + 1, step_of(item.checkpoint) if item.checkpoint else 0)
            else:
                events.pass_on(item)
                watch.hear(item)
            draw()
    return attempts, watch.notes, time.monotonic() - begun


def _keep(
    asked: Asked,
    spec: LaunchSpec,
    attempt: Attempt,
    summary: dict[str, Any],
    metrics: list[dict[str, Any]],
    predict: Any,
    created: str,
) -> list[str]:
    """summary.json, report.html, the rung in run.json, and the evidence where there is any; a line for each of them
    that cannot be written."""

    from qlora_planner.exchange.files import write_text
    from qlora_planner.report.pages.training_html import render_html
    from qlora_planner.runs.directory import read_record, write_json
    from qlora_planner.runs.record import evidence
    from qlora_planner.sources.configs import config_sha256
    from qlora_planner.sources.evidence import append
    from qlora_planner.sources.locations import evidence_path

    lost: list[str] = []

    def attempted(write: Callable[[], None]) -> None:
        try:
            write()
        except (RunError, InputError) as error:
            lost.append(str(error))

    page = render_html(summary, metrics, folder=str(asked.folder.path))
    attempted(lambda: write_text(asked.folder.report, page, force=True))
    if attempt.run != spec.run:
        rung = {**read_record(asked.folder), "rung": attempt.run.to_dict()}
        attempted(lambda: write_json(asked.folder.record, rung))
    config = small_json(Path(spec.weights) / "config.json")
    found = evidence(
        spec, attempt, created=created, config=config, config_sha256=config_sha256(config),
        predicted=predict(attempt.run),
    )  # fmt: skip
    if found is not None:
        try:
            append(evidence_path(), found)
        except RunError as error:  # the run lacks nothing
            summary["notes"].append(str(error))
    if not lost:  # last: what has a summary is finished, and is not gone on with
        attempted(lambda: write_json(asked.folder.summary, summary))
    return lost
