"""qlora-planner: will it fit, what exactly to run, what it costs, and why.

Importing this package imports neither torch nor transformers, pandas or textual: names load when first used.
"""

from __future__ import annotations

from importlib import import_module

# Not from typing: `python -m` imports this while a typing.py in the working directory would be taken for Python's own.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "RunConfig": "qlora_planner.spec.run",
    "ModelProfile": "qlora_planner.spec.model",
    "GpuSpec": "qlora_planner.spec.machine",
    "MemoryEstimate": "qlora_planner.memory",
    "PlannerError": "qlora_planner.errors",
    "load_model": "qlora_planner.session",
    "load_gpu": "qlora_planner.session",
    "Session": "qlora_planner.session",
    "estimate": "qlora_planner.session",
    "plan": "qlora_planner.session",
}

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'qlora_planner' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
