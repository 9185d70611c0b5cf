"""Families of pairs, labelled texts and completions that are generated: the models' own traces to the byte."""

from __future__ import annotations

import pytest

from qlora_planner.memory.options.resolve import resolve
from qlora_planner.memory.sweep.tasks import task_ranges, task_sizes
from qlora_planner.memory.sweep.validity import trace_key
from qlora_planner.session import packages, tape_for
from qlora_planner.session.traces import sweep_for
from qlora_planner.sources.families import family_tape
from qlora_planner.spec.run import RunConfig
from tests.sources.test_families import CATALOGUE, FAMILIES, LLAMA, ROOT
from tools.families.pack import bytes_of

GEMMA = "google/gemma-3-4b"
DPO, GRPO, ORPO = (RunConfig(trainer=f"trl-{name}") for name in ("dpo", "grpo", "orpo"))
CLASSIFIER = RunConfig(task="classification")
USUAL = (
    LLAMA, "meta-llama/Llama-3.2-1B", "Qwen/Qwen2.5-7B", "Qwen/Qwen2.5-0.5B", "Qwen/Qwen3-8B", "Qwen/Qwen3-4B",
    "mistralai/Mistral-7B-v0.3", "mistralai/Mistral-7B-v0.1", "google/gemma-2-9b", "google/gemma-3-4b",
)  # fmt: skip


def variant_of(name: str, run: RunConfig) -> str:
    resolution = resolve(CATALOGUE.load(name), run)
    return trace_key(resolution.run, resolution.stack, None)


@pytest.mark.parametrize(
    ("name", "run"),
    [
        ("Qwen/Qwen2.5-1.5B", DPO.with_(seq_len=1000, prompt_len=300, batch_size=3)),
        ("Qwen/Qwen3-8B", GRPO.with_(batch_size=2, grad_accum=4, prompt_len=333, completion_len=700)),
        ("mistralai/Mistral-7B-v0.3", CLASSIFIER.with_(batch_size=4, num_labels=9, seq_len=700)),
        (LLAMA, ORPO.with_(seq_len=1000, prompt_len=300)),  # one pair, whose sides are padded to one width
        ("Qwen/Qwen2.5-0.5B", ORPO.with_(batch_size=5, seq_len=700)),
        (LLAMA, ORPO.with_(batch_size=3, seq_len=600, gradient_checkpointing=False)),
        (GEMMA, DPO.with_(seq_len=1000, prompt_len=300, batch_size=3)),  # within its window of 1,024 tokens
        (GEMMA, GRPO.with_(batch_size=8, prompt_len=1333, completion_len=300)),  # whose cache keeps a window of these
        (GEMMA, GRPO.with_(batch_size=8, prompt_len=333, completion_len=300)),
        ("mistralai/Mistral-7B-v0.1", RunConfig(trainer="trl-kto", batch_size=2, seq_len=4098)),  # beyond 4,096
        (LLAMA, DPO.with_(seq_len=1000, prompt_len=300, batch_size=3, attention="flash_attention_2")),
    ],
)
def test_a_tasks_tape_is_the_models_own_trace_to_the_byte(name: str, run: RunConfig) -> None:
    """At sizes that no family was made at. Products of short batches are dequantised, as families have them."""
    from qlora_planner.profiling.tapes import trace_run
    from qlora_planner.sources.configs import read_config
    from tools.families.tracing import never_fused

    profile = CATALOGUE.load(name)
    resolution = resolve(profile, run)
    sizes = resolution.run.batch_size, resolution.run.seq_len
    stored = family_tape(profile, variant_of(name, run), FAMILIES, *sizes)
    assert stored is not None
    with never_fused():
        own = trace_run(read_config(ROOT / "configs" / f"{name.replace('/', '__')}.json"), resolution, None)
    tape = stored.tape.at(*sizes, resolution.run.rank)
    assert bytes_of(tape) == bytes_of(own)
    assert (tape.segments, tape.places, tape.kept, tape.tokens) == (own.segments, own.places, own.kept, own.tokens)
    assert [size for _, size in tape.last_sizes] == [size for _, size in own.last_sizes]


@pytest.mark.parametrize("name", USUAL)
def test_a_base_install_answers_every_task_of_the_usual_models(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "missing_packages", lambda *_: ["torch"])
    profile = CATALOGUE.load(name)
    runs = (
        DPO, DPO.with_(batch_size=4), DPO.with_(prompt_len=512, completion_len=512), RunConfig(trainer="trl-reward"),
        ORPO, ORPO.with_(batch_size=4, seq_len=1024),
        RunConfig(trainer="trl-kto"), GRPO.with_(batch_size=8), GRPO.with_(batch_size=1, grad_accum=8),
        RunConfig(trainer="trl-rloo", batch_size=2), CLASSIFIER, CLASSIFIER.with_(batch_size=8, num_labels=5),
    )  # fmt: skip
    assert [run for run in runs if tape_for(profile, run, profiles=ROOT) is None] == []


@pytest.mark.parametrize(
    "run",
    [
        DPO.with_(attention="eager"),
        DPO.with_(loss_type="ipo"),
        GRPO.with_(batch_size=8, beta=0.1),
        GRPO.with_(batch_size=8, prompt_len=500, completion_len=3),  # fewer tokens than are traced
        RunConfig(trainer="trl-rloo", batch_size=2, grad_accum=2),  # scored in two passes
        DPO.with_(compute_dtype="float16"),
    ],
)
def test_what_no_family_was_made_of_is_not_answered_from_one(run: RunConfig) -> None:
    resolved = resolve(CATALOGUE.load(LLAMA), run).run
    stored = family_tape(CATALOGUE.load(LLAMA), variant_of(LLAMA, run), FAMILIES, resolved.batch_size, resolved.seq_len)
    assert stored is None


def test_a_cache_that_outgrows_its_window_while_it_grows_is_not_answered_from_a_family() -> None:
    """Prompts of 1,000 tokens lie within Gemma's window of 1,024, what is generated from them ends beyond it."""
    run = GRPO.with_(batch_size=8, prompt_len=1000, completion_len=200)
    assert family_tape(CATALOGUE.load(GEMMA), variant_of(GEMMA, run), FAMILIES, 8, 1200) is None


def test_a_sequence_is_ranked_by_the_range_that_its_completions_fall_in() -> None:
    """Completions of 2 x 4,096 tokens fill more than one tile of the head, those of 2 x 1,024 do not."""
    sizes = task_sizes(variant_of(LLAMA, DPO))
    assert sizes is not None
    held = [[part.long for part in task_ranges(sizes) if part.holds(1, seq)] for seq in (1024, 8192)]
    assert held == [[False], [True]]
    assert sizes.scored(2, 1024) == 3 * 512 + 256


def test_a_search_ranks_tasks_by_the_tapes_that_estimates_play() -> None:
    import numpy as np

    profile = CATALOGUE.load(LLAMA)
    run = GRPO.with_(batch_size=8, prompt_len=256, completion_len=512)
    sweep = sweep_for(profile, profiles=ROOT)
    batch, seq = (np.array([size], dtype=np.int64) for size in (8, 768))
    parts = list(sweep.parts_of(variant_of(LLAMA, run), batch, seq))
    assert len(parts) == 1
