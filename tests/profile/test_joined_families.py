"""Families of a trainer that joins rows: beside the traces of two models of their own, and where they end."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlora_planner.catalog.cuda import cublas_workspace_bytes
from qlora_planner.memory.options.resolve import resolve
from qlora_planner.memory.sweep.joined import joined_letters, joined_region, joined_sizes, scored
from qlora_planner.memory.sweep.validity import trace_key
from qlora_planner.session import load_gpu, load_model
from qlora_planner.sources.families import family_tape
from qlora_planner.sources.tapes import OF_TRAINERS, StoredTape, stored_tape
from qlora_planner.spec.run import RunConfig
from qlora_planner.spec.trace import Tape

ROOT = Path(__file__).parents[2] / "profiles"
OWN, FAMILIES = [ROOT / "tapes" / OF_TRAINERS], [ROOT / "families"]
UNSLOTH = RunConfig(trainer="unsloth")


def _found(model: str, card: str, batch: int, seq: int) -> tuple[StoredTape | None, StoredTape | None, str | None]:
    profile, gpu = load_model(model), load_gpu(card)
    resolution = resolve(profile, UNSLOTH.with_(batch_size=batch, seq_len=seq), gpu)
    variant = trace_key(resolution.run, resolution.stack, gpu)
    family = family_tape(profile, variant, FAMILIES, batch, seq, resolution.stack)
    return family, stored_tape(profile, OWN, batch, seq, variant), gpu.compute_capability


def _storages(tape: Tape) -> list[tuple[int, int, bool, bool]]:
    """What is born and freed in turn, storages numbered as they come, with where each lies."""
    numbers: dict[int, int] = {}
    return [
        (numbers.setdefault(storage, len(numbers)), size, storage in tape.on_host, storage in tape.streamed)
        for storage, size in tape.events
    ]


@pytest.mark.parametrize("card", ["rtx-4090", "a100-80gb"])
@pytest.mark.parametrize("model", ["meta-llama/Llama-3.1-8B", "Qwen/Qwen3-8B"])
@pytest.mark.parametrize(("batch", "seq"), [(1, 1024), (1, 2048), (2, 1024), (4, 512), (1, 8192), (4, 2048)])
def test_a_family_is_the_trace_of_the_model_itself(model: str, card: str, batch: int, seq: int) -> None:
    family, own, capability = _found(model, card, batch, seq)
    assert family is not None and own is not None
    workspace = cublas_workspace_bytes(capability)
    played, traced = (found.tape.at(batch, seq, 16, workspace) for found in (family, own))
    assert _storages(played) == _storages(traced)
    assert [(part.stage, part.start, part.stop) for part in played.segments] == [
        (part.stage, part.start, part.stop) for part in traced.segments
    ]


@pytest.mark.parametrize(
    ("model", "card", "batch", "seq"),
    [
        ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", "rtx-4090", 2, 2048),  # more tokens than positions
        ("mistralai/Mistral-7B-v0.1", "rtx-4090", 1, 2048),  # a sliding window
        ("meta-llama/Llama-3.1-8B", "t4", 1, 1000),  # rows that a T4 rounds up
    ],
)
def test_no_family_stands_for_another_run(model: str, card: str, batch: int, seq: int) -> None:
    assert _found(model, card, batch, seq)[0] is None


WORDS = (("sm90", "small-card"), ("sm90",), ("sm70", "small-card"))


@given(
    words=st.sampled_from(WORDS),
    hidden=st.integers(8, 128).map(lambda width: 64 * width),
    vocabulary=st.integers(500, 33000).map(lambda words: 8 * words),
    rows=st.integers(2, 40000),
    more=st.integers(-20000, 20000),
)
def test_sizes_of_one_rule_go_by_it(words: tuple[str, ...], hidden: int, vocabulary: int, rows: int, more: int) -> None:
    dims = {"hidden_size": hidden, "vocab_size": vocabulary, "max_position_embeddings": 1 << 17}
    rule, other = joined_sizes(words, dims, 1, rows), max(rows + more, 2)
    assert rule.first <= scored(1, rows) <= rule.last
    alike = rule.first <= scored(1, other) <= rule.last
    at_a_time = joined_letters(words, dims, 1, other)["loss_rows"]
    if alike:
        assert at_a_time == (rule.at_a_time or scored(1, other))
        kinds = {str(joined_region(words, dims, 1, size)).split()[2] for size in (rows, other)}
        assert len(kinds) == 1
    assert joined_sizes(words, dims, 1, other) == rule or not alike
