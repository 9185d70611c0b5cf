"""Session: the catalogues and what measurements say, read once, and the way from there to a card and a model."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from qlora_planner.errors import InputError
from qlora_planner.session import packages
from qlora_planner.session.cards import PlannedCard, card_of, is_local, size_bytes
from qlora_planner.session.models import Build, load_model
from qlora_planner.session.packages import Warn
from qlora_planner.session.run_options import given_options, run_of
from qlora_planner.sources.locations import calibrations_dirs, gpus_dirs
from qlora_planner.spec.model import ModelProfile
from qlora_planner.spec.risk import TIGHT_AT_MOST, parse_risk
from qlora_planner.spec.run import RUN_FIELDS
from qlora_planner.text import plain

if TYPE_CHECKING:
    from qlora_planner.catalog.gpus import GpuCatalogue
    from qlora_planner.evidence.calibration import Calibration
    from qlora_planner.session.after.chat import Chat
    from qlora_planner.session.after.generate import Generation
    from qlora_planner.session.after.merge import MergedRun
    from qlora_planner.session.after.post_mortem import OomAnswer
    from qlora_planner.session.after.side_by_side import SideBySide
    from qlora_planner.session.measuring.calibrate import CalibrationAnswer
    from qlora_planner.session.model_on_card import ModelOnCard
    from qlora_planner.session.surveying.tables import TablesAnswer
    from qlora_planner.session.views.planned import AuditAnswer, CheckAnswer, EstimateAnswer, PlanAnswer
    from qlora_planner.session.views.ran import TrainingAnswer
    from qlora_planner.session.workbench import Workbench
    from qlora_planner.spec.machine import GpuSpec
    from qlora_planner.spec.run import RunConfig


class Session:
    """What every answer starts from. Nothing is read before it is needed, and nothing twice.

    `profiles` is a folder with `models/` or `gpus/` to look in first. `tell` gets one line for each oddity and while
    something takes time; without it, oddities of a model are Python warnings and waits are silent. `waiting` is entered
    with a line while a model is looked up, which is long where it has to be profiled. `build` says what becomes of a
    model without a profile: see `load_model`. With `stored_only` no run is traced and no torch imported:
    closed forms answer where no trace ships. `risk` is the highest chance of running out of memory that is taken, as
    "5%", 5 or 0.05: up to it a run is tight, above it it does not fit.

    >>> Session().on("24GB").plan("qwen2.5-7b").verdict
    'fits'
    """

    def __init__(
        self,
        profiles: str | os.PathLike[str] | None = None,
        *,
        tell: Warn | None = None,
        waiting: Callable[[str], AbstractContextManager[object]] = nullcontext,
        build: Build = "auto",
        stored_only: bool = False,
        risk: str | float = TIGHT_AT_MOST,
    ) -> None:
        self.profiles = profiles
        self.stored_only = stored_only
        self.risk = parse_risk(risk)
        self.tell: Warn = tell or packages.silent
        self.waiting = waiting
        self._warn = {} if tell is None else {"warn": tell}
        self._build: Build = build
        self._models: dict[str, ModelProfile] = {}

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Say nothing of what takes time meanwhile."""
        tell, self.tell = self.tell, packages.silent
        try:
            yield
        finally:
            self.tell = tell

    @cached_property
    def calibration(self) -> Calibration | None:
        """What measurements say: the user's own and the shipped ones together. None where there are none.

        Raises InputError naming a file that is no calibration.
        """
        from qlora_planner.sources.evidence import read_calibration

        return read_calibration(calibrations_dirs(self.profiles))

    @cached_property
    def gpus(self) -> GpuCatalogue:
        """Every card that is known by name."""
        from qlora_planner.catalog.gpus import GpuCatalogue

        return GpuCatalogue(gpus_dirs(self.profiles))

    def gpu(self, card: str | GpuSpec) -> GpuSpec:
        """The card of `card`: a size such as 24GB or 24564MiB, a catalogue name, `local`, or a card already.

        Raises InputError for what is none of these (with the nearest names) and for several cards, MissingError for
        `local` without a card.
        """
        if not isinstance(card, str):
            return card
        if is_local(card):
            from qlora_planner.measure.nvml import local_gpu

            return local_gpu().spec
        from qlora_planner.catalog.gpus import parse_gpu
        from qlora_planner.catalog.gpus.several import several_of

        several = several_of(card)
        if several is not None and several.count > 1:
            raise InputError(f"{plain(card.strip())}: one card is meant here: write {plain(several.each)}")
        return parse_gpu(card, self.gpus)

    def model(self, model: str | ModelProfile, *, build: Build | None = None) -> ModelProfile:
        """The profile of `model`: a catalogue name, a config.json or model folder, a Hub id, or a profile already.

        `build` is that of the session unless it is given. Raises InputError and MissingError as `load_model` does.
        """
        if isinstance(model, ModelProfile):
            return model
        if model not in self._models or build == "always":
            self._models[model] = self._read_model(model, build or self._build)
        return self._models[model]

    def _read_model(self, model: str, build: Build) -> ModelProfile:
        begun = time.monotonic()
        with self.waiting(f"{plain(model)} is new here: looking it up and profiling it"):
            profile = load_model(model, profiles=self.profiles, build=build, **self._warn)
        if profile.source == "built":
            self.tell(f"{profile.id}: profiled in {time.monotonic() - begun:.1f} s and kept")
        # The answer's head names the model in full: a tail of it is no news.
        tail = profile.id.rpartition("/")[2].casefold()
        if profile.same_shape_as is None and (profile.resolved_from or tail).casefold() != tail:
            self.tell(f"{plain(profile.resolved_from)}: taken as {profile.id}")
        if profile.same_shape_as is not None:
            self.tell(f"{profile.id}: same shapes as {profile.same_shape_as}, answered from its profile")
        if profile.note:
            self.tell(f"{profile.id}: {profile.note}")
        return profile

    def on(
        self,
        card: str | GpuSpec | PlannedCard,
        *,
        reserve: str | int | None = None,
        cap: str | int | None = None,
        risk: str | float | None = None,
        nodes: int = 1,
        node_network: str | None = None,
    ) -> Workbench:
        """The workbench for a card. `reserve` is held by other programs, `cap` torch's own limit: bytes, or `800MiB`.

        `risk` is the highest chance of running out that is taken there (the session's): "5%", 5 or 0.05. For `local`
        without a `reserve` it is what others hold now. Several cards are written `2xrtx-3090`, `nodes` have as many
        each and reach each other over `node_network`, as `8x400Gb`. Raises InputError for a card, a network, a reserve,
        a cap or a risk that means nothing, MissingError for `local` without a card.
        """
        from qlora_planner.session.workbench import Workbench

        planned = card_of(
            self,
            card,
            reserve_bytes=None if reserve is None else size_bytes(reserve, "reserve"),
            cap_bytes=None if cap is None else size_bytes(cap, "cap"),
            nodes=nodes,
            node_network=node_network,
        )
        return Workbench(self, planned if risk is None else replace(planned, risk=parse_risk(risk)))

    def open(
        self,
        model: str | ModelProfile,
        card: str | GpuSpec | PlannedCard | None = None,
        *,
        reserve_bytes: int = 0,
        cap_bytes: int | None = None,
    ) -> ModelOnCard:
        """One model on a card, or on none: plain records. Raises as `model` and `on` do.

        `reserve_bytes` and `cap_bytes` are of a card that is named; a PlannedCard has its own.
        """
        from qlora_planner.session.model_on_card import ModelOnCard

        if card is not None and not isinstance(card, PlannedCard):
            card = card_of(self, card, reserve_bytes=reserve_bytes, cap_bytes=cap_bytes)
        return ModelOnCard(session=self, profile=self.model(model), card=card)

    def estimate(self, model: str | ModelProfile, run: RunConfig | None = None, **options: Any) -> EstimateAnswer:
        """The memory of one run against no card; `options` are those of RunConfig, as `rank=32`.

        Raises as `Workbench.estimate` does.
        """
        from qlora_planner.session.views.planned import EstimateAnswer

        return EstimateAnswer(estimate=self.open(model).estimate(run_of(run, options)), gpu=None, card=None)

    def audit(self, model: str | ModelProfile, run: RunConfig | None = None, **options: Any) -> AuditAnswer:
        """What will really be 4-bit, what will not, and why. `options` are those of RunConfig, as `quant="int8"`.

        Raises InputError for a run that quantises nothing and for a model that means nothing.
        """
        from qlora_planner.memory.audit.audit import audit
        from qlora_planner.session.views.planned import AuditAnswer

        wanted = run_of(run, options)
        profile = self.model(model)
        if wanted.shows_images:
            from qlora_planner.session.towers import with_tower

            profile = with_tower(profile, wanted, profiles=self.profiles, warn=self.tell)
        return AuditAnswer(audit=audit(profile, wanted))

    def plan(self, model: str | ModelProfile, run: RunConfig | None = None, **more: Any) -> PlanAnswer:
        """The recommended run on the card of the catalogue where a token of it costs least.

        `more` are what `Workbench.plan` takes beside. Raises InputError where no card with a known price holds the
        model, and as `Workbench.plan` does.

        >>> Session().plan("qwen2.5-7b").verdict
        'fits'
        """
        from qlora_planner.session.planning import CHEAPEST, cheapest_card

        named = {name: value for name, value in more.items() if name in RUN_FIELDS}
        given = given_options(run, named)
        fixed = more.get("fixed")
        card = cheapest_card(self, self.model(model), run_of(run, named), given if fixed is None else fixed, None)
        return self.on(card).plan(model, run, **{"objective": CHEAPEST, **more})

    def check(self, file: str | os.PathLike[str], *, kind: str | None = None, **more: Any) -> CheckAnswer:
        """Whether a plan file fits the card that it was made for: see `Workbench.check`, which takes `more` and
        whose errors it raises.

        A file that names no card is checked against the one in this machine.
        """
        from qlora_planner.exchange.configs import read_config
        from qlora_planner.session.cards import LOCAL, card_of_plan, network_of_plan

        gpu = read_config(file, kind).gpu
        card, nodes = (LOCAL, 1) if gpu is None else card_of_plan(gpu)
        network = None if gpu is None else network_of_plan(gpu)
        return self.on(card, nodes=nodes, node_network=network).check(file, kind=kind, **more)

    def train(
        self, what: str | os.PathLike[str] | PlanAnswer, run: RunConfig | None = None, **more: Any
    ) -> TrainingAnswer:
        """Train on the card in this machine, or with `device="cpu"` without one.

        `more` are what `Workbench.train` takes, whose errors it raises.
        """
        from qlora_planner.session.training.ask import train_with

        return train_with(self, what, run, None, more)

    def merge(self, run: str | os.PathLike[str], **more: Any) -> MergedRun:
        """Merge the adapters of a run, a folder of `train` or of PEFT, into its base, and write a model folder.

        `more` are `output`, the folder to write (RUN-merged), `base`, a folder or Hub id of the full-precision base,
        `dtype` ("bfloat16" or "float16"), and `force` to write over a merged model. On the host. Raises InputError for
        a run or a base that cannot be merged, MissingError for packages and a base that are not there, RefusedError for
        too little memory or disk.

        >>> Session().merge("runs/first").to_dict()["total_bytes"]  # doctest: +SKIP
        16060556376
        """
        from qlora_planner.session.after.merge import merge_run

        return merge_run(self, run, **more)

    def generate(self, run: str | os.PathLike[str], prompt: str, **more: Any) -> Generation:
        """Try a prompt on a run: its base as it was trained on, with its adapters.

        `more` are `max_new_tokens` (256), `temperature` (0), `raw` for no chat template, `base`, `device` ("cuda" or
        "cpu"; as the run was trained) and `hear`, which gets the answer piece by piece. Raises as `merge` does.

        >>> print(Session().generate("runs/toy", "count from two"))  # doctest: +SKIP
        three four five
        """
        from qlora_planner.session.after.generate import generate_on

        return generate_on(self, run, prompt, **more)

    def side_by_side(self, run: str | os.PathLike[str], prompts: Sequence[str] = (), **more: Any) -> SideBySide:
        """Answers of a run's base and of its tuned model after a few prompts (three of its data), kept in its folder;
        `more` are those of `generate` but `temperature`. Raises as `merge` does."""
        from qlora_planner.session.after.side_by_side import side_by_side

        return side_by_side(self, run, prompts, **more)

    def chat(self, run: str | os.PathLike[str], **more: Any) -> Chat:
        """A run to talk with: `say` answers, `tuned = False` has its base answer, `forget` begins anew; `more` are
        those of `generate`. Raises as `merge` does."""
        from qlora_planner.session.after.chat import open_chat

        return open_chat(self, run, **more)

    def explain_oom(self, log: str | os.PathLike[str], *, plan: str | os.PathLike[str] | None = None) -> OomAnswer:
        """What ran out of memory, by a log, a pasted traceback or a memory snapshot of torch (- for standard input).

        With `plan`, the plan of the run that failed, what was more than planned and the smallest change that fits.
        Needs no torch. Raises InputError for what cannot be read and for a log in which nothing ran out.

        >>> Session().explain_oom("train.log").kind  # doctest: +SKIP
        'cuda'
        """
        from qlora_planner.session.after.post_mortem import explain_oom

        return explain_oom(self, os.fspath(log), None if plan is None else os.fspath(plan))

    def calibrate(self) -> CalibrationAnswer:
        """Learn from this user's verifications how far off predictions are; every later estimate reads it.

        Raises MissingError where there is no verification that ran whole, unlimited and on a card.
        """
        from qlora_planner.session.measuring.calibrate import calibrate

        learnt = calibrate(self)
        vars(self).pop("calibration", None)  # read anew when it is next asked for
        return learnt

    def table(
        self, models: Sequence[str | ModelProfile] | None = None, run: RunConfig | None = None, **options: Any
    ) -> TablesAnswer:
        """Memory by model for each way to train, and the largest model per card; `models` are the rows of the first.

        `options` are those of RunConfig, as `seq_len=4096`. Raises InputError for an empty list, for a model that means
        nothing, and for bad options.
        """
        from qlora_planner.session.surveying.tables import size_tables

        return size_tables(self, models, run_of(run, options))

    def ranking_card(self, gpu: GpuSpec) -> GpuSpec:
        """The card itself, or for a bare size one of the catalogue that stands in to rank speeds by.

        That is the one that the table of sizes names; for a size written exactly, the smallest catalogue card that has
        it.
        """
        from qlora_planner.session.cards import standing_card

        return standing_card(gpu, self.gpus)
