"""Lengths and packed rows against what trl itself makes of the same rows."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qlora_planner.data import auto_tokenizer, rows, summarise
from qlora_planner.data.batches.epochs import plan_data, truncation
from qlora_planner.data.batches.packing import packed_bfd, packed_wrapped
from qlora_planner.data.tokenizers import as_it_is, digest, tokenised
from tests.data.conftest import WORDS, Write, write_tokenizer

pytest.importorskip("trl")
DRAWN = random.Random(5)


def said(least: int = 1, most: int = 40) -> str:
    return " ".join(DRAWN.choices([*WORDS, "Zürich", "naïve"], k=DRAWN.randint(least, most)))


def chat(turns: int, first: str = "user") -> list[dict[str, str]]:
    other = {"user": "assistant", "assistant": "user"}
    found, role = [], first
    for _ in range(turns):
        found.append({"role": role, "content": said()})
        role = other[role]
    return found


TOOLS = [{"type": "function", "function": {"name": "look", "description": "the <fox> & the dog", "parameters": {}}}]
DATASETS: dict[str, list[dict[str, Any]]] = {
    "text": [{"text": said() + end} for end in ("", "</s>", " ", "\n", "") for _ in range(8)],
    "messages": [{"messages": chat(1 + index % 5)} for index in range(40)],
    "tools": [{"messages": chat(2), "tools": json.dumps(TOOLS)} for _ in range(5)],
    "prompt and completion": [{"prompt": said() + " ", "completion": said()} for _ in range(40)],
    # The end of one and the start of the other make one token together.
    "merging": [{"prompt": said(1, 5) + " qui", "completion": "ck " + said()} for _ in range(20)],
    "chat prompts": [{"prompt": chat(1), "completion": chat(1, "assistant")} for _ in range(40)],
    "input_ids": [{"input_ids": list(range(1, 1 + length))} for length in (1, 7, 50, 3)],
}


@pytest.fixture(scope="module")
def model() -> Iterator[Any]:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=512, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        max_position_embeddings=4096, head_dim=8,
    )  # fmt: skip
    yield LlamaForCausalLM(config)


def prepared(model: Any, folder: Path, examples: list[dict[str, Any]], out: Path, **options: Any) -> Any:
    """The dataset that SFTTrainer would train on."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    options = {"max_length": None, "report_to": "none", "use_cpu": True, "bf16": False, **options}
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(output_dir=str(out), **options),
        train_dataset=Dataset.from_list(examples),
        processing_class=AutoTokenizer.from_pretrained(folder),
    )
    return trainer.train_dataset


def lengths(dataset: Any) -> list[int]:
    return [len(ids) for ids in dataset["input_ids"]]


@pytest.mark.parametrize("name", DATASETS)
def test_lengths_are_those_of_trl(name: str, model: Any, tokenizer: Path, write: Write, tmp_path: Path) -> None:
    path = write("train.jsonl", DATASETS[name])
    found = summarise(path, tokenizer=str(tokenizer))
    assert found.lengths.tolist() == lengths(prepared(model, tokenizer, DATASETS[name], tmp_path / "out"))
    assert found.basis == "counted"


@pytest.mark.parametrize("name", ["alpaca", "conversations"])
def test_rows_for_training_are_those_that_were_counted(
    name: str, model: Any, tokenizer: Path, write: Write, tmp_path: Path
) -> None:
    made = {
        "alpaca": [
            {"instruction": said(), "input": said() if index % 2 else "", "output": said()} for index in range(20)
        ],
        "conversations": [
            {"conversations": [{"from": "human", "value": said()}, {"from": "gpt", "value": said()}]} for _ in range(20)
        ],
    }
    path = write("train.jsonl", made[name])  # type: ignore[arg-type]
    found = summarise(path, tokenizer=str(tokenizer))
    assert found.lengths.tolist() == lengths(prepared(model, tokenizer, list(rows(path)), tmp_path / "out"))


@pytest.mark.parametrize("seq_len", [16, 40, 100])
def test_what_truncation_leaves(seq_len: int, model: Any, tokenizer: Path, write: Write, tmp_path: Path) -> None:
    examples = DATASETS["prompt and completion"]
    found = summarise(write("train.jsonl", examples), tokenizer=str(tokenizer))
    kept = lengths(prepared(model, tokenizer, examples, tmp_path / "out", max_length=seq_len))
    cut = truncation(found, seq_len)
    assert cut.rows_dropped == len(examples) - len(kept)
    assert cut.tokens_lost == found.tokens - sum(kept)
    plan = plan_data(found, seq_len=seq_len, batch_size=4)
    assert (plan.epoch.rows, plan.epoch.tokens) == (len(kept), sum(kept))
    assert plan.epoch.worst_tokens == 4 * max(kept)


def test_packing_from_text_to_rows(model: Any, tokenizer: Path, write: Write, tmp_path: Path) -> None:
    examples = DATASETS["messages"]
    found = summarise(write("train.jsonl", examples), tokenizer=str(tokenizer))
    packed = lengths(prepared(model, tokenizer, examples, tmp_path / "out", max_length=128, packing=True))
    epoch = plan_data(found, seq_len=128, batch_size=2, packing=True).epoch
    assert epoch.rows == len(packed)
    assert epoch.tokens == sum(packed)
    assert epoch.worst_tokens == sum(sorted(packed)[-2:])


@pytest.mark.parametrize("seq_len", [7, 64, 1000])
@pytest.mark.parametrize("rows_", [1, 999, 2500])
def test_packed_rows_are_those_of_trl(seq_len: int, rows_: int) -> None:
    from datasets import Dataset
    from trl import pack_dataset

    drawn = np.random.default_rng(rows_ + seq_len)
    made = np.minimum(drawn.lognormal(3, 1.2, rows_).astype(np.int32), 1500)  # some of no tokens
    dataset = Dataset.from_dict({"input_ids": [[1] * length for length in made.tolist()]})
    for strategy, ours in (("bfd", packed_bfd), ("wrapped", packed_wrapped)):
        theirs = lengths(pack_dataset(dataset, seq_len, strategy))
        assert sorted(ours(made, seq_len).tolist()) == sorted(length for length in theirs if length), strategy


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("LlamaTokenizer", {}),
        ("Qwen2Tokenizer", {}),
        ("GPT2Tokenizer", {"add_prefix_space": True}),
        ("PreTrainedTokenizerFast", {"add_eos_token": True, "add_bos_token": True}),
        ("PreTrainedTokenizerFast", {"additional_special_tokens": ["<|noon|>", "fox"]}),
        ("PreTrainedTokenizerFast", {"eos_token": "dog"}),
    ],
)
def test_a_class_that_changes_its_tokenizer(kind: str, config: dict[str, Any], tmp_path: Path) -> None:
    """Such a folder is not read as it stands, and what was written down of AutoTokenizer's counts as AutoTokenizer."""
    from transformers import AutoTokenizer

    folder = write_tokenizer(tmp_path / "special", merges=True, **{"tokenizer_class": kind, **config})
    assert as_it_is(folder) is None
    assert auto_tokenizer.main(str(folder), str(tmp_path / "built.json")) == 0
    counter = tokenised(json.loads((tmp_path / "built.json").read_text()), "special", chats=False)
    theirs = AutoTokenizer.from_pretrained(folder)
    texts = [said() + " <|noon|> foxes" for _ in range(20)]
    wanted = [len(theirs(text + theirs.eos_token)["input_ids"]) for text in texts]
    assert [length for length, _ in counter.count([{"text": text} for text in texts])] == wanted  # type: ignore[str-unpack]


def test_what_transformers_builds_is_kept(write: Write, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = write_tokenizer(tmp_path / "special", merges=True, tokenizer_class="LlamaTokenizer")
    path, cache = write("train.jsonl", DATASETS["messages"]), tmp_path / "cache"
    first = summarise(path, tokenizer=str(folder), cache=cache).lengths.tolist()
    theirs = AutoTokenizer.from_pretrained(folder)
    chats = [row["messages"] for row in DATASETS["messages"]]
    assert first == [len(theirs.apply_chat_template(chat, return_dict=True)["input_ids"]) for chat in chats]
    (kept,) = cache.rglob("*.json")
    # The second time it is read and not built: what is changed there shows.
    built = json.loads(kept.read_text())
    kept.write_text(json.dumps({**built, "chat_template": "the fox"}))
    assert set(summarise(path, tokenizer=str(folder), cache=cache).lengths.tolist()) == {3}
    before = digest(folder)
    assert kept.stem == before
    write_tokenizer(folder, merges=True, tokenizer_class="LlamaTokenizer", template="{{ messages[0]['content'] }}")
    assert digest(folder) != before
