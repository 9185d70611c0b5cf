"""What is to be trained: a plan, a model that is planned first, or a run that is gone on with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlora_planner.catalog.trainers import data_task
from qlora_planner.errors import InputError
from qlora_planner.record import record
from qlora_planner.session.data import DataSource
from qlora_planner.spec.risk import TIGHT_AT_MOST
from qlora_planner.spec.run import RunConfig
from qlora_planner.text import plain
from qlora_planner.train.settings import Settings

if TYPE_CHECKING:
    from qlora_planner.runs.directory import RunDirectory
    from qlora_planner.session.cards import PlannedCard

SETTINGS = (
    "epochs", "max_steps", "learning_rate", "warmup", "scheduler", "save_steps", "logging_steps", "seed", "eval_split",
    "assistant_only_loss", "pad_token", "report_to", "reward",
)  # fmt: skip


@record
class TrainOptions:
    """How a training is started; the names are those of the command line.

    `data` is what to train on, `output` the run's own folder, `weights` where the weights are if the model's name does
    not lead there. `settings` are fields of `train.settings.Settings`. With `yes` it starts though it may not fit, with
    `force` over what is in its folder; without `recover` no smaller run is tried when memory runs out. `card` is the
    one to plan for and to behave like, None the one in this machine, less `reserve_bytes` and under `cap_bytes`;
    `risk` is the chance of running out that is taken there, and with `adjust` options that were given may be changed
    where nothing fits so.
    """

    data: str | None = None
    output: str | None = None
    weights: str | None = None
    tokenizer: str | None = None
    bad_rows: str = "refuse"
    device: str | None = None
    resume: bool = False
    yes: bool = False
    force: bool = False
    recover: bool = True
    settings: Mapping[str, Any] = field(default_factory=dict)
    card: PlannedCard | None = None
    reserve_bytes: int | None = None
    cap_bytes: int | None = None
    risk: float = TIGHT_AT_MOST
    adjust: bool = False


@record
class TrainRequest:
    """What is to be run. `model` leads to config and profile, `weights` to the weights. `plan` is the document of a
    plan, `record` the run.json of a run that is gone on with; `planned` says that the run needs no plan, `explicit`
    are the options of the run that were given."""

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
    options: TrainOptions
    plan: Mapping[str, Any] | None = None
    record: Mapping[str, Any] | None = None
    explicit: Mapping[str, Any] = field(default_factory=dict)

    @property
    def source(self) -> DataSource:
        """The dataset and how it is counted."""
        return DataSource(path=self.data, tokenizer=self.tokenizer, bad_rows=self.bad_rows, task=data_task(self.run))


def request_of(
    what: str, explicit: Mapping[str, Any], options: TrainOptions, plan: Mapping[str, Any] | None = None
) -> TrainRequest:
    """The request of a plan file, a model, or with `resume` the folder of a run; `plan` is the document of a plan of
    the model that is at hand.

    Raises InputError for a plan that is none, missing data, and a run that cannot be gone on with.
    """
    from qlora_planner.runs.directory import RunDirectory, read_record

    if options.resume:
        folder = RunDirectory(Path(options.output or what))
        if options.output is None and not folder.path.is_dir():
            raise InputError("--resume: name the folder of the run, as --output DIR or in place of the MODEL")
        return _resumed(what, explicit, options, folder, read_record(folder))
    if Path(what).is_dir() and (Path(what) / "run.json").is_file():
        raise InputError(f"{plain(what)} is the folder of a run; --resume goes on with it")
    if options.data is None:
        raise InputError("--data is missing: name the samples to train on, as --data train.jsonl")
    planned = _plan_of(what) if plan is None else _plan_at_hand(plan)
    model = what if planned is None else planned[0]
    run = RunConfig(**explicit) if planned is None else planned[1].with_(**explicit)
    name = Path(model.rstrip("/")).name
    run, settings = _with_evaluation(run, Settings(**_settings(options)))
    weights = options.weights or model
    if planned is not None and plan is None:
        weights = _seen_from_plan(weights, what)
    return TrainRequest(
        model=weights,
        weights=weights,
        run=run,
        settings=settings,
        folder=RunDirectory(Path(options.output or Path("runs") / name)),
        data=options.data,
        tokenizer=options.tokenizer,
        bad_rows=options.bad_rows,
        device=options.device or "cuda",
        planned=planned is not None,
        options=options,
        plan=None if planned is None else planned[2],
        explicit=explicit,
    )


def _resumed(
    what: str, explicit: Mapping[str, Any], options: TrainOptions, folder: RunDirectory, record: Mapping[str, Any]
) -> TrainRequest:
    """The run as it was begun, with what was given: `check_same` then says whether that is the same."""
    plan = None if Path(what).is_dir() else _plan_of(what)
    base = RunConfig.from_dict(record["run"], str(folder.record)) if plan is None else plan[1]
    settings = Settings.from_dict({**record["settings"], **_settings(options)}, str(folder.record))
    run, settings = _with_evaluation(base.with_(**explicit), settings)
    data, model = record["data"], record["model"]
    return TrainRequest(
        model=options.weights or (plan[0] if plan is not None else model["path"]),
        weights=options.weights or model["path"],
        run=run,
        settings=settings,
        folder=folder,
        data=options.data or data["path"],
        tokenizer=options.tokenizer or record["tokenizer"],
        bad_rows=data["bad_rows"],
        device=options.device or record["device"],
        planned=True,
        options=options,
        plan=None if plan is None else plan[2],
        record=record,
        explicit=explicit,
    )


def _plan_at_hand(document: Mapping[str, Any]) -> tuple[str, RunConfig, Mapping[str, Any]]:
    """Model, run and document of a plan that was just made."""
    model = document["model"]
    return str(model.get("path") or model["id"]), RunConfig.from_dict(document["run"], "plan: run"), document


def _plan_of(what: str) -> tuple[str, RunConfig, Mapping[str, Any]] | None:
    """Model, run and document of a plan file; None for what names a model."""
    path = Path(what)
    if path.suffix.lower() not in (".yaml", ".yml", ".json") or path.name == "config.json":
        return None
    from qlora_planner.exchange.files import read_yaml
    from qlora_planner.exchange.plan_file import plan_of

    plan = plan_of(read_yaml(path), str(path))
    return plan.model_path or plan.model_id, plan.run, plan.document


def _seen_from_plan(model: str, what: str) -> str:
    """A plan names a local model by its folder: seen from the plan, or (older plans) from where it was made."""
    for folder in (Path(what).parent / model, Path(model)):
        if (folder / "config.json").is_file():
            return str(folder)
    return model


def _settings(options: TrainOptions) -> dict[str, Any]:
    """The settings that were given, with files named so that they are found from anywhere."""
    from qlora_planner.train.rewarding.rewards import absolute

    given = dict(options.settings)
    if given.get("reward"):
        given["reward"] = tuple(map(absolute, given["reward"]))
    return given


def _with_evaluation(run: RunConfig, settings: Settings) -> tuple[RunConfig, Settings]:
    """Rows are held out where the run evaluates, and it evaluates where rows are held out."""
    if settings.eval_split is not None and run.eval_batch_size is None:
        run = run.with_(eval_batch_size=run.batch_size)
    return run, settings
