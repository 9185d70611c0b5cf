"""Exported scripts really train: a tiny Llama in 4 bits on the CPU, two steps."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from qlora_planner.exchange.export import export

torch = pytest.importorskip("torch")
pytest.importorskip("trl")
TEXTS = ["a plan says what fits", "what fits is measured"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with a tokenizer, and two samples."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny")
    words = Tokenizer(models.BPE(unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["<unk>", "<s>", "</s>"]
    words.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=200, special_tokens=special))
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=words, **names).save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=128,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    rows = [{"text": text, "label": label} for text, label in zip(TEXTS, ("plan", "measure"), strict=True)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


CLASSIFIER = {"trainer": "hf-trainer", "task": "classification", "num_labels": 2}


@pytest.mark.parametrize("options", [{"trainer": "trl-sft"}, {"trainer": "hf-trainer"}, CLASSIFIER], ids=str)
def test_two_steps(
    document: dict[str, Any], tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    document["model"]["id"] = str(tiny)
    document["run"] |= {"seq_len": 32, "batch_size": 1, "grad_accum": 1, **options}
    text = export("trl", document, data=str(tiny / "train.jsonl"))
    assert "qlora_planner" not in text
    (tmp_path / "train.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    runpy.run_path("train.py", run_name="__main__")
    saved = json.loads((tmp_path / "outputs" / "adapter_config.json").read_text())
    assert (saved["r"], saved["lora_alpha"], saved["lora_dropout"]) == (16, 32, 0.05)
    state = json.loads((tmp_path / "outputs" / "checkpoint-2" / "trainer_state.json").read_text())
    assert state["global_step"] == 2
    assert saved["task_type"] == ("SEQ_CLS" if "task" in options else "CAUSAL_LM")
