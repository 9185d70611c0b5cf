"""ORPO's traced step: against the allocator events of a real one on the CPU, and what its cast back saves of it."""

from __future__ import annotations

import copy
import gc
from dataclasses import replace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
pytest.importorskip("bitsandbytes")
pytest.importorskip("trl")

from torch.profiler import ProfilerActivity, profile, record_function  # noqa: E402

from qlora_planner.profiling.tracing import build, engine  # noqa: E402
from qlora_planner.profiling.tracing.spec import TraceSpec  # noqa: E402
from qlora_planner.profiling.tracing.trainers import orpo  # noqa: E402
from qlora_planner.spec.trace import Tape  # noqa: E402
from qlora_planner.train.model import model_class, model_config  # noqa: E402
from tests.tracing import real_cpu  # noqa: E402
from tests.tracing.specs import spec_of  # noqa: E402
from tests.tracing.toys import toy_of  # noqa: E402
from tests.tracing.walk import bytes_of  # noqa: E402
from tests.wide import some  # noqa: E402

BATCH, SEQ, RANK = 2, 40, 8
PHASES = ("forward 0", "backward 0")


def spec(**options: Any) -> TraceSpec:
    usual: dict[str, Any] = {
        "method": "lora", "quant": "none", "trainer": "trl-orpo", "compute_dtype": "float32", "upcast": False,
        "lora_dropout": 0.0, "attention": "eager", "on_cpu": True, "batch_size": BATCH, "seq_len": SEQ, "rank": RANK,
        "target_modules": "all-linear", "padding": True, "prompt_len": 12,
    }  # fmt: skip
    return spec_of(**(usual | options))


def real_step(raw: dict[str, Any], wanted: TraceSpec) -> tuple[list[int], list[int]]:
    """Peaks and ends of forward and backward of trl's own loss."""
    config = model_config(copy.deepcopy(raw))
    usual: dict[str, Any] = {"dtype": torch.bfloat16, "attn_implementation": "eager"}
    torch.manual_seed(0)
    drawn = model_class(raw, config)._from_config(config, **usual)
    base = type(drawn).from_pretrained(None, config=drawn.config, state_dict=drawn.state_dict(), **usual)
    lora = peft.LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    with build.quiet():
        model = peft.get_peft_model(base, lora)
    orpo.prepare(base, wanted)  # no dropout, no cache
    base.gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
    base.enable_input_require_grads()
    model.train()
    batch = orpo.collated(wanted, config.vocab_size)
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        with record_function("walk::forward 0"):
            inputs = {name: value.clone() for name, value in batch.items()}
            loss, _ = orpo.loss(model, model, inputs, wanted)
            del inputs
        with record_function("walk::backward 0"):
            loss.backward()
    step = real_cpu.read(profiler.profiler.kineto_results.experimental_event_tree())
    return [step.peaks[name] for name in PHASES], [step.ends[name] for name in PHASES]


@pytest.mark.parametrize("model_type", some(["llama", "gpt2"], 2))
def test_a_traced_step_allocates_what_a_real_one_does(model_type: str) -> None:
    raw, wanted = toy_of(model_type), spec()
    peaks, ends = bytes_of(engine.trace(raw, wanted))
    real_peaks, real_ends = real_step(raw, wanted)
    assert [peaks[name] for name in PHASES] == real_peaks
    assert [ends[name] for name in PHASES] == real_ends


def _births(tape: Tape, stage: str) -> list[int]:
    return [
        size
        for segment in tape.segments
        if (segment.stage, segment.name) == (stage, "head")
        for _, size in tape.events[segment.start : segment.stop]
        if size
    ]


def test_a_head_that_is_cast_back_makes_no_16_bit_copy_of_itself_and_nothing_else_differs() -> None:
    raw = toy_of("llama")
    wanted = spec(method="qlora", quant="nf4", compute_dtype="bfloat16", upcast=True, on_cpu=False, attention="sdpa")
    kept = replace(wanted.resolution, trainer=replace(wanted.resolution.trainer, prepares_quantized=False))
    tape = engine.trace(raw, wanted)
    in_float32 = engine.trace(raw, replace(wanted, resolution=kept))
    assert {segment.stage for segment in tape.segments} == {
        "prepare", "forward", "backward", "after", "optimizer", "zero_grad"
    }  # fmt: skip
    copy_of_head = 2 * raw["vocab_size"] * raw["hidden_size"]
    head, head_in_float32 = _births(tape, "forward"), _births(in_float32, "forward")
    assert copy_of_head in head_in_float32 and copy_of_head not in head
    logits = 2 * BATCH * SEQ * raw["vocab_size"]
    assert 4 * logits in head  # pairs, whole, in float32


def test_a_card_scores_whole_logits_in_one_pass_whether_or_not_this_machine_has_triton(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As an H200 measured it (docs/accuracy.md): backward makes no gradients of each row beside those of all."""
    from trl.trainer import utils

    raw = toy_of("llama")
    wanted = spec(method="qlora", quant="nf4", compute_dtype="bfloat16", upcast=True, on_cpu=False, attention="sdpa")
    row = 4 * (SEQ - 1) * raw["vocab_size"]
    assert row not in _births(engine.trace(raw, wanted), "backward")
    monkeypatch.setattr(utils, "_supports_trl_loss_kernel", lambda *_given: False)
    assert _births(engine.trace(raw, wanted), "backward").count(row) >= 2 * BATCH
