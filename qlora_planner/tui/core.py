"""What the explorer knows, without a terminal: a card, a model on it, and the figures of any of its runs.

Nothing is traced here and torch is never imported: a run is played from a shipped trace, or closed forms stand in.
Every method may run in a thread of its own; results are remembered by run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from qlora_planner.errors import InputError, MissingError, PlannerError
from qlora_planner.record import record
from qlora_planner.spec.run import RunConfig

if TYPE_CHECKING:
    from qlora_planner.evidence.calibration import Calibration
    from qlora_planner.memory import MemoryEstimate
    from qlora_planner.planner.candidate_memory import CandidateFactory, MemoryBudget, Scale
    from qlora_planner.planner.plan import Plan
    from qlora_planner.spec.machine import GpuSpec
    from qlora_planner.spec.model import ModelProfile
    from qlora_planner.spec.trace import Tape
    from qlora_planner.tui.widgets.rows import ModelRow

ASSUMED_CARD = "24GB"
_KEPT = 512  # estimates of one model and card
# Lengths of the frontier's grid.
GRID_LENGTHS = (256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)


@record
class Place:
    """The card that is explored, as it can be typed again; `note` says where it comes from."""

    gpu: GpuSpec
    asked: str
    reserve_bytes: int = 0
    cap_bytes: int | None = None
    note: str = ""


@record
class Frontier:
    """Sequence by batch around a run: the longest length of each batch, and a verdict and a floor in bytes per cell.

    `cells` is keyed by (batch, length). All ranked, not played.
    """

    longest: Mapping[int, int | None]
    lengths: tuple[int, ...]
    cells: Mapping[tuple[int, int], tuple[str, int]]
    usable_bytes: int


def place_of(text: str | None, profiles: str | None = None) -> Place:
    """The card of `text`; for None the one in this machine, else 24GB, which is then said.

    Raises InputError for a card that means nothing, MissingError for `local` without a card.
    """
    from qlora_planner import session

    wanted = (text or "").strip()
    if wanted and wanted.lower() != "local":
        return Place(gpu=session.load_gpu(wanted, profiles=profiles), asked=wanted)
    from qlora_planner.measure.nvml import local_gpu

    try:
        found = local_gpu()
    except MissingError:
        if wanted:
            raise
        note = f"no card is found here: {ASSUMED_CARD} is assumed; g picks another"
        return Place(gpu=session.load_gpu(ASSUMED_CARD, profiles=profiles), asked=ASSUMED_CARD, note=note)
    return Place(
        gpu=found.spec, asked="local", reserve_bytes=found.reserve_bytes, note="the card in this machine"
    )  # fmt: skip


def card_names(profiles: str | None = None) -> tuple[str, ...]:
    """What the card picker offers: `local`, the sizes people say, and every card of the catalogue."""
    from qlora_planner.catalog.gpus import GpuCatalogue
    from qlora_planner.sources.locations import gpus_dirs

    sizes = ("8GB", "12GB", "16GB", "24GB", "32GB", "48GB", "80GB")
    return ("local", *sizes, *GpuCatalogue(gpus_dirs(profiles)).names())


def start_run(row: ModelRow) -> RunConfig:
    """The run that a model is opened with: the one recommended on the card, else the survey's own."""
    return RunConfig() if row.options is None else RunConfig(**dict(row.options))


@dataclass(slots=True, kw_only=True)
class Subject:
    """One model on one card; `model` is what names it again."""

    model: str
    profile: ModelProfile
    place: Place
    profiles: str | None
    calibration: Calibration | None
    factory: CandidateFactory
    limits: MemoryBudget
    pace_on: GpuSpec
    _known: dict[str, MemoryEstimate] = field(default_factory=dict)

    @classmethod
    def of(cls, model: str, place: Place, profiles: str | None = None) -> Subject:
        """Read a model's profile and what is measured. Raises as `session.load_model` does."""
        from qlora_planner import session
        from qlora_planner.planner.budget import usable_on
        from qlora_planner.planner.candidate_memory import CandidateFactory, MemoryBudget
        from qlora_planner.sources.locations import tapes_dirs
        from qlora_planner.sources.tapes import stored_sweep

        profile = session.load_model(model, profiles=profiles, build="never", warn=_unheard)
        known = session.calibration(profiles)
        usable = usable_on(place.gpu, place.reserve_bytes, place.cap_bytes, known)
        named = profile.id if profile.source == "catalogue" else model
        return cls(
            model=named, profile=profile, place=place, profiles=profiles, calibration=known,
            factory=CandidateFactory.of(profile, place.gpu, stored_sweep(profile, tapes_dirs(profiles)), known),
            limits=MemoryBudget(usable_bytes=usable, calibration=known),
            pace_on=session.ranking_card(place.gpu, profiles=profiles),
        )  # fmt: skip

    @property
    def model_limit(self) -> int | None:
        """Tokens that the model was trained for."""
        limit = self.profile.dims.get("position_rows") or self.profile.dims.get("max_position_embeddings")
        return int(limit) if limit else None

    def known(self, run: RunConfig) -> MemoryEstimate | None:
        """The estimate of a run that was worked out before."""
        return self._known.get(repr(run))

    def estimate(self, run: RunConfig, widths: Sequence[Sequence[int]] = ()) -> MemoryEstimate:
        """What `qlora-plan estimate` answers where nothing new is traced, or with `widths` of a dataset's batches what
        `plan --data` does. Raises InputError as they do."""
        from qlora_planner.memory.estimate import estimate
        from qlora_planner.session import tape_orders
        from qlora_planner.speed.roofline import speed_of

        key = repr((run, widths))
        if key in self._known:
            return self._known[key]
        place = self.place
        orders = (
            tape_orders(self.profile, run, widths, place.gpu, profiles=self.profiles, stored_only=True)
            if widths
            else ()
        )
        found = estimate(
            self.profile, run, place.gpu, reserve_bytes=place.reserve_bytes, cap_bytes=place.cap_bytes,
            tape=self.tape(run), orders=orders, calibration=self.calibration,
        )  # fmt: skip
        found = replace(found, speed=speed_of(self.profile, found.run, place.gpu, self.calibration, found.stack))
        while len(self._known) >= _KEPT:
            self._known.pop(next(iter(self._known)))
        self._known[key] = found
        return found

    def tape(self, run: RunConfig) -> Tape | None:
        """The shipped trace of a run."""
        from qlora_planner.session import tape_for

        return tape_for(self.profile, run, self.place.gpu, profiles=self.profiles, stored_only=True)

    def refusal(self, run: RunConfig) -> str | None:
        """Why a run cannot work, in milliseconds: what is contradictory, and what the stack refuses. None: it can."""
        from qlora_planner.memory.options.resolve import resolve

        try:
            problems = resolve(self.profile, run, self.place.gpu).problems
        except InputError as error:
            return str(error)
        return next((f"{one.message}; use {one.fix}" for one in problems if one.blocking), None)

    def plan(self, run: RunConfig | None = None, fixed: Mapping[str, Any] | None = None) -> Plan:
        """The recommended run, as `qlora-plan MODEL --gpu` has it where nothing new is traced."""
        from qlora_planner.catalog.gpus import GpuCatalogue
        from qlora_planner.planner.plan import plan
        from qlora_planner.planner.planner import Request
        from qlora_planner.sources.locations import gpus_dirs

        place = self.place
        asked = Request(
            gpu=place.gpu, run=run or RunConfig(), fixed=fixed or {}, pace_on=self.pace_on,
            reserve_bytes=place.reserve_bytes, cap_bytes=place.cap_bytes,
            cards=GpuCatalogue(gpus_dirs(self.profiles)).all(),
        )  # fmt: skip
        return plan(
            self.profile, asked, sweep=self.factory.sweep, tape_of=self.tape, calibration=self.calibration
        )  # fmt: skip

    def plan_of(self, run: RunConfig) -> Plan:
        """The plan whose run is exactly this one. Raises InputError where a plan would change it, as for one that
        does not fit."""
        from qlora_planner.spec.run import RUN_FIELDS

        resolved = self.estimate(run).run
        found = self.plan(run, dict.fromkeys(RUN_FIELDS))
        if found.run != resolved:
            raise InputError("this run does not fit, so a plan file would hold another one; r takes a run that fits")
        return found

    def prices(self, run: RunConfig) -> list[dict[str, Any]]:
        """A row per knob: see planner.around. Raises InputError for a run that the stack refuses."""
        from qlora_planner.planner.neighbours import prices

        return list(prices(self.factory, self._accepted(run), self.pace_on, self.limits, self._scale(run)))

    def frontier(self, run: RunConfig) -> Frontier:
        """The grid around a run. Raises InputError for a run that the stack refuses."""
        import numpy as np

        from qlora_planner.memory.verdict import TIGHT_AT_MOST
        from qlora_planner.planner.neighbours import FRONTIER_BATCHES, candidate_memory_at, frontier

        resolved, scale = self._accepted(run), self._scale(run)
        rows = frontier(self.factory, resolved, self.limits, self.model_limit, scale)
        lengths = tuple(length for length in GRID_LENGTHS if length <= (self.model_limit or GRID_LENGTHS[-1]))
        cells: dict[tuple[int, int], tuple[str, int]] = {}
        for batch in FRONTIER_BATCHES:
            try:
                memory = candidate_memory_at(self.factory, resolved, batch, scale)
            except InputError:  # this batch is refused
                continue
            seq = np.array(lengths, dtype=np.int64)
            floors, traced = memory.floors(np.full_like(seq, batch), seq)
            most, tight = self.limits.of(memory), self.limits.of(memory, TIGHT_AT_MOST)
            for length, floor, by_trace in zip(lengths, floors, traced, strict=True):
                at = 0 if by_trace else 1
                verdict = "fits" if floor <= most[at] else "tight" if floor <= tight[at] else "does-not-fit"
                cells[batch, length] = verdict, int(floor)
        return Frontier(
            longest={int(row["batch_size"] or 0): row["seq_len"] for row in rows}, lengths=lengths, cells=cells,
            usable_bytes=self.limits.usable_bytes,
        )  # fmt: skip

    def _accepted(self, run: RunConfig) -> RunConfig:
        refused = self.refusal(run)
        if refused is not None:
            raise InputError(refused)
        return self.estimate(run).run

    def _scale(self, run: RunConfig) -> Scale:
        """What playing the run took over its rank, as a plan scales its frontier."""
        import numpy as np

        from qlora_planner.memory.options.resolve import resolve
        from qlora_planner.planner.candidate_memory import Scale

        answer = self.estimate(run)
        memory = self.factory.make(resolve(self.profile, answer.run, self.place.gpu))
        sizes = np.array([answer.run.batch_size], dtype=np.int64), np.array([answer.run.seq_len], dtype=np.int64)
        floors, traced = memory.floors(*sizes)
        return Scale.of(int(floors[0]), bool(traced[0]), answer.floor_bytes)


def fault_words(error: PlannerError) -> str:
    """A fault as one line for the screen."""
    from qlora_planner.text import plain

    return plain(" ".join(str(error).split()))


def _unheard(_text: str) -> None:
    """Oddities of a catalogue name are no news on the screen."""
