"""What measured steps say of a card: the traits of the speed model, fitted robustly around the assumed ones.

The few constants are found by Gauss-Newton on logarithms: the sum over runs of the squared log ratio of predicted to
measured (beyond `_ROBUST` linear, so that one odd run does not decide), and over constants of their squared distance
from the assumed ones, in widths of `_WIDTHS`. So a single run moves them a little, and what no run shows stays assumed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import exp, log
from statistics import median

import numpy as np
from numpy.typing import NDArray

from qlora_planner.evidence import Measurement
from qlora_planner.evidence.calibration import usable
from qlora_planner.evidence.efficiency import ASSUMED, BOUNDS, FITTED, KernelEfficiency, of_fitted
from qlora_planner.memory.records import Basis
from qlora_planner.record import record
from qlora_planner.speed.roofline import Rates, SpeedModel
from qlora_planner.speed.step import StepWork

# A measurement whose notes hold this had the card for itself while it was timed.
EXCLUSIVE = "timing: exclusive"
# Steps that warm up: kernels are loaded and chosen, optimizer states born.
WARM_UP = 1
# Widths of what is assumed, as standard deviations of the logarithm: large products reach much the same part of every
# card's rate, moving data and attention less so, and hosts differ most in how fast they launch.
_WIDTHS = {"product_fraction": 0.1, "attention_fraction": 0.25, "bandwidth_fraction": 0.2, "launch_s": 0.5,
           "engine_launch_s": 0.5, "tensor_s": 0.5, "step_s": 0.5}  # fmt: skip
_NOISE = 0.10  # repeated runs of one host-bound step differ by so much, as a standard deviation of the logarithm
_ROBUST = 2.0  # in units of the noise
_ROUNDS = 40


@record
class TimedRun:
    """A measured run with its derived work: `step_s` is the median of its steps after the warm-up."""

    work: StepWork
    rates: Rates
    batch_size: int
    seq_len: int
    rank: int
    step_s: float

    def predicted(self, traits: KernelEfficiency) -> float:
        """Seconds per step under these traits."""
        model = SpeedModel(work=self.work, rates=self.rates, traits=traits, basis=Basis.CALIBRATED)
        return float(model.step_s(self.batch_size, self.seq_len, self.rank))


def timed(measurement: Measurement) -> float | None:
    """The measured seconds per step; None where the card was shared while it was timed, or no step was warm.

    A card was not shared when NVML saw no other process's memory on it, or when who measured says so in a note.
    """
    exclusive = measurement.timing_valid or EXCLUSIVE in measurement.notes
    warm = measurement.step_s[WARM_UP:]
    return median(warm) if usable(measurement) and exclusive and warm else None


@record
class Fit:
    """Fitted traits, and the log ratio of predicted to measured of each run when the others alone are fitted to."""

    traits: KernelEfficiency
    left_out: tuple[float, ...]


def fit(runs: Sequence[TimedRun], start: KernelEfficiency = ASSUMED) -> Fit:
    """Fit the traits of one card to its runs, at least one; raises ValueError for none."""
    if not runs:
        raise ValueError("no timed run to fit to")
    fitted = _solve(runs, start)
    errors = []
    for index, run in enumerate(runs):
        others = [*runs[:index], *runs[index + 1 :]]
        errors.append(log(run.predicted(_solve(others, start) if others else start) / run.step_s))
    spread = sum(map(abs, errors)) / len(errors)
    kept = of_fitted({name: float(f"{getattr(fitted, name):.6g}") for name in FITTED})
    traits = replace(kept, count=len(runs), mean_abs_log=round(spread, 4))
    return Fit(traits=traits, left_out=tuple(errors))


def _solve(runs: Sequence[TimedRun], start: KernelEfficiency) -> KernelEfficiency:
    prior = np.array([log(getattr(start, name)) for name in FITTED])
    widths = np.array([_WIDTHS[name] for name in FITTED])
    at, damping = prior.copy(), 1e-3
    cost = _cost(at, runs, prior, widths)
    for _ in range(_ROUNDS):
        residuals, slopes = _linearised(at, runs)
        weights = np.minimum(1.0, _ROBUST / np.maximum(np.abs(residuals), 1e-9))
        normal = slopes.T @ (weights[:, None] * slopes) + np.diag(1 / widths**2)
        gradient = slopes.T @ (weights * residuals) + (at - prior) / widths**2
        step = np.linalg.solve(normal + damping * np.diag(np.diag(normal)), -gradient)
        trial = _bounded(at + step)
        new = _cost(trial, runs, prior, widths)
        if new < cost:
            done = cost - new < 1e-9 * cost
            at, cost, damping = trial, new, max(damping / 4, 1e-9)
            if done:
                break
        else:
            damping *= 8
    return _traits(at)


def _traits(at: NDArray[np.float64]) -> KernelEfficiency:
    return of_fitted({name: exp(value) for name, value in zip(FITTED, at, strict=True)})


def _bounded(at: NDArray[np.float64]) -> NDArray[np.float64]:
    edges = list(BOUNDS.values())
    return np.clip(at, [log(low) for low, _ in edges], [log(high) for _, high in edges])


def _residuals(at: NDArray[np.float64], runs: Sequence[TimedRun]) -> NDArray[np.float64]:
    traits = _traits(at)
    return np.array([log(run.predicted(traits) / run.step_s) / _NOISE for run in runs])


def _linearised(at: NDArray[np.float64], runs: Sequence[TimedRun]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    base, nudge = _residuals(at, runs), 1e-5
    columns = []
    for index in range(len(at)):
        moved = at.copy()
        moved[index] += nudge
        columns.append((_residuals(moved, runs) - base) / nudge)
    return base, np.stack(columns, axis=1)


def _cost(
    at: NDArray[np.float64], runs: Sequence[TimedRun], prior: NDArray[np.float64], widths: NDArray[np.float64]
) -> float:
    size = np.abs(_residuals(at, runs))
    loss = np.where(size <= _ROBUST, size**2 / 2, _ROBUST * size - _ROBUST**2 / 2)
    return float(loss.sum() + (((at - prior) / widths) ** 2).sum() / 2)
