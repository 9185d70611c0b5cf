"""Laws of the estimate, over shipped profiles."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlora_planner.errors import InputError
from qlora_planner.memory import PHASES, Component, MemoryEstimate
from qlora_planner.memory.estimate import estimate
from qlora_planner.sources.catalogue import ModelCatalogue
from qlora_planner.spec.machine import GpuSpec
from qlora_planner.spec.model import ModelProfile
from qlora_planner.spec.run import RunConfig
from tests.truth import rows

CATALOGUE = ModelCatalogue([Path(__file__).parents[2] / "profiles" / "models"])
MODELS = {
    name: CATALOGUE.load(name)
    for name in (
        "meta-llama/Llama-3.1-8B",
        "Qwen/Qwen2.5-0.5B",
        "Qwen/Qwen3-30B-A3B",
        "google/gemma-2-2b",
        "tiiuae/falcon-7b",
    )
}
H200 = GpuSpec(
    name="h200",
    label="NVIDIA H200",
    memory_bytes=143771 << 20,
    cuda_total_bytes=143155 << 20,
    compute_capability="9.0",
    bf16=True,
    form="datacenter",
)
RUNS = st.builds(
    RunConfig,
    seq_len=st.integers(1, 64).map(lambda n: 64 * n),
    batch_size=st.integers(1, 8),
    rank=st.sampled_from([4, 16, 64]),
    upcast=st.booleans(),
    gradient_checkpointing=st.booleans(),
    double_quant=st.booleans(),
    padding=st.just(False),
    trainer=st.sampled_from(["trl-sft", "hf-trainer", "loop"]),
    optimizer=st.sampled_from(["paged_adamw_8bit", "adamw_torch", "adamw_8bit", "sgd", "adafactor"]),
)


def training_peak(answer: MemoryEstimate) -> int:
    return max(p.allocated_bytes or 0 for p in answer.phases if p.name in ("forward", "loss", "backward", "optimizer"))


@given(st.sampled_from(sorted(MODELS)), RUNS)
@settings(max_examples=60, deadline=None)
def test_components_add_up_and_phases_are_whole(name: str, run: RunConfig) -> None:
    answer = estimate(MODELS[name], run, H200)
    assert sum(answer.components.values()) == answer.peak.device_bytes
    assert set(answer.components) == {part.value for part in Component} - {"communication"}  # of several cards
    assert all(size >= 0 for size in answer.components.values()), answer.components
    assert tuple(phase.name for phase in answer.phases) == PHASES
    known = [phase for phase in answer.phases if phase.device_bytes is not None]
    assert answer.peak.device_bytes == max(phase.device_bytes or 0 for phase in known)
    for phase in known:
        assert (phase.allocated_bytes or 0) <= (phase.reserved_bytes or 0) <= (phase.device_bytes or 0)
    assert answer.peak.low_bytes <= answer.peak.device_bytes <= answer.peak.high_bytes


@given(st.sampled_from(sorted(MODELS)), RUNS, st.sampled_from(["seq_len", "batch_size", "rank"]))
@settings(max_examples=60, deadline=None)
def test_more_never_takes_less(name: str, run: RunConfig, knob: str) -> None:
    more = run.with_(**{knob: getattr(run, knob) * 2})
    assert training_peak(estimate(MODELS[name], more)) >= training_peak(estimate(MODELS[name], run))


@given(st.sampled_from(sorted(MODELS)), RUNS)
@settings(max_examples=40, deadline=None)
def test_double_quantisation_and_checkpointing_never_cost_memory(name: str, run: RunConfig) -> None:
    nested, flat = (estimate(MODELS[name], run.with_(double_quant=on)) for on in (True, False))
    assert nested.static.after_load <= flat.static.after_load
    kept = estimate(MODELS[name], run.with_(gradient_checkpointing=True))
    everything = estimate(MODELS[name], run.with_(gradient_checkpointing=False))
    assert training_peak(kept) <= training_peak(everything)


@given(st.sampled_from(sorted(MODELS)), st.integers(4, 140))
@settings(max_examples=40, deadline=None)
def test_what_fits_a_card_fits_a_larger_one(name: str, gib: int) -> None:
    verdicts = ["does-not-fit", "tight", "fits"]

    def rank(size: int) -> int:
        gpu = GpuSpec(name=f"{size}GiB", label="", memory_bytes=size << 30)
        fit = estimate(MODELS[name], RunConfig(), gpu).fit
        assert fit is not None
        return verdicts.index(fit.verdict)

    assert rank(gib + 1) >= rank(gib)


def test_without_upcast_prepare_changes_nothing() -> None:
    answer = estimate(MODELS["meta-llama/Llama-3.1-8B"], RunConfig(upcast=False))
    assert answer.static.after_prepare == answer.static.after_load
    assert next(phase for phase in answer.phases if phase.name == "prepare").device_bytes is None


def test_small_model_with_large_vocabulary_peaks_before_training() -> None:
    assert estimate(MODELS["google/gemma-2-2b"], RunConfig(seq_len=256, upcast=True), H200).peak.phase == "prepare"


def test_refusals_become_verdicts() -> None:
    moe = MODELS["Qwen/Qwen3-30B-A3B"]
    asked = estimate(moe, RunConfig(lora_dropout=0.05), H200)
    assert asked.fit is not None
    assert asked.fit.verdict == "will-not-run"
    auto = estimate(moe, RunConfig(), H200)
    assert auto.fit is not None
    assert auto.fit.verdict != "will-not-run"
    assert auto.run.lora_dropout == 0.0
    t4 = GpuSpec(name="t4", label="Tesla T4", memory_bytes=15360 << 20, compute_capability="7.5", bf16=False)
    on_t4 = estimate(MODELS["Qwen/Qwen2.5-0.5B"], RunConfig(), t4)
    assert (on_t4.run.compute_dtype, on_t4.run.trainer) == ("float16", "hf-trainer")
    explicit = estimate(MODELS["Qwen/Qwen2.5-0.5B"], RunConfig(trainer="trl-sft"), t4).fit
    assert explicit is not None
    assert explicit.verdict == "will-not-run"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"optimizer": "adamw"}, "--optimizer"),
        ({"quant": "none"}, "--method lora"),
        ({"method": "full", "quant": "nf4"}, "--quant none"),
        ({"target_modules": "q_porj"}, "q_proj"),
        ({"modules_to_save": "lm_haed"}, "lm_head"),
    ],
)
def test_contradictions_name_the_fix(options: dict[str, str], named: str) -> None:
    with pytest.raises(InputError, match=named):
        estimate(MODELS["meta-llama/Llama-3.1-8B"], RunConfig(**options))  # type: ignore[arg-type]


def test_first_estimate_against_the_measured_rows(measured_profiles: dict[str, ModelProfile]) -> None:
    """The closed forms are a first answer: exact-looking layers must be close, and no 4-bit run far under."""
    misses = {}
    for row in rows():
        if row.outcome != "ok":
            continue
        answer = estimate(measured_profiles[row.model], row.run, H200)
        peak = max(training_peak(answer), next(p.allocated_bytes or 0 for p in answer.phases if p.name == "adapters"))
        misses[row.index] = (peak / row.measured["train_peak"] - 1, row.run.quant)
    four_bit = [miss for miss, quant in misses.values() if quant in ("nf4", "fp4")]
    assert sum(abs(miss) for miss in four_bit) / len(four_bit) < 0.065
    assert min(four_bit) > -0.11
