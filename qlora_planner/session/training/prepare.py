"""What is looked at and planned before a training process is started."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlora_planner.catalog.trainers import data_task, trainer_named
from qlora_planner.errors import InputError, MissingError, RefusedError, UnsureError
from qlora_planner.measure.process import versions
from qlora_planner.memory.parallel.choice import for_cards
from qlora_planner.record import record
from qlora_planner.session.data import summary_of, with_longest
from qlora_planner.session.measuring.this_card import ThisCard, check_packages, these_cards, this_card_as
from qlora_planner.session.packages import check_executable, without_card
from qlora_planner.session.towers import with_tower
from qlora_planner.session.training.ranks import check_ranks, pipeline_map, ranks_of
from qlora_planner.session.training.request import TrainRequest
from qlora_planner.spec.run import RunConfig

if TYPE_CHECKING:
    from qlora_planner.data.batches.summary import DataSummary
    from qlora_planner.planner.plan import Plan
    from qlora_planner.runs.spec import LaunchSpec
    from qlora_planner.session.cards import PlannedCard
    from qlora_planner.session.session import Session
    from qlora_planner.session.training.onlooker import Onlooker
    from qlora_planner.spec.model import ModelProfile


@record
class Prepared:
    """A training that nothing is known to stand in the way of.

    `profile` is None where nothing is planned by one, `here` None on the CPU; `document` is what plan.yaml will hold.
    """

    request: TrainRequest
    spec: LaunchSpec
    profile: ModelProfile | None
    here: ThisCard | None
    document: Mapping[str, Any]


def prepare(session: Session, request: TrainRequest, onlooker: Onlooker) -> Prepared:
    """Everything that can be known to be wrong before a process is started; a model is planned for, and asked about.

    Raises InputError, MissingError and RefusedError as `Workbench.train` does.
    """
    from qlora_planner.data.hub import rows_of
    from qlora_planner.runs.child.reporters import check_reporters
    from qlora_planner.runs.spec import LaunchSpec
    from qlora_planner.runs.weights import check_stored, weights_folder

    card = request.options.card
    capped = request.options.cap_bytes is not None or (card is not None and card.cap_bytes is not None)
    if request.device == "cpu" and capped:
        raise InputError("--device cpu: --cap needs a card; leave it out")
    _check_images(request)
    check_executable(request.run, request.device)
    check_packages(request.run)
    if request.device == "cpu" and (note := without_card(request.run)):
        session.tell(note)
    ranks = ranks_of(request)
    if request.planned or ranks == 1:  # else the plan says which strategy fits
        request = replace(request, run=for_cards(request.run, ranks)[0])
    check_ranks(request.run, ranks, versions())
    check_reporters(request.settings.report_to)
    _check_rewarded(request)
    request = replace(request, data=rows_of(request.data, session.tell))
    request = _with_labels(request)
    _check_data(request)
    _check_rewards(request)
    folder = weights_folder(request.weights, session.tell)
    if note := check_stored(folder, request.run, request.model):
        session.tell(note)
    here = _this_card(session, request, ranks) if request.device == "cuda" else None
    profile = _profile_of(session, request)
    run, document = _planned(session, request, profile, here, onlooker)
    check_ranks(run, ranks, versions())
    placed = pipeline_map(run, ranks, profile, request.device)
    spec = LaunchSpec(
        run=run,
        settings=request.settings,
        model_id=_name(request, folder),
        weights=str(folder.absolute()),
        tokenizer=request.tokenizer,
        data=str(Path(request.data).absolute()),
        bad_rows=request.bad_rows,
        output=str(request.folder.path.absolute()),
        device=request.device,
        cap_bytes=None if here is None else here.cap_bytes,
        quantized=None if profile is None else _quantized(profile, run),
        ranks=ranks if placed is None else 1,
        device_map=placed,
    )
    return Prepared(request=request, spec=spec, profile=profile, here=here, document=document)


def counted(session: Session, request: TrainRequest, onlooker: Onlooker) -> DataSummary:
    """The lengths of the dataset, by the model's own tokenizer. Raises as `data.summarise` does."""
    with onlooker.counting(request.data) as moved:
        return summary_of(request.source, request.weights, tell=session.tell, moved=moved)


def _this_card(session: Session, request: TrainRequest, ranks: int) -> ThisCard:
    try:
        if request.options.card is None and ranks > 1:
            return replace(these_cards(ranks), cap_bytes=request.options.cap_bytes)
        return this_card_as(session, request.options.card, request.options.cap_bytes)
    except MissingError as error:
        raise MissingError(f"{error}; or train on the CPU with --device cpu") from None


def _profile_of(session: Session, request: TrainRequest) -> ModelProfile | None:
    """The profile of the model; None on the CPU for a plan whose model has none yet: nothing there is planned by it."""
    if request.planned and request.device == "cpu" and request.run.trainer is not None:
        with suppress(MissingError):
            return with_tower(session.model(request.model, build="never"), request.run, profiles=session.profiles)
        return None
    return with_tower(session.model(request.model), request.run, profiles=session.profiles, warn=session.tell)


def _with_labels(request: TrainRequest) -> TrainRequest:
    """The request of a classifier with the number of labels that its data has, where none was given.

    Raises InputError for labels that do not fit together or the number given.
    """
    if request.run.task is None:
        return request
    from qlora_planner.data import labels_in

    labels = labels_in(request.data, request.run.num_labels, bad_rows=request.bad_rows)
    return replace(request, run=request.run.with_(num_labels=labels.count))


def _check_data(request: TrainRequest) -> None:
    """Raises InputError for what cannot be trained on: of a file that is soon read, every row."""
    from qlora_planner import data
    from qlora_planner.data.files import find_files
    from qlora_planner.runs.dataset import IN_MEMORY_BYTES

    trainer = trainer_named(request.run.trainer)
    if data_task(request.run) is None:
        data.check_rows(request.data, trainer.row_shapes, trainer.name)
    # Larger data is read by the child alone: its faults then come a little later.
    if sum(file.size_bytes for file in find_files(request.data)) <= IN_MEMORY_BYTES:
        for _ in data.rows(request.data, bad_rows=request.bad_rows, task=data_task(request.run)):
            pass


def _check_images(request: TrainRequest) -> None:
    """Raises InputError for a run with images that is not trained here."""
    run = request.run
    if not run.shows_images:
        return
    if run.images == 0:
        raise InputError("--images 0: train on text leaves the tower idle, which is not trained here; leave it out")
    if run.image_size is None:
        raise InputError("train: images are made to fit a size: say --image-size WIDTHxHEIGHT")
    if not request.planned and "seq_len" not in request.explicit:
        raise InputError("train: no data says how long rows with images are before they are read: say --seq-len")


def _check_rewarded(request: TrainRequest) -> None:
    """Raises InputError where rewards are named and nothing is generated, and the other way round."""
    trainer, rewards = trainer_named(request.run.trainer), request.settings.reward
    if trainer.generation is None and rewards:
        raise InputError(
            f"--reward is of trainers that generate completions, as trl-grpo; {trainer.name} learns from its data"
        )
    if trainer.generation is not None and request.run.parallel is not None:
        raise InputError(f"{trainer.name} is started on one card here: name one card, and no number before it")
    if trainer.generation is not None and not rewards:
        raise InputError(
            f"{trainer.name} learns from rewards: name a function of a Python file, as --reward rewards.py:length, or"
            " one of trl's own, as --reward think_format_reward"
        )


def _check_rewards(request: TrainRequest) -> None:
    """Raises InputError for a reward that cannot be called with rows of this data, MissingError for what it lacks."""
    if not request.settings.reward:
        return
    from qlora_planner import data
    from qlora_planner.train.rewarding.rewards import checked

    checked(
        request.settings.reward, next(data.rows(request.data, bad_rows=request.bad_rows, task=data_task(request.run)))
    )


def _name(request: TrainRequest, folder: Path) -> str:
    """What the adapter names as its base: a Hub id as it is, a folder by its path, the same at every start."""
    model = None if request.record is None else request.record["model"]
    if model is not None and model["path"] == request.weights:
        return str(model["id"])
    return str(folder.absolute()) if Path(request.weights).exists() else request.weights


def _quantized(profile: ModelProfile, run: RunConfig) -> int:
    from qlora_planner.memory.weights.placement import Placement

    return Placement(profile, run).packed_matrices


def _planned(
    session: Session,
    request: TrainRequest,
    profile: ModelProfile | None,
    here: ThisCard | None,
    onlooker: Onlooker,
) -> tuple[RunConfig, Mapping[str, Any]]:
    """The run without unknowns, and the plan that plan.yaml will hold; a MODEL's plan is shown and asked about."""
    from qlora_planner.planner.plan import SCHEMA

    if not request.planned and (here is not None or request.options.card is not None):
        assert profile is not None
        return _plan(session, request, profile, here, onlooker)
    run = _fitted(session, request, onlooker)
    if profile is None:
        model = {"id": request.model}
        return run, request.plan or {"schema": SCHEMA, "model": model, "gpu": None, "run": run.to_dict()}
    from qlora_planner.memory.options.resolve import resolve

    resolution = resolve(profile, run, None if here is None else here.gpu)
    refused = [problem for problem in resolution.problems if problem.blocking]
    if refused:
        raise RefusedError(f"{refused[0].message}; use {refused[0].fix}")
    head = request.plan or {"schema": SCHEMA, "model": {"id": profile.id}, "gpu": None}
    if not request.planned:
        from qlora_planner.report.parts.labels import recipe

        onlooker.confirm(f"{profile.id} on the CPU, which nothing is planned for: {recipe(resolution.run)}")
    return resolution.run, {**head, "run": resolution.run.to_dict()}


def _fitted(session: Session, request: TrainRequest, onlooker: Onlooker) -> RunConfig:
    """The run of a MODEL with sequences as long as the longest row, unless their length was given."""
    if request.planned or "seq_len" in request.explicit:
        return request.run
    from qlora_planner.planner.sweeps import SEQ_STEP

    if trainer_named(request.run.trainer).generation is not None:
        return with_longest(request.run, counted(session, request, onlooker))
    longest = counted(session, request, onlooker).longest.tokens
    seq_len = min(request.run.seq_len, -(-longest // SEQ_STEP) * SEQ_STEP)
    if longest > seq_len:
        session.tell(f"the longest row has {longest:,} tokens: rows over {seq_len:,} are cut; --seq-len says otherwise")
    return request.run.with_(seq_len=seq_len)


def _plan(
    session: Session, request: TrainRequest, profile: ModelProfile, here: ThisCard | None, onlooker: Onlooker
) -> tuple[RunConfig, Mapping[str, Any]]:
    """What `qlora-plan plan --data` recommends, for the longest batch of this data."""
    from qlora_planner.session.plan_files import with_folder
    from qlora_planner.session.views.planned import PlanAnswer

    card = _card_of_plan(session, request)
    limited = card if here is None else replace(card, cap_bytes=here.cap_bytes)
    data = None if request.run.shows_images else counted(session, request, onlooker)
    plan = session.open(profile, limited).plan(request.run, request.explicit, data=data, adjust=request.options.adjust)
    plan = with_folder(plan, request.model)
    reasons = plan.estimate.fit.reasons if plan.estimate.fit else ()
    verdict, yes = plan.estimate.verdict, request.options.yes
    if verdict == "will-not-run" or (verdict == "does-not-fit" and not yes):
        raise RefusedError(_refused(plan, request, card.gpu.label))
    if verdict == "cannot-say" and not yes:
        raise UnsureError(
            f"cannot say whether {profile.id} fits {card.gpu.label}: {'; '.join(reasons)}; --yes tries it"
        )
    onlooker.confirm(PlanAnswer(plan=plan, asked=request.explicit, card=card.asked, bench=session.on(card)))
    return plan.run, plan.to_dict()


def _refused(plan: Plan, request: TrainRequest, card: str) -> str:
    """Why it is not begun, and what would be."""
    from qlora_planner.report.parts.plan_parts import nearest_words

    reasons = "; ".join(plan.estimate.fit.reasons) if plan.estimate.fit else ""
    words = f"{plan.model.id} {str(plan.estimate.verdict).replace('-', ' ')} on {card}: {reasons or 'too large'}"
    if plan.estimate.verdict == "will-not-run":
        return words
    near = nearest_words(plan, request.explicit)
    takes = "; --adjust takes it" if plan.nearest is not None else ""
    return f"{words}{f'; {near}' if near else ''}{takes}; --yes tries all the same"


def _card_of_plan(session: Session, request: TrainRequest) -> PlannedCard:
    """The card that was named, else the one in this machine."""
    from qlora_planner.session.cards import card_typed

    options = request.options
    if options.card is not None:
        return options.card
    card = card_typed(session, None, reserve_bytes=options.reserve_bytes, cap_bytes=options.cap_bytes)
    return replace(card, risk=options.risk)
