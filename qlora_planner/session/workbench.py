"""Workbench: models on one card, each opened once."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from qlora_planner.catalog.trainers import data_task
from qlora_planner.session.run_options import given_options, run_of
from qlora_planner.session.session import Session
from qlora_planner.spec.model import ModelProfile

if TYPE_CHECKING:
    from qlora_planner.data.batches.summary import DataSummary
    from qlora_planner.memory.budget import Budget
    from qlora_planner.planner.around.grid import Frontier
    from qlora_planner.planner.records import Price
    from qlora_planner.session.cards import PlannedCard
    from qlora_planner.session.data import DataSource
    from qlora_planner.session.model_on_card import ModelOnCard
    from qlora_planner.session.views.planned import AuditAnswer, CheckAnswer, EstimateAnswer, PlanAnswer, SurveyAnswer
    from qlora_planner.session.views.ran import TrainingAnswer, VerificationAnswer
    from qlora_planner.spec.machine import GpuSpec
    from qlora_planner.spec.run import RunConfig


class Workbench:
    """What can be asked of models on a card; made by `Session.on`.

    A model is whatever `Session.model` takes, and the options of a run are given as RunConfig has them: `rank=32`,
    `seq_len=4096`. Answers print as the command line shows them, draw their memory bar in a notebook, become pandas
    frames by `to_frame()`, and give way to the record inside: `answer.peak.device_bytes` of an estimate, in bytes.

    >>> bench = Session().on("24GB", reserve="800MiB")
    >>> bench.estimate("llama-3.1-8b", seq_len=4096).verdict
    'fits'
    """

    def __init__(self, session: Session, card: PlannedCard) -> None:
        self.session = session
        self.card = card
        self._opened: dict[str, ModelOnCard] = {}

    def __getstate__(self) -> dict[str, object]:
        return {"session": self.session, "card": self.card, "_opened": {}}  # opened models are opened anew

    def __repr__(self) -> str:
        card = self.card
        return f"Workbench({card.asked!r}, reserve_bytes={card.reserve_bytes}, cap_bytes={card.cap_bytes})"

    @property
    def gpu(self) -> GpuSpec:
        """The card itself."""
        return self.card.gpu

    @property
    def reserve_bytes(self) -> int:
        """What other programs hold of it."""
        return self.card.reserve_bytes

    @property
    def cap_bytes(self) -> int | None:
        """torch's own limit; None: there is none."""
        return self.card.cap_bytes

    @cached_property
    def budget(self) -> Budget:
        """What a process may use of the card, by what measurements say."""
        return self.card.budget(self.session.calibration)

    def at(self, risk: str | float | None) -> Workbench:
        """The same card where another chance of running out is taken: "5%", 5 or 0.05. None: this workbench."""
        return self if risk is None else self.session.on(self.card, risk=risk)

    def open(self, model: str | ModelProfile) -> ModelOnCard:
        """The model on this card, for plain records; one that is named is opened once, with its answers kept.

        Raises InputError for a model that means nothing, MissingError for one that is not profiled and cannot be here.
        """
        if isinstance(model, ModelProfile):
            return self._open(model)
        if model not in self._opened:
            self._opened[model] = self._open(self.session.model(model))
        return self._opened[model]

    def _open(self, profile: ModelProfile) -> ModelOnCard:
        return self.session.open(profile, self.card)

    def estimate(
        self,
        model: str | ModelProfile,
        run: RunConfig | None = None,
        *,
        risk: str | float | None = None,
        **options: Any,
    ) -> EstimateAnswer:
        """The memory of exactly this run: `run`, else the default one, with `options` in place. `risk`: see `at`.

        >>> answer = Session().on("rtx-4090").estimate("qwen2.5-7b", rank=32)
        >>> answer.peak.device_bytes == sum(answer.components.values())
        True

        Raises InputError for options that contradict each other or are unknown, and as `open` does; MissingError for a
        run that would have to be traced where the packages for that are missing.
        """
        from qlora_planner.session.views.planned import EstimateAnswer

        typed = run_of(run, options)
        if run is None and not {"batch_size", "grad_accum"} & options.keys():
            from qlora_planner.planner.knobs import in_whole_groups

            typed = in_whole_groups(typed)
        answer = self.at(risk).open(model).estimate(typed)
        return EstimateAnswer(estimate=answer, gpu=self.gpu, card=self.card.asked)

    def plan(
        self,
        model: str | ModelProfile,
        run: RunConfig | None = None,
        *,
        fixed: Collection[str] | None = None,
        objective: str = "throughput",
        effective_batch: int | None = None,
        data: DataSummary | DataSource | str | os.PathLike[str] | None = None,
        tokenizer: str | None = None,
        chars_per_token: float | None = None,
        bad_rows: str = "refuse",
        compare: str | Iterable[str | GpuSpec] = (),
        adjust: bool = False,
        risk: str | float | None = None,
        **options: Any,
    ) -> PlanAnswer:
        """The recommended run: what is given stays, everything else is searched.

        Where nothing fits so, the answer is what was asked for, and its `nearest` the run that fits.

        Args:
            model: what `Session.model` takes.
            run: options to start from; those that differ from their defaults stay.
            fixed: names of options of `run` that stay instead.
            objective: "throughput", "context", "rank", "quality", or "cheapest", for which the card must have a price.
            effective_batch: sequences per optimizer step, whatever the micro-batch (16).
            data: a file, folder, pattern or Hub dataset, of whose lengths the plan is made; or what counted it.
            tokenizer: whose tokens are counted (the model's own); a folder or a Hub id.
            chars_per_token: guesses the tokens from characters instead.
            bad_rows: "refuse" or "skip" rows of `data` that cannot be used.
            compare: other cards for the same run, as a list or as "t4,a100-80gb".
            adjust: take the nearest run where nothing fits as it was given; `adjusted` says what was changed.
            risk: the highest chance of running out that is taken: see `at`.
            options: those of a run, which stay.

        Sizes in the answer are bytes, times seconds. Raises InputError where the stack refuses everything that was left
        open, for data that cannot be used, and as `estimate` does; MissingError for a tokenizer or a package that is
        not there.

        >>> Session().on("24GB").plan("qwen2.5-7b", rank=64, objective="context").run.rank
        64
        >>> priced = Session().on("rtx-4090").plan("qwen2.5-7b", objective="cheapest", compare="rtx-3090")
        >>> print(*(row["gpu"] for row in priced.to_dict()["compared"]))
        rtx-3090
        """
        from qlora_planner.session import planning
        from qlora_planner.session.plan_files import with_folder
        from qlora_planner.session.views.planned import PlanAnswer

        planning.check_batch(options, effective_batch, self.card.world)
        typed = run_of(run, options)
        if fixed is None and options:
            from qlora_planner.planner.search_space import fixed_options

            fixed = fixed_options(typed, None) | options.keys()
        bench = self.at(risk)
        opened = bench.open(model)
        if objective == planning.CHEAPEST:
            planning.cheapest_card(self.session, opened.profile, typed, fixed, self.card)
        counted = planning.data_of(
            self.session, data, planning.tokenizer_of(model, opened.profile), tokenizer=tokenizer,
            chars_per_token=chars_per_token, bad_rows=bad_rows, task=data_task(typed),
        )  # fmt: skip
        cards = [name.strip() for name in compare.split(",")] if isinstance(compare, str) and compare else compare
        plan = opened.plan(
            typed, fixed, objective=objective, effective_batch=effective_batch, data=counted,
            compare=[self.session.gpu(card) for card in cards], adjust=adjust,
        )  # fmt: skip
        if isinstance(model, str):
            plan = with_folder(plan, model)
        kept = {name: value for name, value in typed.to_dict().items() if name in (fixed or ())}
        return PlanAnswer(plan=plan, asked=kept, card=self.card.asked, bench=self)

    def check(
        self,
        file: str | os.PathLike[str],
        *,
        kind: str | None = None,
        model: str | ModelProfile | None = None,
        risk: str | float | None = None,
        stack: Mapping[str, str] | None = None,
    ) -> CheckAnswer:
        """Whether a plan file, or a config of axolotl, LLaMA-Factory or TRL, fits, and what would make it fit.

        `kind` is one of `exchange.configs.FORMATS`, else its keys tell; `model` stands in for the file's own; `risk`:
        see `at`; `stack` names versions, of the tool too, whose defaults are then read (`{"axolotl": "0.18"}`). Its
        `fixes` are changes by which it fits, the least harmful first.
        Raises InputError naming the file and every fault in it, and as `open` does.
        """
        from qlora_planner.exchange.configs import read_config
        from qlora_planner.session.check import check_reading
        from qlora_planner.session.views.planned import CheckAnswer

        reading = read_config(file, kind, stack or {})
        opened = self.at(risk).open(model or reading.model_id)
        return CheckAnswer(check=check_reading(file, reading, opened), gpu=self.gpu)

    def survey(self, run: RunConfig | None = None, *, recommend: bool = True, **options: Any) -> SurveyAnswer:
        """What fits on this card: a row per model of the catalogue, largest first, with its best run by `recommend`.

        Raises InputError for unknown options, MissingError for an empty catalogue.

        >>> len(Session().on("8GB").survey(recommend=False)) > 100
        True
        """
        from qlora_planner.planner.knobs import in_whole_groups
        from qlora_planner.session.surveying.survey import stream_rows
        from qlora_planner.session.views.planned import SurveyAnswer

        typed = in_whole_groups(run_of(run, options))
        rows = sorted(stream_rows(self, typed, recommend=recommend), key=lambda row: (-row.params, row.model_id))
        return SurveyAnswer(
            rows=tuple(rows), gpu=self.gpu, run=typed, card=self.card.asked, reserve_bytes=self.reserve_bytes,
            cap_bytes=self.cap_bytes,
        )  # fmt: skip

    def audit(self, model: str | ModelProfile, run: RunConfig | None = None, **options: Any) -> AuditAnswer:
        """What will really be 4-bit, what will not, and why: see `Session.audit`; it hangs on no card."""
        return self.session.audit(model, run, **options)

    def prices(self, model: str | ModelProfile, run: RunConfig | None = None, **options: Any) -> list[Price]:
        """What each knob would change of a run, a row each: bytes of the floor, speed as a ratio, whether it fits.

        Raises InputError for a run that the stack refuses, and as `estimate` does.

        >>> rows = Session().on("24GB").prices("qwen2.5-7b")
        >>> any(price.fits for price in rows)
        True
        """
        return self.open(model).prices(run_of(run, options))

    def frontier(self, model: str | ModelProfile, run: RunConfig | None = None, **options: Any) -> Frontier:
        """Batch by sequence length around a run: the longest length of each batch, a verdict and bytes for each cell.

        Raises InputError for a run that the stack refuses, and as `estimate` does.

        >>> 1 in Session().on("24GB").frontier("qwen2.5-7b").longest
        True
        """
        return self.open(model).frontier(run_of(run, options))

    def verify(
        self,
        model: str | os.PathLike[str],
        run: RunConfig | None = None,
        *,
        device: str = "cuda",
        steps: int = 3,
        floor: bool = False,
        save: bool = False,
        **options: Any,
    ) -> VerificationAnswer:
        """Take real steps of a run with random weights on the card in this machine, which is held to this one's size.

        Args:
            model: what `Session.model` takes, or the path of a plan file, whose run is taken.
            run: options to start from; `options` are put in their place.
            device: "cpu" runs a toy of the model without a card.
            steps: optimizer steps.
            floor: look for the least limit on torch that works too, by about eight more runs.
            save: write the evidence into `measurements/` of the session's profiles too.

        What was measured is kept for `calibrate`; a run out of memory is its `outcome`. Sizes are bytes, times seconds.
        Raises MissingError for packages, a card or room on it that are not there, InputError for what needs a card on
        the CPU, and as `estimate` does.

        >>> Session().on("local").verify("llama-3.2-1b", seq_len=512).outcome  # doctest: +SKIP
        'ok'
        """
        from qlora_planner.errors import InputError
        from qlora_planner.session.measuring.verify import cards_for, run_of_file, verify
        from qlora_planner.session.views.ran import VerificationAnswer

        if device == "cpu" and floor:
            raise InputError("device='cpu': floor needs a card; leave it out")
        named, meant = run_of_file(os.fspath(model), given_options(run, options))
        ranks, here = cards_for(self.session, os.fspath(model), self.card, device=device)
        verification = verify(self.session, named, meant, here=here, steps=steps, floor=floor, save=save, ranks=ranks)
        return VerificationAnswer(verification=verification)

    def train(
        self,
        what: str | os.PathLike[str] | PlanAnswer,
        run: RunConfig | None = None,
        *,
        data: str | os.PathLike[str] | None = None,
        output: str | os.PathLike[str] | None = None,
        device: str | None = None,
        resume: bool = False,
        yes: bool = False,
        force: bool = False,
        recover: bool = True,
        weights: str | os.PathLike[str] | None = None,
        tokenizer: str | None = None,
        bad_rows: str = "refuse",
        **options: Any,
    ) -> TrainingAnswer:
        """Train on the card in this machine, which is held to this one's size, in a process of its own.

        Nobody is asked: calling it starts it. The longest batch is tried first; when memory runs out, the run goes on
        one rung lower. A signal or Ctrl-C saves a checkpoint.

        Args:
            what: a plan (an answer of `plan`, or the path of a plan file), which is run as it is; a model folder or
                Hub id, which is planned for first; or with `resume` the folder of a run.
            run: options that stay; `options` are put in their place.
            data: the samples: a file, folder, pattern or Hub dataset.
            output: the run's own folder (runs/NAME of the model).
            device: "cuda" or "cpu" (cuda; that of the run that is gone on with).
            yes: start though it may not fit.
            force: start anew where a run is.
            recover: try a smaller run when memory runs out.
            weights, tokenizer: where these are, if the name of the model does not lead there.
            bad_rows: "refuse" or "skip" rows that cannot be used.
            options: those of a run, and of `qlora_planner.train.settings.Settings`: `epochs`, `max_steps`,
                `learning_rate`, `warmup`, `scheduler`, `save_steps`, `logging_steps`, `seed`, `eval_split`,
                `assistant_only_loss`, `pad_token`, `report_to`; `adjust` and `risk` as `plan` has them.

        The answer is summary.json; of a run that had finished before, what it says. An end without an adapter is its
        `outcome`: "out-of-memory", "interrupted", "disk-full", "killed" or "error". Raises InputError for what cannot
        be trained on, MissingError for packages, weights, a card or room that are not there, RefusedError for a run
        that does not fit without `yes` or that the stack refuses, UnsureError where nobody can say whether it fits.

        >>> Session().on("local").train("plan.yaml", data="train.jsonl", max_steps=100).outcome  # doctest: +SKIP
        'ok'
        """
        from qlora_planner.session.training.ask import train_with

        started = {
            "data": data, "output": output, "device": device, "resume": resume, "yes": yes, "force": force,
            "recover": recover, "weights": weights, "tokenizer": tokenizer, "bad_rows": bad_rows,
        }  # fmt: skip
        return train_with(self.session, what, run, self.card, {**started, **options})
