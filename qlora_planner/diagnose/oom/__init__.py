"""Out-of-memory failures: what a log, a pasted traceback or a memory snapshot says of one."""

from __future__ import annotations

from qlora_planner.diagnose.oom.reading import explain
from qlora_planner.diagnose.oom.records import FRAGMENTED_SHARE, KINDS, PHASES, SCHEMA, Frame, OomReport

__all__ = ["FRAGMENTED_SHARE", "KINDS", "PHASES", "SCHEMA", "Frame", "OomReport", "explain"]
