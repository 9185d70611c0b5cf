"""Kernels that take the place of a loss: what they hold by their packages' own code, and who refuses them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qlora_planner import RunConfig, load_gpu, load_model
from qlora_planner.errors import InputError
from qlora_planner.memory.estimate import estimate
from qlora_planner.memory.options.resolve import resolve
from qlora_planner.memory.records import MemoryEstimate
from qlora_planner.memory.sweep.validity import trace_key
from qlora_planner.memory.unmodelled.left_out import whole
from qlora_planner.session.traces import tape_for

HF = RunConfig(trainer="hf-trainer", seq_len=4096)


def loss_bytes(model: str, **options: Any) -> int:
    phase = next(phase for phase in formed(model, **options).phases if phase.name == "loss")
    return phase.allocated_bytes or 0


def formed(model: str, **options: Any) -> MemoryEstimate:
    return estimate(load_model(model), HF.with_(**options), gpu=load_gpu("rtx-4090"))


def test_no_kernel_but_the_full_one_holds_the_whole_logits() -> None:
    whole_logits = 4096 * 128256 * 12
    full = loss_bytes("llama-3.1-8b")
    assert full == loss_bytes("llama-3.1-8b", loss_kernel="full")
    for kernel in ("cut-cross-entropy", "liger-fused"):
        assert 0.95 * whole_logits < full - loss_bytes("llama-3.1-8b", loss_kernel=kernel) < whole_logits, kernel


def test_ligers_rows_of_logits_are_as_many_as_its_code_takes() -> None:
    # 128,256 words over a width of 4,096 are 32 parts; 4,096 tokens in 32 parts are 128 rows.
    from qlora_planner.memory.closed_form.activations import _liger_bytes

    assert _liger_bytes(4096, 128256, 4096) == 2 * 128256 * 128 + 5 * 4096
    assert _liger_bytes(4096, 128256, 4097) == 2 * 128256 * 256 + 5 * 4097
    assert _liger_bytes(4096, 2048, 96) == 2 * 2048 * 96 + 5 * 96


def test_liger_alone_fuses_the_loss_of_models_that_it_knows() -> None:
    known = whole(load_model("mistral-7b-v0.1"), formed("mistral-7b-v0.1", liger=True))
    assert loss_bytes("mistral-7b-v0.1") - loss_bytes("mistral-7b-v0.1", liger=True) > 1 << 30
    assert [thing.key for thing in known.unmodelled] == ["--liger"]  # what its other kernels save is not known
    plain, unknown = formed("pythia-6.9b"), whole(load_model("pythia-6.9b"), formed("pythia-6.9b", liger=True))
    assert unknown.peak.device_bytes == plain.peak.device_bytes and not unknown.unmodelled


@pytest.mark.parametrize(
    ("model", "options", "says"),
    [
        ("llama-3.1-8b", {"trainer": "trl-sft", "loss_kernel": "full"}, "own way"),
        ("llama-3.1-8b", {"trainer": "trl-sft", "loss_kernel": "cut-cross-entropy"}, "own way"),
        ("llama-3.1-8b", {"loss_kernel": "chunked"}, "own way"),
        ("llama-3.1-8b", {"loss_kernel": "cut-cross-entropy", "upcast": True}, "16-bit"),
        ("pythia-6.9b", {"loss_kernel": "liger-fused"}, "gpt_neox"),
    ],
)
def test_a_kernel_that_a_trainer_or_model_cannot_take_is_refused(
    model: str, options: dict[str, Any], says: str
) -> None:
    problems = resolve(load_model(model), HF.with_(**options)).problems
    (refused,) = (problem for problem in problems if problem.code == "loss-refused")
    assert refused.blocking and says in refused.message and refused.fix.startswith("--")


def test_naming_what_happens_anyway_changes_nothing() -> None:
    stack = {"trl": "1.16.0"}
    for run, kernel in ((HF, "full"), (HF.with_(trainer="trl-sft"), "chunked"), (HF.with_(liger=True), "liger-fused")):
        assert trace_key(run.with_(loss_kernel=kernel), stack, None) == trace_key(run, stack, None)
    keys = {
        trace_key(HF.with_(loss_kernel=kernel), stack, None) for kernel in (None, "cut-cross-entropy", "liger-fused")
    }
    assert len(keys) == 3


def test_a_kernel_that_is_named_chooses_a_trainer_that_has_it() -> None:
    open_run = RunConfig(loss_kernel="cut-cross-entropy")
    assert resolve(load_model("llama-3.1-8b"), open_run).run.trainer == "hf-trainer"
    assert resolve(load_model("llama-3.1-8b"), RunConfig(loss_kernel="chunked")).run.trainer == "trl-sft"


def test_names_that_are_none_are_refused() -> None:
    with pytest.raises(InputError, match="cut-cross-entropy"):
        RunConfig(loss_kernel="unsloth")


def test_measured_runs_with_another_loss_are_answered_from_what_ships() -> None:
    # All but one of 512 tokens, at which a fused kernel multiplies some of that model's weights: none ships there.
    lines = (Path(__file__).parents[2] / "profiles/measurements/h200-stacks.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if row["run"].get("loss_kernel") and row["run"]["seq_len"] > 512]
    assert len(rows) == 9
    for row in rows:
        profile, card = load_model(row["model"]), load_gpu("h200")
        run = RunConfig(**{name: value for name, value in row["run"].items() if value is not None})
        tape = tape_for(profile, run, card, stored_only=True)
        assert tape is not None, row["case"]
        answer, measured = estimate(profile, run, card, tape=tape), row["measured_bytes"]
        steps = [phase.allocated_bytes or 0 for phase in answer.phases if phase.name in ("forward", "loss", "backward")]
        assert max(steps) == pytest.approx(measured["train_peak"], rel=1e-4), row["case"]
        assert answer.peak.device_bytes == pytest.approx(measured["nvml_peak"], rel=4e-3), row["case"]
