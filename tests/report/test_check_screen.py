"""A config of another tool as a screen: what is left out is said once, at the head where it matters most."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from qlora_planner.memory.records import Unmodelled
from qlora_planner.report.check import render_check
from qlora_planner.report.parts.theme import Theme
from tests.report.records import CARD, make_estimate

SHARDS = "FSDP shards over several cards, which is not planned here"
SLIGHTLY = "the embedding grows by some rows"


def screen(unmodelled: tuple[Unmodelled, ...] = ()) -> str:
    read: Any = SimpleNamespace(
        format="axolotl", notes=(), unknown=("lora_rr",), not_modelled={"fsdp": SHARDS, "tokens": SLIGHTLY}
    )
    text = render_check(make_estimate(unmodelled=unmodelled), CARD, read, [], Theme(unicode=True))
    return " ".join(text.split())


def test_what_the_figures_leave_out_is_said_with_its_key() -> None:
    text = screen()
    assert f"fsdp is not in these figures: {SHARDS}" in text
    assert f"tokens is not in these figures: {SLIGHTLY}" in text
    assert "not keys of axolotl, as far as is known here: lora_rr" in text


def test_what_the_head_says_is_not_said_again_below() -> None:
    text = screen((Unmodelled(key="fsdp", what=SHARDS, direction="either"),))
    assert text.count(SHARDS) == 1 and f"partial, without fsdp: {SHARDS}" in text
    assert f"tokens is not in these figures: {SLIGHTLY}" in text
