"""What the GitHub Action runs: every config that FILES names is checked on GPU; a table and a badge come out.

Reads FILES (paths or patterns, one a line), GPU, RISK, CANNOT_SAY (warn, fail) and BADGE from the environment. Exits
with 1 where a file does not fit or cannot be read, with 2 where the inputs themselves are wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from glob import glob
from pathlib import Path

from qlora_planner.errors import InputError, PlannerError
from qlora_planner.session import Session
from qlora_planner.session.workbench import Workbench
from qlora_planner.units import format_gib

# From best to worst; a file that cannot be read is the worst.
ORDER = ("fits", "tight", "cannot-say", "does-not-fit", "will-not-run", "unreadable")
COLOURS = {"fits": "brightgreen", "tight": "yellow", "cannot-say": "lightgrey"}


@dataclass(frozen=True)
class Row:
    """A file, its verdict, its peak and what there is of the card, and what to write or what is wrong."""

    file: str
    verdict: str
    peak: str
    advice: str


def files_of(text: str) -> list[str]:
    """The files that lines of paths and patterns name, each once. Raises InputError for a line that names none."""
    files: dict[str, None] = {}
    for line in filter(None, (line.strip() for line in text.splitlines())):
        matching = sorted(path for path in glob(line, recursive=True) if Path(path).is_file())
        if not matching:
            raise InputError(f"files: nothing matches {line}")
        files |= dict.fromkeys(matching)
    if not files:
        raise InputError("files: name at least one config")
    return list(files)


def checked(file: str, bench: Workbench) -> Row:
    """What `qlora-plan check` says of a file."""
    try:
        document = bench.check(file).to_dict()
    except PlannerError as error:
        return Row(file, "unreadable", "-", str(error))
    fit, peak = document["estimate"]["fit"], document["estimate"]["peak"]["device_bytes"]
    figure = "-" if peak is None else f"{format_gib(peak)} of {format_gib(fit['usable_bytes'])}"
    if fit["verdict"] == "fits":
        return Row(file, "fits", figure, "")
    smallest = (document["fix"] or {}).get("smallest")
    if smallest is not None:
        keys = ", ".join(f"`{key}: {json.dumps(value)}`" for key, value in smallest["keys"].items())
        return Row(file, fit["verdict"], figure, f"{keys} fits; {smallest['costs']}")
    return Row(file, fit["verdict"], figure, "; ".join(fit["reasons"]))


def table(rows: Iterable[Row], gpu: str) -> str:
    """The rows as Markdown."""
    lines = [f"### GPU memory on {gpu}", "", "| file | verdict | peak | smallest change |", "|---|---|---|---|"]
    cells = ((row.file, row.verdict, row.peak, row.advice) for row in rows)
    lines += [f"| {' | '.join(_cell(text) for text in row)} |" for row in cells]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def main(arguments: list[str] | None = None, environment: Mapping[str, str] = os.environ) -> int:
    """Check, report, and say by the exit code whether all pass."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--report", type=Path, required=True)
    report = parser.parse_args(arguments).report
    try:
        files = files_of(environment["FILES"])
        bench = Session().on(environment["GPU"], risk=environment.get("RISK") or None)
        may_pass = {"warn": True, "fail": False}.get(environment.get("CANNOT_SAY", "warn"))
        if may_pass is None:
            raise InputError("cannot-say: warn or fail")
    except PlannerError as error:
        print(f"::error::{error}")
        return 2
    rows = [checked(file, bench) for file in files]
    passing = {"fits", "tight", *(["cannot-say"] if may_pass else [])}
    for row in rows:
        if row.verdict not in ("fits", "tight"):
            level = "warning" if row.verdict in passing else "error"
            print(f"::{level} file={row.file}::{row.verdict} on {environment['GPU']}: {row.advice}".replace("\n", " "))
    text = table(rows, environment["GPU"])
    report.write_text(text, encoding="utf-8")
    print(text)
    worst = max((row.verdict for row in rows), key=ORDER.index)
    _append(environment.get("GITHUB_STEP_SUMMARY"), text)
    _append(environment.get("GITHUB_OUTPUT"), f"verdict={worst}\n")
    if environment.get("BADGE"):
        badge = {"schemaVersion": 1, "label": f"memory on {environment['GPU']}", "message": worst}
        badge["color"] = COLOURS.get(worst, "red")
        Path(environment["BADGE"]).write_text(json.dumps(badge) + "\n", encoding="utf-8")
    return 0 if all(row.verdict in passing for row in rows) else 1


def _append(path: str | None, text: str) -> None:
    if path:
        with Path(path).open("a", encoding="utf-8") as stream:
            stream.write(text)


if __name__ == "__main__":
    sys.exit(main())
