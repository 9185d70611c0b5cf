"""Trainers of preferences train a toy, in this process and through the command line, and resume."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from examples.toy_model import NUMBERS, write_rows
from qlora_planner.catalog.trainers import trainer_named
from qlora_planner.errors import InputError
from qlora_planner.exchange.export import export
from qlora_planner.runs.checkpoints import newest_complete
from qlora_planner.runs.child.dry_run import longest_rows
from qlora_planner.spec.run import RunConfig
from qlora_planner.train import adapters, data, model
from qlora_planner.train.data import synthetic_rows
from qlora_planner.train.figures import words_of
from qlora_planner.train.quiet_imports import trl_module
from qlora_planner.train.settings import Settings
from qlora_planner.train.trainers import build_trainer
from tests.launch.conftest import RUN, Home, Make, same, tensors, trained
from tests.launch.test_one_builder import Seen, assert_alike

PAIRS = [
    {"prompt": f"count from {word}", "chosen": " " + " ".join(NUMBERS[at:]), "rejected": " " + " ".join(NUMBERS[:at])}
    for at, word in enumerate(NUMBERS, start=1)
]
LABELLED = [
    {"prompt": pair["prompt"], "completion": pair[name], "label": name == "chosen"}
    for pair in PAIRS
    for name in ("chosen", "rejected")
]
CHATS = [
    {
        "prompt": [{"role": "user", "content": pair["prompt"]}],
        "chosen": [{"role": "assistant", "content": pair["chosen"]}],
        "rejected": [{"role": "assistant", "content": pair["rejected"]}],
    }
    for pair in PAIRS
]
PLAIN = RUN.with_(lora_dropout=0.0, batch_size=2)
DPO, KTO, REWARD = (PLAIN.with_(trainer=f"trl-{name}") for name in ("dpo", "kto", "reward"))
ORPO = PLAIN.with_(trainer="trl-orpo", upcast=True)  # it prepares a quantised base by itself


@pytest.fixture
def rows(tmp_path: Path) -> Callable[[list[dict[str, Any]]], str]:
    return lambda found: str(write_rows(tmp_path / "pairs.jsonl", found))


@pytest.mark.parametrize(
    ("run", "found"),
    [
        (DPO.with_(loss_type="sigmoid", eval_batch_size=1), PAIRS),
        (DPO.with_(loss_type="ipo,sft", precompute_ref_log_probs=True), PAIRS),
        (DPO.with_(loss_type="hinge", grad_accum=2), CHATS),
        (KTO.with_(loss_type="kto", beta=0.3), LABELLED),
        (KTO.with_(loss_type="apo_zero_unpaired", precompute_ref_log_probs=True), PAIRS),
        (REWARD, PAIRS),
        (ORPO.with_(beta=0.3, eval_batch_size=1), CHATS),
    ],
    ids=["dpo", "dpo precomputed", "dpo on chats", "kto", "kto on pairs", "reward", "orpo on chats"],
)
def test_each_trains_a_step_on_its_rows(
    run: RunConfig, found: list[dict[str, Any]], make: Make, rows: Callable[[list[dict[str, Any]]], str]
) -> None:
    facts, told = trained(make(run=run, settings=Settings(max_steps=2, save_steps=1), data=rows(found)))
    assert (facts["outcome"], facts["steps"]) == ("ok", 2), facts
    assert facts["trainable_params"] > 0
    saved = tensors(Path(make().output) / "adapter")
    assert all(torch.isfinite(tensor).all() for tensor in saved.values())
    assert any("lora_B" in name and tensor.abs().max() > 0 for name, tensor in saved.items())
    assert not any(".ref." in name for name in saved)
    rehearsed = next(facts for event, facts in told if event == "rehearsed")
    assert rehearsed["longest"] <= run.seq_len and rehearsed["rows"] == run.batch_size
    steps = [facts for event, facts in told if event == "step"]
    assert len(steps) == 2
    # KTO has no margin where a batch has one kind of label alone.
    one_sided = run.trainer == "trl-kto" and any({"chosen_reward", "rejected_reward"} & set(step) for step in steps)
    assert one_sided or any("margin" in words_of(step) for step in steps), steps


@pytest.mark.parametrize("run", [DPO.with_(loss_type="sigmoid"), ORPO], ids=["dpo", "orpo"])
def test_a_run_of_pairs_goes_on_where_it_was(
    run: RunConfig, make: Make, rows: Callable[[list[dict[str, Any]]], str]
) -> None:
    path, settings = rows(PAIRS), Settings(max_steps=4, save_steps=2)
    assert trained(make(run=run, settings=settings, data=path))[0]["outcome"] == "ok"
    folder = Path(make().output)
    whole = (folder / "adapter").rename(folder.parent / "whole")
    first = sorted((folder / "checkpoints").glob("checkpoint-*"))[0]
    facts, _ = trained(make(run=run, settings=settings, data=path, resume=str(first)))
    assert facts["outcome"] == "ok"
    assert same(whole, folder / "adapter")
    assert newest_complete(folder / "checkpoints") is not None


@pytest.mark.parametrize(("found", "shape"), [(PAIRS, "preference"), (LABELLED, "unpaired"), (CHATS, "preference")])
def test_rows_are_counted_as_trl_counts_them(
    found: list[dict[str, Any]], shape: str, home: Home, rows: Callable[[list[dict[str, Any]]], str]
) -> None:
    """The longer of a row's two completions behind its prompt, with an end; chats have a template's words besides."""
    from transformers import AutoTokenizer

    from qlora_planner.data import summarise

    tokenizer = AutoTokenizer.from_pretrained(str(home.model("llama")))
    summary = summarise(rows(found), tokenizer=str(home.model("llama")))
    assert summary.shape == shape
    if found is not CHATS:
        answers = [[row[name] for name in ("chosen", "rejected", "completion") if name in row] for row in found]
        texts = [
            [row["prompt"] + text + tokenizer.eos_token for text in each]
            for row, each in zip(found, answers, strict=True)
        ]
        assert list(summary.lengths) == [max(len(tokenizer(text)["input_ids"]) for text in each) for each in texts]
        assert summary.masked is not None and min(summary.masked) > 0


def test_a_plan_of_texts_refuses_pairs(home: Home, rows: Callable[[list[dict[str, Any]]], str]) -> None:
    from qlora_planner import Session

    path, tokenizer = rows(PAIRS), str(home.model("llama"))
    with pytest.raises(InputError, match="trl-sft trains on texts"):
        Session().on("24GB").plan("llama-3.1-8b", data=path, tokenizer=tokenizer)


def test_the_longest_pair_is_rehearsed() -> None:
    from datasets import Dataset

    found = Dataset.from_list([
        {"prompt_ids": [1] * prompt, "chosen_ids": [2] * chosen, "rejected_ids": [3] * rejected}
        for prompt, chosen, rejected in ((2, 3, 1), (1, 1, 6), (4, 1, 1))
    ])  # fmt: skip
    (picked,) = longest_rows(found, 1)
    assert len(picked["rejected_ids"]) == 6


@pytest.mark.parametrize(
    ("run", "found", "says"),
    [
        (DPO, LABELLED, "its rows are unpaired; trl-dpo trains on chosen and rejected"),
        (RUN, PAIRS, "trl-sft trains on texts"),
        (KTO, [{"text": "a"}], "trl-kto trains on prompt and completion and label or chosen and rejected"),
    ],
)
def test_rows_of_another_task_are_refused_by_name(
    run: RunConfig, found: list[dict[str, Any]], says: str, make: Make, rows: Callable[[list[dict[str, Any]]], str]
) -> None:
    with pytest.raises(InputError, match=says):
        trained(make(run=run, data=rows(found)))


@pytest.mark.parametrize(
    ("run", "name"),
    [
        (DPO.with_(loss_type="ipo", beta=0.2, precompute_ref_log_probs=False), "DPO"),
        (KTO.with_(loss_type="kto", precompute_ref_log_probs=False, grad_accum=2), "KTO"),
        (REWARD.with_(eval_batch_size=2, gradient_checkpointing=False), "Reward"),
        (ORPO.with_(beta=0.2), "ORPO"),
    ],
    ids=["dpo", "kto", "reward", "orpo"],
)
def test_verify_train_and_script_tell_trl_the_same(
    run: RunConfig, name: str, home: Home, make: Make, tmp_path: Path, rows: Callable[[list[dict[str, Any]]], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    module = trl_module(trainer_named(run.trainer).trl_module)
    seen: list[dict[str, Any]] = []

    class Recorder:
        def __init__(self, *, model: Any, args: Any, peft_config: Any, **_: Any) -> None:
            seen.append({
                "arguments": args.to_dict(), "lora": peft_config.to_dict(), "class": type(model).__name__,
                "quantization": model.config.quantization_config.to_dict(), "labels": model.config.num_labels,
            })  # fmt: skip
            raise Seen

    monkeypatch.setattr(module, f"{name}Trainer", Recorder)
    folder = home.model("llama")
    raw = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        **json.loads((folder / "config.json").read_text()),
    }
    adapted = adapters.add_adapters(adapters.prepare(model.load_folder(folder, raw, run, "cpu"), run), run)
    with pytest.raises(Seen):
        build_trainer(adapted, run, rows=synthetic_rows(run, 1, 300), steps=1, folder=str(tmp_path), device="cpu")
    path = rows(LABELLED if name == "KTO" else PAIRS)
    assert trained(make(run=run, data=path))[0]["message"] == "Seen"
    plan = {"schema": "qlora-plan/plan/1", "model": {"id": str(folder)}, "gpu": None, "run": run.to_dict()}
    (tmp_path / "train.py").write_text(export("trl", plan, data=path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Seen):
        runpy.run_path("train.py", run_name="__main__")
    verified, launched, exported = seen
    assert_alike(verified, launched, exported)
    assert verified["arguments"]["max_length"] == run.seq_len


def test_measured_rows_are_as_long_as_the_run_says() -> None:
    run = DPO.with_(padding=True, batch_size=2, seq_len=40, prompt_len=10)
    found = data.preference_rows(run, 2, 50, "preference")

    def count(text: str) -> int:
        return len(text.split())

    assert [(count(row["prompt"]), count(row["chosen"]) + 1, count(row["rejected"]) + 1) for row in found] == [
        (10, 30, 30), (10, 30, 15),
    ]  # fmt: skip
