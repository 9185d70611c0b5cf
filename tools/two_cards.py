"""Runs that were measured on two cards of a kind, and what is predicted for each of their ranks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from qlora_planner.catalog.parallel import BOUNDED, PLAYED, ZERO2, ZERO3, strategy_row
from qlora_planner.memory import MemoryEstimate
from qlora_planner.session import Session
from qlora_planner.spec.run import RunConfig

ROOT = Path(__file__).resolve().parents[1]
MEASURED = ROOT / "profiles" / "measurements" / "h200-two-cards.jsonl"
# A measured phase, and the predicted ones that it holds.
PHASES = {
    "load": ("load",), "wrap": ("wrap",), "forward": ("forward", "loss"), "backward": ("backward",),
    "optimizer": ("optimizer",),
}  # fmt: skip
TRAINING = ("forward", "loss", "backward", "optimizer")
_MIB = 1 << 20
Row = dict[str, Any]


def read_rows() -> list[Row]:
    """Every measured rank, in the order in which they ended."""
    return [json.loads(line) for line in MEASURED.read_text(encoding="utf-8").splitlines()]


@cache
def _session(stored_only: bool) -> Session:
    return Session(stored_only=stored_only)


def predict(row: Row, *, stored_only: bool = False) -> MemoryEstimate:
    """The estimate of a row's run; `stored_only`: by what ships, without tracing what does not.

    `run.seq_len` is what each card holds where cards share sequences.
    """
    name, layers, session = row["model"], row["layers"], _session(stored_only)
    if layers is None:
        return session.open(name, row["gpu"]).estimate(RunConfig(**row["run"]))
    source = ROOT / "profiles" / "configs" / f"{name.replace('/', '__')}.json"
    raw = json.loads(source.read_text(encoding="utf-8"))
    config = {**raw.get("config", raw), "num_hidden_layers": layers}
    with TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config), encoding="utf-8")
        return session.open(folder, row["gpu"]).estimate(RunConfig(**row["run"]))


def allocated(row: Row, answer: MemoryEstimate) -> Iterator[tuple[str, int, int]]:
    """Phases that were measured and predicted, with their peaks in bytes: name, predicted, measured."""
    ours = {phase.name: phase.allocated_bytes for phase in answer.phases}
    for name, parts in PHASES.items():
        sizes = [size for part in parts if (size := ours.get(part)) is not None]
        if name in row["phases"] and sizes:
            yield name, max(sizes), row["phases"][name]["peak"]


def reserved(row: Row, answer: MemoryEstimate) -> tuple[int, int]:
    """What torch reserves in training, predicted and measured."""
    ours = (phase.reserved_bytes or 0 for phase in answer.phases if phase.name in TRAINING)
    return max(ours), row["max_reserved"]


def bounded(row: Row) -> bool:
    """Whether its strategy has an interval instead of a prediction."""
    return row["run"]["parallel"] in BOUNDED


def inside(row: Row, answer: MemoryEstimate) -> bool:
    """Whether what a card held lies between the bounds of its strategy: tensors, torch's pool and the process."""
    peak, most = answer.peak, max(int(phase["peak"]) for phase in row["phases"].values())
    pool, device = int(row["max_reserved"]), int(row["nvml_peak"])
    fits_in = most <= (peak.allocated_bytes or 0) and pool <= (peak.reserved_bytes or 0)
    return fits_in and peak.low_bytes <= device <= peak.high_bytes


def table() -> str:
    """A line a configuration: its rank 0, or the card of a pipeline that has the embedding."""
    heads = ("run, a card", "strategy", *PHASES, "reserved", "device")
    lines = [heads, ("---",) * len(heads)]
    for row in read_rows():
        if row["rank"] == 0:
            lines.append(_line(row, predict(row)))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _line(row: Row, answer: MemoryEstimate) -> tuple[str, ...]:
    label = strategy_row(row["run"]["parallel"]).label
    device = _pair(answer.peak.device_bytes, row["nvml_peak"])
    if bounded(row):
        cells = [f"{_mib(row['phases'][name]['peak'])}" if name in row["phases"] else "-" for name in PHASES]
        peak = answer.peak
        between = f"{_mib(peak.low_bytes)} to {_mib(peak.high_bytes)} · {_mib(row['nvml_peak'])}"
        return (_label(row), label, *cells, _mib(row["max_reserved"]), between)
    pairs = {name: _pair(ours, theirs) for name, ours, theirs in allocated(row, answer)}
    return (_label(row), label, *(pairs.get(name, "-") for name in PHASES), _pair(*reserved(row, answer)), device)


def _label(row: Row) -> str:
    run, shared = row["run"], row.get("context_parallel", 1)
    name = row["model"].rpartition("/")[2] + (f", {row['layers']} layers" if row["layers"] else "")
    tokens = f"{run['batch_size']} x {run['seq_len'] * shared:,}" + (f" over {shared}" if shared > 1 else "")
    told: dict[str, dict[Any, str]] = {
        "quant": {"none": "LoRA"}, "load_on": {"cpu": "loaded on the CPU"}, "trainer": {"hf-trainer": "hf-trainer"},
        "quant_storage": {"uint8": "bytes"}, "reshard_after_forward": {False: "kept gathered"},
        "gradient_checkpointing": {False: "no checkpointing"}, "attention": {"eager": "eager"},
        "double_quant": {False: "no double quant"}, "ddp_backend": {"gloo": "gloo on one card"},
    }  # fmt: skip
    more = [words[run[name]] for name, words in told.items() if run.get(name) in words]
    if run["grad_accum"] > 1:
        more.append(f"{run['grad_accum']} micro-batches")
    return ", ".join((name, tokens, *more))


def _pair(ours: int | None, theirs: int) -> str:
    return "-" if ours is None else f"{_mib(ours)} · {_mib(theirs)}"


def _mib(size_bytes: int) -> str:
    return f"{size_bytes // _MIB:,}"


def unmeasured_times() -> Iterator[tuple[str, ...]]:
    """Steps that nobody has timed: of two nodes, and of engines whose speed is not predicted either."""
    session = _session(True)
    two, far = session.on("2xh200"), session.on("8xh200", nodes=2, node_network="400Gb")
    for strategy in (*PLAYED, ZERO2, ZERO3):
        cards, label = (far, "two nodes of eight, 400Gb") if strategy in PLAYED else (two, "two cards")
        run = RunConfig(parallel=strategy, optimizer="adamw_torch_fused", batch_size=2, padding=False)
        step_s = cards.open("meta-llama/Llama-3.1-8B").estimate(run).speed.step_s
        told = "-" if step_s is None else f"{step_s:.2f} s"
        yield f"Llama-3.1-8B, 2 x 2,048, {label}", strategy_row(strategy).label, told, "not measured"


def times() -> str:
    """Seconds of a step of the runs that were timed alone: as the speed model says, and as the middle of all but the
    first."""
    lines: list[tuple[str, ...]] = [("run, a card", "strategy", "predicted", "measured"), ("---",) * 4]
    for row in read_rows():
        if row.get("timed") and row["rank"] == 0:
            step_s = predict(row).speed.step_s
            later = sorted(row["step_s"][1:])
            label = strategy_row(row["run"]["parallel"]).label
            predicted = "-" if step_s is None else f"{step_s:.2f} s"
            lines.append((_label(row), label, predicted, f"{later[len(later) // 2]:.2f} s"))
    lines += unmeasured_times()
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
