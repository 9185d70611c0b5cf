"""The campaign: many runs measured on one card, a few minutes at a time, several processes side by side.

usage:
  campaign.py cases OUT.jsonl [--timings]            decide the runs and their roles (no GPU; a minute or two)
  campaign.py run CASES.jsonl OUT.jsonl [options]    measure those that OUT.jsonl lacks (the card; standard library):
              --batch K/N --jobs 6 --minutes 8 --room-gib 128 --only TEXT --device cuda|cpu --turns
  campaign.py predict OUT.jsonl                      add today's prediction to each measurement (no GPU)
  campaign.py table OUT.jsonl [--markdown]           predicted beside measured, the holdout apart

A run that is cut off by the time limit leaves nothing and is measured in the next batch. Every measurement is added
to OUT.jsonl as soon as it is there. NVML's figures are per process, so runs may share the card; their step times may
be compared only with --turns: then runs load side by side and step one at a time.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

GIB = 1 << 30
# No run of the list takes longer; one that does is stuck.
MOST_SECONDS = 300
STEPS = 3
# Below this there is no time left for a run to load, step and end.
LEAST_SECONDS = 40


def make_cases(out: Path, timings: bool) -> int:
    """Resolve every run of the list and write one case a line; those that the stack refuses are named and left out."""
    from benchmarks import campaign_cases as listed
    from benchmarks import timing_cases
    from qlora_planner import session
    from qlora_planner.catalog import OPTIMIZERS
    from qlora_planner.errors import PlannerError
    from qlora_planner.memory.estimate import estimate
    from qlora_planner.sources.catalogue import ModelCatalogue
    from qlora_planner.sources.configs import RawConfig, config_sha256, read_config
    from qlora_planner.spec.run import RunConfig

    catalogue = ModelCatalogue([ROOT / "profiles" / "models"])
    known = {name: catalogue.load(name) for name in catalogue.names()}
    families: dict[str, str] = {}
    for profile in sorted(known.values(), key=lambda one: one.params):
        families.setdefault(profile.model_type, profile.id)
    gpu, lines, left_out = session.load_gpu("h200"), [], []
    for asked in timing_cases.asked_runs() if timings else listed.asked_runs(families, tuple(OPTIMIZERS)):
        try:
            profile = known[asked.model_id]
            config = dict(read_config(ROOT / "profiles/configs" / (asked.model_id.replace("/", "__") + ".json")).config)
            if profile.params > listed.MOST_PARAMS and not asked.whole:
                config = listed.cut(config, profile.params, profile.model_type)
                # A copy: transformers completes nested parts of a config in place.
                raw = RawConfig(
                    id=asked.model_id, config=deepcopy(config), sha256=config_sha256(config), origin="campaign"
                )
                profile = session.profile_of(raw)
            wanted = RunConfig(**asked.options)
            rows = profile.dims.get("position_rows")  # a model that looks positions up has no more than these
            answer = estimate(profile, wanted.with_(seq_len=min(wanted.seq_len, int(rows or wanted.seq_len))), gpu)
        except PlannerError as error:
            left_out.append(f"{asked.name}: {error}")
            continue
        refused = [problem.message for problem in answer.problems if problem.blocking]
        if refused or answer.peak.device_bytes > 126 * GIB:
            left_out.append(f"{asked.name}: {'; '.join(refused) or 'needs more than the card has'}")
            continue
        run = answer.run.to_dict()
        lines.append(
            {
                "case": asked.name,
                "needs": list(asked.needs),
                "expected_bytes": answer.peak.device_bytes,
                "model_id": asked.model_id,
                "config": config,
                "config_sha256": profile.config_sha256,
                "run": run,
                "role": listed.role_of(asked.model_id, profile.config_sha256, run),
                "cap_bytes": None,
                "steps": timing_cases.STEPS if timings else STEPS,
            }
        )
    out.write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines), encoding="utf-8")
    roles = [line["role"] for line in lines]
    print(f"{len(lines)} runs: {roles.count('calibration')} for calibration, {roles.count('holdout')} held out")
    print("\n".join(["left out:", *left_out]) if left_out else "none left out")
    return 0


def identity(model: str, config_sha256: str | None, run: Any, cap_bytes: int | None) -> str:
    """What makes two lines the same run."""
    return json.dumps([model, config_sha256, run, cap_bytes], sort_keys=True)


def measured(out: Path) -> set[str]:
    """The runs that OUT.jsonl has."""
    lines = out.read_text(encoding="utf-8").splitlines() if out.exists() else []
    rows = [json.loads(line) for line in lines if line.strip()]
    return {identity(row["model"], row["config_sha256"], row["run"], row["cap_bytes"]) for row in rows}


class Job:
    """One measuring child in a process group of its own."""

    def __init__(self, case: dict[str, Any], folder: Path, device: str, turns: bool) -> None:
        self.case, self.started = case, time.monotonic()
        name = case["case"].replace("/", "_")
        self.out, self.log = folder / f"{name}.out.json", folder / f"{name}.log"
        spec = {key: case[key] for key in ("model_id", "config", "config_sha256", "run", "role", "cap_bytes")}
        path = folder / f"{name}.spec.json"
        path.write_text(
            json.dumps({**spec, "device": device, "steps": case.get("steps", STEPS), "snapshot": False}),
            encoding="utf-8",
        )
        environment = {**os.environ, "OMP_NUM_THREADS": "2", "TOKENIZERS_PARALLELISM": "false"}
        if turns:
            environment["QLORA_PLANNER_TURNS"] = str(folder / "turns.lock")
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "qlora_planner.measure.child", str(path), str(self.out), "--with-parent"],
                cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, env=environment,
            )  # fmt: skip

    @property
    def seconds(self) -> float:
        """Since it was started."""
        return time.monotonic() - self.started

    def end(self) -> None:
        """Kill the whole group."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def result(self) -> dict[str, Any] | None:
        """The measurement; None where the child left none."""
        if not self.out.exists():
            return None
        found: dict[str, Any] = json.loads(self.out.read_text(encoding="utf-8"))
        # The case's own, so that the line is found again whatever the child made of an option.
        return {**found, "run": self.case["run"], "config_sha256": self.case["config_sha256"]}

    def last_words(self) -> str:
        """The end of what it printed."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1][-300:] if lines else "no output"


def run_cases(options: argparse.Namespace) -> int:
    """Measure what is missing until the time is up; exit status 0 when all of this batch is measured."""
    part, parts = (int(n) for n in options.batch.split("/"))
    cases = [json.loads(line) for line in Path(options.cases).read_text(encoding="utf-8").splitlines()]
    out = Path(options.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    known = measured(out)
    waiting = [
        case
        for index, case in enumerate(cases)
        if index % parts == part - 1
        and options.only in case["case"]
        and identity(case["model_id"], case["config_sha256"], case["run"], case["cap_bytes"]) not in known
        and all(find_spec(package) for package in case["needs"])
    ]
    # Large ones first: small ones then fill what they leave of the card.
    waiting.sort(key=lambda case: -case["expected_bytes"])
    deadline = time.monotonic() + 60 * options.minutes
    room = options.room_gib * GIB
    running: list[Any] = []
    failed: list[Any] = []
    print(f"{len(waiting)} of {len(cases)} runs to measure", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        try:
            while (waiting and time.monotonic() < deadline - LEAST_SECONDS) or running:
                _start(waiting, running, room, options, deadline, Path(folder))
                time.sleep(0.2)
                for job in [job for job in running if _over(job, deadline)]:
                    running.remove(job)
                    failed += _finish(job, out, deadline)
        finally:
            for job in running:
                job.end()
    print(f"{len(waiting)} runs not begun" + "".join(f"\nnot measured: {line}" for line in failed), flush=True)
    return 0 if not waiting and not failed else 1


def _start(
    waiting: list[dict[str, Any]],
    running: list[Job],
    room: int,
    options: argparse.Namespace,
    deadline: float,
    folder: Path,
) -> None:
    """Start every waiting run for which there is room, or the next one on an empty card."""
    if time.monotonic() > deadline - LEAST_SECONDS:
        return
    for case in list(waiting):
        used = sum(_share(job.case) for job in running)
        if len(running) < options.jobs and (not running or used + _share(case) <= room):
            waiting.remove(case)
            running.append(Job(case, folder, options.device, options.turns))


def _share(case: dict[str, Any]) -> int:
    """What a run is given of the card: its limit and a context, else a quarter more than expected."""
    if case["cap_bytes"] is not None:
        return int(case["cap_bytes"]) + GIB
    return int(1.25 * case["expected_bytes"]) + GIB // 2


def _over(job: Job, deadline: float) -> bool:
    return job.process.poll() is not None or job.seconds > MOST_SECONDS or time.monotonic() > deadline


def _finish(job: Job, out: Path, deadline: float) -> list[str]:
    """Keep the measurement of a run that ended; a line for one that left none."""
    name = job.case["case"]
    stuck = job.seconds > MOST_SECONDS
    cut_off = not stuck and job.process.poll() is None and time.monotonic() > deadline
    job.end()
    found = job.result()
    if found is not None:
        with out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(found, separators=(",", ":")) + "\n")
        print(f"{name}: {found['outcome']}, {job.seconds:.0f} s  {found.get('error') or ''}"[:200], flush=True)
        return []
    if cut_off:
        return [f"{name}: cut off after {job.seconds:.0f} s, so it is measured in the next batch"]
    return [f"{name}: {'stuck' if stuck else job.last_words()}"]


def main() -> int:
    """The stage named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    stages = parser.add_subparsers(dest="stage", required=True)
    cases = stages.add_parser("cases")
    cases.add_argument("out")
    cases.add_argument("--timings", action="store_true", help="the runs whose steps are timed, not the campaign's")
    run = stages.add_parser("run")
    run.add_argument("cases")
    run.add_argument("out")
    run.add_argument("--batch", default="1/1")
    run.add_argument("--jobs", type=int, default=6)
    run.add_argument("--minutes", type=float, default=8)
    run.add_argument("--room-gib", type=int, default=128)
    run.add_argument("--only", default="")
    run.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu rehearses with toy sizes")
    run.add_argument("--turns", action="store_true", help="step one at a time, so that step times may be compared")
    stages.add_parser("predict").add_argument("out")
    shown = stages.add_parser("table")
    shown.add_argument("out")
    shown.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    if options.stage == "run":
        return run_cases(options)
    if options.stage == "cases":
        return make_cases(Path(options.out), options.timings)
    from benchmarks import campaign_report

    if options.stage == "table":
        return campaign_report.table(Path(options.out), options.markdown)
    return campaign_report.predict(Path(options.out))


if __name__ == "__main__":
    sys.exit(main())
