"""Loss kernels traced from their own packages: no whole logits, and about what closed forms say of them."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("bitsandbytes")
pytest.importorskip("trl")

from qlora_planner.profiling.tracing import engine
from qlora_planner.spec.run import RunConfig
from qlora_planner.train.losses import liger_parts
from tests.tracing.specs import spec_of
from tests.tracing.test_oracle import walk

VOCABULARY, WIDTH, TOKENS = 16000, 512, 2048
LLAMA: dict[str, Any] = {
    "model_type": "llama", "hidden_size": WIDTH, "intermediate_size": 1024, "num_hidden_layers": 4,
    "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": VOCABULARY, "max_position_embeddings": 8192,
}  # fmt: skip


def head_bytes(**options: Any) -> int:
    """What the head and the loss take on top of the layers, in forward."""
    usual: dict[str, Any] = {"trainer": "hf-trainer", "upcast": False, "seq_len": TOKENS, "lora_dropout": 0.0}
    peaks = walk(engine.trace(LLAMA, spec_of(**{**usual, **options})))
    return peaks["forward", "head", -1][0] - peaks["forward", "layer", 3][1]


def test_cut_cross_entropy_makes_no_logits_in_any_trainer_that_takes_it() -> None:
    pytest.importorskip("cut_cross_entropy.cce")
    for trainer in ("hf-trainer", "loop"):
        assert head_bytes(trainer=trainer, loss_kernel="cut-cross-entropy") <= 13 * WIDTH * TOKENS
    assert head_bytes() >= 10 * VOCABULARY * TOKENS


def test_ligers_fused_loss_alone_makes_some_rows_of_logits() -> None:
    pytest.importorskip("liger_kernel.transformers")
    fused, all_parts = head_bytes(loss_kernel="liger-fused"), head_bytes(liger=True)
    assert fused <= 13 * WIDTH * TOKENS and all_parts <= fused
    assert head_bytes(liger=True, loss_kernel="full") >= 10 * VOCABULARY * TOKENS


def test_liger_is_told_its_parts_by_its_own_names() -> None:
    assert liger_parts(RunConfig()) is None and liger_parts(RunConfig(liger=True)) == {}
    alone = liger_parts(RunConfig(loss_kernel="liger-fused"))
    assert alone is not None and alone.pop("fused_linear_cross_entropy") and not any(alone.values())
    assert liger_parts(RunConfig(liger=True, loss_kernel="full")) == {"fused_linear_cross_entropy": False}
