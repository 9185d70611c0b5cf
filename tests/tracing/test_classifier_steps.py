"""A classifier's traced step against the allocator events of a real one on the CPU, to the byte."""

from __future__ import annotations

import copy
import gc
from typing import Any

import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
pytest.importorskip("bitsandbytes")

from torch.profiler import ProfilerActivity, profile, record_function  # noqa: E402

from qlora_planner.profiling.tracing import build, engine  # noqa: E402
from qlora_planner.train.model import model_class, model_config  # noqa: E402
from tests.tracing import real_cpu  # noqa: E402
from tests.tracing.specs import spec_of  # noqa: E402
from tests.tracing.toys import toy_of  # noqa: E402
from tests.tracing.walk import bytes_of  # noqa: E402

LABELS, BATCH, SEQ, RANK = 5, 3, 40, 8
PHASES = ("forward 0", "backward 0")


def real_step(raw: dict[str, Any], checkpointing: bool) -> tuple[list[int], list[int]]:
    """Peaks and ends of forward and backward, as transformers' Trainer takes a step without autocast."""
    config = model_config(copy.deepcopy(raw), LABELS)
    usual: dict[str, Any] = {"dtype": torch.bfloat16, "attn_implementation": "eager"}
    torch.manual_seed(0)
    drawn = model_class(raw, config, LABELS)._from_config(config, **usual)
    base = type(drawn).from_pretrained(None, config=drawn.config, state_dict=drawn.state_dict(), **usual)
    lora = peft.LoraConfig(
        r=RANK, lora_alpha=2 * RANK, lora_dropout=0.0, target_modules="all-linear", task_type="SEQ_CLS"
    )
    with build.quiet():
        model = peft.get_peft_model(base, lora)
    base.config.use_cache = False
    if checkpointing:
        base.gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
        base.enable_input_require_grads()
    model.train()
    items = torch.tensor(BATCH)  # the Trainer's count of a whole batch, there before a step begins
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        with record_function("walk::forward 0"):
            ids = torch.arange(BATCH * SEQ).remainder(24).add(3).view(BATCH, SEQ)
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.arange(BATCH)}
            loss = _loss(model, inputs, items)
            del inputs, ids
        with record_function("walk::backward 0"):
            loss.backward()
    step = real_cpu.read(profiler.profiler.kineto_results.experimental_event_tree())
    return [step.peaks[name] for name in PHASES], [step.ends[name] for name in PHASES]


def _loss(model: Any, inputs: dict[str, Any], items: Any) -> Any:
    outputs = model(**inputs, num_items_in_batch=items)
    return outputs["loss"]


@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("model_type", ["llama", "gemma2", "gpt2", "opt"])
def test_a_traced_step_allocates_what_a_real_one_does(model_type: str, checkpointing: bool) -> None:
    raw = toy_of(model_type)
    spec = spec_of(
        method="lora", quant="none", trainer="hf-trainer", compute_dtype="float32", upcast=False, lora_dropout=0.0,
        attention="eager", on_cpu=True, batch_size=BATCH, seq_len=SEQ, rank=RANK, gradient_checkpointing=checkpointing,
        target_modules="all-linear", task="classification", num_labels=LABELS,
    )  # fmt: skip
    peaks, ends = bytes_of(engine.trace(raw, spec))
    real_peaks, real_ends = real_step(raw, checkpointing)
    assert [peaks[name] for name in PHASES] == real_peaks
    assert [ends[name] for name in PHASES] == real_ends
