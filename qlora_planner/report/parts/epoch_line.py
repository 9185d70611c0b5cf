"""The first line of a plan for a dataset: what an epoch takes in time and money, here and on other cards."""

from __future__ import annotations

from collections.abc import Iterator

from qlora_planner.data.batches.epochs import DataPlan, plan_data
from qlora_planner.planner.plan import Plan
from qlora_planner.planner.records import OtherGpu
from qlora_planner.report.data import hours_text
from qlora_planner.report.parts.labels import card_name, short_label
from qlora_planner.report.parts.theme import Line, Theme

_ROWS = {"messages": "chats", "text": "texts", "alpaca": "instructions", "prompt-completion": "prompts"}
_FITTING = ("fits", "tight")


def epoch_line(plan: Plan, theme: Theme) -> Iterator[Line]:
    """`3,000 chats: about 41 min and $0.27 an epoch on RTX 4090; ...`; nothing where the run does not fit or has no
    known speed."""
    data, cost = plan.data, plan.cost
    if data is None or data.epoch.hours is None or plan.estimate.verdict not in _FITTING:
        return
    rows = data.summary.rows
    name = _ROWS.get(data.summary.shape, "rows")
    usd_per_hour = None if cost is None else cost.usd_per_hour
    card = card_name(plan.gpu, plan.estimate.machine)
    parts = [f"{_spent(data.epoch.hours, usd_per_hour)} an epoch on {card}"]
    for other in plan.compared:
        hours = _hours_on(other, data)
        if hours is not None:
            parts.append(f"{_spent(hours, other.usd_per_hour)} on {short_label(other.label)}")
    yield from theme.wrap(f"{rows:,} {name[:-1] if rows == 1 else name}: {'; '.join(parts)}", style="bold")


def _spent(hours: float, usd_per_hour: float | None) -> str:
    """A time, and its price where that is known: `about 41 min and $0.27`."""
    time = f"about {hours_text(hours)}" if hours >= 1 / 60 else hours_text(hours)
    if usd_per_hour is None:
        return time
    usd = hours * usd_per_hour
    return f"{time} and {'less than a cent' if usd < 0.005 else f'${usd:,.2f}'}"


def _hours_on(other: OtherGpu, data: DataPlan) -> float | None:
    """An epoch of the other card's own run, in hours; None where it does not fit there or its speed is unknown."""
    run = other.run
    if run is None or other.verdict not in _FITTING or not other.tokens_per_s:
        return None
    return plan_data(
        data.summary, seq_len=run["seq_len"], batch_size=run["batch_size"], grad_accum=run["grad_accum"],
        packing=run["packing"], tokens_per_s=other.tokens_per_s,
    ).epoch.hours  # fmt: skip
