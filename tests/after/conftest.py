"""Tiny real models with real adapters of random weights, saved as people save them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

Made = tuple[Path, Path]  # base, adapter
Make = Callable[..., Made]
LLAMA: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 256, "max_position_embeddings": 128, "tie_word_embeddings": False,
}  # fmt: skip


def llama(**changes: Any) -> Any:
    config = transformers.LlamaConfig(**{**LLAMA, **changes})
    return transformers.LlamaForCausalLM(config).to(torch.bfloat16)


def gpt2() -> Any:
    config = transformers.GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=256, n_positions=128)
    return transformers.GPT2LMHeadModel(config).to(torch.bfloat16)


def mixtral() -> Any:
    """Experts are one parameter in the class and many in its files."""
    sizes = {key: value for key, value in LLAMA.items() if key != "tie_word_embeddings"}
    config = transformers.MixtralConfig(**sizes, num_local_experts=4, num_experts_per_tok=2)
    return transformers.MixtralForCausalLM(config).to(torch.bfloat16)


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Save a model, put adapters of random weights on it, and save those beside it."""

    def saved(model: Any, *, shard: str = "5GB", **options: Any) -> Made:
        torch.manual_seed(0)
        base, adapter = tmp_path / "base", tmp_path / "run" / "adapter"
        model.save_pretrained(base, max_shard_size=shard)
        wanted = {"r": 4, "lora_alpha": 32, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **options}
        adapted = peft.get_peft_model(model, peft.LoraConfig(**wanted))
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad and "magnitude" not in name:
                torch.nn.init.normal_(parameter, std=0.05)
            elif parameter.requires_grad:
                parameter.data.mul_(1.1)
        adapted.save_pretrained(adapter)
        return base, adapter

    return saved
