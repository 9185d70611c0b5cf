"""A tiny real model with a tokenizer of its own, and chats that it can learn in a minute on a CPU.

python examples/toy_model.py FOLDER [llama | qwen3 | gemma]

FOLDER becomes a model folder as one would download it (random weights, 115,000 parameters), with train.jsonl beside it:
conversations that count on from a number. Everything is the same in every run.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

SIZES: dict[str, Any] = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 256,
    # Ten times the usual: a frozen base of small numbers would leave adapters little to work with.
    "initializer_range": 0.2,
}  # fmt: skip
TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}<|assistant|>{% generation %}"
    "{{ message['content'] }}{{ eos_token }}{% endgeneration %}{% else %}<|user|>{{ message['content'] }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<|user|>", "<|assistant|>"]


def chat(first: int, length: int) -> dict[str, Any]:
    """Count on: learnable, because every answer follows from its question."""
    counted = [NUMBERS[(first + step) % 10] for step in range(length)]
    return {
        "messages": [
            {"role": "user", "content": f"count from {counted[0]}"},
            {"role": "assistant", "content": " ".join(counted)},
        ]
    }


def rows(count: int) -> list[dict[str, Any]]:
    """Chats of different lengths, the same in every process."""
    drawn = random.Random(0)
    return [chat(drawn.randrange(10), drawn.randint(3, 9)) for _ in range(count)]


def write_rows(path: Path, found: list[Any]) -> Path:
    """JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    return path


def write_tokenizer(folder: Path, **changes: Any) -> None:
    """A tokenizer trained on the task's own words; `changes` of its settings, None takes one out."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    backend.train_from_iterator([message["content"] for row in rows(40) for message in row["messages"]], trainer)
    settings = {
        "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", "chat_template": TEMPLATE,
    }  # fmt: skip
    known = {name: value for name, value in {**settings, **changes}.items() if value is not None}
    PreTrainedTokenizerFast(tokenizer_object=backend, **known).save_pretrained(folder)


def write_model(folder: Path, family: str = "llama") -> Path:
    """A model folder as one would download it: config, bfloat16 weights, tokenizer."""
    import torch
    import transformers

    torch.manual_seed(0)
    names = {
        "llama": ("LlamaConfig", "LlamaForCausalLM"),
        "qwen3": ("Qwen3Config", "Qwen3ForCausalLM"),
        "gemma": ("Gemma3TextConfig", "Gemma3ForCausalLM"),
    }[family]
    config = getattr(transformers, names[0])(**SIZES, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    getattr(transformers, names[1])(config).to(torch.bfloat16).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


if __name__ == "__main__":
    place = Path(sys.argv[1])
    write_model(place, *sys.argv[2:3])
    write_rows(place.parent / "train.jsonl", rows(200))
