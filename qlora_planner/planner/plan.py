"""plan: the run that is recommended for one model on one card, and what lies around it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import TYPE_CHECKING, Any

from qlora_planner.catalog.parallel import FSDP2
from qlora_planner.catalog.trainers import run_document, trainer_named
from qlora_planner.errors import MissingError, NothingRunsError
from qlora_planner.evidence.calibration import TRACED
from qlora_planner.memory.options.resolve import resolve
from qlora_planner.memory.records import MemoryEstimate, ModelFacts
from qlora_planner.memory.sweep.tasks import is_task
from qlora_planner.memory.unmodelled.left_out import whole
from qlora_planner.planner.advice import advice, worth_playing
from qlora_planner.planner.around.image_frontier import frontier_around
from qlora_planner.planner.around.other_runs import alternatives, elsewhere
from qlora_planner.planner.around.partial import judged, judged_by, of_data, open_rows, unbounded
from qlora_planner.planner.candidate_memory import Scale
from qlora_planner.planner.gpus.others import Standing, smallest_card
from qlora_planner.planner.knobs import generates, in_whole_groups
from qlora_planner.planner.nearest import nearest
from qlora_planner.planner.neighbours import PlayedOf, candidate_memory_at, ladder, prices
from qlora_planner.planner.objectives import OBJECTIVES, Objective, find_objective
from qlora_planner.planner.planner import (
    OrdersOf,
    Planner,
    Request,
    ShippedOf,
    TapeOf,
    no_orders,
    no_tape,
    none_shipped,
    rows_of,
)
from qlora_planner.planner.records import (
    UNPRICED,
    UNSEARCHED,
    Advice,
    Alternative,
    Fallback,
    FrontierPoint,
    Nearest,
    OtherGpu,
    PlanCost,
    Price,
    SearchSummary,
)
from qlora_planner.planner.search import Choice, Ranking
from qlora_planner.planner.search_space import RULES, fixed_options, with_labels
from qlora_planner.planner.sweeps import Sweep
from qlora_planner.record import document, fields_of, record, replaced
from qlora_planner.spec.machine import GpuSpec
from qlora_planner.spec.model import ModelProfile
from qlora_planner.spec.run import RunConfig
from qlora_planner.speed.roofline import cost_of

if TYPE_CHECKING:  # most plans are made without a dataset
    from qlora_planner.data.batches.epochs import DataPlan

SCHEMA = "qlora-plan/plan/1"
_DEFAULT = RunConfig()
_STORED = frozenset(("method", "quant", "double_quant"))
_TOGETHER = frozenset(("batch_size", "grad_accum", "steps_per_generation"))


@record
class Plan:
    """A recommended run with what surrounds it."""

    model: ModelFacts
    gpu: GpuSpec
    run: RunConfig
    estimate: MemoryEstimate
    alternatives: tuple[Alternative, ...]
    prices: tuple[Price, ...]
    frontier: tuple[FrontierPoint, ...]
    objective: str
    data: DataPlan | None
    stack: Mapping[str, str]
    options: Mapping[str, Any] = field(default_factory=dict)  # what to type for this run: all that is no default
    ladder: tuple[Fallback, ...] = ()
    advice: tuple[Advice, ...] = ()
    smallest_card: Standing | None = None
    compared: tuple[OtherGpu, ...] = ()
    cost: PlanCost | None = None
    search: SearchSummary | None = None
    adjusted: Mapping[str, Any] = field(default_factory=dict)  # fixed options that became others, as they were asked
    shortened_from: int | None = None  # the length that nobody asked for and that does not fit
    nearest: Nearest | None = None  # where nothing fits as it was asked for

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with the keys of the stable surface."""
        near = self.nearest
        beside = {
            "nearest": near and near.run, "nearest_change": near and near.change,
            "nearest_estimate": near and near.estimate,
        }  # fmt: skip
        gpu: dict[str, Any] = {"name": self.gpu.name, "label": self.gpu.label, "memory_bytes": self.gpu.memory_bytes}
        machine = self.estimate.machine
        if machine is not None and machine.world > 1:
            gpu |= {"count": machine.gpus_per_node, "nodes": machine.nodes}
            if machine.network is not None and not machine.network.assumed:
                gpu["node_network"] = machine.network.kind
        own = {
            "gpu": gpu,
            "run": run_document(self.run),
            "cost": self.cost or UNPRICED,
            "search": self.search or UNSEARCHED,
        }
        return {"schema": SCHEMA, **document({**fields_of(self), **own, **beside})}


def plan(
    profile: ModelProfile,
    request: Request,
    *,
    sweep: Sweep | None = None,
    tape_of: TapeOf = no_tape,
    orders_of: OrdersOf = no_orders,
    shipped_of: ShippedOf = none_shipped,
    traces: bool = True,
    answers: dict[str, MemoryEstimate] | None = None,
) -> Plan:
    """The best run that fits, by the objective, over everything that is not fixed.

    `sweep` holds traced moments, by which runs are ranked; `tape_of` gives the trace of a run that is a finalist, which
    may take a while, and `orders_of` those of batches of a dataset that may come before its widest. `shipped_of` gives
    those that ship, by which what lies around the run is estimated. Without `traces` no run is recommended by closed
    forms while a traced one fits. `answers` are kept between plans of one model within one budget, none of which is
    for a dataset.
    What is fixed stays: where nothing fits so, not even at a chance of running out that is taken, the plan is of what
    was asked for and names the nearest run that fits, which with `request.adjust` takes its place. A length that is not
    fixed becomes the longest that fits; where nothing fits at all, the run that needs least is answered.
    Raises InputError for options that contradict each other; what the stack refuses as asked for is answered so.
    """
    objective = find_objective(request.objective)
    run, fixed = request.run, fixed_options(request.run, request.fixed)
    told = {"prompt_len", "completion_len"} & fixed
    if not objective.lengths and (len(told) == 2 or (generates(run) and "completion_len" in told)):
        fixed |= {"seq_len"}  # what is left of a sequence is not looked for
    if len(told) == 2 or (told and generates(run)):  # a prompt and a completion make the sequence
        run = run.with_(seq_len=resolve(profile, run, request.gpu).run.seq_len)
    if objective.lengths and "seq_len" in fixed:  # nothing is left to look for: the length stays
        objective = OBJECTIVES["throughput"]
    if request.data is not None:
        run = with_labels(run, request.data.labels)
    if request.data is not None and "seq_len" not in fixed:
        from qlora_planner.data.batches.summary import seq_len_for

        limit = profile.dims.get("position_rows") or profile.dims.get("max_position_embeddings")
        run = run.with_(seq_len=seq_len_for(request.data, int(limit) if limit else None))
    rows = profile.dims.get("position_rows")
    if rows and "seq_len" not in fixed:  # a model that looks positions up has no more than these
        run = run.with_(seq_len=min(run.seq_len, int(rows)))
    generation = trainer_named(run.trainer).generation
    if generation and generation.always_scores and not (traces or fixed & _TOGETHER or request.effective_batch):
        fixed |= {"grad_accum"}  # what ships is of one micro-batch: each is scored in a pass of its own
    planner = Planner.of(profile, request, run, sweep, tape_of, orders_of, shipped_of, traces, answers)
    try:
        ranking = planner.rank(run, fixed, objective)
    except NothingRunsError:
        if (refused := _refusal(planner, run)) is None:
            raise
        return refused
    if not traces and is_task(run) and not ranking.traced.any():
        typed = run if "batch_size" in fixed else in_whole_groups(run)
        if (refused := _refusal(planner, typed)) is not None:
            return refused
        planner.answer(typed)  # which says what would have to be traced
    settled = planner.settle(ranking, bold=objective.name in ("throughput", "cheapest"))
    if settled is None and "seq_len" not in fixed and not objective.lengths:
        shorter = planner.rank(run, fixed, OBJECTIVES["context"], longest=run.seq_len - 1)
        settled = planner.settle(shorter)
        if settled is not None:
            return replaced(_around(planner, shorter, *settled), shortened_from=run.seq_len)
    if settled is None:
        return _not_sure(planner, ranking, run, fixed, objective)
    if any(problem.blocking for problem in settled[1].problems):
        return _alone(planner, settled[1])  # what lies around a run that cannot be is nothing to choose from
    return _around(planner, ranking, *settled)


def _not_sure(planner: Planner, ranking: Ranking, run: RunConfig, fixed: frozenset[str], objective: Objective) -> Plan:
    """The plan where nothing fits surely: of what was asked for, and the nearest that does beside it or instead."""
    least = ranking.least()
    answer = planner.answer(least.run)
    if any(problem.blocking for problem in answer.problems):
        return _alone(planner, answer)
    if answer.verdict in ("fits", "tight") or (near := nearest(planner, run, fixed, objective)) is None:
        return _around(planner, ranking, least, answer)
    around, choice, there = near
    named = fixed | {"grad_accum"} if "batch_size" in fixed else fixed
    named |= {"prompt_len"} if choice.run.prompt_len is not None and "seq_len" in fixed else set()
    changed = [name for name, value in choice.run.to_dict().items() if name in named and value != getattr(run, name)]
    if planner.request.adjust:
        adjusted = {name: getattr(run, name) for name in changed if name in fixed}
        return replaced(_around(planner, around, choice, there), adjusted=adjusted)
    change = {name: getattr(there.run, name) for name in changed}
    return replaced(
        _around(planner, ranking, least, answer),
        nearest=Nearest(
            run=there.run, change=change, estimate=judged(planner, there), options=_options(planner, choice)
        ),
    )


def _refusal(planner: Planner, run: RunConfig) -> Plan | None:
    """The plan of a run as it was typed, where the stack refuses it and its memory can be said."""
    if not any(problem.blocking for problem in resolve(planner.profile, run, planner.request.gpu).problems):
        return None
    try:
        return _alone(planner, planner.answer(run))
    except MissingError:  # the refusal is all there is to say
        return None


def _alone(planner: Planner, answer: MemoryEstimate) -> Plan:
    """The plan of a run that will not work, without anything to choose."""
    return Plan(
        model=answer.model, gpu=planner.request.gpu, run=answer.run, objective=planner.request.objective, data=None,
        estimate=whole(planner.profile, answer), stack=answer.stack,
        alternatives=(), prices=(), frontier=(),
    )  # fmt: skip


def _stands_alone(planner: Planner, run: RunConfig) -> bool:
    """Whether no closed forms stand in for what lies around a run, and no trace of it ships: nobody says then."""
    if planner.shipped_of is none_shipped:
        return False
    if not trainer_named(run.trainer).closed_forms:
        return planner.shipped_of(run, planner.request.gpu) is None
    return is_task(run) and planner.played(run) is None


def played_by(planner: Planner, run: RunConfig) -> PlayedOf:
    """How the runs around `run` are estimated: by traces that ship, or of runs with images by traces made for them."""
    if not (run.shows_images and planner.traces):
        return planner.played

    def traced(other: RunConfig) -> MemoryEstimate | None:
        answer = planner.answer(other)
        return answer if answer.method == TRACED else None

    return traced


def _around(planner: Planner, ranking: Ranking, choice: Choice, answer: MemoryEstimate) -> Plan:
    request, factory = planner.request, planner.factory
    scale = Scale.of(choice.floor_bytes, choice.traced, answer.floor_bytes)
    cards = request.budget.world
    cost = cost_of(answer.speed, request.gpu, cards=cards)
    price = request.gpu.rent_usd_per_hour
    # Ranks hold all weights: of a share of them they say neither what storing costs nor how long a sequence may be.
    shared = answer.run.parallel == FSDP2
    images, played_of = answer.run.shows_images, played_by(planner, answer.run)
    lone = answer.method != TRACED if images else _stands_alone(planner, answer.run)
    judge, unsure = judged_by(planner, played_of), unbounded(planner, answer.run)
    one_way = lone or images or unsure  # nothing is ranked beside it
    around = open_rows(prices(factory, answer.run, planner.pace_on, scale, judge), unsure=unsure)
    priced = () if lone else tuple(price for price in around if not (shared and _STORED & set(price.change)))
    upcast = next((price.bytes for price in priced if price.change == {"upcast": True}), None)
    return Plan(
        model=answer.model,
        gpu=request.gpu,
        run=answer.run,
        estimate=judged(planner, answer),
        alternatives=() if one_way else tuple(alternatives(planner, choice, answer.floor_bytes, scale)),
        prices=priced,
        frontier=() if shared or lone or unsure else frontier_around(planner, answer, scale, judge),
        objective=request.objective,
        data=None if request.data is None else _data(planner, choice, answer),
        stack=answer.stack,
        options=_options(planner, choice),
        ladder=() if lone else open_rows(ladder(factory, answer.run, planner.pace_on, judge), unsure=unsure),
        advice=tuple(advice(planner.profile, answer, _expandable_bytes(planner, choice, answer), upcast)),
        smallest_card=None
        if unsure or of_data(request) or (images and lone)
        else smallest_card(planner.profile, answer, request.cards, request.budget, planner.played_on),
        compared=tuple(elsewhere(planner, choice, card) for card in request.compare),
        cost=PlanCost(
            usd_per_million_tokens=cost.usd_per_million_tokens, usd_per_hour=None if price is None else cards * price,
        ),
        search=SearchSummary(
            candidates=planner.looked_at, ranked_on=planner.pace_on.name,
            speed_unknown=answer.speed.tokens_per_s is None, rules=RULES,
        ),
    )  # fmt: skip


def _expandable_bytes(planner: Planner, choice: Choice, answer: MemoryEstimate) -> int | None:
    """What torch would reserve with expandable segments, where there is slack to be had."""
    if not worth_playing(answer):
        return None
    return planner.reserved(choice.run.with_(alloc_conf="expandable_segments:True"))


def _options(planner: Planner, choice: Choice) -> Mapping[str, Any]:
    """What of the chosen run is neither a default nor what a default becomes here."""
    usual = resolve(planner.profile, _DEFAULT, planner.request.gpu).run
    return {
        name: value
        for name, value in choice.run.to_dict().items()
        if value not in (getattr(_DEFAULT, name), getattr(usual, name))
    }


def _pace_on_rows(planner: Planner, answer: MemoryEstimate) -> float | None:
    """Tokens computed on per second at the mean length of the run's batches; None on a card of unknown rates."""
    run, data = answer.run, planner.request.data
    assert data is not None
    if generates(run):
        return None
    model = planner.factory.pace(resolve(planner.profile, run, planner.request.gpu), planner.request.gpu)
    if model is None:
        return None
    padded, _ = rows_of(data)(run.batch_size, run.seq_len, run.packing)
    return float(model.tokens_per_s(run.batch_size, padded, run.rank))


def _data(planner: Planner, choice: Choice, answer: MemoryEstimate) -> DataPlan:
    """The dataset under the run; what a shorter sequence would take is ranked, and scaled by the run's own play."""
    from qlora_planner.data.batches.epochs import plan_data

    data, run = planner.request.data, answer.run
    assert data is not None
    memory = candidate_memory_at(planner.factory, run, run.batch_size)
    scale = answer.peak.device_bytes / choice.floor_bytes

    def peak_bytes(seq_len: int) -> int:
        import numpy as np

        sizes = np.array([run.batch_size], dtype=np.int64), np.array([seq_len], dtype=np.int64)
        return int(float(memory.floors(*sizes)[0][0]) * scale)

    return plan_data(
        data, seq_len=run.seq_len, batch_size=run.batch_size, grad_accum=run.grad_accum, packing=run.packing,
        tokens_per_s=_pace_on_rows(planner, answer), limit=planner.model_limit, peak_bytes=peak_bytes,
    )  # fmt: skip
