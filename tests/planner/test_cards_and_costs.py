"""Which card is the smallest, and which the cheapest, among cards that are made up to differ in one thing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qlora_planner.catalog.gpus import GpuCatalogue
from qlora_planner.memory.budget import Budget
from qlora_planner.memory.estimate import estimate
from qlora_planner.planner.gpus.cheapest import cheapest
from qlora_planner.planner.gpus.others import by_size, smallest_card
from qlora_planner.sources.catalogue import ModelCatalogue
from qlora_planner.spec.machine import GpuSpec
from qlora_planner.spec.run import RunConfig

PROFILES = Path(__file__).parents[2] / "profiles"
LLAMA = ModelCatalogue([PROFILES / "models"]).load("meta-llama/Llama-3.1-8B")
CARD = GpuCatalogue([PROFILES / "gpus"]).get("rtx-4090")


def card(name: str, usd_per_hour: float | None, factor: float = 1.0, **changes: object) -> GpuSpec:
    """A card like an RTX 4090 that is `factor` times as fast at everything."""
    rates = {
        name: factor * (getattr(CARD, name) or 0)
        for name in ("bf16_flops", "fp16_flops", "fp32_flops", "bandwidth_bytes_per_s")
    }
    return replace(CARD, name=name, **{"rent_usd_per_hour": usd_per_hour, **rates, **changes})  # type: ignore[arg-type]


USUAL = card("usual", 0.40)
SMALL = card("small", 0.01, memory_bytes=4 << 30, cuda_total_bytes=4 << 30)


@pytest.mark.parametrize(
    ("others", "named"),
    [
        ([card("dear", 0.80)], "usual"),
        ([card("cheap", 0.20)], "cheap"),
        ([card("fast", 0.60, 4.0)], "fast"),
        ([card("fast-and-dear", 4.00, 4.0)], "usual"),
        ([SMALL], "usual"),
        ([card("unpriced", None)], "usual"),
        ([card("other-vendor", 0.01, vendor="amd")], "usual"),
        ([card("unrated", 0.01, bf16_flops=None, fp16_flops=None, fp32_flops=None)], "usual"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0].name,
)
def test_the_cheapest_card_takes_the_least_money_for_a_token(others: list[GpuSpec], named: str) -> None:
    for cards in ([USUAL, *others], [*others, USUAL]):
        found = cheapest(LLAMA, RunConfig(seq_len=2048), ("seq_len",), cards, None, None)
        assert found is not None and found.name == named


def test_no_card_is_cheapest_where_none_holds_the_model() -> None:
    assert cheapest(LLAMA, RunConfig(), (), [SMALL], None, None) is None


def test_cards_are_ordered_by_memory_then_rent_then_name() -> None:
    cards = [card("b", None), card("a", None), card("dear", 0.9), card("cheap", 0.2), SMALL]
    assert [one.name for one in by_size(cards)] == ["small", "cheap", "dear", "a", "b"]


@pytest.mark.parametrize(
    ("changes", "named"),
    [({}, "first"), ({"vendor": "amd"}, "second"), ({"bf16": False}, "second"), ({"memory_bytes": 6 << 30}, "second")],
    ids=str,
)
def test_the_smallest_card_is_one_on_which_the_run_works(changes: dict[str, object], named: str) -> None:
    """Both hold the run and the first is cheaper, unless it cannot run it at all."""
    first, second = card("first", 0.1, 1.0, **{"cuda_total_bytes": None, **changes}), card("second", 0.2)
    answer = estimate(LLAMA, RunConfig(seq_len=512), None)
    found = smallest_card(LLAMA, answer, [second, first], Budget.of(None))
    assert found is not None and found.card.name == named
