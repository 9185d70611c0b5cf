"""Workbench: models on one card, each opened once."""

from __future__ import annotations

import os
from collections.abc import Collection
from functools import cached_property
from typing import TYPE_CHECKING, Any

from qlora_planner.session.session import Session, run_of
from qlora_planner.spec.model import ModelProfile

if TYPE_CHECKING:
    from qlora_planner.evidence import Measurement
    from qlora_planner.memory.budget import Budget
    from qlora_planner.planner.records import Price
    from qlora_planner.session.cards import PlannedCard
    from qlora_planner.session.model_on_card import Frontier, ModelOnCard
    from qlora_planner.session.views import AuditAnswer, CheckAnswer, EstimateAnswer, PlanAnswer, SurveyAnswer
    from qlora_planner.spec.machine import GpuSpec
    from qlora_planner.spec.run import RunConfig

_REQUEST = ("objective", "effective_batch", "data", "compare")


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

    def estimate(self, model: str | ModelProfile, run: RunConfig | None = None, **options: Any) -> EstimateAnswer:
        """The memory of exactly this run: `run`, else the default one, with `options` in place.

        >>> answer = Session().on("rtx-4090").estimate("qwen2.5-7b", rank=32)
        >>> answer.peak.device_bytes == sum(answer.components.values())
        True

        Raises InputError for options that contradict each other or are unknown, and as `open` does; MissingError for a
        run that would have to be traced where the packages for that are missing.
        """
        from qlora_planner.session.views import EstimateAnswer

        answer = self.open(model).estimate(run_of(run, options))
        return EstimateAnswer(estimate=answer, gpu=self.gpu, card=self.card.asked)

    def plan(
        self,
        model: str | ModelProfile,
        run: RunConfig | None = None,
        *,
        fixed: Collection[str] | None = None,
        **options: Any,
    ) -> PlanAnswer:
        """The recommended run: what is given stays as far as it fits, everything else is searched.

        `options` are those of a run, and `objective` ("throughput", "context", "rank", "quality"), `effective_batch` in
        sequences, `data` (a DataSummary) and `compare` (cards, by name too). `fixed` names the options of `run` that
        stay; None: those that differ from their defaults.

        >>> Session().on("24GB").plan("qwen2.5-7b", rank=64, objective="context").run.rank
        64

        Raises InputError where the stack refuses everything that was left open, and as `estimate` does.
        """
        from qlora_planner.session.views import PlanAnswer

        request = {name: options.pop(name) for name in _REQUEST if name in options}
        if "compare" in request:
            request["compare"] = [self.session.gpu(card) for card in request["compare"]]
        typed = run_of(run, options)
        if fixed is None and options:
            from qlora_planner.planner.search_space import fixed_options

            fixed = fixed_options(typed, None) | options.keys()
        answer = self.open(model).plan(typed, fixed, **request)
        kept = {name: value for name, value in typed.to_dict().items() if name in (fixed or ())}
        return PlanAnswer(plan=answer, asked=kept, card=self.card.asked)

    def check(
        self, file: str | os.PathLike[str], *, kind: str | None = None, model: str | ModelProfile | None = None
    ) -> CheckAnswer:
        """Whether a plan file, or a config of axolotl, LLaMA-Factory or TRL, fits, and what would make it fit.

        `kind` is one of `exchange.configs.FORMATS`, else its keys tell; `model` stands in for the file's own. Its
        `fixes` are changes by which it fits, the least harmful first.
        Raises InputError naming the file and every fault in it, and as `open` does.
        """
        from qlora_planner.exchange.configs import read_config
        from qlora_planner.session.check import check_reading
        from qlora_planner.session.views import CheckAnswer

        reading = read_config(file, kind)
        check = check_reading(file, reading, self.open(model or reading.model_id))
        return CheckAnswer(check=check, gpu=self.gpu)

    def survey(self, run: RunConfig | None = None, *, recommend: bool = True, **options: Any) -> SurveyAnswer:
        """What fits on this card: a row per model of the catalogue, largest first, ranked and not played.

        Without `recommend` no best run of each is looked for. Raises InputError for unknown options, MissingError for
        an empty catalogue.

        >>> len(Session().on("8GB").survey(recommend=False)) > 100
        True
        """
        from qlora_planner.session.survey import stream_rows
        from qlora_planner.session.views import SurveyAnswer

        typed = run_of(run, options)
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
        >>> all(price.refused or price.bytes is not None for price in rows)
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
        self, model: str, run: RunConfig | None = None, *, device: str = "cuda", steps: int = 3, **options: Any
    ) -> Measurement:
        """Take real steps of a run with random weights on the card in this machine, which is held to this one's size.

        `device="cpu"` runs a toy of the model without a card. What was measured is kept for `calibrate`; a run out of
        memory is its `outcome`.
        Raises MissingError for packages, a card or room on it that are not there, and as `estimate` does.
        """
        from qlora_planner.session.this_card import this_card_as
        from qlora_planner.session.verify import verify

        here = None
        if device != "cpu":
            here = this_card_as(self.session, self.card.asked, self.reserve_bytes, self.cap_bytes)
        return verify(self.session, model, run_of(run, options), here=here, steps=steps)
