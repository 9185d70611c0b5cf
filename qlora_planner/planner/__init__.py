"""The planner: from a card, a model and what the user fixed to the run that is recommended. Pure."""

from qlora_planner.planner.plan import Plan, plan
from qlora_planner.planner.survey import SurveyRow, survey

__all__ = ["Plan", "SurveyRow", "plan", "survey"]
