"""Defaults that hang on a release of axolotl, and switches of LLaMA-Factory whose bytes hang on the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from qlora_planner import Session, load_model
from qlora_planner.cli.values import parse_stack
from qlora_planner.errors import InputError
from qlora_planner.exchange.configs import TOOLS, read_config
from qlora_planner.exchange.meant import meant
from qlora_planner.exchange.parsed_config import Reading
from qlora_planner.exchange.patterns import named_by
from qlora_planner.session.check import Check
from qlora_planner.session.packages import TRACE_VARIABLE
from tests.exchange.example_configs import axolotl, factory

LLAMA = "meta-llama/Llama-3.1-8B"


def read(folder: Path, config: dict[str, Any], **stack: str) -> Reading:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return read_config(path, stack=stack)


# The release -> whether checkpoints re-enter, and what is said of embeddings in float32 while preparing.
@pytest.mark.parametrize(
    ("version", "reenters", "casts"),
    [
        ("0.18.0", True, "embeddings and head in float32 while preparing"),
        ("0.19", True, "embeddings and head in float32 while preparing"),
        ("0.20", True, None),
        ("0.21.0", False, None),
        (None, False, "embeddings and head in float32 while preparing, before axolotl 0.20"),
    ],
)
def test_defaults_are_those_of_the_release(
    tmp_path: Path, version: str | None, reenters: bool, casts: str | None
) -> None:
    found = read(tmp_path, axolotl(LLAMA, 2048, 1), **({} if version is None else {"axolotl": version}))
    assert (found.run.use_reentrant, found.casts_while_preparing, dict(found.run.stack)) == (reenters, casts, {})
    told = read(tmp_path, axolotl(LLAMA, 2048, 1, embeddings_skip_upcast=False), axolotl="0.21")
    assert told.casts_while_preparing is not None


@pytest.mark.parametrize(
    ("stack", "pinned"),
    [({}, "1.14"), ({"axolotl": "0.18"}, "1.8"), ({"axolotl": "0.21.0"}, "1.14"), ({"trl": "1.16"}, None)],
)
def test_preferences_go_through_the_trl_that_the_release_pins(
    tmp_path: Path, stack: dict[str, str], pinned: str | None
) -> None:
    found = read(tmp_path, axolotl(LLAMA, 1024, 1, rl="dpo"), **stack)
    said = [thing.key for thing in found.unmodelled if thing.key.startswith("trl ")]
    assert said == ([] if pinned is None else [f"trl {pinned} of {' '.join(['axolotl', *_named(stack)])}"])


def _named(stack: dict[str, str]) -> list[str]:
    return [stack["axolotl"]] if "axolotl" in stack else []


def test_a_release_is_named_beside_libraries() -> None:
    assert parse_stack(["axolotl=0.18,trl=1.13"], TOOLS) == {"axolotl": "0.18", "trl": "1.13"}
    with pytest.raises(InputError, match="'axolotl' is not a package"):
        parse_stack(["axolotl=0.18"])


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        (r"model.language_model.layers.[\d]+.(mlp|cross_attn|self_attn).(up|down|gate|q|k|v|o)_proj", "all-linear"),
        (r"model.layers.[\d]+.self_attn.(q|k|v|o)_proj", "attention"),
        (r"model\.layers\.\d+\.mlp\.(up|down)_proj", "up_proj,down_proj"),
        (r"model.layers.[0-9].self_attn.q_proj", None),  # some layers alone
        (r"vision_tower.+", None),
        (r"((a+)+)+$", None),
        (r"(", None),
    ],
)
def test_a_pattern_is_the_modules_that_it_matches_in_the_model(pattern: str, names: str | None, tmp_path: Path) -> None:
    assert named_by(pattern, load_model(LLAMA)) == names
    config = axolotl(LLAMA, 2048, 1, lora_target_linear=None, lora_target_modules=pattern)
    found = meant(read(tmp_path, config), load_model(LLAMA))
    assert found.run.target_modules == (names or "all-linear")
    assert ("lora_target_modules" in str(found.not_modelled)) == (names is None)


def checked(folder: Path, monkeypatch: pytest.MonkeyPatch, card: str, **asks: Any) -> Check:
    monkeypatch.setenv(TRACE_VARIABLE, "never")
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(factory(LLAMA, 2, use_reentrant_gc=False, **asks)))
    return Session().on(card).check(path).check


# What is asked -> its direction, and between which parts of the peak it is bounded.
SWITCHES: list[tuple[dict[str, Any], str, float, float]] = [
    ({"pure_bf16": True, "bf16": False}, "down", 0.02, 0.1),
    ({"upcast_lmhead_output": True}, "down", 0.05, 0.15),  # 2 x 2,048 tokens x 128,256 words x 2 bytes: 1,002 MiB
    ({"upcast_layernorm": True}, "up", 0.1, 0.6),
    ({"neat_packing": True}, "up", 0.0005, 0.01),  # 2 x 2,048 x 2,048 x 2 bytes: 16 MiB
]


@pytest.mark.parametrize(("asks", "direction", "least", "most"), SWITCHES)
def test_a_switch_of_llama_factory_is_bounded_by_what_it_holds(
    asks: dict[str, Any], direction: str, least: float, most: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = checked(tmp_path, monkeypatch, "80GB", **asks)
    (thing,) = answer.estimate.unmodelled
    assert thing.key.startswith(next(iter(asks))) and thing.direction == direction
    assert least < (thing.at_most or 0) < most
    assert answer.estimate.verdict == "fits" and not answer.reading.not_modelled


def test_gpt_oss_gets_flash_attention_whatever_the_file_says(tmp_path: Path) -> None:
    found = meant(read(tmp_path, factory("openai/gpt-oss-20b", flash_attn="sdpa")), load_model("openai/gpt-oss-20b"))
    assert found.run.attention is None
    assert [(thing.key, thing.direction, thing.at_most) for thing in found.unmodelled] == [("flash_attn", "down", None)]


@pytest.mark.parametrize(
    ("attention", "mask_bytes"),
    [(None, 3 * 2 * 4096**2), ("sdpa", 3 * 2 * 4096**2), ("flash_attention_2", None), ("flex_attention", None)],
)
def test_packed_rows_have_a_mask_where_attention_takes_no_lengths(
    tmp_path: Path, attention: str | None, mask_bytes: int | None
) -> None:
    found = read(tmp_path, axolotl(LLAMA, 4096, 2, sample_packing=True, attn_implementation=attention))
    assert [thing.at_most_bytes for thing in found.beyond] == ([] if mask_bytes is None else [mask_bytes])
    assert found.run.padding is False and found.run.attention == attention
    assert not read(tmp_path, axolotl(LLAMA, 4096, 2, sample_packing=True, rl="dpo")).beyond
