"""Sizes, versions and the card in this machine."""

from __future__ import annotations

import json

import pytest

from qlora_planner.cli.values import check_alloc_conf, parse_stack
from qlora_planner.errors import InputError, MissingError
from qlora_planner.measure.nvml import DeviceReading, LocalGpu
from qlora_planner.spec.machine import GpuSpec
from qlora_planner.units import parse_memory
from tests.cli.conftest import Invoke

MIB, GIB = 1 << 20, 1 << 30


def test_sizes() -> None:
    assert parse_memory("800MiB", "--reserve") == 800 * MIB
    assert parse_memory(" 1.5 GiB ", "--cap") == 3 * GIB // 2
    assert [parse_memory(text, "--reserve", zero=True) for text in ("0", "0B", "0MiB", "0.0 GiB")] == [0] * 4
    for text in ("0", "-1GiB", "GiB", "", "1 parsec", "1e3MiB"):
        with pytest.raises(InputError, match="--cap"):
            parse_memory(text, "--cap")


@pytest.mark.parametrize(
    ("text", "fix"), [("2GB", "write 2GiB (2,048 MiB)"), ("2g", "write 2GiB"), ("800MB", "800MiB"), ("0GB", "0GiB")]
)
def test_a_makers_unit_is_refused_with_the_fix(text: str, fix: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_memory(text, "--cap")
    assert fix in str(caught.value)


def test_stack() -> None:
    assert parse_stack(["trl=1.13, transformers==5.17.0", "Liger_Kernel=0.8.5"]) == {
        "trl": "1.13", "transformers": "5.17.0", "liger-kernel": "0.8.5",
    }  # fmt: skip
    assert parse_stack(["torch=2.13.0+cpu,trl=1.16.0rc1,trl=1.16.0rc1"]) == {"torch": "2.13.0+cpu", "trl": "1.16.0rc1"}
    for bad in ("", "trl", "trl=", "=1", "trl=latest", "trl=1.0,", "numpy=2.0", "trl=1,trl=2"):
        with pytest.raises(InputError, match="--stack"):
            parse_stack([bad])


def test_allocator_settings() -> None:
    check_alloc_conf("expandable_segments:True")
    check_alloc_conf(
        "expandable_segments:True,max_split_size_mb:512,roundup_power2_divisions:[256:1,512:2]".partition(",r")[0]
    )
    for bad in ("", "on", "expandable_segments=True", "a:b,"):
        with pytest.raises(InputError, match="--alloc-conf"):
            check_alloc_conf(bad)


@pytest.fixture
def local_card(monkeypatch: pytest.MonkeyPatch) -> LocalGpu:
    reading = DeviceReading(index=0, name="X", uuid=None, total_bytes=24 * GIB, free_bytes=None, used_bytes=2 * GIB)
    card = GpuSpec(name="rtx-x", label="NVIDIA GeForce RTX X", memory_bytes=24 * GIB, form="local", bf16=True)
    local = LocalGpu(spec=card, reserve_bytes=2 * GIB, reading=reading)
    monkeypatch.setattr("qlora_planner.measure.nvml.local_gpu", lambda index=0: local)
    return local


def test_what_others_hold_of_the_local_card_is_reserved_and_told(invoke: Invoke, local_card: LocalGpu) -> None:
    held = invoke("estimate", "llama-3.1-8b", "--gpu", "local", "--json")
    free = invoke("estimate", "llama-3.1-8b", "--gpu", "local", "--reserve", "0", "--json")
    assert "2,048 MiB" in held.stderr
    assert free.stderr == ""
    usable = [json.loads(result.stdout)["fit"]["usable_bytes"] for result in (held, free)]
    assert usable[1] - usable[0] == 2 * GIB


def test_without_a_card_the_one_here_is_taken_and_told(invoke: Invoke, local_card: LocalGpu) -> None:
    result = invoke("llama-3.1-8b")
    assert result.exit_code == 0
    assert "taking the card in this machine, NVIDIA GeForce RTX X" in result.stderr
    assert result.stdout.startswith(("✓ fits: meta-llama/Llama-3.1-8B on RTX X", "+ fits: "))
    assert invoke("llama-3.1-8b", "--quiet").stderr == ""


def test_without_any_card(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(index: int = 0) -> None:
        raise MissingError("no driver")

    monkeypatch.setattr("qlora_planner.measure.nvml.local_gpu", none)
    asked, not_asked = invoke("llama-3.1-8b", "--gpu", "local"), invoke("llama-3.1-8b")
    assert (asked.exit_code, asked.stderr) == (3, "qlora-plan: no driver\n")
    assert not_asked.exit_code == 2
    assert "--gpu 24GB" in not_asked.stderr
    assert invoke("estimate", "llama-3.1-8b").exit_code == 0
