"""The components at the peak as one bar against what is usable."""

from __future__ import annotations

from itertools import accumulate

from qlora_planner.memory.records import MemoryEstimate
from qlora_planner.report.pages.document import Plot
from qlora_planner.report.pages.svg import Part, bars
from qlora_planner.report.parts.labels import COMPONENTS, component_label, gib
from qlora_planner.units import GIB, format_gib

BAR_COLUMNS = 44  # of a bar in text
_SEGMENTS = ("weights", "training", "activations", "overhead")


def component_chart(estimate: MemoryEstimate) -> Plot:
    """Coloured by what the components belong to, with the usable bytes as a line where there is a card."""
    usable = estimate.fit.usable_bytes if estimate.fit else None
    shown = [(name, size) for name, size in estimate.components.items() if size > 0]
    order = sorted(shown, key=lambda pair: _segment(pair[0]))
    starts = [0, *accumulate(size for _, size in order)]
    parts = [
        Part(
            label=f"{component_label(name)}: {format_gib(size)}", start=start / GIB, length=size / GIB,
            color=_segment(name),
        )
        for start, (name, size) in zip(starts, order, strict=False)
    ]  # fmt: skip
    total = estimate.peak.device_bytes
    svg = bars(
        "Memory at the peak by component", [("at the peak", parts, format_gib(total))],
        edge=None if usable is None else usable / GIB, edge_label=f"usable {format_gib(usable)}",
        legend=[(name, at) for at, name in enumerate(_SEGMENTS)],
    )  # fmt: skip
    whole = max(usable or 0, total)
    text = "\n".join(
        f"{component_label(name):24} {text_bar(size, whole):{BAR_COLUMNS}} {gib(size):>8} GiB" for name, size in order
    )
    return Plot(svg, f"What is alive at the peak ({estimate.peak.phase}), by component", text)


def text_bar(size: int, whole: int) -> str:
    """A bar of `size` out of `whole` in text."""
    return "█" * round(BAR_COLUMNS * size / whole) if whole else ""


def _segment(component: str) -> int:
    return _SEGMENTS.index(COMPONENTS.get(component, ("", "overhead"))[1])
