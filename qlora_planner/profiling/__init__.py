"""Profiling: facts of a model read off its real class, without weights. Needs torch and the training stack."""

from qlora_planner.train.quiet_imports import import_libraries

# Before any module of this package imports them by itself.
import_libraries()
