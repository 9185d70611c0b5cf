"""The smallest change that makes a run fit, tried in order of harm."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qlora_planner.catalog import find_optimizer
from qlora_planner.errors import InputError
from qlora_planner.memory import MemoryEstimate
from qlora_planner.planner.sweeps import SEQ_STEP
from qlora_planner.record import record
from qlora_planner.spec.run import RunConfig

Estimate = Callable[[RunConfig], MemoryEstimate]
Surely = Callable[[int], bool]  # whether a run that works from so many bytes on fits surely
Changes = dict[str, Any]
# Full estimates that one direction may take, each up to a quarter of a minute where the run must be traced.
MOST_TRIES = 3
SMALLEST_RANK = 4
# How much harm is done, after the changes that lose nothing, which are numbered from 0.
CUT, ROUNDED, TOGETHER, NARROWED, CUT_DEEPLY = range(20, 25)


@record
class Remedy:
    """Options to change, what that costs, and the run's memory then."""

    changes: Mapping[str, Any]
    costs: str
    estimate: MemoryEstimate

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "change": dict(self.changes),
            "costs": self.costs,
            "verdict": self.estimate.verdict,
            "device_bytes": self.estimate.peak.device_bytes,
            "floor_bytes": self.estimate.floor_bytes,
        }


@dataclass(frozen=True, slots=True)
class _Direction:
    """One way to need less: changes from the mildest to the strongest, and what they cost."""

    harm: int  # ranks directions
    costs: str
    steps: Sequence[Changes]


def remedies(
    run: RunConfig,
    current: MemoryEstimate,
    estimate: Estimate,
    quick: Estimate,
    surely: Surely,
    most: int = 2,
    experts: bool = False,
) -> list[Remedy]:
    """The smallest changes by which `run` (resolved, and estimated as `current`) fits surely, the least harmful first.

    Each direction is searched with the floors of `quick`, scaled by what they are off and judged by `surely`; what
    that finds is confirmed by `estimate`. Where nothing is better than `quick`, give it twice. Changes that lose
    nothing come before a sequence that keeps at least half, then a 4-bit base, or 4-bit `experts` where the tool
    stores them so, then several changes at once of which each is needed, then a shorter sequence. Where nothing
    fits surely, changes by which it fits tightly; empty where nothing helps.
    """
    for enough in (("fits",), ("fits", "tight")):
        answers = _answers(_Search(run, current, estimate, quick, surely, enough, experts), most)
        if answers or current.verdict == "tight":
            return answers
    return []


def _answers(search: _Search, most: int) -> list[Remedy]:
    run = search.run
    answers: list[tuple[int, Remedy]] = []
    for direction in _directions(run, search.experts):
        if len(answers) >= most and direction.harm > ROUNDED:
            break
        remedy = search.along(direction, {})
        if remedy is not None:
            cut = remedy.changes.get("seq_len", run.seq_len) * 2 < run.seq_len
            answers.append((CUT_DEEPLY if cut else direction.harm, remedy))
    if sum(harm < TOGETHER for harm, _ in answers) < most:
        together = search.together()
        answers += [] if together is None else [(TOGETHER, together)]
    answers.sort(key=lambda answer: answer[0])
    distinct = {tuple(sorted(remedy.changes.items())): remedy for _, remedy in reversed(answers)}
    return list(reversed(distinct.values()))[:most]


def _directions(run: RunConfig, experts: bool) -> list[_Direction]:
    """Every way to need less, in order of harm; `experts` that are in 16 bits can be stored in 4."""
    directions = _harmless(run)
    shorter = [{"seq_len": length} for length in range((run.seq_len - 1) // SEQ_STEP * SEQ_STEP, 0, -SEQ_STEP)]
    directions.append(_Direction(CUT, "longer samples are cut", shorter))
    if run.method == "lora" or run.quant == "int8":
        rounded = {"method": "qlora", "quant": "nf4", "double_quant": True}
        directions.append(_Direction(ROUNDED, "the base is rounded to 4 bits", [rounded]))
    if experts and run.quant in ("nf4", "fp4") and run.expert_quant is None:
        directions.append(_Direction(ROUNDED, "experts are rounded to 4 bits too", [{"expert_quant": "nf4"}]))
    if run.method != "full":
        ranks = [run.rank >> shift for shift in range(1, 14) if run.rank >> shift >= SMALLEST_RANK]
        directions.append(_Direction(NARROWED, "adapters can express less", [{"rank": rank} for rank in ranks]))
    return [direction for direction in directions if direction.steps]


def _harmless(run: RunConfig) -> list[_Direction]:
    """Changes after which the same thing is learnt from the same samples, the cheapest first."""
    directions: list[tuple[str, Sequence[Changes]]] = []
    if run.attention == "eager":
        directions.append(("the same attention, fused", [{"attention": "sdpa"}]))
    if run.eval_batch_size is not None and run.eval_batch_size > 1:
        sizes = _divided(run.eval_batch_size)
        directions.append(("evaluation takes more steps", [{"eval_batch_size": size} for size in sizes]))
    optimizer = find_optimizer(run.optimizer)
    if optimizer is not None and optimizer.moments and not (optimizer.bits == 8 and optimizer.paged):
        directions.append(("optimizer states are 8-bit and paged", [{"optimizer": "paged_adamw_8bit"}]))
    if run.quant in ("nf4", "fp4") and not run.double_quant:
        directions.append(("quantisation constants are quantised too", [{"double_quant": True}]))
    if not run.gradient_checkpointing:
        directions.append(("each layer's forward is computed twice", [{"gradient_checkpointing": True}]))
    if run.batch_size > 1:
        steps = [
            {"batch_size": size, "grad_accum": run.grad_accum * (run.batch_size // size)}
            for size in _divided(run.batch_size)
        ]
        directions.append(("the same samples per step in smaller parts, which is slower", steps))
    return [_Direction(harm, costs, steps) for harm, (costs, steps) in enumerate(directions)]


def _divided(size: int) -> list[int]:
    """The sizes that divide `size`, largest first, without itself."""
    return [size // parts for parts in range(2, size + 1) if size % parts == 0]


class _Search:
    def __init__(
        self,
        run: RunConfig,
        current: MemoryEstimate,
        estimate: Estimate,
        quick: Estimate,
        surely: Surely,
        enough: tuple[str, ...],
        experts: bool,
    ) -> None:
        self.enough, self.experts = enough, experts
        self.run, self.estimate, self.quick, self.surely = run, estimate, quick, surely
        self.exact = estimate == quick
        self.scale = self._off(current, run)

    def _off(self, answer: MemoryEstimate, run: RunConfig) -> float:
        """The factor by which `quick` is too low for a run that is estimated as `answer`."""
        return 1.0 if self.exact else answer.floor_bytes / self.quick(run).floor_bytes

    def _seems(self, changes: Changes, scale: float) -> bool:
        """Whether the run fits with these changes, as far as is quickly seen."""
        try:
            answer = self.quick(self.run.with_(**changes))
        except InputError:  # a combination that this model does not have
            return False
        if self.exact or answer.verdict == "will-not-run":
            return answer.verdict in self.enough
        return self.surely(int(scale * answer.floor_bytes))

    def along(self, direction: _Direction, base: Changes) -> Remedy | None:
        """The mildest step of a direction that fits, on top of `base`: more of the same never needs more memory.

        What each estimate shows moves the next look, so that a step or two is missed at most.
        """
        steps = [{**base, **step} for step in direction.steps]
        scale, low, high = self.scale, 0, len(steps)
        best: Remedy | None = None
        for _ in range(MOST_TRIES):

            def seems(index: int, scale: float = scale) -> bool:
                return self._seems(steps[index], scale)

            index = bisect_left(range(high), True, lo=low, key=seems)
            if index == high:
                break
            run = self.run.with_(**steps[index])
            answer = self.estimate(run)
            scale = self._off(answer, run)
            if answer.verdict in self.enough:
                best, high = Remedy(changes=steps[index], costs=direction.costs, estimate=answer), index
            else:
                low = index + 1
        return best

    def _confirmed(self, changes: Changes) -> MemoryEstimate | None:
        answer = self.estimate(self.run.with_(**changes))
        return answer if answer.verdict in self.enough else None

    def together(self) -> Remedy | None:
        """All changes that lose nothing at once, then with less sequence, then with a 4-bit base too."""
        base: Changes = {}
        costs: list[str] = []
        for direction in _directions(self.run, self.experts):
            if direction.harm >= CUT:
                remedy = self.along(direction, base)
                if remedy is not None:
                    return self._pared(dict(remedy.changes), [*costs, direction.costs], remedy.estimate)
            base |= direction.steps[-1]
            costs.append(direction.costs)
            answer = self._confirmed(base) if direction.harm < CUT and self._seems(base, self.scale) else None
            if answer is not None:
                return self._pared(base, costs, answer)
        return None

    def _pared(self, changes: Changes, costs: list[str], answer: MemoryEstimate) -> Remedy:
        """Without the changes that are not needed, the most harmful left out first."""
        for direction in reversed(_directions(self.run, self.experts)):
            names = {name for step in direction.steps for name in step}
            fewer = {name: value for name, value in changes.items() if name not in names}
            if len(fewer) == len(changes) or not self._seems(fewer, self.scale):
                continue
            confirmed = self._confirmed(fewer)
            if confirmed is not None:
                changes, answer = fewer, confirmed
                costs = [cost for cost in costs if cost != direction.costs]
        return Remedy(changes=changes, costs="; ".join(costs), estimate=answer)
