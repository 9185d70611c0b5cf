"""Every card that ships: it parses, each fact has a source, and no figure is off by a typing slip."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from qlora_planner.catalog.gpus import GpuCatalogue
from qlora_planner.catalog.gpus.catalogue import _key, _spellings
from qlora_planner.spec.machine import GpuSpec
from qlora_planner.units import MIB

FOLDER = Path(__file__).parents[2] / "profiles" / "gpus"
CATALOGUE = GpuCatalogue([FOLDER])
CARDS = CATALOGUE.all()
ADDED = date(2026, 11, 30)  # no source was read later

# Figures that people quote from nvidia-smi; a slip in the files must not pass because it is a plausible number.
KNOWN_MIB = {
    "gtx-1080-ti": 11264, "rtx-2060": 6144, "rtx-3060": 12288, "rtx-3080-10gb": 10240, "rtx-3090": 24576,
    "rtx-4060-ti-16gb": 16380, "rtx-4070": 12282, "rtx-4090": 24564, "rtx-5080": 16303, "rtx-5090": 32607,
    "rtx-4060-laptop": 8188, "rtx-4090-laptop": 16376, "rtx-a4000": 16376, "rtx-a6000": 49140, "t4": 15360,
    "l4": 23034, "l40s": 46068, "a10": 23028, "a100-40gb": 40960, "a100-80gb": 81920, "h100": 81559,
    "h200": 143771, "b200": 183359, "rtx-pro-6000": 97887, "mi300x": 196592,
}  # fmt: skip
NOMINAL = {"mi250x", "mi325x"}

cards = pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)


def test_the_catalogue_covers_what_people_train_on() -> None:
    assert len(CARDS) >= 50
    assert {"h200", "t4", "b200", "gtx-1080-ti", "rtx-pro-6000", "rtx-4090-laptop"} <= {card.name for card in CARDS}
    assert {card.form for card in CARDS} == {"desktop", "laptop", "workstation", "datacenter"}
    assert sum(card.form == "laptop" for card in CARDS) >= 8


@pytest.mark.parametrize(("name", "mib"), KNOWN_MIB.items())
def test_memory_is_what_the_driver_prints(name: str, mib: int) -> None:
    assert CATALOGUE.get(name).memory_bytes == mib * MIB


@cards
def test_every_fact_has_a_dated_source(card: GpuSpec) -> None:
    present = {field for field in FACT_FIELDS if getattr(card, field) is not None}
    assert card.facts.keys() == present
    for fact in card.facts.values():
        assert len(fact.source) > 10
        assert date(2020, 1, 1) <= date.fromisoformat(fact.date) <= ADDED


FACT_FIELDS = (
    "marketed_gb", "memory_bytes", "cuda_total_bytes", "bandwidth_bytes_per_s", "link", "link_bytes_per_s",
    "node_network_bytes_per_s",
    "bf16_flops", "fp16_flops", "fp32_flops", "compute_capability", "bf16", "rent_usd_per_hour",
)  # fmt: skip


@cards
def test_memory_is_plausible_for_the_figure_on_the_box(card: GpuSpec) -> None:
    assert card.marketed_gb is not None
    sold = card.marketed_gb * 1024 * MIB
    assert 0.93 * sold <= card.memory_bytes <= 1.01 * sold
    if card.cuda_total_bytes is not None:
        assert 0.94 * card.memory_bytes < card.cuda_total_bytes < card.memory_bytes


@cards
def test_a_nominal_figure_says_so(card: GpuSpec) -> None:
    nominal = card.facts["memory_bytes"].source.startswith("nominal: marketed size, not read from a driver")
    assert nominal == (card.name in NOMINAL)
    assert not nominal or "nominal" in (card.note or "")


@cards
def test_rates_agree_with_the_generation(card: GpuSpec) -> None:
    if card.vendor == "amd":
        assert card.compute_capability is None
        assert card.bf16 is True
    else:
        assert card.compute_capability is not None
        assert card.bf16 == (float(card.compute_capability) >= 8.0)
    assert card.bf16 or card.bf16_flops is None
    if card.bf16_flops is not None:
        assert card.bf16_flops == card.fp16_flops
    if card.bandwidth_bytes_per_s is not None:
        assert 150e9 <= card.bandwidth_bytes_per_s <= 10e12
    if card.fp16_flops is not None and card.fp32_flops is not None and float(card.compute_capability or 9) >= 7.0:
        # Tensor cores that accumulate in FP32: GeForce twice the FP32 rate (four times on Turing), others more.
        assert 1.9 <= card.fp16_flops / card.fp32_flops <= 40


GEFORCE_30_ON = [card for card in CARDS if "GeForce" in card.label and float(card.compute_capability or 0) >= 8.0]


@pytest.mark.parametrize("card", GEFORCE_30_ON, ids=lambda card: card.name)
def test_geforce_accumulates_in_fp32_at_half_the_tensor_rate(card: GpuSpec) -> None:
    """The full rate (accumulating in FP16) would be four times FP32; training uses the half."""
    assert card.bf16_flops is not None
    assert card.fp32_flops is not None
    assert card.bf16_flops / card.fp32_flops == pytest.approx(2, rel=0.02)


@cards
def test_only_amd_cards_are_unverified(card: GpuSpec) -> None:
    assert card.verified == (card.vendor == "nvidia")
    assert card.verified or (card.note or "").startswith("Not verified")


@cards
def test_the_quick_reader_of_names_agrees_with_the_parser(card: GpuSpec) -> None:
    assert list(_spellings(FOLDER / f"{card.name}.toml")) == [card.label, *card.aliases]


@cards
def test_a_card_is_found_by_its_name_and_by_its_own_spelling(card: GpuSpec) -> None:
    assert CATALOGUE.find(card.name) == card
    assert CATALOGUE.find(card.name.upper().replace("-", " ")) == card
    sharing = [one for one in CARDS if _key(one.label) == _key(card.label)]
    if sharing == [card]:
        assert CATALOGUE.find(card.label) == card
