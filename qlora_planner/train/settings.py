"""How long, how fast and how watched a run trains: what decides no memory, and so stands in no plan."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from qlora_planner.errors import InputError
from qlora_planner.record import record
from qlora_planner.spec.faults import known_fields, refuse
from qlora_planner.text import quoted

LEARNING_RATE = 2e-4
SCHEDULERS = ("cosine", "linear", "constant", "constant_with_warmup")
REPORTERS = ("tensorboard", "wandb")
_LISTS = ("report_to", "reward")
# At ten a second a hundred million take four months; numpy takes seeds of 32 bits.
_MOST_STEPS, _MOST_SEED = 10**8, 2**32 - 1
# Used where a run evaluates and nobody said how much to hold out: what exported scripts hold out too.
EVAL_SPLIT = 0.02


@record
class Settings:
    """Settings of a training run beside its RunConfig.

    `epochs` passes over the data, unless `max_steps` optimizer steps end it earlier. `warmup` below 1 is a part of all
    steps, from 1 on a number of steps. A checkpoint (and an evaluation, where there is one) every `save_steps`.
    `eval_split` is the part of the rows that is held out, `report_to` the trainer's own reporters, `reward` names the
    functions that reward completions (see `train.rewards`).
    Raises InputError listing every value that is out of range.
    """

    epochs: float = 1.0
    max_steps: int | None = None
    learning_rate: float = LEARNING_RATE
    warmup: float = 0.03
    scheduler: str = "cosine"
    save_steps: int = 50
    logging_steps: int = 1
    seed: int = 42
    eval_split: float | None = None
    assistant_only_loss: bool = False
    pad_token: str | None = None
    report_to: tuple[str, ...] = ()
    reward: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        faults = [
            fault
            for fault in (
                _number("--epochs", self.epochs, above=0.0, most=10_000),
                None if self.max_steps is None else _whole("--max-steps", self.max_steps, 1, _MOST_STEPS),
                _number("--learning-rate", self.learning_rate, above=0.0, most=1.0),
                _number("--warmup", self.warmup, above=-1e-12, most=1e9),
                _whole("--save-steps", self.save_steps, 1, _MOST_STEPS),
                _whole("--logging-steps", self.logging_steps, 1, _MOST_STEPS),
                _whole("--seed", self.seed, 0, _MOST_SEED),
                None if self.eval_split is None else _number("--eval-split", self.eval_split, above=0.0, most=0.9),
                _choice("--scheduler", self.scheduler, SCHEDULERS),
                None if type(self.assistant_only_loss) is bool else "assistant_only_loss must be true or false",
                None if isinstance(self.pad_token, (str, type(None))) else "--pad-token must be a text",
                *(_choice("--report-to", name, REPORTERS) for name in self.report_to),
                *("--reward must be a text" for name in self.reward if not isinstance(name, str)),
            )
            if fault
        ]
        if faults:
            refuse(faults, "training settings")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `from_dict` reads it back."""
        return asdict(self) | {name: list(getattr(self, name)) for name in _LISTS}

    @classmethod
    def from_dict(cls, raw: Any, location: str = "settings") -> Settings:
        """Raises InputError for what is no object, unknown fields and bad values."""
        fields_given = known_fields(raw, cls, location)
        lists = {name: fields_given.get(name) or () for name in _LISTS}
        for name, value in lists.items():
            if not isinstance(value, (list, tuple)):
                raise InputError(f"{location}: {name} must be a list, not {quoted(value)}")
        return cls(**{**fields_given, **{name: tuple(value) for name, value in lists.items()}})


def _number(option: str, value: Any, *, above: float, most: float) -> str | None:
    good = type(value) in (int, float) and above < value <= most
    return None if good else f"{option} must be a number above {max(above, 0.0):g} up to {most:g}, not {quoted(value)}"


def _whole(option: str, value: Any, least: int, most: int) -> str | None:
    good = type(value) is int and least <= value <= most
    return None if good else f"{option} must be a whole number from {least} to {most:,}, not {quoted(value)}"


def _choice(option: str, value: Any, choices: tuple[str, ...]) -> str | None:
    return None if value in choices else f"{option} must be one of {', '.join(choices)}, not {quoted(value)}"
