"""A training as Python asks for it: nobody to confirm anything, and an answer that shows itself."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from qlora_planner.errors import InputError
from qlora_planner.session.run_options import given_options
from qlora_planner.session.session import Session
from qlora_planner.session.training.execute import train
from qlora_planner.session.training.onlooker import Onlooker
from qlora_planner.session.training.request import SETTINGS, TrainOptions, request_of
from qlora_planner.session.views.planned import PlanAnswer
from qlora_planner.session.views.ran import TrainingAnswer
from qlora_planner.spec.risk import parse_risk

if TYPE_CHECKING:
    from qlora_planner.session.cards import PlannedCard
    from qlora_planner.spec.run import RunConfig

DEVICES = ("cuda", "cpu")
_STARTED = (
    "data", "output", "weights", "tokenizer", "bad_rows", "device", "resume", "yes", "force", "recover", "adjust",
)  # fmt: skip


def train_with(
    session: Session,
    what: str | os.PathLike[str] | PlanAnswer,
    run: RunConfig | None,
    card: PlannedCard | None,
    given: Mapping[str, Any],
) -> TrainingAnswer:
    """See `Workbench.train`; `given` are its arguments, options of the run and of `train.settings.Settings`, mixed."""
    started = {name: _as_text(given[name]) for name in _STARTED if name in given}
    settings = {name: given[name] for name in SETTINGS if name in given}
    for name in ("report_to", "reward"):
        if isinstance(settings.get(name), str):
            settings[name] = (settings[name],)
    others = {name: value for name, value in given.items() if name not in {*started, *settings, "risk"}}
    risk = parse_risk(given["risk"]) if given.get("risk") is not None else (card or session).risk
    options = TrainOptions(**started, settings=settings, card=card, risk=risk)
    if options.device not in (None, *DEVICES):
        raise InputError(f"device must be {' or '.join(DEVICES)}, not {options.device!r}")
    explicit = given_options(run, others)
    if isinstance(what, PlanAnswer):
        document = what.to_dict()
        request = request_of(str(document["model"].get("path") or document["model"]["id"]), explicit, options, document)
    else:
        request = request_of(os.fspath(what), explicit, options)
    return TrainingAnswer(trained=train(session, request, Onlooker(session.tell)))


def _as_text(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value
