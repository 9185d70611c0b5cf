"""The campaign's measurements with today's predictions, and the tables of both."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlora_planner.report.comparison import phase_figure, training_peak

if TYPE_CHECKING:
    from qlora_planner.evidence import Measurement

# An error above this asks for an explanation.
NOTICED = 0.03
FIGURES = ("load peak", "prepare peak", "train allocated", "train reserved", "device")


def errors_of(one: Measurement) -> dict[str, float]:
    """Predicted / measured - 1 by figure, for those that were both predicted and read; `predicted` must be there."""
    predicted, read = one.predicted or {}, one.figures()
    pairs = (
        (phase_figure(predicted, "load", "allocated_bytes"), read["load_peak"]),
        (phase_figure(predicted, "prepare", "allocated_bytes"), read["prepare_peak"]),
        (training_peak(predicted, "allocated_bytes"), read["train_peak"]),
        (training_peak(predicted, "reserved_bytes"), read["train_reserved"]),
        (predicted["peak"]["device_bytes"], read["nvml_peak"]),
    )
    return {
        name: ours / theirs - 1 for name, (ours, theirs) in zip(FIGURES, pairs, strict=True) if ours and theirs
    }  # fmt: skip


def summary(rows: Sequence[Mapping[str, float]]) -> Iterator[tuple[str, int, float, float, float]]:
    """By figure: count, mean absolute error, worst under, worst, in percent."""
    for name in FIGURES:
        values = [100 * row[name] for row in rows if name in row]
        if values:
            yield name, len(values), sum(map(abs, values)) / len(values), min(values), max(values, key=abs)


def predict(out: Path) -> int:
    """Put today's estimate into every line, in place."""
    from qlora_planner.errors import PlannerError
    from qlora_planner.evidence import Measurement
    from qlora_planner.memory.estimate import estimate
    from qlora_planner.session import calibration, tape_for
    from qlora_planner.session.measuring.predictions import card_of, profile_of

    spread, rows = calibration(), []
    for number, line in enumerate(out.read_text(encoding="utf-8").splitlines(), 1):
        one = Measurement.from_dict(json.loads(line), f"{out}:{number}")
        raw = one.to_dict()
        try:
            profile, gpu = profile_of(one, print), card_of(one)
            tape = tape_for(profile, one.run, gpu)
            answer = estimate(profile, one.run, gpu, cap_bytes=one.cap_bytes, tape=tape, calibration=spread)
            raw["predicted"] = answer.to_dict()
            print(f"{number} {one.model}: {answer.method}", flush=True)
        except PlannerError as error:
            print(f"{number} {one.model}: not predicted: {error}", flush=True)
        rows.append(json.dumps(raw, separators=(",", ":")) + "\n")
    partial = out.with_name(out.name + ".part")
    partial.write_text("".join(rows), encoding="utf-8")
    partial.replace(out)
    return 0


def table(out: Path, markdown: bool) -> int:
    """Signed errors per line, the summary of each role, and the lines that are off by more than 3 %.

    With `markdown` the summary of the holdout alone, as the README has it.
    """
    from qlora_planner.evidence import Measurement

    found: dict[str, list[dict[str, float]]] = {"calibration": [], "holdout": []}
    inside: dict[str, list[bool]] = {"calibration": [], "holdout": []}
    widths: dict[str, list[float]] = {"calibration": [], "holdout": []}
    shown, far = [f"{'model':42s} {'footing':12s}" + "".join(f"{name:>18s}" for name in FIGURES)], []
    for number, line in enumerate(out.read_text(encoding="utf-8").splitlines(), 1):
        one = Measurement.from_dict(json.loads(line), f"{out}:{number}")
        if one.predicted is None or one.outcome != "ok" or one.cap_bytes is not None:
            what = one.outcome if one.predicted else "not predicted"
            shown.append(f"{one.model:42s} {what} {one.error or ''}"[:140])
            continue
        errors, role = errors_of(one), one.role or "calibration"
        found[role].append(errors)
        peak, seen = one.predicted["peak"], one.nvml.process_peak_bytes
        if seen is not None:
            inside[role].append(peak["low_bytes"] <= seen <= peak["high_bytes"])
            widths[role].append((peak["high_bytes"] - peak["low_bytes"]) / peak["device_bytes"])
        cells = "".join(f"{100 * errors[name]:+18.2f}" if name in errors else f"{'-':>18s}" for name in FIGURES)
        shown.append(f"{one.model:42s} {one.predicted.get('footing', ''):12s}{cells}")
        off = {name: error for name, error in errors.items() if abs(error) > NOTICED}
        if off:
            words = ", ".join(f"{name} {100 * error:+.2f} %" for name, error in off.items())
            far.append(f"line {number}, {role}: {one.model}, {_options(one.run.to_dict())}: {words}")
    if markdown:
        print("| figure | runs | mean abs. error | worst under | worst |\n|---|---|---|---|---|")
        for name, count, mean, under, worst in summary(found["holdout"]):
            print(f"| {name} | {count} | {mean:.2f} % | {under:+.1f} % | {worst:+.1f} % |")
    else:
        print("\n".join(shown))
        for role, rows in found.items():
            print(f"\n{role}: {len(rows)} runs")
            for name, count, mean, under, worst in summary(rows):
                print(f"  {name:18s} {count:4d}  mean {mean:.3f} %  worst under {under:+.2f} %  worst {worst:+.2f} %")
        print("\n".join([f"\noff by more than {100 * NOTICED:.0f} %:", *far]) if far else "\nnone is off by more")
    for role, judged in inside.items():
        if judged:
            width = sorted(widths[role])[len(judged) // 2]
            print(f"\n{role}: {sum(judged)} of {len(judged)} device peaks inside the 90 % interval,"
                  f" whose median width is {100 * width:.1f} %")  # fmt: skip
    return 0


def _options(run: dict[str, Any]) -> str:
    """What of a run is not the default, as it would be typed."""
    from qlora_planner.report.parts.labels import change
    from qlora_planner.spec.run import RunConfig

    usual = RunConfig().to_dict()
    asked = {name: value for name, value in run.items() if value != usual[name] and usual[name] is not None}
    return change(asked | {"trainer": run["trainer"]})
