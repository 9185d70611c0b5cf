"""A sequence classifier trained through the command line: whole, interrupted and gone on with, and what is refused."""

from __future__ import annotations

import json
import random
import runpy
from pathlib import Path
from typing import Any

import pytest

from qlora_planner.exchange.export import export
from qlora_planner.spec.run import RunConfig
from qlora_planner.train import adapters, model
from qlora_planner.train.data import synthetic_rows
from qlora_planner.train.trainers import build_trainer
from tests.launch.conftest import RUN, Home, Make, Start, finished, interrupt_at, same, tensors, trained
from tests.launch.test_one_builder import Seen, assert_alike

CLASSIFY = RUN.with_(trainer="hf-trainer", task="classification", num_labels=3)
STEPS = 8
OPTIONS = (
    "--task", "classification", "--device", "cpu", "--max-steps", str(STEPS), "--save-steps", "4", "--learning-rate",
    "5e-3", "--batch-size", "4", "--rank", "8", "--yes",
)  # fmt: skip
NAMES = ("low", "middle", "top")


def labelled(path: Path, wrong: object = None) -> Path:
    """48 rows of words whose last one tells the label."""
    drawn, words = random.Random(0), ("zero", "one", "two", "three", "four")
    with path.open("w") as file:
        for row in range(48):
            text = " ".join(drawn.choice(words) for _ in range(drawn.randint(2, 8)))
            label = wrong if wrong is not None and row == 40 else NAMES[row % 3]
            file.write(json.dumps({"text": f"{text} {words[row % 3]}", "label": label}) + "\n")
    return path


@pytest.fixture(scope="module")
def run(home: Home, start: Start) -> tuple[Path, dict[str, Any], str]:
    """A whole run of a MODEL: its folder, its summary, what it said."""
    labelled(home.path / "labelled.jsonl")
    code, out, err = finished(start(
        f"./{home.model('llama').name}", "--data", "labelled.jsonl", "--output", "classified", "--eval-split", "0.1",
        "--json", *OPTIONS,
    ))  # fmt: skip
    assert code == 0, err
    return home.path / "classified", json.loads(out), err


def test_a_classifier_is_trained_with_the_labels_of_its_data(run: tuple[Path, dict[str, Any], str]) -> None:
    folder, summary, _ = run
    assert (summary["steps"], summary["run"]["num_labels"], summary["run"]["trainer"]) == (STEPS, 3, "hf-trainer")
    assert summary["loss"]["evaluation"] < 0.75 * summary["loss"]["first"]
    assert json.loads((folder / "adapter" / "labels.json").read_text()) == list(NAMES)
    assert json.loads((folder / "adapter" / "adapter_config.json").read_text())["task_type"] == "SEQ_CLS"
    saved = {name: tuple(tensor.shape) for name, tensor in tensors(folder / "adapter").items() if "lora_" not in name}
    assert saved == {"base_model.model.score.weight": (3, 64)}


def test_what_is_saved_tells_the_labels_apart(run: tuple[Path, dict[str, Any], str], home: Home) -> None:
    import torch
    from peft import AutoPeftModelForSequenceClassification
    from transformers import AutoTokenizer

    adapter = str(run[0] / "adapter")
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    classifier = AutoPeftModelForSequenceClassification.from_pretrained(adapter, num_labels=3)
    classifier.config.pad_token_id = tokenizer.pad_token_id
    rows = [json.loads(line) for line in (home.path / "labelled.jsonl").read_text().splitlines()]
    with torch.no_grad():
        found = [classifier(**tokenizer(row["text"], return_tensors="pt")).logits.argmax().item() for row in rows]
    right = sum(NAMES[label] == row["label"] for label, row in zip(found, rows, strict=True))
    assert right > len(rows) // 2  # a third by chance


def test_an_interrupted_classifier_ends_as_the_whole_one(
    run: tuple[Path, dict[str, Any], str], home: Home, start: Start
) -> None:
    begun = start(
        f"./{home.model('llama').name}", "--data", "labelled.jsonl", "--output", "stopped", "--eval-split", "0.1",
        *OPTIONS,
    )  # fmt: skip
    interrupt_at(begun, home.path / "stopped" / "metrics.jsonl", 5)
    finished(begun)
    code, _, err = finished(start("stopped", "--resume"))
    assert code == 0, err
    assert same(run[0] / "adapter", home.path / "stopped" / "adapter")


@pytest.mark.parametrize(
    ("wrong", "more", "says"),
    [
        ("other", ("--num-labels", "3"), "has 4 labels (low, middle, other, top), and --num-labels says 3"),
        (7, (), "line 41 has 7: labels are numbers in every row, or words in every row"),
    ],
)
def test_wrong_labels_end_a_run_before_weights_are_read(
    home: Home, start: Start, wrong: object, more: tuple[str, ...], says: str
) -> None:
    path = labelled(home.path / "wrong.jsonl", wrong)
    model_folder = home.model("llama").name
    code, out, err = finished(start(f"./{model_folder}", "--data", path.name, "--output", "never", *OPTIONS, *more))
    assert (code, out) == (2, "")
    assert says in err and err.count("\n") == 1
    assert not (home.path / "never").exists()


def test_a_classifiers_adapter_writes_no_text(run: tuple[Path, dict[str, Any], str]) -> None:
    from qlora_planner.errors import InputError
    from qlora_planner.runs.after.finished import read_finished

    with pytest.raises(InputError, match=r"its adapter is of a classifier.*AutoPeftModelForSequenceClassification"):
        read_finished(str(run[0]))


def test_verify_train_and_the_script_tell_the_libraries_the_same(
    home: Home, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers.trainer  # its first import puts another module in the place of `transformers`

    seen: list[dict[str, Any]] = []

    class Recorder:
        def __init__(self, *, model: Any, args: Any, train_dataset: Any, data_collator: Any, **_: Any) -> None:
            base = model.get_base_model()
            lora = model.peft_config["default"].to_dict()
            batch = data_collator([{k: v for k, v in row.items() if k != "text"} for row in list(train_dataset)[:2]])
            seen.append({
                "arguments": args.to_dict(),
                "lora": {name: value for name, value in lora.items() if name != "base_model_name_or_path"},
                "dtypes": {name: str(parameter.dtype) for name, parameter in model.named_parameters()},
                "class": type(base).__name__, "labels": base.config.num_labels,
                "loss kwargs": getattr(base, "accepts_loss_kwargs", None), "batch": (set(batch), batch["labels"].dim()),
            })  # fmt: skip
            raise Seen

    monkeypatch.setattr(transformers, "Trainer", Recorder)
    folder, data = home.model("llama"), labelled(tmp_path / "labelled.jsonl")
    raw = json.loads((folder / "config.json").read_text())
    adapted = adapters.add_adapters(model.load_folder(folder, raw, CLASSIFY, "cpu"), CLASSIFY)
    with pytest.raises(Seen):
        build_trainer(adapted, CLASSIFY, rows=synthetic_rows(CLASSIFY, 1, 300), steps=1, folder="x", device="cpu")
    facts, _ = trained(make(run=CLASSIFY, data=str(data)))
    assert facts["message"] == "Seen"
    plan = {"schema": "qlora-plan/plan/1", "model": {"id": str(folder)}, "gpu": None, "run": CLASSIFY.to_dict()}
    (tmp_path / "train.py").write_text(export("trl", plan, data=str(data)))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Seen):
        runpy.run_path("train.py", run_name="__main__")
    verified, launched, exported = seen
    assert (verified["class"], verified["labels"]) == ("LlamaForSequenceClassification", 3)
    assert_alike(verified, launched, exported)


def test_micro_batches_average_their_gradients(home: Home, tmp_path: Path) -> None:
    """transformers would add them up, as its classifiers' loss counts no items."""
    norms = []
    for options in ({"batch_size": 4}, {"batch_size": 2, "grad_accum": 2}):
        run = CLASSIFY.with_(lora_dropout=0.0, padding=False, **options)
        norms.append(_gradient_norm(run, home, tmp_path))
    assert norms[1] == pytest.approx(norms[0], rel=0.05)


def _gradient_norm(run: RunConfig, home: Home, folder: Path) -> float:
    import torch

    found: list[float] = []

    class Watcher:
        def __getattr__(self, _: str) -> Any:
            return lambda *_: None

        def optimizer_begins(self, model: Any) -> None:
            parts = [p.grad.float().norm() for p in model.parameters() if p.grad is not None]
            found.append(torch.stack(parts).norm().item())

    torch.manual_seed(0)
    raw = json.loads((home.model("llama") / "config.json").read_text())
    adapted = adapters.add_adapters(model.load_folder(home.model("llama"), raw, run, "cpu"), run)
    rows = synthetic_rows(CLASSIFY.with_(padding=False), 1, 300)
    trainer: Any = build_trainer(adapted, run, rows=rows, steps=1, folder=str(folder), device="cpu")
    trainer.trainer.args.max_grad_norm = 0.0
    trainer.train(1, Watcher())
    return found[0]
