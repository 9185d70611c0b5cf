"""Families of classes that take rows in blocks, or whose layers no profile tells apart: what the class itself does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qlora_planner.memory.options.resolve import resolve
from qlora_planner.memory.sweep.validity import trace_key
from qlora_planner.profiling.tapes import trace_run
from qlora_planner.sources.catalogue import ModelCatalogue
from qlora_planner.sources.configs import read_config
from qlora_planner.sources.families import family_tape
from qlora_planner.sources.tapes import StoredTape
from qlora_planner.spec.model import ModelProfile
from qlora_planner.spec.run import RunConfig
from qlora_planner.spec.trace import CompiledTape
from tools.families.pack import bytes_of

ROOT = Path(__file__).parents[2] / "profiles"
CATALOGUE = ModelCatalogue([ROOT / "models"])
SMOL, SCANS, WIDE = "HuggingFaceTB/SmolLM3-3B", "nvidia/Nemotron-H-8B-Base-8K", "google/gemma-4-31B"
DELTA = "Qwen/Qwen3.5-9B"


def answer(profile: ModelProfile, seq_len: int) -> StoredTape | None:
    resolution = resolve(profile, RunConfig(seq_len=seq_len))
    variant = trace_key(resolution.run, resolution.stack, None)
    return family_tape(profile, variant, [ROOT / "families"], 1, seq_len)


def traced(name: str, seq_len: int) -> CompiledTape:
    resolution = resolve(CATALOGUE.load(name), RunConfig(seq_len=seq_len))
    source = read_config(ROOT / "configs" / f"{name.replace('/', '__')}.json")
    return CompiledTape.of(trace_run(source, resolution, None), "own")


@pytest.mark.parametrize(
    ("name", "seq_len"),
    [(SMOL, 1601), ("meta-llama/Llama-4-Scout-17B-16E", 3999), (SCANS, 1999), (SCANS, 2048), (DELTA, 1600)],
)
def test_the_family_is_the_models_own_trace_to_the_byte(name: str, seq_len: int) -> None:
    """One length that fills whole chunks of the scan, and others; none that the family was made at."""
    family, own = answer(CATALOGUE.load(name), seq_len), traced(name, seq_len)
    assert family is not None
    assert (family.tape.kept, family.tape.places) == (own.kept, own.places)
    assert bytes_of(family.tape.at(1, seq_len, 16)) == bytes_of(own.at(1, seq_len, 16))


def test_heads_that_are_too_wide_for_fused_kernels_are_filled_up_to_blocks() -> None:
    """gemma-4 makes its tables of positions in the order of a set of words, another in each process: so sorted."""
    family, own = answer(CATALOGUE.load(WIDE), 1504), traced(WIDE, 1504)
    assert family is not None
    births = [sorted(size for _, size in tape.at(1, 1504, 16).events) for tape in (family.tape, own)]
    assert births[0] == births[1]


def test_a_tape_stands_for_the_lengths_that_fill_as_many_blocks() -> None:
    for name, seq_len, low, high in ((SCANS, 1999, 1920, 2047), (SCANS, 2048, 2047, 2048), (WIDE, 1504, 1503, 1504)):
        family = answer(CATALOGUE.load(name), seq_len)
        assert family is not None and (family.region.low, family.region.high) == (low, high)
    assert answer(CATALOGUE.load(WIDE), 1501) is None  # a mask of such rows is copied


def test_a_row_that_goes_chunk_by_chunk_is_answered_with_as_many_chunks_as_it_has() -> None:
    profile = CATALOGUE.load(DELTA)
    held = [answer(profile, 64 * chunks) for chunks in (20, 30, 60)]
    events = [len(each.tape.events) for each in held if each is not None]
    assert len(events) == 3
    assert (events[2] - events[1]) == 3 * (events[1] - events[0])
    assert [(each.region.low, each.region.high) for each in held if each] == [(1279, 1280), (1919, 1920), (3839, 3840)]
    assert answer(replace(profile, dims={**profile.dims, "vocab_size": 10**6}), 1280) is not None
    assert answer(profile, 1281) is None  # rows that fill no whole chunk have events more


@pytest.mark.parametrize("name", [SMOL, SCANS, WIDE])
def test_layers_that_no_profile_tells_apart_are_answered_for_the_models_that_were_traced(name: str) -> None:
    profile = CATALOGUE.load(name)
    other = replace(profile, config_sha256="0" * 64)
    assert answer(replace(other, same_shape_sha256=profile.config_sha256), 2048) is not None
    assert answer(replace(other, family_sha256=profile.config_sha256), 2048) is None
