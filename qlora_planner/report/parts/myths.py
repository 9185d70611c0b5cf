"""What common advice says, and the figures of the tables that do not."""

from __future__ import annotations

from collections.abc import Iterator

from qlora_planner.planner.survey.size_rows import COMMON_CARD_GB, Tables
from qlora_planner.record import record
from qlora_planner.report.parts.labels import gib
from qlora_planner.report.parts.theme import Line, Theme
from qlora_planner.units import format_gib

SCHEMA = "qlora-plan/myths/1"


@record
class Myth:
    """Advice as people give it, "" for more on the one before, and what the figures say."""

    advice: str
    figures: str


def myths(tables: Tables) -> Iterator[Myth]:
    """Those that the rows of `tables` say something about."""
    at = f"{tables.run.batch_size} x {tables.run.seq_len:,} tokens"
    if tables.six_gb:
        needs = "; ".join(
            f"{short_name(row.model_id)} needs {'' if row.basis == 'traced' else '~'}{format_gib(row.device_bytes)}"
            f" at {at} and on a {COMMON_CARD_GB} GB card "
            + (f"stops at {row.longest_seq_len:,} tokens" if row.longest_seq_len else "fits at no length")
            for row in tables.six_gb
        )
        yield Myth(advice=f"7B needs {COMMON_CARD_GB} GB", figures=f"{needs}.")
    dense = [row for row in tables.memory if not row.mostly_16bit and row.upcast_costs_bytes]
    if dense:
        least, most = (pick(dense, key=lambda row: row.upcast_costs_bytes or 0) for pick in (min, max))
        costs = " to ".join(
            f"{gib(row.upcast_costs_bytes)} GiB ({short_name(row.model_id)})"
            for row in ([least] if least is most else [least, most])
        )
        yield Myth(
            advice="Always call prepare_model_for_kbit_training",
            figures=f"it costs ~{costs}; trl no longer does it, and gradient checkpointing works without.",
        )
    experts = [row for row in tables.memory if row.mostly_16bit]
    if experts:
        weights = "; ".join(
            f"{short_name(row.model_id)}'s weights take {format_gib(row.weights_4bit_bytes)} instead of"
            f" {format_gib(row.weights_16bit_bytes)}"
            for row in experts
        )
        yield Myth(
            advice="4-bit divides memory by four",
            figures=f"{weights}, because transformers 5 keeps fused experts in 16 bits.",
        )
    plain = [row for row in tables.memory if not row.mostly_16bit]
    if plain:
        low, high = (pick(row.weights_ratio for row in plain) for pick in (min, max))
        text = f"For the dense models shown 4-bit weights are {low:.1f} to {high:.1f} times smaller, not four."
        yield Myth(advice="", figures=text)


def render_myths(tables: Tables, theme: Theme) -> str:
    """The screen of `qlora-plan myths`."""
    lines: list[Line] = []
    for myth in myths(tables):
        if myth.advice:
            lines += [*([[]] if lines else []), *theme.wrap(f'"{myth.advice}"', style="bold")]
        lines += theme.wrap(myth.figures, 2)
    return theme.render(lines)


def short_name(model_id: str) -> str:
    """A model's id without its organisation."""
    return model_id.partition("/")[2] or model_id
