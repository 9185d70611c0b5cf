"""Tokenizers and datasets that are made on the spot."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

SENTENCE = "the quick brown fox jumps over a lazy dog and then it sleeps until noon below is an instruction"
WORDS = SENTENCE.split(" ")
# Trims, loops, conditions, tools, a generation prompt and a refusal: what real templates do.
CHAT_TEMPLATE = """{{ bos_token }}{% if tools %}<|system|> tools {{ tools | tojson }} {{ eos_token }}
{% endif %}{% for message in messages %}
    {%- if message['role'] not in ['system', 'user', 'assistant'] %}
        {{- raise_exception('no such role: ' + message['role']) }}
    {%- endif %}
    {%- if message['role'] == 'assistant' %}
        {%- generation %}<|assistant|> {{ message['content'] | trim }} {{ eos_token }}{% endgeneration %}
    {%- else %}
        {{- '<|' + message['role'] + '|> ' + message['content'] | trim + ' ' }}
    {%- endif %}
    {%- if loop.index > 50 %}{% break %}{% endif %}
{% endfor %}
{% if add_generation_prompt %}<|assistant|> {% endif %}"""

Write = Callable[[str, Iterable[Any]], Path]


def write_tokenizer(folder: Path, *, template: Any = CHAT_TEMPLATE, merges: bool = False, **config: Any) -> Path:
    """A folder with a tokenizer of single letters (byte-level BPE), or of words, that puts <s> before a text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    special = ["<unk>", "<s>", "</s>", "<pad>", "<|user|>", "<|assistant|>", "<|system|>"]
    if merges:
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
        backend.train_from_iterator([" ".join(WORDS)] * 3, trainer)
    else:
        vocabulary = {word: index for index, word in enumerate([*special, *WORDS])}
        backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
        backend.pre_tokenizer = pre_tokenizers.Whitespace()
        backend.add_special_tokens(special)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
    )
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **named, "chat_template": template, **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """A folder with a tokenizer and a chat template."""
    return write_tokenizer(tmp_path / "tokenizer", merges=True)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write rows as JSON lines; a text stands as it is."""

    def written(name: str, rows: Iterable[Any]) -> Path:
        path = tmp_path / name
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        return path

    return written
