"""One model on one card: its estimates, plans, prices and frontier as plain records, each worked out once."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from qlora_planner.errors import InputError, MissingError, RefusedError
from qlora_planner.session import packages
from qlora_planner.session.data import check_shape, with_prompts
from qlora_planner.session.models import with_targets
from qlora_planner.session.towers import check_images, prices_with_images, traced_with_images, with_tower
from qlora_planner.session.traces import sweep_for, tape_for, tape_orders

if TYPE_CHECKING:
    from qlora_planner.memory import MemoryEstimate, Problem, Unmodelled
    from qlora_planner.memory.budget import Budget
    from qlora_planner.planner.around.grid import Frontier
    from qlora_planner.planner.candidate_memory import CandidateFactory, Scale
    from qlora_planner.planner.plan import Plan
    from qlora_planner.planner.planner import Planner
    from qlora_planner.planner.records import Price
    from qlora_planner.planner.sweeps import Sweep
    from qlora_planner.session.cards import PlannedCard
    from qlora_planner.session.session import Session
    from qlora_planner.spec.machine import GpuSpec
    from qlora_planner.spec.model import ModelProfile
    from qlora_planner.spec.run import RunConfig
    from qlora_planner.spec.trace import Tape

_KEPT = 512  # estimates of one model and card
NO_CARD = "no card is given: name one, as Session().on('24GB')"


@dataclass(kw_only=True)
class ModelOnCard:
    """Made by `Session.open`; every method may run in a thread of its own."""

    session: Session
    profile: ModelProfile
    card: PlannedCard | None
    _known: dict[str, MemoryEstimate] = field(default_factory=dict)
    _played: dict[str, MemoryEstimate] = field(default_factory=dict)  # what lay around runs before

    @property
    def gpu(self) -> GpuSpec | None:
        """The card itself; None where the model is opened on none."""
        return None if self.card is None else self.card.gpu

    @cached_property
    def sweep(self) -> Sweep:
        """The traced moments that ship for this model, by which runs are ranked."""
        return sweep_for(self.profile, profiles=self.session.profiles)

    @cached_property
    def factory(self) -> CandidateFactory:
        """Makes the memory of candidates."""
        from qlora_planner.planner.candidate_memory import CandidateFactory

        return CandidateFactory.of(self.profile, self._on_a_card(), self.sweep)

    @cached_property
    def budget(self) -> Budget:
        """What a process may use of the card, by what measurements say."""
        from qlora_planner.memory.budget import Budget

        calibration = self.session.calibration
        return Budget.of(None, calibration=calibration) if self.card is None else self.card.budget(calibration)

    def _on_a_card(self) -> Budget:
        """The budget of a search. Raises InputError where there is no card."""
        if self.card is None:
            raise InputError(NO_CARD)
        return self.budget

    @cached_property
    def pace_on(self) -> GpuSpec:
        """The card that speeds are ranked by."""
        return self.session.ranking_card(self._on_a_card().card)

    @property
    def model_limit(self) -> int | None:
        """Tokens that the model was trained for."""
        limit = self.profile.dims.get("position_rows") or self.profile.dims.get("max_position_embeddings")
        return int(limit) if limit else None

    def known(self, run: RunConfig) -> MemoryEstimate | None:
        """The estimate of a run that was worked out before."""
        return self._known.get(repr((run, (), ())))

    def estimate(
        self,
        run: RunConfig | None = None,
        widths: Sequence[Sequence[int]] = (),
        unmodelled: Sequence[Unmodelled] = (),
    ) -> MemoryEstimate:
        """The memory of one run: see `qlora_planner.estimate`, whose errors it raises.

        On several cards without a strategy every card holds all of it where it can, and else a share.
        """
        from qlora_planner.memory.parallel.choice import SETTLED, sharded

        answer = self._of_strategy(run, widths, unmodelled)
        if self.budget.world == 1 or (run is not None and run.parallel) or answer.verdict in SETTLED:
            return answer
        return self._of_strategy(sharded(run), widths, unmodelled)

    def _of_strategy(
        self,
        run: RunConfig | None = None,
        widths: Sequence[Sequence[int]] = (),
        unmodelled: Sequence[Unmodelled] = (),
    ) -> MemoryEstimate:
        """The same where the run names its strategy, or takes the first there is."""
        from qlora_planner.spec.run import RunConfig as Run

        wanted = run or Run()
        key = repr((wanted, widths, unmodelled))
        estimate = self._known.get(key)
        if estimate is None:
            estimate = self._estimated(wanted, widths, unmodelled)
            while len(self._known) >= _KEPT:
                self._known.pop(next(iter(self._known)))
            self._known[key] = estimate
        return estimate

    def _estimated(
        self, run: RunConfig, widths: Sequence[Sequence[int]], unmodelled: Sequence[Unmodelled]
    ) -> MemoryEstimate:
        from qlora_planner.memory.estimate import estimate_within
        from qlora_planner.memory.options.refusals import refusal
        from qlora_planner.memory.unmodelled.qualified import qualified
        from qlora_planner.speed.several import speed_within

        if run.shows_images and self.card is not None and self.card.machine.world > 1:
            raise InputError("--gpu: runs with images are planned on one card; name one")
        session, profile = self.session, self.profile_for(run)
        broken: tuple[Problem, ...] = ()
        tape: Tape | None = None
        if not session.stored_only:
            try:
                profile = with_targets(profile, run, profiles=session.profiles)
            except RefusedError as error:
                # The document is shown for what could be adapted instead, under the verdict that this will not work.
                run, broken = run.with_(target_modules=None, lora_dropout=None), (refusal(error),)
        try:
            tape = self._tape(run, profile)
        except RefusedError as error:
            broken = (*broken, refusal(error))
        orders = self._orders(run, widths, profile) if tape and widths else ()
        answer = estimate_within(self.budget, profile, run, tape=tape, orders=orders, broken=broken)
        if not run.shows_images:  # the work of towers is not counted
            answer = replace(answer, speed=speed_within(self.budget, profile, answer.run, answer.stack))
        return self._with_stack(qualified(answer, unmodelled), run)

    def _with_stack(self, answer: MemoryEstimate, wanted: RunConfig) -> MemoryEstimate:
        """What does not fit, with the stack that stores its experts in 4 bits where that would."""
        from qlora_planner.session.experts import with_stack_that_fits

        return with_stack_that_fits(answer, wanted, self.budget, self.profile_for(wanted), self.session)

    def profile_for(self, run: RunConfig) -> ModelProfile:
        """The model's profile, with its tower where the run shows images: see `session.towers.with_tower`."""
        session, build = self.session, not self.session.stored_only
        return with_tower(self.profile, run, profiles=session.profiles, warn=session.tell, build=build)

    def tape(self, run: RunConfig) -> Tape | None:
        """The trace of a run, as `tape_for` has it; with `stored_only` none is made, and kept ones answer images."""
        return self._tape(run, self.profile_for(run))

    def _tape(self, run: RunConfig, profile: ModelProfile) -> Tape | None:
        session, alone = self.session, self.session.stored_only and not run.shows_images
        make, profiles = not session.stored_only, session.profiles
        return tape_for(profile, run, self.gpu, profiles=profiles, tell=session.tell, stored_only=alone, make=make)

    def _orders(
        self, run: RunConfig, widths: Sequence[Sequence[int]], profile: ModelProfile
    ) -> Sequence[Sequence[Tape]]:
        session = self.session
        return tape_orders(
            profile, run, widths, self.gpu, profiles=session.profiles, tell=session.tell,
            stored_only=session.stored_only,
        )  # fmt: skip

    def shipped(self, run: RunConfig, gpu: GpuSpec | None) -> Tape | None:
        """The trace of a run on a card where it ships; with images, of which none do, where it was kept."""
        alone, profiles = not run.shows_images, self.session.profiles
        return tape_for(self.profile_for(run), run, gpu, profiles=profiles, stored_only=alone, make=False)

    @cached_property
    def _planner(self) -> Planner:
        """Estimates what lies around runs whose traces ship."""
        from qlora_planner.planner.planner import Planner, Request
        from qlora_planner.spec.run import RunConfig as Run

        return Planner.of(
            self.profile, Request(budget=self._on_a_card(), pace_on=self.pace_on), Run(), self.sweep, self.tape,
            shipped_of=self.shipped, answers=self._played,
        )  # fmt: skip

    def played(self, run: RunConfig) -> MemoryEstimate | None:
        """The estimate of a run whose trace ships, as a search has it; None elsewhere."""
        return self._planner.played(run)

    def refusal(self, run: RunConfig) -> str | None:
        """Why a run cannot work, in milliseconds: what is contradictory, and what the stack refuses. None: it can."""
        from qlora_planner.memory.options.resolve import resolve

        try:
            problems = resolve(self.profile_for(run), run, self.gpu).problems
        except InputError as error:
            return str(error)
        return next((f"{problem.message}; use {problem.fix}" for problem in problems if problem.blocking), None)

    def plan(self, run: RunConfig | None = None, fixed: Collection[str] | None = None, **request: Any) -> Plan:
        """The recommended run: see `qlora_planner.plan`, whose errors it raises."""
        if run is not None and run.shows_images:
            check_images(self.card, request)
        check_shape(run, request.get("data"))
        run, fixed, request["data"] = with_prompts(run, fixed, request.get("data"))
        from qlora_planner.memory.parallel.choice import SETTLED, sharded
        from qlora_planner.memory.sweep.tasks import is_task
        from qlora_planner.planner.plan import plan
        from qlora_planner.planner.planner import Request
        from qlora_planner.spec.run import RunConfig as Run

        named = {} if run is None else run.stack
        profile = self.profile if run is None else self.profile_for(run)
        apart = named or profile is not self.profile
        sweep = sweep_for(profile, profiles=self.session.profiles, named=named) if apart else self.sweep
        said: set[str] = set()

        def traced(chosen: RunConfig) -> Tape | None:
            try:
                return self.tape(chosen)
            except MissingError as error:  # closed forms answer instead, and the plan says so
                if is_task(chosen) or chosen.shows_images:  # but not for a task, or for images
                    raise
                if not said:
                    self.session.tell(str(error))
                said.add(str(error))
                return None

        def orders(chosen: RunConfig, widths: Sequence[Sequence[int]]) -> Sequence[Sequence[Tape]]:
            try:
                return self._orders(chosen, widths, profile)
            except MissingError:  # said when the run's own trace was asked for
                return ()

        request.setdefault("cards", self.session.gpus.all())
        if len(self._played) > _KEPT:
            self._played.clear()

        def planned(wanted: RunConfig) -> Plan:
            return plan(
                profile,
                Request(budget=self._on_a_card(), run=wanted, fixed=fixed, pace_on=self.pace_on, **request),
                sweep=sweep,
                tape_of=traced,
                orders_of=orders,
                shipped_of=self.shipped,
                traces=not self.session.stored_only and packages.can_trace(),
                answers=None if request.get("data") is not None or wanted.shows_images else self._played,
            )

        wanted = run or Run()
        answer = planned(wanted)
        if not (self.budget.world == 1 or wanted.parallel is not None or answer.estimate.verdict in SETTLED):
            answer = replace(planned(sharded(wanted)), nearest=answer.nearest)
        return replace(answer, estimate=self._with_stack(answer.estimate, wanted))

    def prices(self, run: RunConfig) -> list[Price]:
        """A row per knob: see planner.neighbours. Raises InputError for a run that the stack refuses."""
        from qlora_planner.planner.around.partial import judged_by, open_rows, unbounded
        from qlora_planner.planner.neighbours import prices

        if run.shows_images:
            return prices_with_images(self, run)
        resolved, planner = self._accepted(run), self._planner
        played_of = judged_by(planner, planner.played)
        rows = prices(self.factory, resolved, self.pace_on, self._scale(run), played_of)
        return list(open_rows(rows, unsure=unbounded(planner, resolved)))

    def frontier(self, run: RunConfig) -> Frontier:
        """The grid around a run. Raises InputError for a run that the stack refuses."""
        from qlora_planner.planner.around.grid import grid_around
        from qlora_planner.planner.candidate_memory import AS_RANKED

        if run.shows_images:
            return grid_around(*traced_with_images(self, run), AS_RANKED)
        self._accepted(run)
        return grid_around(self._planner, self.estimate(run), self._scale(run))

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
        memory = self.factory.make(resolve(self.profile, answer.run, self.gpu))
        sizes = np.array([answer.run.batch_size], dtype=np.int64), np.array([answer.run.seq_len], dtype=np.int64)
        floors, traced = memory.floors(*sizes)
        return Scale.of(int(floors[0]), bool(traced[0]), answer.floor_bytes)
