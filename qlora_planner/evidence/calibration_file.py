"""Reading a calibration back from its JSON, with all faults of the file in one line."""

from __future__ import annotations

from typing import Any

from qlora_planner.errors import InputError
from qlora_planner.evidence.calibration import FIGURES, METHODS, SCHEMA, Calibration, CardContext
from qlora_planner.evidence.efficiency import KernelEfficiency, efficiency_faults
from qlora_planner.spec.faults import refuse
from qlora_planner.text import plain, quoted

_MOST = 1e6  # a measured figure over its prediction
_CONTEXT = ("first_tensor_bytes", "kernels_bytes", "low_bytes", "high_bytes", "count")
_KEYS = {"schema", "created", "contexts", "residuals", "stack", "speed"}


def calibration_from_dict(raw: Any, location: str = "calibration") -> Calibration:
    """Read `Calibration.to_dict` back.

    Raises InputError naming `location` and all that is wrong.
    """
    if type(raw) is not dict or raw.get("schema") != SCHEMA:
        schema = raw.get("schema") if type(raw) is dict else raw
        raise InputError(
            f"{plain(location)}: schema must be {SCHEMA}, not {quoted(schema)}; `make calibration` rebuilds it"
        )
    faults = [f"unknown key {quoted(key)}" for key in raw if key not in _KEYS]
    if type(raw.get("created")) is not str:
        faults.append("created must be an ISO date")
    stack = raw.get("stack", {})
    if type(stack) is not dict or not all(type(version) is str for version in stack.values()):
        faults.append("stack must map packages to versions")
    contexts, residuals, speed = raw.get("contexts"), raw.get("residuals"), raw.get("speed", {})
    faults += _context_faults(contexts) + _residual_faults(residuals) + _speed_faults(speed)
    if faults or type(contexts) is not dict or type(residuals) is not dict:
        refuse(faults, location)
    return Calibration(
        created=raw["created"],
        contexts={card: CardContext(**figures) for card, figures in contexts.items()},
        residuals={
            method: {figure: tuple(map(float, values)) for figure, values in figures.items()}
            for method, figures in residuals.items()
        },
        stack=stack,
        speed={card: KernelEfficiency(**traits) for card, traits in speed.items()},
    )


def _context_faults(contexts: Any) -> list[str]:
    if type(contexts) is not dict:
        return ["contexts must map cards to figures"]
    faults = []
    for card, figures in contexts.items():
        if type(figures) is not dict or set(figures) != set(_CONTEXT):
            faults.append(f"contexts.{card} must have {', '.join(_CONTEXT)}")
        elif not all(type(figure) is int and figure >= 0 for figure in figures.values()):
            faults.append(f"contexts.{card} must hold whole numbers from 0")
    return faults


def _speed_faults(speed: Any) -> list[str]:
    if type(speed) is not dict:
        return ["speed must map cards to what they reach"]
    return [fault for card, traits in speed.items() for fault in efficiency_faults(traits, f"speed.{card}")]


def _residual_faults(residuals: Any) -> list[str]:
    if type(residuals) is not dict:
        return ["residuals must map footings to figures"]
    faults = []
    for method, figures in residuals.items():
        if method not in METHODS or type(figures) is not dict:
            faults.append(f"residuals.{method} must be one of {', '.join(METHODS)}, with figures")
            continue
        for figure, values in figures.items():
            key = f"residuals.{method}.{figure}"
            if figure not in FIGURES:
                faults.append(f"{key} must be one of {', '.join(FIGURES)}")
            elif type(values) is not list or not all(type(v) in (int, float) and abs(v) <= _MOST for v in values):
                faults.append(f"{key} must be a list of numbers")
            elif any(value <= -1 for value in values) or values != sorted(values):
                faults.append(f"{key} must be ascending, and above -1")
    return faults
