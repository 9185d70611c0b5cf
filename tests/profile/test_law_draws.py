"""Configs that nobody published: the law's profile is what the class builds, the family's tape is the model's trace."""

from __future__ import annotations

import random
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from qlora_planner.memory.options.resolve import resolve
from qlora_planner.memory.sweep.validity import trace_key
from qlora_planner.profiling.build import build_profile
from qlora_planner.profiling.tapes import trace_run
from qlora_planner.sources.configs import RawConfig, config_sha256
from qlora_planner.sources.families import family_tape, known_configs
from qlora_planner.sources.laws.lookup import profile_by_law
from qlora_planner.spec.model import ModelProfile
from qlora_planner.spec.run import RunConfig
from qlora_planner.spec.trace import CompiledTape
from tools.families.check_random import drawn_configs
from tools.families.toys import names_layers
from tools.laws.tensors import facts_of

ROOT = Path(__file__).parents[2] / "profiles"


def by_law(raw: RawConfig) -> ModelProfile | None:
    made = profile_by_law(raw, [ROOT / "laws"], [ROOT / "fields"], known_configs([ROOT / "families"]))
    return made if isinstance(made, ModelProfile) else None


@pytest.mark.parametrize(
    "model_type", ["llama", "gpt2", "qwen3_5_text", "granitemoehybrid", "deepseek_v3", "lfm2", "nemotron_h", "gptj"]
)
def test_the_law_says_what_the_class_builds(model_type: str) -> None:
    configs = (raw for _, raw in drawn_configs(ROOT, [model_type], random.Random(model_type)))
    covered = ((raw, made) for raw in islice(configs, 200) if (made := by_law(raw)) is not None)
    raw, made = next(covered, (None, None))
    assert raw is not None and made is not None, "the law covers none of 200 configs like those that it was made from"
    assert facts_of(made) == facts_of(build_profile(raw)), raw.config


def test_the_family_of_a_drawn_config_is_its_own_trace_to_the_byte() -> None:
    config = {
        "model_type": "llama", "hidden_size": 1152, "intermediate_size": 3008, "num_hidden_layers": 3,
        "num_attention_heads": 12, "num_key_value_heads": 4, "head_dim": 80, "vocab_size": 4999,
    }  # fmt: skip
    raw = RawConfig(id="drawn", config=config, sha256=config_sha256(config), origin="file")
    made = by_law(raw)
    assert made is not None
    resolution = resolve(made, RunConfig(seq_len=1600, rank=12))
    family = family_tape(made, trace_key(resolution.run, resolution.stack, None), [ROOT / "families"], 1, 1600)
    assert family is not None
    own = CompiledTape.of(trace_run(raw, resolution, None), "own")
    assert family.tape.at(1, 1600, 12) == own.at(1, 1600, 12)


def test_fields_that_number_layers_are_told_from_lists_with_an_entry_a_layer() -> None:
    assert names_layers([0, 1, 2, 3], 4) and names_layers({"05": {"head_dim": 512}}, 6)
    others: tuple[Any, ...] = ([1, 1, 1, 0], [1, 4], {"0": "LABEL_0"}, {"full_attention": {}}, [], {}, None)
    assert [names_layers(value, 4) for value in others] == [False] * len(others)
