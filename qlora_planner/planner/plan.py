"""plan: the run that is recommended for one model on one card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qlora_planner.catalog.cuda import cublas_workspace_bytes
from qlora_planner.evidence.calibration import Calibration
from qlora_planner.hardware import GpuSpec
from qlora_planner.memory.estimate import estimate
from qlora_planner.memory.groundwork import build_groundwork
from qlora_planner.memory.records import MemoryEstimate
from qlora_planner.memory.resolve import resolve
from qlora_planner.planner.finalists import Referee, TapeOf
from qlora_planner.planner.limits import SEQ_STEP, Bench, Sweep, fixed_of, usable_on
from qlora_planner.profile import ModelProfile
from qlora_planner.profile.tape import Tape
from qlora_planner.run import RunConfig

SCHEMA = "qlora-plan/plan/1"
FRONTIER_BATCHES = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A recommended run with what surrounds it."""

    model: Mapping[str, Any]
    gpu: GpuSpec
    run: RunConfig
    estimate: MemoryEstimate
    alternatives: tuple[Mapping[str, Any], ...]
    prices: tuple[Mapping[str, Any], ...]
    frontier: tuple[Mapping[str, int | bool | None], ...]
    objective: str
    data: Mapping[str, Any] | None
    stack: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with the keys of the stable surface."""
        return {
            "schema": SCHEMA,
            "model": dict(self.model),
            "gpu": {"name": self.gpu.name, "label": self.gpu.label, "memory_bytes": self.gpu.memory_bytes},
            "run": self.run.to_dict(),
            "estimate": self.estimate.to_dict(),
            "alternatives": [dict(one) for one in self.alternatives],
            "prices": [dict(one) for one in self.prices],
            "frontier": [dict(one) for one in self.frontier],
            "objective": self.objective,
            "data": None if self.data is None else dict(self.data),
            "stack": dict(self.stack),
        }


MOST_TRIES = 5


def _no_tape(_run: RunConfig) -> Tape | None:
    return None


def plan(
    profile: ModelProfile,
    gpu: GpuSpec,
    run: RunConfig | None = None,
    *,
    objective: str = "throughput",
    reserve_bytes: int = 0,
    cap_bytes: int | None = None,
    sweep: Sweep | None = None,
    tape_of: TapeOf = _no_tape,
    stored_of: TapeOf = _no_tape,
    calibration: Calibration | None = None,
) -> Plan:
    """The run asked for, made to fit: where it does not, the longest sequence that does is recommended instead.

    `sweep` holds traced moments, by which runs are ranked. Its finalists are played from the tapes that `stored_of` has
    at hand; `tape_of` gives the trace of the run that is chosen, which may take a while. Where playing that one needs
    more than the search thought, the sequence is shortened until it fits.
    Raises InputError for options that contradict each other.
    """
    asked = run or RunConfig()
    usable = usable_on(gpu, reserve_bytes, cap_bytes, calibration)
    resolution = resolve(profile, asked, gpu)
    ground = build_groundwork(profile, resolution, cublas_workspace_bytes(gpu.compute_capability))
    bench = Bench(
        ground=ground,
        run=resolution.run,
        stack=resolution.stack,
        gpu=gpu,
        usable_bytes=usable,
        auto_padding="padding" in resolution.why,
        sweep=sweep,
        fixed=fixed_of(ground, resolution.run),
        calibration=calibration,
    )
    limit = profile.dims.get("max_position_embeddings")
    model_limit = int(limit) if limit else None
    referee = Referee(profile=profile, gpu=gpu, asked=asked, bench=bench, tape_of=stored_of)
    found = {batch: referee.longest(batch, model_limit) for batch in FRONTIER_BATCHES}
    chosen = _shrink(resolution.run, referee, found[1].value)
    for _ in range(MOST_TRIES):
        picked = asked.with_(**chosen)
        answer = estimate(
            profile,
            picked,
            gpu,
            reserve_bytes=reserve_bytes,
            cap_bytes=cap_bytes,
            tape=tape_of(picked),
            calibration=calibration,
        )
        if not chosen or answer.verdict == "fits" or picked.seq_len <= SEQ_STEP:
            break
        over = answer.floor_bytes / usable
        chosen = {
            **chosen,
            "seq_len": max(SEQ_STEP, int(picked.seq_len / (1.02 * max(over, 1))) // SEQ_STEP * SEQ_STEP),
        }
    return Plan(
        model=answer.model,
        gpu=gpu,
        run=answer.run,
        estimate=answer,
        alternatives=_alternatives(referee, answer),
        prices=(),
        frontier=tuple(
            {"batch_size": batch, "seq_len": one.value, "played": one.played} for batch, one in found.items()
        ),
        objective=objective,
        data=None,
        stack=answer.stack,
    )


def _shrink(run: RunConfig, referee: Referee, longest: int | None) -> dict[str, Any]:
    """What to change of the asked run so that it fits: nothing, a smaller batch, then a shorter sequence."""
    if longest is None:
        return {}
    answer = referee.play(referee.asked)
    if answer.played if answer is not None else referee.bench.fits(run.seq_len, run.batch_size):
        return {}
    batch = referee.batch(run.seq_len).value
    if batch is not None:
        whole = run.batch_size * run.grad_accum
        return {"batch_size": batch, "grad_accum": max(1, -(-whole // batch))}
    return {"batch_size": 1, "seq_len": min(longest, run.seq_len)}


def _alternatives(referee: Referee, answer: MemoryEstimate) -> tuple[Mapping[str, Any], ...]:
    seq_len = answer.run.seq_len
    found = referee.batch(seq_len)
    if found.value is None or found.value <= answer.run.batch_size:
        return ()
    peak = found.device_bytes or referee.bench.look(seq_len, found.value)[1]
    return (
        {
            "change": {"batch_size": found.value},
            "buys": f"{found.value} sequences per step instead of {answer.run.batch_size}",
            "costs": f"{peak - answer.peak.device_bytes} bytes",
        },
    )
