"""Names resolve however they are spelt; a file that is wrong is refused with all its faults, never with a traceback."""

from __future__ import annotations

import timeit
import tomllib
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qlora_planner.catalog.gpus import GpuCatalogue
from qlora_planner.catalog.gpus import catalogue as catalogue_module
from qlora_planner.catalog.gpus.card_file import load_card, read_card
from qlora_planner.catalog.gpus.card_index import build_card_index, index_path
from qlora_planner.errors import InputError
from qlora_planner.units import MIB

FOLDER = Path(__file__).parents[2] / "profiles" / "gpus"
FIELDS: dict[str, Any] = {
    "label": "Test Card",
    "vendor": "nvidia",
    "form": "desktop",
    "marketed_gb": 24,
    "memory_mib": 24564,
    "cuda_total_mib": 24080,
    "bandwidth_gb_per_s": 1008.5,
    "bf16_tflops": 165.2,
    "compute_capability": "8.9",
    "bf16": True,
    "sources": [
        {"fields": ["memory_mib", "marketed_gb"], "source": "nvidia-smi output", "date": "2026-11-23"},
        {"fields": ["cuda_total_mib", "bandwidth_gb_per_s", "bf16_tflops"], "source": "a page", "date": "2026-11-23"},
        {"fields": ["compute_capability", "bf16"], "source": "a table", "date": "2026-11-23"},
    ],
}
GOOD_FILE = """
label = "Test Card"
aliases = ["tester"]
vendor = "nvidia"
form = "desktop"
memory_mib = 24564

[[sources]]
fields = ["memory_mib"]
source = "nvidia-smi output"
date = "2026-11-23"
"""


@pytest.fixture
def shipped() -> GpuCatalogue:
    return GpuCatalogue([FOLDER])


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("rtx-4090", "rtx-4090"),
        ("RTX 4090", "rtx-4090"),
        ("4090", "rtx-4090"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "rtx-4090-laptop"),
        ("3090ti", "rtx-3090-ti"),
        ("1080 Ti", "gtx-1080-ti"),
        ("4070 super", "rtx-4070-super"),
        ("a100-80gb", "a100-80gb"),
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("NVIDIA A100 80GB PCIe", "a100-80gb-pcie"),
        ("h100", "h100"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("h200", "h200"),
        ("T4", "t4"),
        ("a6000", "rtx-a6000"),
        ("RTX 6000 Ada Generation", "rtx-6000-ada"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "rtx-pro-6000"),
        ("AMD Instinct MI300X", "mi300x"),
    ],
)
def test_a_card_is_found_however_it_is_spelt(shipped: GpuCatalogue, text: str, name: str) -> None:
    assert shipped.find(text).name == name


@pytest.mark.parametrize(
    ("text", "candidates"),
    [
        ("rtx-3080", ["rtx-3080-10gb", "rtx-3080-12gb"]),
        ("4060 Ti", ["rtx-4060-ti-16gb", "rtx-4060-ti-8gb"]),
        ("a100", ["a100-40gb", "a100-80gb", "a100-80gb-pcie"]),
        ("v100", ["v100-16gb", "v100-32gb"]),
    ],
)
def test_an_ambiguous_name_lists_its_cards(shipped: GpuCatalogue, text: str, candidates: list[str]) -> None:
    with pytest.raises(InputError, match="several cards") as fault:
        shipped.find(text)
    assert str(fault.value).endswith(", ".join(candidates))


@pytest.mark.parametrize(("text", "near"), [("rtx-4900", "rtx-4090"), ("rtx-9999", "rtx-"), ("h10", "h100")])
def test_an_unknown_name_tells_the_nearest(shipped: GpuCatalogue, text: str, near: str) -> None:
    with pytest.raises(InputError, match="did you mean") as fault:
        shipped.find(text)
    assert near in str(fault.value)
    assert "\n" not in str(fault.value)


def test_one_card_does_not_cost_the_parsing_of_all(shipped: GpuCatalogue) -> None:
    with patch.object(catalogue_module, "load_card", side_effect=load_card) as read:
        shipped.find("RTX 4090")
        shipped.find("NVIDIA A100-SXM4-80GB")  # found by its label
    assert [call.args[0].stem for call in read.call_args_list] == ["rtx-4090", "a100-80gb"]


def test_finding_a_card_is_quick() -> None:
    find = "GpuCatalogue([FOLDER]).find('NVIDIA A100-SXM4-80GB')"
    assert min(timeit.repeat(find, globals=globals(), repeat=5, number=1)) < 0.030  # 6 ms; the process has 300


def test_an_earlier_folder_hides_a_later_one(tmp_path: Path) -> None:
    (tmp_path / "rtx-4090.toml").write_text(GOOD_FILE)
    mine = GpuCatalogue([tmp_path, FOLDER])
    assert mine.find("rtx 4090").label == "Test Card"
    assert mine.find("h200").name == "h200"
    assert GpuCatalogue([FOLDER, tmp_path]).find("rtx 4090").label == "NVIDIA GeForce RTX 4090"


def test_folders_that_are_not_there_are_passed_over(tmp_path: Path) -> None:
    assert GpuCatalogue([tmp_path / "none", FOLDER]).find("t4").name == "t4"
    with pytest.raises(InputError, match="no card of the catalogue"):
        GpuCatalogue([tmp_path / "none"]).find("t4")


def test_aliases_over_several_lines_are_found(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(GOOD_FILE.replace('["tester"]', '[\n  "tester",\n  "other",\n]'))
    assert GpuCatalogue([tmp_path]).find("Other").name == "mine"


def test_a_broken_file_does_not_hide_the_others_and_is_named(tmp_path: Path) -> None:
    (tmp_path / "good.toml").write_text(GOOD_FILE)
    (tmp_path / "broken.toml").write_text("label = [")
    cards = GpuCatalogue([tmp_path])
    assert cards.find("tester").name == "good"
    with pytest.raises(InputError, match=r"broken\.toml"):
        cards.find("nothing like it")
    with pytest.raises(InputError, match=r"broken\.toml: not a TOML file"):
        cards.get("broken")
    with pytest.raises(InputError, match=r"broken\.toml: not a TOML file"):
        cards.all()


def test_units_of_the_file_become_base_units() -> None:
    card = read_card("test", FIELDS, "test.toml")
    assert (card.memory_bytes, card.cuda_total_bytes) == (24564 * MIB, 24080 * MIB)
    assert (card.bandwidth_bytes_per_s, card.bf16_flops) == (1_008_500_000_000, 165_200_000_000_000)
    assert (card.fp16_flops, card.rent_usd_per_hour, card.note) == (None, None, None)
    assert card.facts["memory_bytes"].source == "nvidia-smi output"


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"memory_mib": "24564"}, "memory_mib must be a whole number"),
        ({"memory_mib": True}, "memory_mib must be a whole number"),
        ({"memory_mib": -1}, "memory_mib must be a whole number"),
        ({"memory_mib": 24564.0}, "memory_mib must be a whole number"),
        ({"memory_mib": 2 * 24564}, "not what a card sold with 24 GB has"),
        ({"cuda_total_mib": 24565}, "cuda_total_mib 24565 is more than memory_mib 24564"),
        ({"bandwidth_gb_per_s": float("nan")}, "bandwidth_gb_per_s must be a number"),
        ({"bandwidth_gb_per_s": float("inf")}, "bandwidth_gb_per_s must be a number"),
        ({"bf16_tflops": 0}, "bf16_tflops must be a number"),
        ({"compute_capability": 8.9}, "compute_capability must be text"),
        ({"bf16": "yes"}, "bf16 must be true or false"),
        ({"form": "toaster"}, "form must be one of desktop"),
        ({"vendor": ["nvidia"]}, "vendor must be one of nvidia"),
        ({"label": ""}, "label must be one line of text"),
        ({"note": "two\nlines"}, "note must be one line of text"),
        ({"aliases": "4090"}, "aliases must be a list of names"),
        ({"memory_gb": 24}, "unknown key 'memory_gb'"),
        ({"fp32_tflops": 82.6}, "no source for fp32_tflops"),
        ({"sources": []}, "no source for marketed_gb, memory_mib"),
        ({"sources": "me"}, "sources must be"),
        ({"sources": [{"fields": ["memory_mib"], "source": "x"}]}, "source 1 must have fields, source and date"),
        ({"sources": [{"fields": [], "source": "x", "date": "2026-11-23"}]}, "source 1: fields must be"),
        ({"sources": [{"fields": ["memory_mib"], "source": "x", "date": "today"}]}, "source 1: date must be"),
        ({"sources": [{"fields": ["l2_mib"], "source": "x", "date": "2026-11-23"}]}, "which this file does not give"),
        ({"sources": FIELDS["sources"] * 2}, "memory_mib has two sources"),
    ],
)
def test_a_wrong_entry_is_named(change: dict[str, object], fault: str) -> None:
    with pytest.raises(InputError) as refused:
        read_card("test", FIELDS | change, "cards/test.toml")
    assert fault in str(refused.value)
    assert str(refused.value).startswith("cards/test.toml: ")
    assert "\n" not in str(refused.value)


def test_all_faults_of_a_file_come_at_once() -> None:
    with pytest.raises(InputError) as refused:
        read_card("Not A Slug", {"memory_mib": 0, "colour": "red"}, "x.toml")
    for part in ("file's name", "memory_mib must be", "unknown key 'colour'", "label is missing", "form is missing"):
        assert part in str(refused.value)


def test_files_that_cannot_be_read_are_bad_input(tmp_path: Path) -> None:
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "deep.toml").write_text("label = " + "[" * 20_000)
    (tmp_path / "huge.toml").write_text("# " + "x" * 100_000)
    cards = GpuCatalogue([tmp_path])
    for name in cards.names():
        with pytest.raises(InputError, match=rf"{name}\.toml: "):
            cards.get(name)
    with pytest.raises(InputError):
        cards.find("anything")


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(key=st.sampled_from([*FIELDS, "aliases", "note", "rent_usd_per_hour"]) | st.text(), value=values)
def test_garbage_in_an_entry_is_only_ever_bad_input(key: str, value: object) -> None:
    try:
        card = read_card("test", FIELDS | {key: value}, "test.toml")
    except InputError as fault:
        assert str(fault).startswith("test.toml: ")
    else:
        assert card.memory_bytes > 0


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace")))
def test_garbage_files_are_only_ever_bad_input(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "garbage.toml").write_bytes(content)
    with pytest.raises(InputError):
        GpuCatalogue([tmp_path]).get("garbage")
    with pytest.raises(InputError):
        GpuCatalogue([tmp_path]).find("rtx-4090")


@given(text=st.text())
def test_garbage_names_are_only_ever_bad_input(text: str) -> None:
    try:
        GpuCatalogue([FOLDER]).find(text)
    except InputError as fault:
        assert "\n" not in str(fault)


def test_the_index_of_cards_is_that_of_the_files() -> None:
    assert index_path(FOLDER).read_text(encoding="utf-8") == build_card_index(FOLDER), "run `make cards`"


def test_cards_from_the_index_are_those_of_the_files() -> None:
    with patch.object(tomllib, "loads", side_effect=AssertionError("parsed")):
        indexed = GpuCatalogue([FOLDER]).all()
    assert indexed == tuple(load_card(FOLDER / f"{card.name}.toml") for card in indexed)


def test_a_file_changed_after_its_index_was_written_counts(tmp_path: Path) -> None:
    folder = tmp_path / "gpus"
    folder.mkdir()
    card = folder / "test.toml"
    card.write_text(GOOD_FILE)
    index_path(folder).write_text(build_card_index(folder))
    card.write_text(GOOD_FILE.replace('"Test Card"', '"Another Card"'))
    assert [spec.label for spec in GpuCatalogue([folder]).all()] == ["Another Card"]


@pytest.mark.parametrize("content", ["", "[]", "{", '{"schema": "qlora-plan/gpus-index/1", "cards": [["test"]]}'])
def test_a_broken_index_is_passed_over(tmp_path: Path, content: str) -> None:
    folder = tmp_path / "gpus"
    folder.mkdir()
    (folder / "test.toml").write_text(GOOD_FILE)
    index_path(folder).write_text(content)
    assert [spec.label for spec in GpuCatalogue([folder]).all()] == ["Test Card"]
