"""Unsloth's installed code, traced in a process of its own; where it is not installed, what stands around that."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("bitsandbytes")

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from qlora_planner import load_gpu
from qlora_planner.errors import MissingError
from qlora_planner.memory.options.resolve import Resolution
from qlora_planner.memory.replay.simulate import without_collection
from qlora_planner.memory.sweep.validity import trace_key
from qlora_planner.profiling.tracing import build, layers
from qlora_planner.profiling.tracing.apart import trace_apart
from qlora_planner.profiling.tracing.recorder import Recorder
from qlora_planner.profiling.tracing.spec import TraceSpec
from qlora_planner.spec.run import RunConfig
from qlora_planner.units import MIB

HIDDEN, LAYERS, TOKENS = 512, 6, 4096
TOY: dict[str, Any] = {
    "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": 1024, "num_hidden_layers": LAYERS,
    "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 4096, "max_position_embeddings": 8192,
}  # fmt: skip
RUN = RunConfig(
    trainer="unsloth", quant="nf4", seq_len=TOKENS, rank=8, lora_dropout=0.0, upcast=False, optimizer="adamw_torch",
    attention="sdpa", compute_dtype="bfloat16", load_dtype="bfloat16", target_modules="all-linear", padding=False,
)  # fmt: skip
installed = pytest.mark.skipif(
    find_spec("unsloth") is None, reason="unsloth needs an environment of its own (transformers 5.17, trl 1.15)"
)


def spec_of(run: RunConfig = RUN) -> TraceSpec:
    return TraceSpec(resolution=Resolution.resolved(run, stack={}))


def test_a_process_that_cannot_import_it_is_told_in_one_line() -> None:
    if find_spec("unsloth") is not None:
        pytest.skip("unsloth is installed here")
    with pytest.raises(MissingError, match=r"toy cannot be traced for this run: unsloth ends with .*No module named"):
        trace_apart(TOY, spec_of(), "toy")


def test_a_buffer_that_grows_is_born_anew_before_the_old_one_goes() -> None:
    recorder = Recorder({}, {}, device="cpu")
    with without_collection(), FakeTensorMode(), recorder:
        buffer = torch.empty(MIB)
        buffer.resize_(2 * MIB)
        buffer.resize_(MIB)
    sizes = [event.size for event in recorder.events]
    assert sizes[:3] == [4 * MIB, 8 * MIB, -4 * MIB]


def test_of_layers_whose_inputs_leave_the_device_the_two_last_are_traced_by_themselves() -> None:
    model = build.skeleton(TOY, "sdpa")
    assert layers.choose(model).kept == (0, 1, LAYERS - 1)
    layers.mark_last_kept(model)
    assert set(layers.choose(model).kept) >= {0, 1, LAYERS - 2, LAYERS - 1}


def test_small_cards_have_traces_of_their_own_where_the_loss_asks_for_their_memory() -> None:
    small, large = load_gpu("rtx-4090"), load_gpu("l40s")
    assert trace_key(RUN, {}, small) != trace_key(RUN, {}, large)
    other = RUN.with_(trainer="trl-sft")
    assert trace_key(other, {}, small) == trace_key(other, {}, large)


@installed
def test_layer_inputs_wait_on_the_host_and_one_weight_at_a_time_is_dequantised() -> None:
    tape = trace_apart(TOY, spec_of(), "toy")
    sizes = dict(event for event in reversed(tape.events) if event[1])
    layer_input = 2 * TOKENS * HIDDEN
    # The first step sends every layer's input, so that the last one learns that it is the last.
    assert [sizes[storage] for storage in sorted(tape.on_host)] == [layer_input] * len(tape.kept)
    assert {segment.step for segment in tape.segments} == {0, 1}
    assert any(segment.stage == "forward" and segment.name == "head" for segment in tape.segments)
    alive = {storage for storage, size in tape.events if size} - {storage for storage, size in tape.events if not size}
    # Scratch for the largest weight, as often as a larger one is met.
    assert 2 * HIDDEN * 1024 in {sizes[storage] for storage in alive}


@installed
def test_a_model_without_a_fast_path_is_refused_with_those_that_have_one() -> None:
    with pytest.raises(MissingError, match=r"phi3 .*traced are llama, mistral"):
        trace_apart({**TOY, "model_type": "phi3"}, spec_of(), "toy")
