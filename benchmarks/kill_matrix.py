"""Training runs that are killed at every phase, gone on with, and held against a run that nobody killed.

    kill_matrix.py            all 60 kills on the CPU; prints the table of docs/training-runs.md
    kill_matrix.py --only 5   the first five of them

Each case starts `qlora-plan train` on a tiny model, watches its events and its folder, sends SIGKILL to the child, the
parent or both as soon as a moment is there (or after a random time), then does what the program says: `--resume`, or
the same command where nothing was begun yet. The adapter must equal that of the run without a kill, to the bit.
Exits with 1 where one does not. Linux; some twelve seconds a case on a core.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from examples.toy_model import rows, write_model, write_rows  # noqa: E402

STEPS, SAVED = 12, 4
RUN = {
    "quant": "nf4", "compute_dtype": "bfloat16", "load_dtype": "bfloat16", "seq_len": 64, "batch_size": 4, "rank": 8,
    "alpha": 16, "target_modules": "all-linear", "lora_dropout": 0.05, "attention": "sdpa", "trainer": "trl-sft",
    "upcast": False, "padding": True, "optimizer": "adamw_torch",
}  # fmt: skip
# A step more than asked for would show in the adapter: the rate does not fall to zero.
OPTIONS = (
    *("--device", "cpu", "--max-steps", str(STEPS), "--save-steps", str(SAVED), "--learning-rate", "5e-3"),
    *("--scheduler", "constant"),
)
WHO = ("child", "parent", "both")
# What is waited for: an event (`kind` or `kind=value`), or a file of the run (`/name`; `!` in front: one that is gone).
MOMENTS: dict[str, str] = {
    "run.json is written": "/run.json",
    "plan.yaml is written": "/plan.yaml",
    "reading the data": "phase=data",
    "loading the model": "phase=load",
    "adding adapters": "phase=adapters",
    "tokenising the data": "phase=tokenise",
    "trying the longest batch": "phase=rehearsal",
    "a trial of saving": "/.rehearsal",
    "the first step": "begin",
    "step 2": "step=2",
    "a checkpoint is begun": "/checkpoints/checkpoint-4",
    "its optimizer is written": "/checkpoints/checkpoint-8/optimizer.pt",
    "its seal is being written": "/checkpoints/checkpoint-4/complete.json.partial",
    "a checkpoint is sealed": "checkpoint=8",
    "an old checkpoint goes": "!/checkpoints/checkpoint-4",
    "the last checkpoint is begun": "/checkpoints/checkpoint-12",
    "the last checkpoint is sealed": "checkpoint=12",
    "the adapter is begun": "/adapter.partial",
    "the adapter is in its place": "/adapter",
}
RANDOM = 3  # moments more, at random times
MOST_S = 120.0


@dataclass(frozen=True)
class Kill:
    """One case: the moment, or seconds after the start, and who is killed."""

    moment: str
    who: str
    after_s: float | None = None


@dataclass(frozen=True)
class Outcome:
    """What came of it: what was there after the kill, how it was gone on with, and whether the bits are the same."""

    kill: Kill
    left: str
    went_on: str
    same: bool


class Matrix:
    """A tiny model, its data and its plan in a folder, and the adapter of a run that nobody killed."""

    def __init__(self, home: Path, python: str = sys.executable) -> None:
        self.home, self._python = home, python
        write_model(home / "model")
        write_rows(home / "train.jsonl", rows(64))
        plan = {"schema": "qlora-plan/plan/1", "model": {"id": "model"}, "gpu": None, "run": RUN}
        (home / "plan.yaml").write_text(json.dumps(plan))
        process = self.start("reference", Path(os.devnull))
        _, said = process.communicate(timeout=MOST_S)
        if process.returncode:
            raise SystemExit(f"the run that nobody kills failed: {said[-2000:]}")
        self.reference = (home / "reference" / "adapter" / "adapter_model.safetensors").read_bytes()

    def start(self, output: str, events: Path, *more: str) -> subprocess.Popen[str]:
        """`qlora-plan train`, from the beginning or, with `--resume` in `more`, from where it is."""
        what = (output,) if "--resume" in more else ("plan.yaml", "--data", "train.jsonl", "--output", output, *OPTIONS)
        own = {name: str(self.home / name) for name in ("XDG_CACHE_HOME", "XDG_DATA_HOME", "HF_HOME")}
        environment = {
            **os.environ, **own, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "QLORA_PLANNER_TRACE": "never",
            "QLORA_PLANNER_EVENTS": str(events), "PYTHONPATH": str(ROOT),
        }  # fmt: skip
        return subprocess.Popen(
            [self._python, "-m", "qlora_planner", "train", *what, *more], cwd=self.home, env=environment, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip

    def run(self, kill: Kill, name: str) -> Outcome:
        """Start, kill, go on: at most three times, as somebody would who reads what is said."""
        events, folder = self.home / f"{name}.events", self.home / name
        events.touch()
        process = self.start(name, events)
        came = _wait(process, kill, events, folder)
        children = _children(process.pid)
        while kill.who == "child" and came and not children and process.poll() is None:
            time.sleep(0.001)  # it is not started yet
            children = _children(process.pid)
        victims = {"child": children, "parent": [process.pid], "both": [process.pid, *children]}[kill.who]
        for victim in victims:
            _kill(victim)
        process.communicate(timeout=MOST_S)
        for child in children:
            _gone(child)
        left = _left(folder) if came else "it had ended before"
        went_on = "nothing was to be done"
        for _ in range(3):
            more = ("--resume",) if (folder / "run.json").is_file() else ("--force",) if folder.exists() else ()
            again = self.start(name, Path(os.devnull), *more)
            _, said = again.communicate(timeout=MOST_S)
            notes = [line.removeprefix("qlora-plan: ") for line in said.splitlines() if "going on from" in line]
            went_on = notes[-1] if notes else "from the beginning" if said else "nothing was to be done"
            if again.returncode == 0:
                break
            went_on = f"exit {again.returncode}: {said.strip().splitlines()[-1] if said else ''}"
        adapter = folder / "adapter" / "adapter_model.safetensors"
        return Outcome(kill, left, went_on, adapter.is_file() and adapter.read_bytes() == self.reference)


def kills(seed: int = 0) -> Iterator[Kill]:
    """Every moment for child, parent and both, then random times."""
    for moment in MOMENTS:
        yield from (Kill(moment, who) for who in WHO)
    drawn = random.Random(seed)
    yield from (Kill("at random", who, round(drawn.uniform(0.5, 9.0), 1)) for who in WHO for _ in range(RANDOM // 3))


def _wait(process: subprocess.Popen[str], kill: Kill, events: Path, folder: Path) -> bool:
    """Until the moment is there; False where the run ended before."""
    begun = time.monotonic()
    here = _seen(MOMENTS[kill.moment], events, folder) if kill.after_s is None else lambda: False
    until = begun + (MOST_S if kill.after_s is None else kill.after_s)
    while time.monotonic() < until:
        if here():
            return True
        if process.poll() is not None:
            return False
        time.sleep(0.0005)
    return kill.after_s is not None


def _seen(what: str, events: Path, folder: Path) -> Callable[[], bool]:
    if what.startswith("!/"):
        path, was_there = folder / what[2:], [False]

        def gone() -> bool:
            was_there[0] = was_there[0] or path.exists()
            return (
                was_there[0] and not (path / "trainer_state.json").exists() and path.with_name("checkpoint-8").exists()
            )

        return gone
    if what.startswith("/"):
        return (folder / what[1:]).exists
    kind, _, value = what.partition("=")
    needle = f'"event": "{kind}"'

    def heard() -> bool:
        for line in events.read_text().splitlines():
            if needle in line and (
                not value or str(json.loads(line).get("phase", json.loads(line).get("step"))) == value
            ):
                return True
        return False

    return heard


def _children(parent: int) -> list[int]:
    try:
        return [int(one) for one in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
    except OSError:
        return []


def _kill(process: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def _gone(process: int) -> None:
    """Wait until a child has ended with its parent. Raises RuntimeError for one that trains on alone."""
    until = time.monotonic() + 10
    while time.monotonic() < until:
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return
        if state == "Z":
            return
        time.sleep(0.01)
    raise RuntimeError(f"child {process} trains on without its parent")


def _left(folder: Path) -> str:
    """What is there after a kill, in a few words."""
    if not (folder / "run.json").is_file():
        return "no run yet"
    steps = sorted(int(path.name.removeprefix("checkpoint-")) for path in (folder / "checkpoints").glob("checkpoint-*"))
    sealed = [step for step in steps if (folder / "checkpoints" / f"checkpoint-{step}" / "complete.json").is_file()]
    parts = [f"checkpoints {', '.join(map(str, sealed))}" if sealed else "no checkpoint"]
    parts += [f"{step} unfinished" for step in steps if step not in sealed]
    parts += [name for name in ("adapter.partial", "adapter", "summary.json") if (folder / name).exists()]
    return "; ".join(parts)


def row(one: Outcome) -> str:
    """One case as a line."""
    return f"{when(one.kill)}, {one.kill.who}: {one.left}; {one.went_on}; {'same bits' if one.same else 'OTHER BITS'}"


def when(kill: Kill) -> str:
    """The moment in words."""
    return kill.moment if kill.after_s is None else f"{kill.moment}, after {kill.after_s} s"


def table(found: list[Outcome]) -> str:
    """Markdown: a row for each moment, a column for each victim: what was left, and how it was gone on with."""
    lines = ["| killed at | child | parent | both |", "| --- | --- | --- | --- |"]
    cells = {(when(one.kill), one.kill.who): one for one in found}
    for moment in dict.fromkeys(moment for moment, _ in cells):
        told = [cells.get((moment, who)) for who in WHO]
        words = ["" if one is None else f"{one.left}: {one.went_on}{'' if one.same else ' OTHER BITS'}" for one in told]
        lines.append(f"| {moment} | {' | '.join(words)} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", type=int, help="the first so many")
    parser.add_argument("--jobs", type=int, default=1, help="side by side")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kill-matrix-") as home:
        matrix = Matrix(Path(home))
        chosen = list(kills(given.seed))[: given.only]

        def run(number: int) -> Outcome:
            outcome = matrix.run(chosen[number], f"run-{number}")
            print(row(outcome), file=sys.stderr, flush=True)
            return outcome

        with ThreadPoolExecutor(given.jobs) as pool:
            found = list(pool.map(run, range(len(chosen))))
    print(table(found))
    print(f"\n{sum(one.same for one in found)} of {len(found)} end with the same adapter to the bit.")
    return 0 if all(one.same for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())
