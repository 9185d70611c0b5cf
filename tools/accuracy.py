"""The accuracy of the runs that were set apart, for the pages: from the measurements that the repository keeps."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from benchmarks.campaign_report import errors_of, summary
from qlora_planner.evidence import Measurement

CAMPAIGN = Path(__file__).resolve().parent.parent / "profiles" / "measurements" / "h200-campaign.jsonl"


@cache
def holdout() -> tuple[Measurement, ...]:
    """Runs of the campaign that no constant was fitted to, which ran on the whole card and were predicted."""
    lines = CAMPAIGN.read_text(encoding="utf-8").splitlines()
    rows = (Measurement.from_dict(json.loads(line), str(CAMPAIGN)) for line in lines)
    return tuple(
        row
        for row in rows
        if row.role == "holdout" and row.predicted is not None and row.outcome == "ok" and row.cap_bytes is None
    )


def holdout_table() -> str:
    """What was run, and a row a figure: signed errors of what was predicted and read."""
    runs = [row.run for row in holdout()]
    lengths, batches, ranks = ([getattr(run, name) for run in runs] for name in ("seq_len", "batch_size", "rank"))
    lines = [
        f"{len(runs)} runs of {len({row.model for row in holdout()})} models that were set apart before anything was"
        f" measured (NVIDIA H200, torch 2.11; no constant\nwas fitted to any of them): sequences of {min(lengths):,} to"
        f" {max(lengths):,} tokens, batches of {min(batches)} to {max(batches)}, ranks of {min(ranks)} to {max(ranks)},"
        " every\noptimizer, quantisation, trainer and attention kernel named in `benchmarks/campaign_cases.py`.\n",
    ]
    lines += ["| figure | runs | mean abs. error | worst under | worst |", "|---|---|---|---|---|"]
    lines += [
        f"| {name} | {count} | {mean:.2f} % | {under:+.1f} % | {worst:+.1f} % |"
        for name, count, mean, under, worst in summary([errors_of(row) for row in holdout()])
    ]
    return "\n".join(lines)


def holdout_line() -> str:
    """The same in a sentence."""
    rows = holdout()
    means = {name: mean for name, _, mean, _, _ in summary([errors_of(row) for row in rows])}
    return (
        f"{len(rows)} runs of {len({row.model for row in rows})} models, set apart before anything was measured, on an"
        f" H200: the bytes that torch\nallocates are predicted within {means['train allocated']:.2f} % on average, what"
        f" it reserves within {means['train reserved']:.2f} %,\nwhat the driver shows for the process within"
        f" {means['device']:.2f} %. [Every row, and where it is off](docs/accuracy.md)."
    )
