"""The Python entry points: a model, a card, the memory of a run, the plan. Everything heavy is imported when needed."""

from qlora_planner.session.answers import calibration, estimate, load_gpu, plan, ranking_card
from qlora_planner.session.models import config_of, load_model, profile_of, with_targets
from qlora_planner.session.packages import TRACE_VARIABLE, TRAIN_PACKAGES, Warn, missing_for
from qlora_planner.session.session import Session
from qlora_planner.session.traces import tape_for, tape_orders

__all__ = [
    "TRACE_VARIABLE",
    "TRAIN_PACKAGES",
    "Session",
    "Warn",
    "calibration",
    "config_of",
    "estimate",
    "load_gpu",
    "load_model",
    "missing_for",
    "plan",
    "profile_of",
    "ranking_card",
    "tape_for",
    "tape_orders",
    "with_targets",
]
