"""Every run option traced on toy models, and what must follow from switching it."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("bitsandbytes")
pytest.importorskip("trl")

from qlora_planner.memory import MemoryEstimate
from qlora_planner.memory.estimate import estimate
from qlora_planner.memory.options.resolve import resolve
from qlora_planner.memory.sweep.validity import trace_key
from qlora_planner.profiling.tapes import trace_run
from qlora_planner.profiling.tracing import engine
from qlora_planner.profiling.tracing.cuda.semantics import CudaTraits
from qlora_planner.spec.model import ModelProfile
from qlora_planner.spec.run import RunConfig
from qlora_planner.spec.trace import CompiledTape, Tape
from tests.profiles import toy_profile
from tests.tracing.specs import spec_of
from tests.tracing.test_engine import played, toy
from tests.wide import some
from tools.compiling import NotPolynomialError
from tools.ranges import compile_run

VOCABULARY = 40960
LLAMA = toy(6) | {"vocab_size": VOCABULARY}
QWEN3 = LLAMA | {"model_type": "qwen3", "head_dim": 64}
AMPERE = CudaTraits(capability=(8, 0), multiprocessors=108)


def peaks(raw: dict[str, Any] = LLAMA, **options: Any) -> dict[str, int]:
    """Allocated peak by phase of one trace, played alone."""
    spec = spec_of(**({"seq_len": 256, "rank": 8, "upcast": False} | options))
    return {name: peak for name, (peak, _) in played(engine.trace(raw, spec), spec.run.gradient_checkpointing).items()}


@cache
def llama() -> ModelProfile:
    return toy_profile(LLAMA)


def answer(**options: Any) -> tuple[Tape, MemoryEstimate]:
    """Tape and estimate of a run of the toy Llama."""
    source: Any = SimpleNamespace(config=LLAMA, id="toy", sha256="")
    profile = llama()
    run = RunConfig(**({"seq_len": 256, "rank": 8} | options))
    tape = trace_run(source, resolve(profile, run), None)
    return tape, estimate(profile, run, tape=tape)


def phase(found: MemoryEstimate, name: str) -> Any:
    return next(phase for phase in found.phases if phase.name == name)


@pytest.mark.parametrize("raw", [QWEN3], ids=["qwen3"])
@pytest.mark.parametrize(
    "options",
    some(
        [
            {"quant": "fp4", "compute_dtype": "float16", "trainer": "hf-trainer"},
            {"quant": "int8", "trainer": "loop"},
            {"method": "lora", "quant": "none", "use_reentrant": True},
            {"method": "full", "quant": "none", "compute_dtype": "float32", "trainer": "loop"},
            {"dora": True, "attention": "eager", "padding": True, "batch_size": 2},
            {"packing": True, "batch_size": 2, "liger": True},
            {"attention": "flash_attention_2", "packing": True, "activation_offloading": True},
            {"modules_to_save": ("lm_head", "embed_tokens"), "eval_batch_size": 2},
            {"trl": "1.5.0", "eval_batch_size": 2},
            {"trl": "1.13.0", "packing": True},
            {"trl": "1.14.0", "grad_accum": 3},
        ],
        2,
    ),
    ids=lambda options: " ".join(options),
)
def test_every_option_traces(raw: dict[str, Any], options: dict[str, Any]) -> None:
    if options.get("liger"):
        pytest.importorskip("liger_kernel.transformers")
    assert peaks(raw, **({"seq_len": 64} | options))["backward"] > 0


def test_offloading_keeps_checkpoints_on_the_host() -> None:
    tape, moved = answer(activation_offloading=True, gradient_checkpointing=False)
    _, stayed = answer(gradient_checkpointing=False)
    assert tape.on_host and tape.streamed
    assert moved.host.offloaded_bytes and stayed.host.offloaded_bytes == 0
    # What left the device is on the host, but for the last tensors, which stay until they are needed.
    saved = phase(stayed, "forward").allocated_bytes - phase(moved, "forward").allocated_bytes
    assert 0 < saved <= moved.host.offloaded_bytes


def test_checkpoints_of_every_layer_are_counted_on_the_host() -> None:
    width = 256
    _, found = answer(activation_offloading=True)
    layers = LLAMA["num_hidden_layers"]
    assert found.host.offloaded_bytes >= layers * 2 * 256 * width  # one bf16 input per layer


def test_a_tape_keeps_where_its_storages_are() -> None:
    tape, _ = answer(activation_offloading=True)
    again = CompiledTape.from_dict(CompiledTape.of(tape, "toy").to_dict()).at(1, 256, 8)
    sizes, same = dict(e for e in tape.events if e[1]), dict(e for e in again.events if e[1])
    for before, after in ((tape.on_host, again.on_host), (tape.streamed, again.streamed)):
        assert sorted(sizes[s] for s in before) == sorted(same[s] for s in after)


def test_offloaded_runs_are_not_compiled() -> None:
    source: Any = SimpleNamespace(config=LLAMA, id="toy", sha256="")
    resolution = resolve(llama(), RunConfig(activation_offloading=True))
    with pytest.raises(NotPolynomialError):
        compile_run(source, resolution, None, SimpleNamespace(low=0, high=512, batched=False))  # type: ignore[arg-type]


def test_liger_needs_no_whole_logits() -> None:
    pytest.importorskip("liger_kernel.transformers")
    plain = peaks(trainer="hf-trainer", seq_len=512)["loss"]
    fused = peaks(trainer="hf-trainer", seq_len=512, liger=True)["loss"]
    assert plain - fused > 4 * 512 * VOCABULARY  # at least the fp32 logits are gone


def test_flash_attention_2_keeps_what_torchs_own_kernel_keeps() -> None:
    """Same kernel, two front ends: they differ only in random generator states, a few hundred bytes a layer."""
    options: dict[str, Any] = {"gradient_checkpointing": False, "trainer": "hf-trainer", "device": AMPERE}
    own, package = (peaks(attention=name, **options)["backward"] for name in ("sdpa", "flash_attention_2"))
    assert abs(own - package) <= 1024 * LLAMA["num_hidden_layers"]


def test_flash_attention_2_needs_no_mask_for_packed_rows() -> None:
    length = 1024
    options: dict[str, Any] = {"packing": True, "batch_size": 2, "seq_len": length, "trl": "1.16.0"}
    masked, varlen = (peaks(attention=name, **options)["forward"] for name in ("sdpa", "flash_attention_2"))
    assert masked - varlen > (2 * length) ** 2  # the boolean mask of the flattened batch, at least


def test_packed_rows_cost_as_one_long_row() -> None:
    alone = peaks(seq_len=1024, attention="flash_attention_2")["backward"]
    packed = peaks(seq_len=512, batch_size=2, packing=True, attention="flash_attention_2")["backward"]
    assert packed == pytest.approx(alone, rel=0.01)


def test_saved_modules_get_gradients() -> None:
    _, found = answer(modules_to_save="lm_head,embed_tokens")
    _, without = answer()
    copies = 2 * 2 * VOCABULARY * LLAMA["hidden_size"]  # both in bf16
    grads = found.components["gradients"] - without.components["gradients"]
    assert found.static.after_adapters - without.static.after_adapters == copies
    assert found.model.trainable_params - without.model.trainable_params == copies // 2
    assert grads >= 0
    extra = phase(found, "backward").allocated_bytes - phase(without, "backward").allocated_bytes
    assert extra >= 2 * copies  # the copies and their gradients


@pytest.mark.parametrize("trainer", some(["trl-sft", "hf-trainer", "loop"], 2))
def test_evaluation_has_figures_and_can_be_the_peak(trainer: str) -> None:
    _, none = answer(trainer=trainer)
    assert phase(none, "eval").allocated_bytes is None
    _, found = answer(trainer=trainer, eval_batch_size=1)
    _, large = answer(trainer=trainer, eval_batch_size=24)
    small = phase(found, "eval")
    assert 0 < small.allocated_bytes < phase(found, "backward").allocated_bytes
    assert phase(large, "eval").allocated_bytes > small.allocated_bytes
    assert large.peak.phase == "eval"
    assert sum(large.components.values()) == large.peak.device_bytes
    for name in ("forward", "loss", "backward", "optimizer"):
        assert phase(found, name).allocated_bytes == phase(none, name).allocated_bytes


def test_an_evaluation_with_the_models_own_loss_holds_fp32_logits() -> None:
    _, found = answer(trainer="hf-trainer", eval_batch_size=8)
    _, twice = answer(trainer="hf-trainer", eval_batch_size=16)
    more = phase(twice, "eval").allocated_bytes - phase(found, "eval").allocated_bytes
    assert more >= 8 * 256 * VOCABULARY * 8  # logits and their logarithms, both fp32


@pytest.mark.parametrize(("trl", "per_logit"), [("1.3.0", 12), ("1.6.0", 12)])
def test_older_losses_hold_whole_logits(trl: str, per_logit: int) -> None:
    short, long = (peaks(trl=trl, seq_len=n)["backward"] for n in (512, 1024))
    slope = (long - short) / (512 * VOCABULARY)
    assert slope == pytest.approx(per_logit, rel=0.05)


def test_chunked_losses_copy_the_head_until_1_14() -> None:
    # Wide and with few words, so that the head's weight outweighs the logits of one chunk.
    raw = toy(2) | {"vocab_size": 8192, "hidden_size": 2048}
    widened, kept = (peaks(raw, trl=trl)["loss"] for trl in ("1.13.0", "1.14.0"))
    assert widened - kept >= 4 * 8192 * 2048  # the head in fp32


def test_evaluations_are_told_apart() -> None:
    run = RunConfig()
    keys = {trace_key(run.with_(eval_batch_size=size), {}, None) for size in (None, 1, 2)}
    assert len(keys) == 3
