"""What a card's figures do not show: kernels that torch's wheels lack, and memory that the host has too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from qlora_planner.catalog.gpus import GpuCatalogue, parse_gpu, remarks, usable_bytes
from qlora_planner.cli.main import cli
from qlora_planner.diagnose.rules import torch_wheel
from qlora_planner.spec.machine import GpuSpec
from qlora_planner.units import MIB

CATALOGUE = GpuCatalogue([Path(__file__).parents[2] / "profiles" / "gpus"])
BEFORE_TURING = {
    "p100", "p40", "m40-24gb", "gtx-1080-ti", "gtx-1080", "gtx-1070", "gtx-1060-6gb", "v100-16gb", "v100-32gb",
    "v100-pcie-16gb", "v100-pcie-32gb",
}  # fmt: skip


def codes(card: GpuSpec, torch: str | None = "2.13.0+cpu") -> list[str]:
    return [remark.code for remark in remarks(card, {"torch": torch} if torch else None)]


# How people name the cards that public reports of QLoRA runs are about, and what the answer must be for.
@pytest.mark.parametrize(
    ("text", "name", "mib"),
    [
        ("gb10", "gb10", 122502),
        ("dgx-spark", "gb10", 122502),
        ("DGX Spark", "gb10", 122502),
        ("128GB", "128GB", 122502),
        ("a800", "a800-80gb", 81920),
        ("A800 40GB", "a800-40gb", 40960),
        ("h800", "h800", 81559),
        ("h20", "h20", 97871),
        ("H20 141GB", "h20-141gb", 143771),
        ("l20", "l20", 46068),
        ("rtx 3050 6gb", "rtx-3050-6gb", 6144),
        ("rtx 2060 12gb", "rtx-2060-12gb", 12288),
        ("rtx-pro-4000", "rtx-pro-4000", 24467),
        ("NVIDIA RTX PRO 4500 Blackwell", "rtx-pro-4500", 32623),
        ("rtx pro 5000", "rtx-pro-5000", 48935),
        ("quadro rtx 6000", "quadro-rtx-6000", 24576),
        ("Quadro RTX 5000", "quadro-rtx-5000", 16384),
        ("p40", "p40", 23040),
        ("Tesla P40", "p40", 23040),
        ("m40", "m40-24gb", 23040),
        ("gtx 1080", "gtx-1080", 8192),
        ("1660 super", "gtx-1660-super", 6144),
        ("a2", "a2", 15356),
        ("a16", "a16", 15356),
        ("a5500", "rtx-a5500", 24564),
        ("v100 pcie 32gb", "v100-pcie-32gb", 32768),
        ("5060 ti 8gb", "rtx-5060-ti-8gb", 8151),
        ("4090 D", "rtx-4090-d", 24564),
    ],
)
def test_cards_of_public_reports_are_known(text: str, name: str, mib: int) -> None:
    card = parse_gpu(text, CATALOGUE)
    assert (card.name, card.memory_bytes) == (name, mib * MIB)


def test_cards_before_turing_have_no_kernels_in_todays_wheels() -> None:
    assert {card.name for card in CATALOGUE.all() if "torch-kernels" in codes(card)} == BEFORE_TURING


@pytest.mark.parametrize(
    ("name", "torch", "noted"),
    [
        ("p100", "2.7.1", False),
        ("p100", "2.8.0", True),
        ("v100-32gb", "2.10.0", False),
        ("v100-32gb", "2.11.0", True),
        ("t4", "2.13.0", False),
        ("v100-32gb", None, True),
    ],
)
def test_which_wheels_lack_a_card_depends_on_the_release(name: str, torch: str | None, noted: bool) -> None:
    assert ("torch-kernels" in codes(CATALOGUE.get(name), torch)) is noted


def test_the_wheel_that_still_has_kernels_is_named_as_the_doctor_names_it() -> None:
    (remark,) = remarks(CATALOGUE.get("p40"), {"torch": "2.13.0"})
    assert "whl/cu126" in remark.fix
    assert "no kernel image is available" in remark.message
    assert "whl/cu126" in torch_wheel("580.65", ((6, 1),))
    assert "bitsandbytes" not in remark.message


def test_below_pascal_bitsandbytes_has_none_either() -> None:
    (remark,) = remarks(CATALOGUE.get("m40-24gb"), {"torch": "2.13.0"})
    assert "bitsandbytes begins at 6.0" in remark.message


@pytest.mark.parametrize("text", ["gb10", "128GB"])
def test_memory_that_the_host_shares_is_said_and_nothing_is_taken_off_it(text: str) -> None:
    card = parse_gpu(text, CATALOGUE)
    usable, why = usable_bytes(card)
    assert usable == card.memory_bytes
    assert "whole machine's memory" in why
    (remark,) = [one for one in remarks(card) if one.code == "shared-memory"]
    assert "--reserve" in remark.fix
    assert usable_bytes(card, 8 << 30)[0] == card.memory_bytes - (8 << 30)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["estimate", "llama-3.2-1b", "--quant", "none", "--method", "lora", "--gpu", "gb10"], "no memory of its own"),
        (["llama-3.2-1b", "--gpu", "p100"], "whl/cu126"),
        (["--gpu", "v100-16gb"], "whl/cu126"),
    ],
)
def test_every_answer_about_such_a_card_says_it(args: list[str], says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QLORA_PLANNER_TRACE", "never")
    text = CliRunner().invoke(cli, args)
    assert says in " ".join(text.stdout.split())
    document = json.loads(CliRunner().invoke(cli, [*args, "--json"]).stdout)
    problems = (document.get("estimate") or document)["problems"]
    assert any(says in f"{one['message']} {one['fix']}" for one in problems)


def test_no_smallest_card_is_named_that_needs_another_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QLORA_PLANNER_TRACE", "never")
    run = CliRunner().invoke(cli, ["llama-3.2-1b", "--gpu", "t4", "--seq-len", "512", "--json"])
    smallest = json.loads(run.stdout)["smallest_card"]
    assert smallest["gpu"] not in BEFORE_TURING
