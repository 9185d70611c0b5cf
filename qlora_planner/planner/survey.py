"""survey: what fits on one card, over many models, each with its recommended recipe.

Its figures rank models: allocated bytes of a sweep times what segments usually take more, or closed forms. `plan`
plays the runs that it answers with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from qlora_planner.catalog.cuda import cublas_workspace_bytes
from qlora_planner.errors import InputError
from qlora_planner.evidence.calibration import Calibration
from qlora_planner.hardware import GpuSpec
from qlora_planner.memory.closed_view import phases_of
from qlora_planner.memory.components import component_lines
from qlora_planner.memory.groundwork import Groundwork, assemble, build_groundwork
from qlora_planner.memory.resolve import Resolution, resolve
from qlora_planner.memory.sweep import Fixed
from qlora_planner.planner.limits import Bench, Sweep, fixed_of, largest_batch, longest_seq_len, usable_on
from qlora_planner.profile import ModelProfile
from qlora_planner.run import RunConfig

REFERENCE_SEQ_LEN = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class SurveyRow:
    """One model on the card. Unknown or not possible is `None`."""

    model_id: str
    family: str
    params: int
    verdict: str
    run: RunConfig
    longest_seq_len: int | None  # at batch 1
    largest_batch: int | None  # at the run's sequence length
    peak_bytes: int
    headroom_bytes: int
    usable_bytes: int
    limiting: str
    shortfall_bytes: int | None
    note: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        row = {name: getattr(self, name) for name in self.__slots__}
        row["run"] = self.run.to_dict()
        return row


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A model with its groundwork for one run: what a survey needs of it."""

    model_id: str
    family: str
    params: int
    max_seq_len: int | None
    resolution: Resolution
    ground: Groundwork
    sweep: Sweep | None = None
    fixed: Fixed | None = None


SweepOf = Callable[[ModelProfile], Sweep | None]


def _no_sweep(_profile: ModelProfile) -> Sweep | None:
    return None


def candidate(profile: ModelProfile, run: RunConfig, gpu: GpuSpec, sweep: Sweep | None = None) -> Candidate:
    """Resolve `run` on a model and play its groundwork."""
    rows = profile.dims.get("position_rows")  # a model that looks positions up has no more than these
    resolution = resolve(profile, run.with_(seq_len=min(run.seq_len, int(rows or run.seq_len))), gpu)
    limit = profile.dims.get("max_position_embeddings")
    ground = build_groundwork(profile, resolution, cublas_workspace_bytes(gpu.compute_capability))
    return Candidate(
        model_id=profile.id,
        family=profile.model_type,
        params=profile.params,
        max_seq_len=int(limit) if limit else None,
        resolution=resolution,
        ground=ground,
        sweep=sweep,
        fixed=fixed_of(ground, resolution.run),
    )


def survey(
    profiles: Iterable[ModelProfile],
    gpu: GpuSpec,
    run: RunConfig | None = None,
    *,
    reserve_bytes: int = 0,
    cap_bytes: int | None = None,
    sweep_of: SweepOf = _no_sweep,
    calibration: Calibration | None = None,
) -> list[SurveyRow]:
    """A row per model, largest first; a model that cannot take `run` at all has its reason as a note.

    `sweep_of` gives a model's traced moments, where they are kept.
    """
    asked = run or RunConfig()
    usable = usable_on(gpu, reserve_bytes, cap_bytes, calibration)
    rows = []
    for profile in profiles:
        try:
            rows.append(judge(candidate(profile, asked, gpu, sweep_of(profile)), gpu, usable, calibration))
        except InputError as error:
            rows.append(_refused(profile, asked, usable, str(error)))
    return sorted(rows, key=lambda row: (-row.params, row.model_id))


def judge(one: Candidate, gpu: GpuSpec, usable: int, calibration: Calibration | None = None) -> SurveyRow:
    """The row of one model on a card of which a process can use `usable` bytes."""
    run, ground = one.resolution.run, one.ground
    bench = Bench(
        ground=ground,
        run=run,
        stack=one.resolution.stack,
        gpu=gpu,
        usable_bytes=usable,
        auto_padding="padding" in one.resolution.why,
        sweep=one.sweep,
        fixed=one.fixed,
        calibration=calibration,
    )
    seq_len = min(run.seq_len, one.max_seq_len or run.seq_len)
    parts = assemble(ground, run.with_(seq_len=seq_len), one.resolution.stack, gpu)
    _, peak = phases_of(run.with_(seq_len=seq_len), parts)
    lines = component_lines(run.with_(seq_len=seq_len), parts, peak)
    limiting = max(lines, key=lambda line: line.size_bytes)
    refused = [problem for problem in one.resolution.problems if problem.blocking]
    verdict = "will-not-run" if refused else bench.verdict(seq_len, run.batch_size)
    _, device, floor, _ = bench.look(seq_len, run.batch_size)
    fits = verdict == "fits"
    return SurveyRow(
        model_id=one.model_id,
        family=one.family,
        params=one.params,
        verdict=verdict,
        run=run.with_(seq_len=seq_len),
        longest_seq_len=longest_seq_len(bench, 1, one.max_seq_len),
        largest_batch=largest_batch(bench, seq_len) if fits else None,
        peak_bytes=device,
        headroom_bytes=usable - device,
        usable_bytes=usable,
        limiting=limiting.component.value,
        shortfall_bytes=max(0, floor - usable) or None,
        note=refused[0].message if refused else None,
    )


def _refused(profile: ModelProfile, run: RunConfig, usable: int, why: str) -> SurveyRow:
    return SurveyRow(
        model_id=profile.id, family=profile.model_type, params=profile.params, verdict="will-not-run", run=run,
        longest_seq_len=None, largest_batch=None, peak_bytes=0, headroom_bytes=usable, usable_bytes=usable,
        limiting="", shortfall_bytes=None, note=why,
    )  # fmt: skip
