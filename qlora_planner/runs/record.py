"""What a run writes down beside its checkpoints: run.json, metrics.jsonl, summary.json, and the evidence."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from math import inf
from pathlib import Path
from statistics import median
from typing import Any

from qlora_planner.data.files import find_files
from qlora_planner.errors import InputError, RunError
from qlora_planner.evidence import CardReading, HostReading, Measurement, NvmlReading, PhaseReading
from qlora_planner.runs.directory import SCHEMA, RunDirectory
from qlora_planner.runs.spec import LaunchSpec
from qlora_planner.runs.supervise import Attempt
from qlora_planner.spec.run import RunConfig
from qlora_planner.text import plain, short
from qlora_planner.train.figures import FIGURES

SUMMARY_SCHEMA = "qlora-plan/training/1"
# The first step compiles kernels and makes optimizer states.
_WARM_UP = 1
# A run may be trained on for longer than it was begun for.
_LENGTH = ("epochs", "max_steps")
_NUMBERS = (
    "step", "of", "from_step", "loss", "eval_loss", "learning_rate", "step_s", "tokens", "tokens_per_s", *FIGURES,
)  # fmt: skip
_NEEDED = {"evaluation": ("eval_loss",), "phase": ("phase", "device_bytes", "predicted_bytes")}


def data_digest(path: str) -> list[dict[str, Any]]:
    """Name, bytes and SHA-256 of every file of a dataset. Raises InputError as `find_files` does."""
    files = []
    for file in find_files(path):
        with file.path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        files.append({"name": file.path.name, "size_bytes": file.size_bytes, "sha256": digest})
    return files


def run_record(spec: LaunchSpec, *, created: str, versions: Mapping[str, str]) -> dict[str, Any]:
    """The run.json of a run that is about to start."""
    return {
        "schema": SCHEMA,
        "created": created,
        "model": {"id": spec.model_id, "path": str(Path(spec.weights).absolute())},
        "adapter": "adapter",
        "run": spec.run.to_dict(),
        "settings": spec.settings.to_dict(),
        "data": {"path": str(Path(spec.data).absolute()), "bad_rows": spec.bad_rows, "files": data_digest(spec.data)},
        "tokenizer": spec.tokenizer,
        "device": spec.device,
        **({} if spec.cards == 1 else {"ranks": spec.cards}),
        "versions": dict(versions),
    }


def check_same(record: Mapping[str, Any], now: Mapping[str, Any], folder: RunDirectory) -> list[str]:
    """That a run is gone on with as it was begun; a note for each other version of a library, and for another length.

    What only watches (saving, logging, reporting) may change, and how long it trains. Raises InputError naming
    everything else that did.
    """
    changed = []
    for part in ("run", "settings"):
        before, after = record.get(part) or {}, now[part]
        free = ("save_steps", "logging_steps", "report_to", "stack", *_LENGTH)
        changed += [
            f"{name} was {short(before.get(name), 120)} and is {short(after[name], 120)}"
            for name in after
            if name not in free and before.get(name) != after[name]
        ]
    if (record.get("model") or {}).get("id") != now["model"]["id"]:
        changed.append(f"the model was {(record.get('model') or {}).get('id')} and is {now['model']['id']}")
    if (before := record.get("ranks") or 1) != (after := now.get("ranks") or 1):
        changed.append(f"it had {before} ranks and has {after}")
    if (record.get("data") or {}).get("files") != now["data"]["files"]:
        changed.append("the data is not what it was")
    if changed:
        raise InputError(
            f"--resume: {plain(folder.path)} was begun otherwise: {plain('; '.join(changed[:6]))};"
            " go on with what it was begun with, or start anew in another --output"
        )
    before, after = record.get("settings") or {}, now["settings"]
    notes = [f"{name.replace('_', ' ')} was {before.get(name)} and is {after[name]}: from here on the learning rate is"
             " that of the longer run" for name in _LENGTH if before.get(name) != after[name]]  # fmt: skip
    old, new = record.get("versions") or {}, now["versions"]
    return notes + [f"{name} was {old[name]} and is {new[name]}: going on, not bit for bit" for name in old
            if name in new and old[name] != new[name]]  # fmt: skip


class Metrics:
    """metrics.jsonl, a line at a time. Raises RunError where the disk takes no more."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(self, kind: str, fields: Mapping[str, Any]) -> None:
        """One line."""
        try:
            with self._path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({"kind": kind, **fields}) + "\n")
        except OSError as error:
            raise RunError(f"{plain(self._path)} cannot be written: {error.strerror or error}") from error


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Every whole line, in order; a step that was done again after a resume counts as it was done last."""
    rows: list[dict[str, Any]] = []
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return rows
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue  # cut off when the process was killed
        if isinstance(row, dict) and _is_sound(row):
            rows.append(row)
    # From the end, so that it takes as long as there are lines: what a later attempt began below was done again.
    kept, again_from = [], inf
    for row in reversed(rows):
        if row["kind"] == "attempt":
            again_from = min(again_from, row.get("from_step") or 0)
        elif (row.get("step") or 0) > again_from:
            continue
        kept.append(row)
    return kept[::-1]


def _is_sound(row: Mapping[str, Any]) -> bool:
    """Whether a line says what its kind says, and in numbers: a disk that was damaged may hold anything."""
    kind = row.get("kind")
    if not isinstance(kind, str) or any(name not in row for name in _NEEDED.get(kind, ())):
        return False
    return all(type(row[name]) in (int, float, type(None)) for name in _NUMBERS if name in row) and not (
        row.get("step") is None and kind in ("step", "evaluation", "checkpoint")
    )


def summary(
    record: Mapping[str, Any],
    attempts: Sequence[Attempt],
    metrics: Sequence[Mapping[str, Any]],
    predicted: Mapping[str, Any] | None,
    *,
    speed: Mapping[str, Any] | None,
    wall_s: float,
    folder: RunDirectory,
    notes: Sequence[str],
) -> dict[str, Any]:
    """summary.json: what was run, how it went, predicted beside measured; `speed` is predicted for its own rows."""
    last = attempts[-1]
    result = last.facts
    steps = [row for row in metrics if row["kind"] == "step"]
    losses = [row["loss"] for row in steps if row.get("loss") is not None]
    evaluations = [row["eval_loss"] for row in metrics if row["kind"] == "evaluation"]
    seconds = [row["step_s"] for row in steps if row.get("step_s") is not None][_WARM_UP:]
    training = (result.get("phases") or {}).get("training") or {}
    ranks = _ranks(result)
    nvml = result.get("nvml") or {}
    done = last.outcome == "ok"
    return {
        "schema": SUMMARY_SCHEMA,
        "outcome": last.outcome,
        "message": None if done else last.says,
        "model": record["model"],
        "run": last.run.to_dict(),
        "settings": record["settings"],
        "data": {**record["data"], "rows": result.get("rows"), "rows_given": result.get("rows_given"),
                 "eval_rows": result.get("eval_rows"), "longest": result.get("longest")},
        "device": record["device"],
        "gpu": result.get("gpu"),
        "stack": result.get("versions") or record["versions"],
        "steps": result.get("steps") or (steps[-1]["step"] if steps else 0),
        "of": result.get("of") or (steps[-1].get("of") if steps else None),
        "epochs": result.get("epochs"),
        "loss": {"first": losses[0] if losses else None, "last": losses[-1] if losses else None,
                 "least": min(losses, default=None), "evaluation": evaluations[-1] if evaluations else None},
        "rewards": _rewards(steps),
        "tokens": sum(row.get("tokens") or 0 for row in steps),
        "speed": {
            "step_s": median(seconds) if seconds else None,
            "tokens_per_s": sum(row.get("tokens") or 0 for row in steps[_WARM_UP:]) / sum(seconds) if seconds else None,
            "predicted": speed,
        },
        "memory": {
            "predicted": _peak(predicted),
            "allocated_bytes": training.get("allocated_bytes"),
            "reserved_bytes": training.get("reserved_bytes"),
            "device_bytes": max((row["device_bytes"] or 0 for row in ranks), default=None) or nvml.get(
                "process_peak_bytes"
            ),
            "phases": {row["phase"]: {name: row[name] for name in ("device_bytes", "predicted_bytes")}
                       for row in metrics if row["kind"] == "phase"},
            "others_bytes": nvml.get("others_bytes"),
            "host_bytes": result.get("rss_peak_bytes"),
            **({"ranks": ranks} if ranks else {}),
        },
        "params": result.get("params"),
        "trainable_params": result.get("trainable_params"),
        "wall_s": wall_s,
        "attempts": [
            {"number": attempt.number, "outcome": attempt.outcome, "from_step": attempt.from_step, "says": attempt.says,
             "rung": attempt.rung} for attempt in attempts
        ],
        "adapter": {"path": str(folder.adapter), "size_bytes": _size(folder.adapter)} if done else None,
        "checkpoint": last.checkpoint,
        "notes": list(notes),
    }  # fmt: skip


def _rewards(steps: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]] | None:
    """First and last of each figure that the trainer told of rewards; None where it told none."""
    values_of = {name: [row[name] for row in steps if row.get(name) is not None] for name in FIGURES}
    return {name: {"first": values[0], "last": values[-1]} for name, values in values_of.items() if values} or None


def mean_tokens(metrics: Sequence[Mapping[str, Any]], run: RunConfig, ranks: int = 1) -> int | None:
    """Tokens of the rows that a micro-batch of a rank held, padding counted, at the mean of the steps; None without
    steps."""
    counts = [row["tokens"] for row in metrics if row["kind"] == "step" and row.get("tokens")]
    return round(sum(counts) / len(counts) / run.batch_size / run.grad_accum / ranks) if counts else None


def _peak(predicted: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The peak of an estimate; most may be allocated in another phase than that in which most is reserved."""
    peak = (predicted or {}).get("peak")
    if predicted is None or peak is None:
        return None
    allocated = [phase.get("allocated_bytes") for phase in predicted.get("phases") or ()]
    return {**peak, "allocated_bytes": max(filter(None, allocated), default=peak.get("allocated_bytes"))}


def _ranks(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What each rank of several measured; empty where there was one process."""
    rows = []
    for reading in result.get("ranks") or ():
        training, nvml = (reading.get("phases") or {}).get("training") or {}, reading.get("nvml") or {}
        rows.append({
            "rank": reading.get("rank", 0), "gpu": reading.get("gpu"),
            "parameter_bytes": reading.get("parameter_bytes"),
            "allocated_bytes": training.get("allocated_bytes"), "reserved_bytes": training.get("reserved_bytes"),
            "device_bytes": nvml.get("process_peak_bytes"), "host_bytes": reading.get("rss_peak_bytes"),
        })  # fmt: skip
    return rows


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def evidence(
    spec: LaunchSpec,
    attempt: Attempt,
    *,
    created: str,
    config: Mapping[str, Any],
    config_sha256: str | None,
    predicted: Mapping[str, Any] | None,
) -> Measurement | None:
    """The attempt as evidence for `calibrate`; None where nothing was measured on a card, or on several.

    A run that evaluates is none either: its peak may be an evaluation's. Another counts as the run of its longest
    batch: that is what made its peak. Its steps were of rows of all lengths, so no step time is kept.
    """
    result = attempt.facts
    if (
        spec.cards > 1
        or spec.device != "cuda"
        or attempt.outcome not in ("ok", "out-of-memory")
        or not result.get("gpu")
    ):
        return None
    run: RunConfig = attempt.run
    if run.eval_batch_size is not None:
        return None
    longest = result.get("longest")
    if longest and not run.packing and longest < run.seq_len:
        run = run.with_(seq_len=int(longest))
        predicted = None  # it was made for another length
    failed = attempt.outcome == "out-of-memory"
    return Measurement(
        created=created,
        model=spec.model_id,
        config_sha256=config_sha256,
        config=dict(config),
        params=result.get("params"),
        trainable_params=result.get("trainable_params"),
        run=run,
        stack=dict(result.get("versions") or {}),
        gpu=CardReading(**result["gpu"]),
        cap_bytes=spec.cap_bytes,
        outcome=attempt.outcome,
        failed_phase={"rehearsal": "training"}.get(str(result.get("phase")), str(result.get("phase")))
        if failed
        else None,
        error=result.get("message") if failed else None,
        requested_bytes=result.get("requested_bytes"),
        phases={name: PhaseReading(**figures) for name, figures in (result.get("phases") or {}).items()},
        nvml=NvmlReading(**(result.get("nvml") or {})),
        host=HostReading(rss_peak_bytes=result.get("rss_peak_bytes"), paged_bytes=result.get("paged_bytes")),
        predicted=predicted,
        notes=(*result.get("notes", ()), "a training run on its own data: rows of all lengths"),
    )
