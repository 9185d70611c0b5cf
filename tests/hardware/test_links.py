"""What cards of a node talk over: a link that the card's file names, else the bus that it is put in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qlora_planner.catalog.gpus import GpuCatalogue
from qlora_planner.catalog.gpus.card_file import read_card
from qlora_planner.catalog.links import link_of
from qlora_planner.errors import InputError

FOLDER = Path(__file__).parents[2] / "profiles" / "gpus"
FIELDS: dict[str, Any] = {
    "label": "Test Card", "vendor": "nvidia", "form": "desktop", "memory_mib": 24564, "compute_capability": "8.6",
    "link": "NVLink 3 bridge", "link_gb_per_s": 56.25,
    "sources": [
        {"fields": ["memory_mib", "compute_capability", "link", "link_gb_per_s"], "source": "x", "date": "2026-11-30"}
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("card", "kind", "gigabytes_per_s"),
    [
        ("h200", "NVLink 4", 450), ("h20-141gb", "NVLink 4", 450), ("a800-80gb", "NVLink 3", 200),
        ("v100-16gb", "NVLink 2", 150), ("b200", "NVLink 5", 900), ("rtx-4090", "PCIe 4.0 x16", 31.51),
        ("h100-pcie", "PCIe 5.0 x16", 63.02),
    ],
)  # fmt: skip
def test_shipped_cards_have_the_link_of_their_data_sheets(card: str, kind: str, gigabytes_per_s: float) -> None:
    link = link_of(GpuCatalogue([FOLDER]).get(card))
    assert link is not None and (link.kind, link.bytes_per_s) == (kind, gigabytes_per_s * 10**9)


@pytest.mark.parametrize("card", ["rtx-4060-ti-16gb", "mi300x", "gb10"])
def test_nothing_is_said_where_nobody_knows(card: str) -> None:
    assert link_of(GpuCatalogue([FOLDER]).get(card)) is None


def test_a_file_of_ones_own_names_a_bridge_in_place_of_the_bus() -> None:
    link = link_of(read_card("test-card", FIELDS, "test-card.toml"))
    assert link is not None and (link.kind, link.bytes_per_s) == ("NVLink 3 bridge", 56_250_000_000)


def test_a_rate_of_no_link_is_refused() -> None:
    sources = [{"fields": ["memory_mib", "compute_capability", "link_gb_per_s"], "source": "x", "date": "2026-11-30"}]
    fields = {name: value for name, value in FIELDS.items() if name != "link"} | {"sources": sources}
    with pytest.raises(InputError, match='link_gb_per_s is of no link: name it, as link = "NVLink 4"'):
        read_card("test-card", fields, "test-card.toml")
