"""What a plan's screen says beside the run: other cards, advice, and how the search went."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from qlora_planner.report.parts.labels import change, gib, option, value
from qlora_planner.report.parts.theme import Line, Theme, columns
from qlora_planner.units import MIB, format_size

if TYPE_CHECKING:
    from qlora_planner.planner.plan import Plan

_CARDS = (27, 13, 10, 10, 11)
_LADDER = (44, 10, 8, 6)


def percent(ratio: float | None) -> str:
    """A ratio of two speeds as a difference."""
    return "-" if ratio is None else f"{100 * (ratio - 1):+.0f} %"


def compared(plan: Plan, theme: Theme) -> Iterator[Line]:
    """The best run of the model on each other card."""
    if not plan.compared:
        return
    heads = ("the best run on", "", "needs GiB", "tokens/s", "$ per Mtok")
    yield columns([(head, "dim") for head in heads], _CARDS, frozenset({0, 1}))
    for row in plan.compared:
        price, pace = row.usd_per_million_tokens, row.tokens_per_s
        cells = [
            (theme.cut(row.label, _CARDS[0]), ""),
            (row.verdict, ""),
            (gib(row.floor_bytes, 1), ""),
            ("-" if pace is None else f"{pace:,.0f}", ""),
            ("-" if price is None else f"{price:.3f}", ""),
        ]
        yield columns(cells, _CARDS, frozenset({0, 1}))
        if row.change:
            yield from theme.wrap(change(row.change), 4, style="cyan")


def given_up(plan: Plan, theme: Theme) -> Iterator[Line]:
    """What to give up, in order, each rung below the one before it; `train` climbs down by itself."""
    if not plan.ladder:
        return
    heads = ("what to give up, in order", "MiB", "speed", "fits")
    yield columns([(head, "dim") for head in heads], _LADDER, frozenset({0}))
    for row in plan.ladder:
        turned = {name: now for name, now in row.change.items() if name != "padding"}
        if turned.get("steps_per_generation") == turned.get("grad_accum"):  # as it follows from it
            turned.pop("steps_per_generation", None)
        cells = [
            (theme.cut(change(turned), _LADDER[0]), ""),
            ("-" if row.bytes is None else f"{row.bytes / MIB:+,.0f}", ""),
            (percent(row.speed), ""),
            ("?" if row.fits is None else "yes" if row.fits else "no", "" if row.fits else "dim"),
        ]
        yield columns(cells, _LADDER, frozenset({0}))


def nearest_words(plan: Plan, typed: Mapping[str, Any]) -> str | None:
    """What a run that does not fit as it was asked for becomes by the least change; None where it fits, or nothing was
    asked for."""
    near = plan.nearest
    if near is None:
        if not typed or plan.estimate.verdict != "does-not-fit":
            return None
        return "does not fit as asked, and nothing near it does"
    was = [f"{option(name)} {value(typed[name])}" for name in near.change if name in typed]
    instead = f" (asked: {', '.join(was)})" if was else ""
    sure = "does" if near.estimate.verdict == "fits" else "may"
    return f"does not fit as asked; the nearest that {sure}: {change(near.change)}{instead}"


def nearest(plan: Plan, typed: Mapping[str, Any], theme: Theme) -> Iterator[Line]:
    """The nearest run that fits, and what it takes."""
    words = nearest_words(plan, typed)
    if words is None:
        return
    yield from theme.wrap(words, style="bold")
    if plan.nearest is not None and plan.nearest.estimate.fit is not None:
        from qlora_planner.report.estimate import verdict_sentences

        for sentence in verdict_sentences(plan.nearest.estimate, plan.nearest.estimate.fit):
            yield from theme.wrap(sentence, 2)


def advised(plan: Plan, theme: Theme) -> Iterator[Line]:
    """What this stack costs here, and the smallest card that would do."""
    for row in plan.advice:
        yield from theme.wrap(row.message, 6, "note", first_style="dim")
    there, here = plan.smallest_card, plan.estimate.fit
    if there and there.card.name != plan.gpu.name and (here is None or there.usable_bytes != here.usable_bytes):
        text = f"the smallest card of the catalogue that holds this run: {there.card.label}"
        yield from theme.wrap(f"{text} ({format_size(there.usable_bytes)} usable)", 6, "note", first_style="dim")
    elif there is None and plan.estimate.verdict == "does-not-fit" and plan.search and not plan.estimate.partial:
        yield from theme.wrap("no single card of the catalogue holds this run", 6, "note", first_style="dim")


def searched(plan: Plan, theme: Theme) -> Iterator[Line]:
    """How many candidates were looked at, and the rules that left others out."""
    if not plan.search:
        return
    text = f"{plan.search.candidates:,} candidates, compared as on {plan.search.ranked_on}"
    yield from theme.wrap(text, 8, "search", first_style="dim")
    for rule in plan.search.rules:
        yield from theme.wrap(f"{rule.says} ({rule.source})", 18, f"  {rule.name}", first_style="cyan")
