"""Run records: everything that decides what executes."""

from qlora_planner.run.config import RUN_FIELDS, RunConfig, options_without

__all__ = ["RUN_FIELDS", "RunConfig", "options_without"]
