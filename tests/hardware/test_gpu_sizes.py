"""Sizes as sold go through the table, exact sizes are literal, and what a process can use is never overstated."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlora_planner.catalog.gpus import (
    MARKETED_SIZES,
    GpuCatalogue,
    MarketedSize,
    marketed_size,
    parse_gpu,
    usable_bytes,
)
from qlora_planner.catalog.gpus.several import refuse_slice, several_of
from qlora_planner.catalog.gpus.sizes import DRIVER_KEEPS_MIB, driver_keeps_bytes
from qlora_planner.errors import InputError
from qlora_planner.spec.machine import GpuSpec
from qlora_planner.units import GIB, MIB

CATALOGUE = GpuCatalogue([Path(__file__).parents[2] / "profiles" / "gpus"])
CARDS = CATALOGUE.all()
BOTH_TOTALS = [card for card in CARDS if card.cuda_total_bytes is not None]


def kept_bytes(card: GpuSpec) -> int:
    assert card.cuda_total_bytes is not None
    return card.memory_bytes - card.cuda_total_bytes


@pytest.mark.parametrize("row", MARKETED_SIZES, ids=lambda row: f"{row.marketed_gb}GB")
def test_a_row_is_the_smallest_card_sold_so_but_for_those_it_names(row: MarketedSize) -> None:
    assert marketed_size(row.marketed_gb) is row
    assert CATALOGUE.get(row.card).memory_bytes == row.memory_mib * MIB
    sold_so = [card for card in CARDS if card.marketed_gb == row.marketed_gb]
    assert sold_so
    assert {card.name for card in sold_so if card.memory_bytes < row.memory_mib * MIB} == set(row.smaller)
    assert row.why


def test_the_table_has_a_row_for_every_figure_on_a_box() -> None:
    figures = [row.marketed_gb for row in MARKETED_SIZES]
    assert figures == sorted(set(figures))
    assert set(figures) == {card.marketed_gb for card in CARDS}
    # 16GB and 24GB are not the smallest, and 192GB is what the B200 was announced with.
    assert [row.marketed_gb for row in MARKETED_SIZES if row.smaller] == [16, 24]
    elsewhere = [row for row in MARKETED_SIZES if CATALOGUE.get(row.card).marketed_gb != row.marketed_gb]
    assert [row.marketed_gb for row in elsewhere] == [192]


@pytest.mark.parametrize("text", ["24GB", "24gb", "24 GB", " 24Gb ", "+24GB", "024GB"])
def test_a_size_as_sold_goes_through_the_table(text: str) -> None:
    card = parse_gpu(text, CATALOGUE)
    assert card.memory_bytes == 24564 * MIB
    assert card.marketed_gb == 24
    assert "24,564 MiB" in (card.note or "")
    assert "rtx-4090" in (card.note or "")


def test_sixteen_gb_is_the_smaller_of_the_cards_sold_so() -> None:
    assert parse_gpu("16GB", CATALOGUE).memory_bytes == CATALOGUE.get("t4").memory_bytes
    assert parse_gpu("16GB", CATALOGUE).memory_bytes < CATALOGUE.get("rtx-4060-ti-16gb").memory_bytes


@pytest.mark.parametrize(
    ("text", "memory_bytes"),
    [("24564MiB", 24564 * MIB), ("24564 mib", 24564 * MIB), ("24GiB", 24 * GIB), ("23.5GiB", int(23.5 * GIB))],
)
def test_an_exact_size_is_literal(text: str, memory_bytes: int) -> None:
    card = parse_gpu(text, CATALOGUE)
    assert card.memory_bytes == memory_bytes
    assert card.name == text
    assert card.marketed_gb is None


@pytest.mark.parametrize("text", ["24GB", "24GiB"])
def test_what_a_bare_size_does_not_tell_is_unknown(text: str) -> None:
    card = parse_gpu(text, CATALOGUE)
    assert card.form == "size"
    assert (card.bf16, card.compute_capability, card.cuda_total_bytes) == (None, None, None)
    assert (card.bf16_flops, card.fp16_flops, card.bandwidth_bytes_per_s) == (None, None, None)


def test_a_name_is_a_card() -> None:
    for text in ("rtx-4090", "RTX 4090", "4090", "NVIDIA GeForce RTX 4090"):
        assert parse_gpu(text, CATALOGUE) == CATALOGUE.get("rtx-4090")
    assert parse_gpu("a100-80gb", CATALOGUE).name == "a100-80gb"
    assert parse_gpu("4070 ti super", CATALOGUE).name == "rtx-4070-ti-super"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("24", "write 24GB as sold, or 24GiB exactly"),
        ("24GBB", "write it like 24GB, 24GiB or 24564MiB"),
        ("24G", "write it like 24GB, 24GiB or 24564MiB (24GB is as sold, 24GiB exact)"),
        ("0", "`local` is the card in this machine"),
        ("2", "a count of cards"),
        ("0x3090", "no machine"),
        ("A10-24Q", "a virtual card (vGPU), of which its host decides the memory; give its size in MiB"),
        ("GRID A100-4-20C", "a virtual card (vGPU)"),
        ("NVIDIA A40-48Q", "a virtual card (vGPU)"),
        ("MIG 3g.20gb", "a slice of a card (MIG), of which its host decides the memory; give its size in MiB"),
        ("24564MB", "write it like 24GB, 24GiB or 24564MiB"),
        ("-1GB", "more than zero"),
        ("-24GiB", "more than zero"),
        ("0GiB", "more than zero"),
        ("0GB", "more than zero"),
        ("23GB", "known are 6, 8, 10, 11, 12, 16, 20, 24, 32"),
        ("24.5GB", "write an exact size in GiB or MiB"),
        ("1MiB", "sizes go from"),
        ("99999999TiB", "sizes go from"),
        ("rtx-9999", "did you mean rtx-"),
        ("", "no card of the catalogue"),
        ("9" * 5000 + "GiB", "no card of the catalogue"),
        ("twenty-four", "no card of the catalogue"),
    ],
)
def test_bad_input_is_one_line_that_names_the_fix(text: str, says: str) -> None:
    with pytest.raises(InputError) as fault:
        parse_gpu(text, CATALOGUE)
    assert says in str(fault.value)
    assert "\n" not in str(fault.value)
    assert len(str(fault.value)) < 320
    assert fault.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "count", "each"),
    [
        ("2xrtx-3090", 2, "rtx-3090"),
        ("2x3090", 2, "3090"),
        ("4 x T4", 4, "T4"),
        ("2x24GB", 2, "24GB"),
        ("2 x 24 GB", 2, "24 GB"),
        ("8*h100", 8, "h100"),
        ("T4 x2", 2, "T4"),
        ("3090x2", 2, "3090"),
        ("RTX 3090 X 4", 4, "RTX 3090"),
        ("1x4090", 1, "4090"),
    ],
)
def test_of_several_cards_one_is_taken(text: str, count: int, each: str) -> None:
    several = several_of(text)
    assert several is not None
    assert (several.count, several.each) == (count, each)
    assert parse_gpu(text, CATALOGUE) == parse_gpu(each, CATALOGUE)


@pytest.mark.parametrize("text", ["rx-7900-xtx", "mi300x", "MI250X", "RTX 4090", "24GB", "gtx 1080", "2x", "x2", ""])
def test_an_x_in_a_name_is_no_count(text: str) -> None:
    assert several_of(text) is None


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_no_card_is_taken_for_several_or_for_a_slice(card: GpuSpec) -> None:
    for text in (card.name, card.label, *card.aliases):
        assert several_of(text) is None
        refuse_slice(text)


@given(text=st.text() | st.from_regex(r"[+-]?\d{1,12}(\.\d{1,12})? ?[a-zA-Z]{0,4}", fullmatch=True))
def test_garbage_is_a_card_or_bad_input(text: str) -> None:
    try:
        card = parse_gpu(text, CATALOGUE)
    except InputError as fault:
        assert "\n" not in str(fault)
    else:
        assert card.memory_bytes > 0
        assert 0 <= usable_bytes(card)[0] < card.memory_bytes


@pytest.mark.parametrize("card", BOTH_TOTALS, ids=lambda card: card.name)
def test_the_assumption_holds_for_every_card_that_could_refute_it(card: GpuSpec) -> None:
    assert kept_bytes(card) <= driver_keeps_bytes(card.memory_bytes)


def test_the_assumption_is_no_larger_than_what_was_seen() -> None:
    for up_to_mib, kept_mib in DRIVER_KEEPS_MIB:
        seen = [kept_bytes(card) for card in BOTH_TOTALS if card.memory_bytes <= up_to_mib * MIB]
        assert kept_mib * MIB == max(seen)


def test_what_cuda_reports_wins_over_the_assumption() -> None:
    usable, why = usable_bytes(CATALOGUE.get("h200"))
    assert usable == 143155 * MIB
    assert why == "CUDA reports 143,155 MiB of this card's 143,771 MiB"


def test_without_cuda_s_total_the_most_that_drivers_keep_is_assumed() -> None:
    usable, why = usable_bytes(parse_gpu("24GB", CATALOGUE))
    assert usable == (24564 - 495) * MIB
    assert usable < usable_bytes(CATALOGUE.get("rtx-4090"))[0]
    assert "less 495 MiB" in why
    assert "\n" not in why


def test_a_reserve_is_held_back_and_cannot_go_below_zero() -> None:
    card = CATALOGUE.get("rtx-4090")
    usable, why = usable_bytes(card, 800 * MIB)
    assert usable == usable_bytes(card)[0] - 800 * MIB
    assert why.endswith("less 800 MiB held back")
    assert usable_bytes(card, 100 * GIB)[0] == 0
    with pytest.raises(InputError, match="--reserve"):
        usable_bytes(card, -1)


@given(memory_mib=st.integers(1, 4 << 20), more_mib=st.integers(0, 40_000))
def test_a_larger_bare_card_never_gives_less(memory_mib: int, more_mib: int) -> None:
    def usable(mib: int) -> int:
        return usable_bytes(GpuSpec(name="bare", label="bare", memory_bytes=mib * MIB))[0]

    assert 0 <= usable(memory_mib) <= usable(memory_mib + more_mib)


@pytest.mark.parametrize("mib", [6145, 12289, 24577, 32769, 49153, 131073])
def test_just_above_a_step_nothing_is_lost(mib: int) -> None:
    assert driver_keeps_bytes(mib * MIB) == driver_keeps_bytes((mib - 1) * MIB) + MIB
