"""What `train` is asked to run: a plan file, a model that is planned first, or a run that is gone on with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlora_planner.cli.data import summary_from
from qlora_planner.cli.values import Output
from qlora_planner.errors import InputError, MissingError
from qlora_planner.record import record
from qlora_planner.spec.run import RunConfig
from qlora_planner.text import plain
from qlora_planner.train.settings import Settings

if TYPE_CHECKING:
    from qlora_planner.runs.directory import RunDirectory
    from qlora_planner.spec.model import ModelProfile

SETTINGS = (
    "epochs", "max_steps", "learning_rate", "warmup", "scheduler", "save_steps", "logging_steps", "seed", "eval_split",
    "assistant_only_loss", "pad_token", "report_to",
)  # fmt: skip


@record
class Asked:
    """What is to be run. `model` leads to config and profile, `weights` to the weights. `plan` is the document of a
    plan file, `record` the run.json of a run that is gone on with; `planned` says that the run needs no plan."""

    model: str
    weights: str
    run: RunConfig
    settings: Settings
    folder: RunDirectory
    data: str
    tokenizer: str | None
    bad_rows: str
    device: str
    planned: bool
    plan: Mapping[str, Any] | None = None
    record: Mapping[str, Any] | None = None
    explicit: Mapping[str, Any] = field(default_factory=dict)


def asked_from(what: str, explicit: dict[str, Any], given: Mapping[str, Any]) -> Asked:
    """Raises InputError for a plan that is none, missing data, and a run that cannot be gone on with."""
    from qlora_planner.runs.directory import RunDirectory, read_record

    typed = {name: given[name] for name in SETTINGS if given.get(name) is not None}
    # A switch that is off and a list that is empty were not typed.
    settings = {name: value for name, value in typed.items() if value is not False and value != ()}
    if given["resume"]:
        folder = RunDirectory(Path(given["output"] or what))
        if given["output"] is None and not folder.path.is_dir():
            raise InputError("--resume: name the folder of the run, as --output DIR or in place of the MODEL")
        return _resumed(what, explicit, settings, given, folder, read_record(folder))
    if Path(what).is_dir() and (Path(what) / "run.json").is_file():
        raise InputError(f"{plain(what)} is the folder of a run; --resume goes on with it")
    if given["data"] is None:
        raise InputError("--data is missing: name the samples to train on, as --data train.jsonl")
    plan = _plan_of(what)
    model = what if plan is None else plan[0]
    run = RunConfig(**explicit) if plan is None else plan[1].with_(**explicit)
    name = Path(model.rstrip("/")).name
    run, chosen = _with_evaluation(run, Settings(**settings))
    place = given["weights"] or model
    if plan is not None:
        place = _place(place, what)
    return Asked(
        model=place,
        weights=place,
        run=run,
        settings=chosen,
        folder=RunDirectory(Path(given["output"] or Path("runs") / name)),
        data=given["data"],
        tokenizer=given["tokenizer"],
        bad_rows=given["bad_rows"],
        device=given["device"] or "cuda",
        planned=plan is not None,
        plan=None if plan is None else plan[2],
        explicit=explicit,
    )


def _resumed(
    what: str,
    explicit: dict[str, Any],
    settings: dict[str, Any],
    given: Mapping[str, Any],
    folder: RunDirectory,
    record: Mapping[str, Any],
) -> Asked:
    """The run as it was begun, with what was typed: `check_same` then says whether that is the same."""
    plan = None if Path(what).is_dir() else _plan_of(what)
    base = RunConfig.from_dict(record["run"], str(folder.record)) if plan is None else plan[1]
    known = Settings.from_dict({**record["settings"], **settings}, str(folder.record))
    run, chosen = _with_evaluation(base.with_(**explicit), known)
    data, model = record["data"], record["model"]
    return Asked(
        model=given["weights"] or (plan[0] if plan is not None else model["path"]),
        weights=given["weights"] or model["path"],
        run=run,
        settings=chosen,
        folder=folder,
        data=given["data"] or data["path"],
        tokenizer=given["tokenizer"] or record["tokenizer"],
        bad_rows=data["bad_rows"],
        device=given["device"] or record["device"],
        planned=True,
        plan=None if plan is None else plan[2],
        record=record,
        explicit=explicit,
    )


def _plan_of(what: str) -> tuple[str, RunConfig, Mapping[str, Any]] | None:
    """Model, run and document of a plan file; None for what names a model."""
    path = Path(what)
    if path.suffix.lower() not in (".yaml", ".yml", ".json") or path.name == "config.json":
        return None
    from qlora_planner.exchange.files import read_yaml
    from qlora_planner.exchange.plan_file import plan_of

    plan = plan_of(read_yaml(path), str(path))
    return plan.model_path or plan.model_id, plan.run, plan.document


def _place(model: str, what: str) -> str:
    """A plan names a local model by its folder: seen from the plan, or (older plans) from where it was made."""
    for folder in (Path(what).parent / model, Path(model)):
        if (folder / "config.json").is_file():
            return str(folder)
    return model


def _with_evaluation(run: RunConfig, settings: Settings) -> tuple[RunConfig, Settings]:
    """Rows are held out where the run evaluates, and it evaluates where rows are held out."""
    if settings.eval_split is not None and run.eval_batch_size is None:
        run = run.with_(eval_batch_size=run.batch_size)
    return run, settings


def fitted(asked: Asked, output: Output) -> RunConfig:
    """The run of a MODEL with sequences as long as the longest row, unless --seq-len was typed."""
    if asked.planned or "seq_len" in asked.explicit:
        return asked.run
    from qlora_planner.planner.sweeps import SEQ_STEP

    given = {"data": asked.data, "tokenizer": asked.tokenizer, "bad_rows": asked.bad_rows}
    found = summary_from(given, asked.weights, output)
    assert found is not None
    longest = found.longest.tokens
    seq_len = min(asked.run.seq_len, -(-longest // SEQ_STEP) * SEQ_STEP)
    if longest > seq_len:
        output.warn(f"the longest row has {longest:,} tokens: rows over {seq_len:,} are cut; --seq-len says otherwise")
    return asked.run.with_(seq_len=seq_len)


def profile_of(asked: Asked, output: Output) -> ModelProfile | None:
    """The profile of the model; None on the CPU for a plan whose model has none yet: nothing there is planned by it."""
    from qlora_planner.cli.loading import profile_for
    from qlora_planner.session import load_model

    if asked.planned and asked.device == "cpu" and asked.run.trainer is not None:
        try:
            return load_model(asked.model, profiles=output.profiles, build="never", warn=output.warn)
        except MissingError:
            return None
    return profile_for(asked.model, output)
