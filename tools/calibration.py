"""`make calibration`: predict every measured run of profiles/measurements again, and keep how far off that is.

Rows with the role `holdout` are left out: they judge.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from qlora_planner.errors import PlannerError
from qlora_planner.evidence import CardReading, Measurement, NvmlReading, PhaseReading
from qlora_planner.evidence.calibration import METHODS, calibrate, latest, usable
from qlora_planner.session.measuring.predictions import predictions_of, speed_traits
from qlora_planner.sources.configs import config_sha256
from qlora_planner.sources.evidence import write_calibration
from qlora_planner.spec.run import RunConfig

# Options whose names differ between bare rows (torch's counters alone, no schema) and RunConfig.
_RENAMED = {"prepare_for_kbit_training": "upcast", "lora_rank": "rank"}
_NOT_OPTIONS = ("device_cap_mib",)


def measured_rows(folder: Path) -> Iterator[Measurement]:
    """Every measurement in a folder's JSON lines; raises PlannerError naming the file and line of a bad one."""
    for path in sorted(folder.glob("*.jsonl")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            raw = json.loads(line)
            if "rank" in raw:  # one of several cards: what it held is no evidence of one alone
                continue
            yield Measurement.from_dict(raw, f"{path}:{number}") if "schema" in raw else of_bare_row(raw)


def of_bare_row(raw: Mapping[str, Any]) -> Measurement:
    """A row of the benchmark that measures on a card without the verify verb."""
    options = {_RENAMED.get(name, name): value for name, value in raw["run"].items() if name not in _NOT_OPTIONS}
    options["quant"] = options["quant"] or "none"
    options |= {"rank": options["rank"] or 16, "alpha": 32, "double_quant": bool(options["double_quant"])}
    if options["quant"] != "none":
        options["method"] = "qlora"
    read, cap_mib = raw["measured_bytes"], raw["run"].get("device_cap_mib")
    return Measurement(
        created="2026-11-23",
        model=raw["model"],
        config_sha256=config_sha256(raw["config"]),
        config=raw["config"],
        run=RunConfig(**options),
        outcome=raw["outcome"],
        stack=raw["stack"],
        gpu=CardReading(name=raw["gpu"]),
        cap_bytes=None if cap_mib is None else cap_mib << 20,
        phases={
            "load": PhaseReading(
                allocated_bytes=read.get("load_peak"),
                reserved_bytes=read.get("load_reserved"),
                live_bytes=read.get("load_alloc"),
            ),
            "training": PhaseReading(allocated_bytes=read.get("train_peak"), reserved_bytes=read.get("train_reserved")),
        },
        nvml=NvmlReading(
            context_bytes=read.get("nvml_context"),
            process_peak_bytes=read.get("nvml_peak"),
            process_end_bytes=read.get("nvml_end"),
        ),
    )


def main(root: Path, name: str) -> int:
    """Write `root`/calibrations/`name`.json; 1 when a row could not be predicted, each with its reason."""
    rows = [row for row in latest(measured_rows(root / "measurements")) if row.role != "holdout" and usable(row)]
    pairs, failed = [], []
    for index, row in enumerate(rows):
        started = time.perf_counter()
        try:
            found = predictions_of(row, lambda _: None)
        except PlannerError as error:
            failed.append(f"{row.model}: {error}")
            continue
        pairs += [(row, one) for one in found]
        shown = ", ".join(one.method for one in found)
        print(f"{index + 1}/{len(rows)} {row.model}: {shown}, {time.perf_counter() - started:.1f} s", flush=True)
    calibration = calibrate(pairs, datetime.now(UTC).date().isoformat())
    # Every row again: of a run measured twice, the later one may have shared the card.
    rows = [row for row in measured_rows(root / "measurements") if row.role != "holdout"]
    calibration = replace(calibration, speed=speed_traits(rows, lambda _: None))
    write_calibration(root / "calibrations" / f"{name}.json", calibration)
    for method in METHODS:
        held = calibration.held_out(method, "reserved")
        if held is not None:
            print(f"{method}: {held}")
    print("\n".join(["not predicted:", *failed]) if failed else "all predicted")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
