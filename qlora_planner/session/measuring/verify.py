"""A verification: what the child is told and what is predicted for it, the least limit, and the evidence kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlora_planner.catalog.parallel import PIPELINE
from qlora_planner.errors import InputError, MissingError
from qlora_planner.exchange.scripts.accelerate import launch_config
from qlora_planner.measure.process import versions
from qlora_planner.memory.parallel.choice import for_cards
from qlora_planner.memory.unmodelled.left_out import guessed
from qlora_planner.record import record
from qlora_planner.session.cards import PlannedCard
from qlora_planner.session.packages import Warn, check_executable, without_card
from qlora_planner.session.training.ranks import check_ranks
from qlora_planner.spec.run import RunConfig
from qlora_planner.units import format_mib

if TYPE_CHECKING:
    from qlora_planner.evidence import Measurement
    from qlora_planner.measure.children import Progress
    from qlora_planner.measure.floor import Floor
    from qlora_planner.measure.spec import ChildSpec
    from qlora_planner.memory import MemoryEstimate
    from qlora_planner.session.measuring.this_card import ThisCard
    from qlora_planner.session.session import Session
    from qlora_planner.spec.model import ModelProfile

SCHEMA = "qlora-plan/verification/1"
# Made up in a quarter of a minute.
_MOST_TOKENS = 1 << 24

Hear = Callable[["Progress"], None]


@record
class Verification:
    """Real steps with what was predicted for them; `kept` is the file that the evidence is in, None: it says nothing.

    `floor` is the least limit on torch under which the run works, where that was looked for. Of several ranks,
    `measurement` is that of the one that ended badly or held most, and `ranks` has all of them by their numbers.
    """

    measurement: Measurement
    floor: Floor | None = None
    kept: str | None = None
    ranks: tuple[Measurement, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The JSON document `qlora-plan/verification/1`."""
        from qlora_planner.report.comparison import to_document

        floor = self.floor
        limits = None if floor is None else {"works_bytes": floor.works_bytes, "fails_bytes": floor.fails_bytes}
        ranks = [
            {"rank": number, "measurement": rank.to_dict(), "comparison": to_document(rank)}
            for number, rank in enumerate(self.ranks)
        ]
        return {
            "schema": SCHEMA,
            "measurement": self.measurement.to_dict(),
            "comparison": to_document(self.measurement),
            "floor": limits,
            **({"ranks": ranks} if ranks else {}),
        }


def unwatched(_model: str, _whole_bytes: int | None) -> AbstractContextManager[Hear]:
    """What nobody looks on at."""
    return nullcontext(lambda _progress: None)


def verify(
    session: Session,
    model: str,
    run: RunConfig,
    *,
    here: ThisCard | None,
    steps: int,
    floor: bool = False,
    save: bool = False,
    ranks: int = 1,
    watching: Callable[[str, int | None], AbstractContextManager[Hear]] = unwatched,
) -> Verification:
    """Real steps of this run with random weights in a process of its own, kept where `calibrate` finds them.

    `here` is this machine's card, or its cards, None the CPU; there are `ranks` processes, one a card, and what several
    measure is no evidence for `calibrate`. With `floor` more runs look for the least limit that works, with `save`
    the evidence is written beside the session's profiles too. `watching` is called with the model's id and the bytes of
    the card, and gives what hears of progress. A run out of memory is an outcome, no error.
    Raises MissingError for packages that are not installed, a card in use and a run that the stack refuses; InputError
    for a model that means nothing and for more tokens than are made up.
    """
    from qlora_planner.measure import events_file
    from qlora_planner.measure.verify import verify as measure
    from qlora_planner.measure.verify import verify_ranks
    from qlora_planner.report.comparison import to_document
    from qlora_planner.session.measuring.this_card import check_packages, check_room

    check_amount(run, steps)
    run = for_cards(run, ranks)[0]
    check_ranks(run, ranks, versions())
    if run.parallel == PIPELINE:
        raise InputError("verify: one process of a pipeline is not measured here; `qlora-plan train` reads every card")
    device = "cpu" if here is None else "cuda"
    check_executable(run, device)
    check_packages(run)
    if here is None and (note := without_card(run)):
        session.tell(note)
    spec, predicted = specification(
        session, model, session.model(model), run, here, device=device, steps=steps, ranks=ranks
    )
    if here is not None and predicted is not None:
        check_room(here, predicted, session.tell)
    if run.vllm == "server":
        session.tell("the vLLM server gets the random weights that are made up here: start it again before you use it")
    with heard(spec, here, watching) as hear:
        if ranks > 1:
            measured = verify_ranks(spec, tell=hear)
            return Verification(measurement=_deciding(measured), ranks=measured)
        measurement = measure(spec, tell=hear)
    events_file.tell("compared", to_document(measurement))
    least = None
    if floor and predicted is not None and measurement.outcome == "ok":
        least = least_limit(spec, measurement, predicted, session.tell)
    kept = keep(session, measurement, save=save)
    for _, attempt in () if least is None else least.tries:
        keep(session, attempt, save=save)
    return Verification(measurement=measurement, floor=least, kept=kept)


@contextmanager
def heard(
    spec: ChildSpec, here: ThisCard | None, watching: Callable[[str, int | None], AbstractContextManager[Hear]]
) -> Iterator[Hear]:
    """What hears of a child's progress: whoever looks on, and the events file, which is told what was predicted."""
    from qlora_planner.measure import events_file

    events_file.tell("predicted", {"estimate": spec.predicted})
    with watching(spec.model_id, None if here is None else here.gpu.memory_bytes) as hear:

        def both(progress: Progress) -> None:
            events_file.pass_on(progress)
            hear(progress)

        yield both


def _deciding(ranks: tuple[Measurement, ...]) -> Measurement:
    """The rank that ended badly, before those that were ended with it; else the one that held most."""
    bad = [rank for rank in ranks if rank.outcome != "ok"]
    most = [rank.nvml.process_peak_bytes or 0 for rank in ranks]
    return next((rank for rank in bad if rank.phases), bad[0]) if bad else ranks[most.index(max(most))]


def cards_for(
    session: Session, model: str, card: PlannedCard | None, *, cap_bytes: int | None = None, device: str = "cuda"
) -> tuple[int, ThisCard | None]:
    """How many ranks a run takes, and this machine's cards for them; None on the CPU.

    They are those of `card`, else those of the plan file at `model`. Raises InputError for several nodes, MissingError
    as `this_card_as` does.
    """
    from qlora_planner.session.measuring.this_card import these_cards, this_card_as
    from qlora_planner.session.training.ranks import cards_here

    gpu = (_plan_at(model) or {}).get("gpu")
    planned = cards_here(gpu) if isinstance(gpu, dict) else 1
    ranks = planned if card is None or card.count == 1 else card.count
    if device == "cpu":
        return ranks, None
    if ranks == (1 if card is None else card.count):
        return ranks, this_card_as(session, card, cap_bytes)
    return ranks, these_cards(ranks)


def _plan_at(model: str) -> Any:
    path = Path(model)
    if path.suffix.lower() not in (".yaml", ".yml", ".json") or not path.is_file() or path.name == "config.json":
        return None
    from qlora_planner.exchange.files import read_yaml
    from qlora_planner.exchange.plan_file import is_plan

    raw = read_yaml(path)
    return raw if is_plan(raw) else None  # else a config.json under another name


def run_of_file(model: str, explicit: dict[str, Any]) -> tuple[str, RunConfig]:
    """The model and the run: of a plan file where MODEL is one, with what was typed in place of what it says."""
    raw = _plan_at(model)
    if raw is None:
        return model, RunConfig(**explicit)
    from qlora_planner.exchange.plan_file import plan_of

    plan = plan_of(raw, model)
    return plan.model_id, plan.run.with_(**explicit)


def check_amount(run: RunConfig, steps: int) -> None:
    """Raises InputError for more tokens than are made up in a minute: memory does not rise with them."""
    tokens = run.tokens * run.grad_accum * steps
    if tokens > _MOST_TOKENS:
        raise InputError(
            f"verify: {tokens:,} tokens are more than the {_MOST_TOKENS:,} that it makes up; fewer --steps or a smaller"
            " --grad-accum take the same memory"
        )


def specification(
    session: Session,
    named: str,
    profile: ModelProfile,
    run: RunConfig,
    here: ThisCard | None,
    *,
    device: str,
    steps: int,
    ranks: int = 1,
    card: PlannedCard | None = None,
) -> tuple[ChildSpec, MemoryEstimate | None]:
    """What the child is told, and what is predicted for it; nothing is for ranks on the CPU, which have no cards.

    `card` is what the prediction is of, where that is another than the one here.

    Raises MissingError for a run that this card or stack refuses.
    """
    from qlora_planner import session as answers
    from qlora_planner.measure.spec import ChildSpec

    raw = answers.config_of(profile, session.profiles)
    config = deepcopy(dict(raw.config))  # transformers completes nested parts of a config in place
    if run.shows_images:
        from qlora_planner.profiling.whole import whole_config

        config = dict(whole_config(config, raw.id))
    elif profile.text_part_of is not None:
        from qlora_planner.profiling.text_part import text_part

        session.tell(f"{profile.id} takes images or sound too: its text part alone is measured")
        config = dict(text_part(config, raw.id)[0])
    folder = Path(named)
    real = device == "cuda" and profile.text_part_of is None and folder.is_dir() and any(folder.glob("*.safetensors"))
    if run.vllm == "colocate" and not real:
        raise InputError(
            "--vllm colocate: vLLM loads the weights by itself, and those made up here are in no file: name a folder"
            " that holds the model's weights as MODEL"
        )
    if device == "cpu":
        from qlora_planner.sources.configs import RawConfig, config_sha256
        from qlora_planner.train.toy import toy_config

        small = toy_config(deepcopy(config))
        toy = RawConfig(id=raw.id, config=small, sha256=config_sha256(small), origin="toy")
        profile = answers.profile_of(toy, warn=session.tell)
    if ranks > 1 and here is None:
        from qlora_planner.memory.options.resolve import resolve

        predicted, resolved = None, resolve(profile, run).run
    else:
        predicted = session.open(profile, card or (None if here is None else _card(here))).estimate(run)
        resolved = predicted.run
        refused = [problem for problem in predicted.problems if problem.blocking]
        if refused:
            raise MissingError(f"{refused[0].message}; use {refused[0].fix}")
    guess = None if predicted is None else guessed(predicted, profile)
    if guess:
        session.tell(f"nothing is predicted for this run: {guess}")
    spec = ChildSpec(
        run=resolved,
        model_id=raw.id,
        config=None if real else config,
        model_dir=str(folder) if real else None,
        config_sha256=raw.sha256,
        tied_stored=profile.tied_stored,
        device=device,
        cap_bytes=here.cap_bytes if here else None,
        steps=steps,
        snapshot=ranks == 1,  # who holds what is not told apart of tensors that are shards of others
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        predicted=None if predicted is None or guess else predicted.to_dict(),
        ranks=ranks,
        launch=launch_config(resolved, ranks, device) if ranks > 1 else None,
    )
    return spec, None if guess else predicted


def _card(here: ThisCard) -> PlannedCard:
    return PlannedCard(
        gpu=here.gpu, asked=here.gpu.name, reserve_bytes=here.others_bytes, cap_bytes=here.cap_bytes, count=here.cards
    )


def least_limit(spec: ChildSpec, measured: Measurement, predicted: MemoryEstimate, tell: Warn) -> Floor | None:
    """The least limit on torch under which the run works, by more runs; None where torch told nothing."""
    from qlora_planner.measure.floor import find_floor

    reserved = [phase.reserved_bytes for phase in measured.phases.values() if phase.reserved_bytes is not None]
    if not reserved:
        tell("--floor: torch told nothing of what it reserved")
        return None
    tell("looking for the least limit that works: about eight more runs")
    return find_floor(
        spec,
        min(predicted.static.after_load, max(reserved)),
        max(reserved),
        tell=lambda cap, outcome: tell(f"under {format_mib(cap)}: {outcome}"),
    )


def keep(session: Session, measured: Measurement, *, save: bool) -> str | None:
    """Put the evidence where `calibrate` finds it; what was interrupted says nothing, nor what vLLM took part in."""
    from qlora_planner.sources.evidence import append, shared_path
    from qlora_planner.sources.locations import evidence_path, repository_profiles

    if measured.outcome == "interrupted" or measured.run.vllm == "colocate":
        return None  # a colocated vLLM's memory is in torch's figures too
    path = evidence_path()
    append(path, measured)
    if save:
        root = Path(session.profiles) if session.profiles else repository_profiles()
        if root is None:
            raise InputError("--save: name the folder with --profiles DIR; this is no checkout of the repository")
        append(shared_path(root, measured), measured)
    return str(path)
