"""Fused experts in NF4: their bytes as bitsandbytes packs a parameter, a verdict that says what it does not know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from qlora_planner import RunConfig, Session, load_gpu, load_model
from qlora_planner.errors import InputError, RefusedError
from qlora_planner.exchange.scripts.training import script
from qlora_planner.memory.estimate import estimate
from qlora_planner.memory.options.resolve import resolve
from qlora_planner.memory.weights.placement import Placement, packed_bytes, stores_experts
from qlora_planner.memory.weights.static import static_memory
from qlora_planner.session.packages import TRACE_VARIABLE
from qlora_planner.units import format_gib
from tests.exchange.example_configs import axolotl

MOE = "Qwen/Qwen3-30B-A3B"
NF4 = {"trainer": "hf-trainer", "expert_quant": "nf4"}


def placed(**options: Any) -> Placement:
    profile = load_model(MOE)
    return Placement(profile, resolve(profile, RunConfig(**options)).run)


def test_static_bytes_fall_to_what_nf4_holds() -> None:
    wide, packed = static_memory(placed()), static_memory(placed(expert_quant="nf4"))
    experts = [weight for weight in placed().weights if stores_experts(weight.group)]
    elements = sum(weight.group.numel * weight.group.count for weight in experts)
    assert elements == 48 * 128 * 3 * 2048 * 768  # 48 layers of 128 experts of three matrices
    assert wide.after_load - packed.after_load == pytest.approx(2 * elements - elements * (0.5 + 1 / 64), rel=2e-3)
    assert packed.after_load < 17 << 30 < 55 << 30 < wide.after_load
    assert static_memory(placed(expert_quant="none")) == wide


@pytest.mark.parametrize("double", [False, True])
def test_bytes_are_those_of_a_parameter_that_bitsandbytes_packed(double: bool) -> None:
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("bitsandbytes.functional")
    from qlora_planner.catalog import SCHEMES

    shape = (5, 96, 64)
    packed, state = functional.quantize_4bit(
        torch.zeros(shape, dtype=torch.bfloat16), quant_type="nf4", compress_statistics=double
    )
    constants = [state.absmax, state.code, *([state.state2.absmax, state.state2.code, state.offset] if double else [])]
    size, parts = packed_bytes(SCHEMES["nf4"], shape, double)
    assert size == packed.nbytes
    assert sorted(parts) == sorted(part.nbytes for part in constants)


def test_a_step_whose_kernels_are_not_counted_fits_only_with_room_for_them() -> None:
    verdicts = {
        card: estimate(load_model(MOE), RunConfig(**NF4), gpu=load_gpu(card)).verdict
        for card in ("24GB", "80GB", "12GB")
    }
    assert verdicts["12GB"] == "does-not-fit"
    kept = estimate(load_model(MOE), RunConfig(**NF4, gradient_checkpointing=False), gpu=load_gpu("h200"))
    assert kept.verdict == "cannot-say" and kept.fit is not None
    assert kept.fit.reasons[0].startswith("not modelled: --expert-quant nf4")
    assert verdicts["80GB"] == "fits"


@pytest.mark.parametrize(("card", "trainer"), [("32GB", None), ("48GB", "trl-sft"), ("80GB", "trl-dpo")])
def test_a_verdict_names_the_stack_that_would_hold_the_experts_by_that_runs_own_figures(
    card: str, trainer: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TRACE_VARIABLE, "never")
    bench = Session().on(card)
    told = bench.estimate(MOE, trainer=trainer).fit
    assert told is not None and told.verdict == "does-not-fit"
    elsewhere = "trl-dpo" if trainer == "trl-dpo" else "hf-trainer"
    then = bench.estimate(MOE, trainer=elsewhere, expert_quant="nf4")
    assert then.verdict == "fits"
    assert f"fits {card} with --expert-quant nf4" in told.reasons[-1]
    assert ("--trainer hf-trainer" in told.reasons[-1]) == (trainer != "trl-dpo")
    assert "axolotl's quantize_moe_experts; Unsloth" in told.reasons[-1]
    assert f"needs at least {format_gib(then.floor_bytes)}" in told.reasons[-1]
    assert bench.estimate(MOE, expert_quant="nf4", trainer=None if trainer != "trl-dpo" else trainer).peak == then.peak


def test_a_plan_and_a_file_name_that_stack_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TRACE_VARIABLE, "never")
    bench = Session().on("32GB")
    (said,) = {estimate.fit.reasons[-1] for estimate in (bench.estimate(MOE), bench.plan(MOE).estimate) if estimate.fit}
    assert said.startswith("experts stay in 16 bits here; fits 32GB")
    file = tmp_path / "axolotl.yaml"
    file.write_text(yaml.safe_dump(axolotl(MOE, 2048, 1, lora_dropout=0.0, lora_r=16, optimizer="paged_adamw_8bit")))
    answer = bench.check(file)
    checked = answer.estimate.fit
    assert checked is not None and "fits 32GB with --expert-quant nf4 (axolotl's" in checked.reasons[-1]
    smallest = answer.to_dict()["fix"]["smallest"]
    assert smallest["keys"] == {"quantize_moe_experts": True} and smallest["verdict"] == "fits"


@pytest.mark.parametrize(("model", "card"), [(MOE, "12GB"), (MOE, "24GB"), ("qwen3-32b", "12GB")])
def test_no_stack_is_named_where_none_would_hold_it(model: str, card: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TRACE_VARIABLE, "never")
    told = Session().on(card).estimate(model).fit
    assert told is not None and "quantize_moe_experts" not in " ".join(told.reasons)


def test_unsloth_stores_fused_experts_in_4_bits_by_itself() -> None:
    resolved = resolve(load_model(MOE), RunConfig(trainer="unsloth"))
    assert resolved.run.expert_quant == "nf4" and not any(problem.blocking for problem in resolved.problems)
    assert resolve(load_model("qwen3-8b"), RunConfig(trainer="unsloth")).run.expert_quant is None
    assert resolve(load_model(MOE), RunConfig(expert_quant="nf4")).run.trainer == "hf-trainer"
    assert resolve(load_model(MOE), RunConfig()).run.trainer == "trl-sft"
    assert resolve(load_model("qwen3-8b"), RunConfig(expert_quant="nf4")).run.trainer == "trl-sft"


def test_what_cannot_load_such_experts_refuses_them_by_name() -> None:
    run = resolve(load_model(MOE), RunConfig(**NF4)).run
    with pytest.raises(InputError, match="axolotl"):
        script(run, MOE, "rows.jsonl", [])
    pytest.importorskip("torch")
    from qlora_planner.train.model import _check_experts

    with pytest.raises(RefusedError, match="16 bits"):
        _check_experts(run)
    problems = resolve(load_model(MOE), RunConfig(method="lora", expert_quant="nf4")).problems
    assert any(problem.code == "experts-refused" and problem.blocking for problem in problems)
