"""Predicted beside measured: every phase of every measured row, by row, by architecture and in all.

`open` is the set of runs measured with NVML; every other set is a file of profiles/measurements, with torch's counters
and, where it could be read, NVML. Errors are signed, in percent of what was measured.

    accuracy.py                        every set, row by row, then the tables
    accuracy.py --set open --jobs 2    one set, two processes
    accuracy.py --set open --explain 7 one row's components at each peak, adding up by hand
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.evidence_rows import FIGURES, Error, Result, figures, judge, parts, predict, read_rows, sources

ALLOCATED = FIGURES.index("train allocated")
WORST = 5


def shown(errors: Sequence[Error]) -> str:
    """One row's errors in columns."""
    return " ".join(f"{'-':>8s}" if error is None else f"{error:+8.2f}" for error in errors)


def known(results: Sequence[Result], figure: int) -> list[float]:
    """The errors of one figure where it was measured."""
    return [error for result in results if (error := result.errors[figure]) is not None]


def summary(results: Sequence[Result]) -> Iterator[str]:
    """The table of all figures, the interval where anything was judged, and the worst rows."""
    yield f"{'figure':18s} {'rows':>5s} {'mean abs':>9s} {'median':>8s} {'worst under':>12s} {'worst':>8s}"
    for position, figure in enumerate(FIGURES):
        values = known(results, position)
        if values:
            sizes = [abs(value) for value in values]
            yield (
                f"{figure:18s} {len(values):5d} {statistics.mean(sizes):9.3f} {statistics.median(sizes):8.3f}"
                f" {min(values):+12.2f} {max(values, key=abs):+8.2f}"
            )
    judged = [result.inside for result in results if result.inside is not None]
    if judged:
        yield f"inside the 90 % interval: {sum(judged)} of {len(judged)} ({sum(judged) / len(judged):.0%})"
    worst = sorted(results, key=lambda result: -abs(result.errors[ALLOCATED] or 0))[:WORST]
    yield "worst rows by allocated bytes of training:"
    for result in worst:
        yield f"  {result.source} {result.index:3d} {result.name:22s} {shown(result.errors)}"


def by_architecture(results: Sequence[Result]) -> Iterator[str]:
    """Mean absolute errors by model_type."""
    yield f"{'architecture':22s} {'rows':>5s} " + " ".join(f"{figure:>15s}" for figure in FIGURES)
    for architecture in sorted({result.architecture for result in results}):
        own = [result for result in results if result.architecture == architecture]
        cells = [known(own, position) for position in range(len(FIGURES))]
        means = [f"{statistics.mean(map(abs, cell)):15.3f}" if cell else f"{'-':>15s}" for cell in cells]
        yield f"{architecture:22s} {len(own):5d} " + " ".join(means)


def explain(source: str, index: int, row: dict[str, Any]) -> Iterator[str]:
    """One row's figures and the components of its peak, in bytes, with a sum that can be checked by hand."""
    answer, *_ = predict(row)
    measured = row["measured_bytes"]
    yield f"{source} row {index}: {row.get('case', row['model'])}"
    yield " ".join(f"{key}={value}" for key, value in row["run"].items() if value is not None)
    yield f"\n{'figure':18s} {'predicted':>16s} {'measured':>16s} {'difference':>14s}"
    for figure, (ours, theirs) in zip(FIGURES, figures(answer, measured), strict=True):
        difference = "-" if ours is None or not theirs else f"{ours - theirs:+,}"
        yield f"{figure:18s} {_number(ours):>16s} {_number(theirs):>16s} {difference:>14s}"
    static = answer.static
    for name, ours, key in (
        ("live after load", static.after_load, "load_alloc"),
        ("live after prepare", static.after_prepare, "prepare_alloc"),
        ("live with adapters", static.after_adapters, "peft_alloc"),
    ):
        yield f"{name:18s} {_number(ours):>16s} {_number(measured.get(key)):>16s}"
    yield f"\n{'phase':18s} {'allocated':>16s} {'reserved':>16s} {'device':>16s}"
    for phase in answer.phases:
        sizes = (phase.allocated_bytes, phase.reserved_bytes, phase.device_bytes)
        yield f"{phase.name:18s} " + " ".join(f"{_number(size):>16s}" for size in sizes)
    for title, sizes, seen in parts(row):
        yield f"\nallocated at the peak of {title}"
        yield from (f"{name:24s} {size:16,d}" for name, size in sizes.items())
        yield f"{'sum':24s} {sum(sizes.values()):16,d}  measured {_number(seen)}"
    yield f"\ndevice bytes at the peak of the run, {answer.peak.phase}"
    for line in answer.lines:
        yield f"{line.component.value:24s} {line.size_bytes:16,d}  {line.basis.value:10s} {line.why}"
    total = sum(line.size_bytes for line in answer.lines)
    yield f"{'sum':24s} {total:16,d}  = device bytes at the peak, {answer.peak.device_bytes:,}"


def _number(size: int | None) -> str:
    return "-" if size is None else f"{size:,}"


def options(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; an unknown set or a row that is not there ends it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=["all", *sources()], default="all")
    parser.add_argument("--rows", help="row numbers, separated by commas")
    parser.add_argument("--model", help="rows of this model or case alone")
    parser.add_argument("--explain", type=int, metavar="N", help="one row of the set (open), component by component")
    parser.add_argument("--jobs", type=int, default=1, help="processes (1)")
    parser.add_argument("--csv", type=Path, help="write the rows to this file as well")
    return parser.parse_args(argv)


def tasks(wanted: argparse.Namespace) -> list[tuple[str, int, dict[str, Any]]]:
    """The rows to judge: those that were measured to the end."""
    numbers = {int(number) for number in wanted.rows.split(",")} if wanted.rows else None
    return [
        (name, index, row)
        for name, path in sources().items()
        if wanted.set in ("all", name)
        for index, row in enumerate(read_rows(path))
        if row["outcome"] == "ok"
        and (numbers is None or index in numbers)
        and wanted.model in (None, row["model"], row.get("case"))
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables; exit status 0, or 2 for a row that is not there."""
    wanted = options(argv)
    if wanted.explain is not None:
        name = "open" if wanted.set == "all" else wanted.set
        rows = read_rows(sources()[name])
        if not 0 <= wanted.explain < len(rows) or rows[wanted.explain]["outcome"] != "ok":
            print(f"--explain {wanted.explain}: set {name} has no such measured row", file=sys.stderr)
            return 2
        print("\n".join(explain(name, wanted.explain, rows[wanted.explain])))
        return 0
    found: list[Result] = []
    print(f"{'set':9s} {'row':>3s} {'model':22s} " + " ".join(f"{figure.split()[-1]:>8s}" for figure in FIGURES))
    # Tracing patches torch while it runs, so that rows side by side need processes, started fresh.
    with ProcessPoolExecutor(max(wanted.jobs, 1), mp_context=get_context("spawn")) as pool:
        for result in pool.map(judge, tasks(wanted)):
            found.append(result)
            head = f"{result.source:9s} {result.index:3d} {result.name:22s}"
            tail = f"traced {result.traced_s:4.1f} s, played {result.played_s:.2f} s"
            print(
                f"{head} not predicted: {result.refused}"
                if result.refused
                else f"{head} {shown(result.errors)}  {tail}"
            )
            sys.stdout.flush()
    predicted = [result for result in found if result.refused is None]
    if wanted.csv:
        write_csv(wanted.csv, found)
    for name in dict.fromkeys(result.source for result in predicted):
        own = [result for result in predicted if result.source == name]
        print(f"\n== {name}: {len(own)} rows, percent ==", *by_architecture(own), "", *summary(own), sep="\n")
    refused = len(found) - len(predicted)
    if refused:
        print(f"\n{refused} of {len(found)} rows are not predicted")
    return 0


def write_csv(path: Path, results: Sequence[Result]) -> None:
    """One line per row."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["set", "row", "model", "architecture", *FIGURES, "inside", "refused"])
        for result in results:
            cells = ["" if error is None else f"{error:.4f}" for error in result.errors]
            inside = "" if result.inside is None else result.inside
            table.writerow(
                [result.source, result.index, result.name, result.architecture, *cells, inside, result.refused or ""]
            )


if __name__ == "__main__":
    sys.exit(main())
