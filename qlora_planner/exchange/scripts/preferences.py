"""What a script says otherwise where trl trains on preferences: its classes, its samples, who adds the adapters."""

from __future__ import annotations

from qlora_planner.catalog.classifiers import labels_of
from qlora_planner.catalog.trainers import trainer_named
from qlora_planner.spec.run import RunConfig

_NOTES = {
    "preference": "JSON lines with prompt, chosen and rejected",
    "unpaired": "JSON lines with prompt, completion and label",
    "prompts": "JSON lines with prompt, and what the rewards look at",
}
_SCORE_CLASS = "AutoModelForSequenceClassification"


def classes(run: RunConfig) -> tuple[str, str]:
    """trl's config and trainer of the run."""
    name = trainer_named(run.trainer).trl_class
    return f"{name}Config", f"{name}Trainer"


def data_note(run: RunConfig, otherwise: str) -> str:
    """What the samples of the run are, as a comment."""
    shapes = trainer_named(run.trainer).row_shapes
    return _NOTES[shapes[0]] if shapes else otherwise


def is_reward(run: RunConfig) -> bool:
    """Whether the trainer scores texts with a classifier, whatever the task."""
    return run.task is None and labels_of(run) is not None


def reward_class() -> str:
    """The class of a reward model."""
    return _SCORE_CLASS
