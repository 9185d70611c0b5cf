"""Families answer for a model what its own trace says, to the byte; and for nothing that is not theirs."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qlora_planner.errors import InputError
from qlora_planner.memory.options.resolve import resolve
from qlora_planner.memory.sweep.validity import trace_key
from qlora_planner.memory.weights.targets import as_traced
from qlora_planner.session import load_gpu, packages, tape_for
from qlora_planner.session.traces import shipped_tape
from qlora_planner.sources import families
from qlora_planner.sources.catalogue import ModelCatalogue
from qlora_planner.sources.families import INDEX, family_tape
from qlora_planner.sources.tapes import KINDS, stored_tapes
from qlora_planner.spec.model import ModelProfile
from qlora_planner.spec.run import RunConfig
from qlora_planner.spec.trace import CompiledTape
from tools.families.pack import bytes_of

ROOT = Path(__file__).parents[2] / "profiles"
FAMILIES = [ROOT / "families"]
CATALOGUE = ModelCatalogue([ROOT / "models"])
CONFIGS: dict[str, str] = json.loads((ROOT / "families" / INDEX).read_text("utf-8"))["configs"]
PROFILES = {
    profile.id: profile for profile in map(CATALOGUE.load, CATALOGUE.names()) if profile.config_sha256 in CONFIGS
}
# Compiled at lengths that fill blocks alike, where a family knows of blocks (tests/sources/test_family_blocks.py).
IN_BLOCKS = ("gemma4_text", "nemotron_h", "qwen3_5_text")
# One of each class, and of llama's structures each, that ships traces of its own.
OWN = [
    (name, profile)
    for name, profile in sorted(PROFILES.items())
    if profile.model_type not in IN_BLOCKS and any(stored_tapes(profile, kind, [ROOT / "tapes"]) for kind in KINDS)
]
SAMPLE = sorted({CONFIGS[profile.config_sha256]: name for name, profile in OWN}.values())
LLAMA = "meta-llama/Llama-3.1-8B"


def variant_of(profile: ModelProfile, run: RunConfig) -> str:
    resolution = resolve(profile, run)
    return trace_key(resolution.run, resolution.stack, None)


def same_at(one: CompiledTape, other: CompiledTape, batch_size: int, seq_len: int) -> bool:
    """The same bytes at each event, of the same stretches, for the same layers."""
    first, second = (tape.at(batch_size, seq_len, 16) for tape in (one, other))
    stretches = [(tape.segments, tape.places, tape.kept) for tape in (first, second)]
    return bytes_of(first) == bytes_of(second) and stretches[0] == stretches[1]


def test_the_models_most_used_have_families() -> None:
    usual = {LLAMA, "Qwen/Qwen2.5-7B", "mistralai/Mistral-7B-v0.3", "google/gemma-2-9b", "Qwen/Qwen3-8B"}
    assert usual <= set(PROFILES)
    assert len(PROFILES) >= 90


@pytest.mark.parametrize("name", SAMPLE)
def test_the_default_recipe_is_the_models_own_trace_to_the_byte(name: str) -> None:
    profile, compared = PROFILES[name], 0
    for kind in KINDS:
        for own in stored_tapes(profile, kind, [ROOT / "tapes"]):
            batch = 8 if own.region.batched else 1
            seq = next(
                (seq for seq in (384, 1500, 3001, own.region.high, 6000, 12288) if own.region.holds(batch, seq)), None
            )
            family = None if seq is None else family_tape(profile, own.tape.variant, FAMILIES, batch, seq)
            if seq is None or family is None:
                continue
            assert same_at(own.tape, family.tape, batch, seq), (name, own.region)
            assert family.region.holds(batch, seq)
            compared += 1
    assert compared


@pytest.mark.parametrize("name", SAMPLE)
def test_a_family_answers_before_what_was_traced_of_the_model_itself(name: str) -> None:
    profile = PROFILES[name]
    for own in stored_tapes(profile, "single", [ROOT / "tapes"]):
        seq = own.region.high if own.region.high - own.region.low < 4096 else own.region.low + 1000
        family = family_tape(profile, own.tape.variant, FAMILIES, 1, seq, profile.counted)
        answer = shipped_tape(profile, own.tape.variant, 1, seq)
        assert answer is not None
        assert answer.tape == (own if family is None else family).tape


def test_other_recipes_are_what_the_models_own_code_does() -> None:
    """Traced here from the real class at sizes that no family was made at."""
    from qlora_planner.profiling.tapes import trace_run
    from qlora_planner.sources.configs import read_config

    run = RunConfig(trainer="hf-trainer", seq_len=1600, rank=12)
    profile = PROFILES["Qwen/Qwen2.5-1.5B"]
    family = family_tape(profile, variant_of(profile, run), FAMILIES, 1, 1600)
    assert family is not None
    source = read_config(ROOT / "configs" / "Qwen__Qwen2.5-1.5B.json")
    own = CompiledTape.of(trace_run(source, resolve(profile, run), None), "own")  # storages numbered as they are born
    assert family.tape.at(1, 1600, 12) == own.at(1, 1600, 12)


@pytest.mark.parametrize(
    "run",
    [
        RunConfig(eval_batch_size=3, batch_size=2, seq_len=700, lora_dropout=0.0),
        RunConfig(eval_batch_size=1, batch_size=2, seq_len=1100, trainer="hf-trainer", attention="flash_attention_2"),
    ],
    ids=["three rows after two", "one row after two by FlashAttention-2"],
)
def test_a_run_that_evaluates_is_its_training_and_an_evaluation(run: RunConfig) -> None:
    """Against one trace of both; the evaluation that ships is of other rows, and of a run with dropout."""
    from qlora_planner.profiling.tapes import trace_run
    from qlora_planner.sources.configs import read_config

    profile = PROFILES["Qwen/Qwen2.5-1.5B"]
    resolution = resolve(profile, run)
    variant = trace_key(resolution.run, resolution.stack, None)
    stored = shipped_tape(profile, variant, run.batch_size, run.seq_len, profiles=ROOT)
    assert stored is not None
    source = read_config(ROOT / "configs" / "Qwen__Qwen2.5-1.5B.json")
    own = CompiledTape.of(trace_run(source, resolution, None), "own")
    assert same_at(own, stored.tape, run.batch_size, run.seq_len)


def test_rows_of_flash_attention_stand_for_those_that_round_to_the_same_length() -> None:
    profile = CATALOGUE.load(LLAMA)
    for run, low, high in (
        (RunConfig(attention="flash_attention_2", seq_len=2048, trainer="hf-trainer"), 1920, 2048),
        (RunConfig(attention="flash_attention_2", seq_len=2049, trainer="hf-trainer"), 2048, 2176),
    ):
        family = family_tape(profile, variant_of(profile, run), FAMILIES, 1, run.seq_len)
        assert family is not None and (family.region.low, family.region.high) == (low, high)
    packed = variant_of(profile, RunConfig(attention="flash_attention_2", packing=True))
    assert family_tape(profile, packed, FAMILIES, 1, 2048) is not None
    assert family_tape(profile, packed, FAMILIES, 1, 2047) is None  # traced as two halves


def test_names_of_every_module_of_a_set_are_the_set() -> None:
    profile = CATALOGUE.load(LLAMA)
    for names, same in (
        ("o_proj,q_proj,v_proj,k_proj", "attention"),
        ("gate_proj,down_proj,up_proj,q_proj,v_proj,k_proj,o_proj", "all-linear"),
        ("v_proj,no_such,layers.3.self_attn.q_proj", "self_attn.q_proj,v_proj"),
    ):
        assert as_traced(profile, RunConfig(target_modules=names)).target_modules == same


def test_a_base_install_estimates_recipes_that_no_trace_of_the_model_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "missing_packages", lambda *_: ["torch"])
    profile = CATALOGUE.load(LLAMA)
    for run in (RunConfig(trainer="hf-trainer"), RunConfig(gradient_checkpointing=False)):
        assert tape_for(profile, run, profiles=ROOT) is not None
    assert tape_for(profile, RunConfig(), load_gpu("t4"), profiles=ROOT) is not None  # float16, under hf-trainer


@pytest.mark.parametrize(
    "run", [RunConfig(), RunConfig(target_modules="v_proj,k_proj,q_proj,o_proj,up_proj,down_proj,in_proj")]
)
def test_modules_that_adapters_go_on_by_name_are_those_of_the_trace_in_any_order(
    run: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PEFT refuses all-linear for this class, so its default is a list of names, as the trace that ships has them."""
    monkeypatch.setattr(packages, "missing_packages", lambda *_: ["torch"])
    profile = CATALOGUE.load("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16")
    assert tape_for(profile, run, profiles=ROOT) is not None


def test_layers_or_dimensions_of_another_structure_are_not_answered_for() -> None:
    profile = PROFILES[LLAMA]
    variant = variant_of(profile, RunConfig())
    assert family_tape(profile, variant, FAMILIES) is not None
    kind = profile.layer_kinds[0]
    mixed = replace(
        profile,
        layer_kinds=(replace(kind, count=31), replace(kind, name="another", count=1)),
        layer_order=((0, 10), (1, 1), (0, 21)),
    )
    assert family_tape(mixed, variant, FAMILIES) is None
    unknown = {name: value for name, value in profile.dims.items() if name != "intermediate_size"}
    assert family_tape(replace(profile, dims=unknown), variant, FAMILIES) is None
    assert family_tape(profile, variant + " unheard-of", FAMILIES) is None
    assert family_tape(replace(profile, config_sha256="0" * 64), variant, FAMILIES) is None


def test_more_layers_take_more_at_the_same_events() -> None:
    """A family knows no number of layers: it is the profile's."""
    profile = PROFILES[LLAMA]
    deeper = replace(
        profile, layer_kinds=(replace(profile.layer_kinds[0], count=40),), layer_order=((0, 40),),
    )  # fmt: skip
    family = family_tape(deeper, variant_of(profile, RunConfig()), FAMILIES)
    assert family is not None
    assert family.tape.kept == (0, 1, 39)
    assert len(family.tape.places) == 40


def test_a_tape_of_more_layers_than_a_model_keeps_is_not_answered_from() -> None:
    """As of offloaded activations, of which the last few layers wait on the card."""
    profile = PROFILES[LLAMA]
    family, _ = families._held(profile, variant_of(profile, RunConfig()), ["single middle"], FAMILIES, profile.versions)  # type: ignore[misc]
    assert family.of_model(profile, 1, 2048) is not None
    *others, last = family.tape.segments
    more = replace(family.tape, segments=(*others, replace(last, layer=3)))
    assert replace(family, tape=more).of_model(profile, 1, 2048) is None


def test_what_hangs_on_the_depth_ships_in_no_family() -> None:
    variant = variant_of(PROFILES[LLAMA], RunConfig(activation_offloading=True))
    assert all(family_tape(profile, variant, FAMILIES) is None for profile in PROFILES.values())


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"schema": "qlora-plan/family/2"}\n{}'])
def test_a_damaged_family_is_named_with_what_makes_it_anew(content: bytes, tmp_path: Path) -> None:
    profile = PROFILES[LLAMA]
    (tmp_path / INDEX).write_text(json.dumps({"configs": {profile.config_sha256: "llama-9"}}))
    (tmp_path / "llama-9.jsonl.gz").write_bytes(gzip.compress(content))
    with pytest.raises(InputError, match=r"llama-9\.jsonl\.gz: not readable families .*make families"):
        family_tape(profile, variant_of(profile, RunConfig()), [tmp_path])


@pytest.mark.parametrize("document", ["", "[]", '{"configs": 5}', '{"configs": {"a": [1]}}', "{}"])
def test_a_damaged_index_is_named_too(document: Any, tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text(document)
    profile = replace(PROFILES[LLAMA], config_sha256="a")
    with pytest.raises(InputError, match=r"index\.json: not readable families"):
        family_tape(profile, variant_of(profile, RunConfig()), [tmp_path])
