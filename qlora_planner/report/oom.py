"""An out-of-memory failure as a colleague would tell it: what ran out, when, who held the card, what to change."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from qlora_planner.catalog.parallel import strategy_row
from qlora_planner.diagnose.oom import OomReport
from qlora_planner.diagnose.oom.against_plan import Against
from qlora_planner.report.check import Fix
from qlora_planner.report.parts.labels import change
from qlora_planner.report.parts.oom_words import advice, facts, headline
from qlora_planner.report.parts.theme import Line, Theme
from qlora_planner.units import format_gib, format_size


def render_oom(
    report: OomReport,
    theme: Theme,
    compared: Against | None = None,
    fixes: Sequence[Fix] = (),
    verdict: str = "",
    shared: tuple[str, int] | None = None,
) -> str:
    """The whole screen. `verdict` is what the plan's estimate says on the card, `fixes` the least harmful first.

    `shared` is the strategy of a plan for several cards, and their number.
    """
    lines: list[Line] = [[(headline(report), "bold red")], []]
    for label, text in facts(report, planned=compared is not None and bool(compared.tensors)):
        lines += theme.wrap(text, 10, label, first_style="dim")
    if compared is not None:
        lines.append([])
        if shared is not None:
            strategy, world = shared
            text = f"{world} cards, {strategy_row(strategy).label}; the plan's figures are one card's share"
            lines += theme.wrap(text, 10, "cards", first_style="dim")
        for label, text in _beside(report, compared, verdict):
            lines += theme.wrap(text, 10, label, first_style="dim")
    hints = list(advice(report, general=not fixes))
    if hints or fixes:
        lines += [[], [("what to do", "bold")]]
    for fix in fixes:
        text = (
            f"{change(getattr(fix, 'changes', {}))}: needs at least {format_gib(fix.estimate.floor_bytes)}; {fix.costs}"
        )
        lines += theme.wrap(text, 2, "  ", style="cyan")
    for hint in hints:
        lines += theme.wrap(hint, 4, "  - ")
    return theme.render(lines)


def _beside(report: OomReport, compared: Against, verdict: str) -> Iterator[tuple[str, str]]:
    for words in compared.tensors:
        yield "tensor", f"that is {words}"
    planned = format_size(compared.planned_bytes)
    tried = format_size(compared.tried_bytes)
    if report.senseless:
        yield "plan", f"tensors hold {planned} at the most; no plan has room for such a request"
    elif compared.tried_bytes is None:
        yield "plan", f"tensors hold {planned} at the most; the message does not tell what they held"
    elif compared.excess_bytes is not None:
        text = (
            f"tensors hold {planned} at the most; here they would have come to {tried},"
            f" {format_size(compared.excess_bytes)} more: another run than the plan's (longer samples, a larger"
            " batch, no checkpointing), tensors that are kept from step to step, or a prediction that is too low"
        )
        yield "plan", text
    else:
        text = (
            f"tensors were within it: {tried} of {planned}; what beat the plan is not the run itself but the room:"
            " others on the card, idle memory in pieces, or a plan for a larger card"
        )
        yield "plan", text
    if verdict:
        yield "verdict", f"the plan's run on this card as it was: {verdict.replace('-', ' ')}"
