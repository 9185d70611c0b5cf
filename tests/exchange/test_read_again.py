"""Files of axolotl, LLaMA-Factory and TRL: the run that `check` reads, written in the same tool's words and read again,
is the same run with the same figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from qlora_planner import Session
from qlora_planner.exchange.export import export
from qlora_planner.session.packages import TRACE_VARIABLE
from tests.exchange.example_configs import CUT, EXAMPLES, LIGER, axolotl, factory, trl

LLAMA = "meta-llama/Llama-3.1-8B"
VISION = "Qwen/Qwen2.5-VL-3B-Instruct"
FSDP = {"fsdp_version": 2, "fsdp_config": {"reshard_after_forward": False, "state_dict_type": "FULL_STATE_DICT"}}
# What the file asks for, the cards, and words that are to stand in what is written.
FILES: dict[str, tuple[dict[str, Any], str, tuple[str, ...]]] = {
    "axolotl, packed": (EXAMPLES["llama 3 8b"][0], "80GB", ("sample_packing: true",)),
    "axolotl, cut cross-entropy": (
        axolotl("Qwen/Qwen3-8B", 4096, 2, plugins=[CUT], sample_packing=True), "80GB", ("CutCrossEntropyPlugin",),
    ),
    "axolotl, Liger's kernels": (EXAMPLES["liger's kernels"][0], "48GB", ("liger_rms_norm: true",)),
    "axolotl, Liger's loss": (
        axolotl(LLAMA, 2048, 2, plugins=[LIGER], liger_fused_linear_cross_entropy=True), "80GB",
        ("liger_fused_linear_cross_entropy: true",),
    ),
    "axolotl, offloaded, some layers": (
        axolotl(LLAMA, 2048, 1, gradient_checkpointing="offload", gradient_checkpointing_kwargs={"every_n_layers": 2}),
        "80GB", ("offload: true", "every_n_layers: 2"),
    ),
    "axolotl, re-entrant, evaluated": (
        axolotl(LLAMA, 2048, 2, gradient_checkpointing_kwargs={"use_reentrant": True}, val_set_size=0.1, eval_steps=9),
        "80GB", ("use_reentrant: true", "eval_batch_size: 2"),
    ),
    "axolotl, images": (
        axolotl(VISION, 2048, 1, processor_type="AutoProcessor", image_size=[640, 480]), "80GB",
        ("skip_prepare_dataset: true", "remove_unused_columns: false", "sample_packing: false", "- 640"),
    ),
    "LLaMA-Factory, images": (
        factory(VISION, image_max_pixels=640 * 480, freeze_vision_tower=False), "80GB",
        ("image_max_pixels: 306916", "freeze_vision_tower: false"),
    ),
    "axolotl, DPO": (axolotl(LLAMA, 1024, 1, rl="dpo", rl_beta=0.2), "80GB", ("rl: dpo", "rl_beta: 0.2")),
    "axolotl, KTO": (axolotl(LLAMA, 1024, 4, rl="kto"), "80GB", ("rl: kto",)),
    "axolotl, FSDP2": (
        axolotl(LLAMA, 2048, 1, **FSDP), "2xrtx-4090", ("fsdp_version: 2", "reshard_after_forward: false"),
    ),
    "axolotl, experts in 4 bits": (
        axolotl("Qwen/Qwen3-30B-A3B", 2048, 1, quantize_moe_experts=True), "48GB", ("quantize_moe_experts: true",),
    ),
    "LLaMA-Factory": (factory(LLAMA, 4, flash_attn="sdpa"), "80GB", ("flash_attn: sdpa",)),
    "LLaMA-Factory, packed": (factory(LLAMA, 4, neat_packing=True, flash_attn="fa2"), "80GB", ("packing: true",)),
    "LLaMA-Factory, Unsloth's checkpointing": (factory(LLAMA, use_unsloth_gc=True), "80GB", ("use_unsloth_gc: true",)),
    "LLaMA-Factory, gemma 2": (factory("google/gemma-2-9b"), "80GB", ("flash_attn: disabled",)),
    "LLaMA-Factory, Unsloth": (factory(LLAMA, use_unsloth=True), "80GB", ("use_unsloth: true",)),
    "LLaMA-Factory, reward": (factory(LLAMA, stage="rm"), "80GB", ("stage: rm",)),
    "LLaMA-Factory, DPO": (factory(LLAMA, stage="dpo", pref_beta=0.3), "80GB", ("stage: dpo", "pref_beta: 0.3")),
    "LLaMA-Factory, KTO": (factory(LLAMA, 2, stage="kto"), "80GB", ("stage: kto",)),
    "LLaMA-Factory, FSDP2": (factory(LLAMA, fsdp="full_shard auto_wrap"), "2xrtx-4090", ("fsdp: true", "version: 2")),
    "TRL": (trl(LLAMA, 2048, 2), "80GB", ("max_length: 2048",)),
    "TRL, packed, some layers": (
        trl(LLAMA, 4096, 1, packing=True, gradient_checkpointing_kwargs={"every_n_layers": 4}), "80GB",
        ("packing: true", "every_n_layers: 4"),
    ),
    "TRL, full, without adapters": (
        trl("Qwen/Qwen3-0.6B", 1024, 4, use_peft=False, load_in_4bit=False, optim="adafactor"), "80GB", ("adafactor",),
    ),
    "TRL, FSDP2": (trl(LLAMA, 2048, 1, accelerate_config="fsdp2"), "2xrtx-4090", ("accelerate_config: fsdp2",)),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_what_is_read_written_and_read_again_takes_the_same(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TRACE_VARIABLE, "never")
    config, card, words = FILES[name]
    bench = Session().on(card)
    file, written = tmp_path / "config.yaml", tmp_path / "again.yaml"
    file.write_text(yaml.safe_dump(config))
    first = bench.check(file)
    document = {"schema": "qlora-plan/plan/1", "model": {"id": first.reading.model_id}, "gpu": None}
    document["run"] = first.to_dict()["run"]
    kind = "trl-config" if first.reading.format == "trl" else first.reading.format
    written.write_text(export(kind, document))
    second = bench.check(written)
    assert second.reading.format == first.reading.format and not second.reading.unknown
    assert second.run == first.run
    assert [(phase.name, phase.allocated_bytes, phase.reserved_bytes) for phase in second.estimate.phases] == [
        (phase.name, phase.allocated_bytes, phase.reserved_bytes) for phase in first.estimate.phases
    ]
    before, after = (answer.estimate for answer in (first, second))
    assert (after.peak, after.floor_bytes, after.components) == (before.peak, before.floor_bytes, before.components)
    assert all(word in written.read_text() for word in words), written.read_text()
