"""One attempt, in this process: what is rehearsed leaves no trace, rules are checked, data of every shape trains."""

from __future__ import annotations

import dataclasses
import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from examples.toy_model import NUMBERS, rows, write_model, write_rows, write_tokenizer
from qlora_planner.errors import InputError, MissingError, RunError
from qlora_planner.runs import dataset
from qlora_planner.runs.checkpoints import fault_of, newest_complete
from qlora_planner.runs.child import checks
from qlora_planner.runs.child.callbacks import Stop
from qlora_planner.runs.child.dry_run import longest_rows, step
from qlora_planner.runs.child.training import Training
from qlora_planner.train.settings import Settings
from qlora_planner.units import format_size
from tests.launch.conftest import RUN, SETTINGS, Home, Make, same, trained

SHORT = dataclasses.replace(SETTINGS, max_steps=2, save_steps=1)


def notes(told: list[tuple[str, dict[str, Any]]]) -> str:
    return "\n".join(facts["message"] for event, facts in told if event == "note")


def test_the_rehearsal_leaves_no_trace(make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = RUN.with_(grad_accum=2, eval_batch_size=2)
    with_it, told = trained(make(run=run, settings=SHORT))
    first = Path(make(run=run).output).rename(tmp_path / "first")
    monkeypatch.setattr(Training, "_begin", lambda self: self._enter("training"))
    without, _ = trained(make(run=run, settings=SHORT))
    assert with_it["outcome"] == without["outcome"] == "ok"
    assert same(first / "adapter", Path(make().output) / "adapter")
    (rehearsed,) = (facts for event, facts in told if event == "rehearsed")
    assert (rehearsed["rows"], rehearsed["longest"], rehearsed["tokens"]) == (4, 19, 76)
    assert "rehearsed" in with_it and "rehearsed" not in without


def test_the_longest_rows_are_found_through_a_shuffle() -> None:
    from datasets import Dataset

    lengths = [3, 9, 1, 7, 9, 2]
    found = Dataset.from_dict({"input_ids": [[1] * n for n in lengths], "other": lengths}).shuffle(seed=1)
    picked = longest_rows(found, 3)
    assert [len(row["input_ids"]) for row in picked] == [9, 9, 7] and "other" not in picked[0]
    assert len(longest_rows(found, 10)) == 6


@pytest.mark.parametrize("shape", ["text", "prompt-completion", "alpaca", "csv", "parquet"])
def test_data_of_every_shape(shape: str, make: Make, tmp_path: Path) -> None:
    pairs = [(f"count from {word}", " ".join(NUMBERS)) for word in NUMBERS]
    found: list[Any] = {
        "prompt-completion": [{"prompt": one, "completion": other} for one, other in pairs],
        "alpaca": [{"instruction": one, "output": other} for one, other in pairs],
    }.get(shape, [{"text": f"{one} {other}"} for one, other in pairs])
    path = write_rows(tmp_path / "data.jsonl", found)
    if shape == "csv":
        path = tmp_path / "data.csv"
        path.write_text("text\n" + "".join(f"{row['text']}\n" for row in found))
    elif shape == "parquet":
        import pyarrow
        import pyarrow.parquet

        path = tmp_path / "data.parquet"
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(found), path)
    run = RUN.with_(seq_len=256)
    facts, _ = trained(make(run=run, settings=Settings(max_steps=1), data=str(path)))
    assert (facts["outcome"], facts["rows"], facts["steps"]) == ("ok", 10, 1)


def test_large_data_is_read_into_files(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = make(run=RUN.with_(eval_batch_size=2), settings=SHORT)
    in_memory, _ = trained(spec)
    kept = Path(spec.output) / "adapter"
    reference = kept.rename(kept.with_name("reference"))
    monkeypatch.setattr(dataset, "IN_MEMORY_BYTES", 0)
    monkeypatch.setattr("qlora_planner.runs.child.training._DATA_S", 0.0)
    monkeypatch.setattr("qlora_planner.data.readers._ROWS_AT_A_TIME", 16)
    facts, told = trained(spec)
    assert facts["outcome"] == "ok" and facts["rows"] == in_memory["rows"] and facts["eval_rows"] == 1
    assert same(kept, reference)
    assert {"done_bytes", "size_bytes", "rows"} == set(next(facts for event, facts in told if event == "data"))
    assert not (Path(spec.output) / ".data").exists()


def test_tensorboard_gets_the_loss_of_every_step(make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))  # as a child has it of set_places
    _, told = trained(make(settings=dataclasses.replace(SHORT, report_to=("tensorboard",))))
    losses = [facts["loss"] for event, facts in told if event == "step"]
    read = events.EventAccumulator(str(tmp_path / "logs"))
    read.Reload()
    scalars = read.Scalars("train/loss")
    assert [scalar.step for scalar in scalars] == [1, 2]
    assert [scalar.value for scalar in scalars] == pytest.approx(losses)


@pytest.mark.fault(
    "rows that Arrow cannot hold side by side (a message's content is text here, a list there)",
    said="its rows are not alike",
    exit=2,
    part="begun",
)
def test_rows_that_are_not_alike(make: Make, tmp_path: Path) -> None:
    def chat(content: Any, **more: Any) -> str:
        messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "two"}]
        return json.dumps({"messages": messages, **more})

    (tmp_path / "odd.jsonl").write_text(chat("one") + "\n" + chat([{"type": "text", "text": "one"}]) + "\n")
    with pytest.raises(InputError, match=r"odd\.jsonl: its rows are not alike"):
        trained(make(data=str(tmp_path / "odd.jsonl")))
    # A column that only a later row has is kept.
    (tmp_path / "late.jsonl").write_text(chat("one") + "\n" + chat("one", tools=[{"name": "f"}]) + "\n")
    rows, _ = dataset.load_rows(
        str(tmp_path / "late.jsonl"), RUN, SHORT, bad_rows="refuse", cache=tmp_path, note=lambda _text: None
    )
    assert rows["tools"] == [None, [{"name": "f"}]]


def test_packing_and_answers_alone(make: Make) -> None:
    settings = Settings(max_steps=1, assistant_only_loss=True)
    facts, _ = trained(make(run=RUN.with_(packing=True, padding=False, batch_size=1), settings=settings))
    assert facts["outcome"] == "ok" and facts["rows"] < 64 and facts["longest"] == 64


def test_transformers_own_trainer(make: Make) -> None:
    facts, told = trained(make(run=RUN.with_(trainer="hf-trainer"), settings=SHORT))
    assert facts["outcome"] == "ok" and facts["rows"] == 64
    assert [facts["loss"] is not None for event, facts in told if event == "step"] == [True, True]
    with pytest.raises(InputError, match="--trainer loop is for measuring"):
        trained(make(run=RUN.with_(trainer="loop")))


@pytest.mark.fault(
    "the loss becomes NaN",
    said="the loss became nan at step 2: a lower --learning-rate",
    does="what was saved stays",
    exit=4,
    part="begun",
)
def test_a_loss_that_is_no_number_stops_and_keeps_what_was_saved(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    import trl

    inner = trl.SFTTrainer.training_step

    def step(self: Any, *given: Any, **more: Any) -> Any:
        loss = inner(self, *given, **more)
        return loss * float("nan") if self.state.global_step == 1 else loss

    monkeypatch.setattr(trl.SFTTrainer, "training_step", step)
    spec = make(settings=dataclasses.replace(SHORT, max_steps=4))
    facts, told = trained(spec)
    assert facts["outcome"] == "error"
    assert facts["message"].startswith("the loss became nan at step 2: a lower --learning-rate")
    assert [facts["step"] for event, facts in told if event == "checkpoint"] == [1]
    newest, _ = newest_complete(Path(spec.output) / "checkpoints")
    assert newest is not None and newest.name == "checkpoint-1"


@pytest.mark.fault(
    "the disk is full while saving, the log's too",
    said="checkpoint-2 was not finished: passed over",
    does="the last good checkpoint is named, `--resume` finishes",
    exit=4,
    part="begun",
)
def test_a_full_disk_loses_no_checkpoint(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    import trl

    inner = trl.SFTTrainer._save_optimizer_and_scheduler

    def save(self: Any, folder: str) -> None:
        if self.state.global_step == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        inner(self, folder)

    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(trl.SFTTrainer, "_save_optimizer_and_scheduler", save)
    monkeypatch.setattr("traceback.print_exc", full)  # the log lies on that disk too
    spec = make(settings=dataclasses.replace(SHORT, max_steps=4))
    facts, _ = trained(spec)
    assert facts["outcome"] == "disk-full" and (facts["steps"], facts["of"]) == (2, 4)
    newest, passed_over = newest_complete(Path(spec.output) / "checkpoints")
    assert newest is not None and newest.name == "checkpoint-1"
    assert passed_over == ["checkpoint-2 was not finished: passed over"]


@pytest.mark.fault(
    "the longest batch runs out of memory",
    does="in the first minute, with what was alive; then the ladder",
    exit="0 or 1",
    part="begun",
)
def test_out_of_memory_says_what_was_alive(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    import trl

    def step(self: Any, *_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB. GPU 0 has")

    monkeypatch.setattr(trl.SFTTrainer, "training_step", step)
    facts, _ = trained(make())
    assert (facts["outcome"], facts["phase"], facts["requested_bytes"]) == ("out-of-memory", "rehearsal", 3 << 30)
    assert facts["alive"]["adapters"] == 2 * facts["trainable_params"]  # bfloat16
    # 14 matrices of four bits, and an embedding that is no head: both 320 x 64 in bfloat16.
    assert facts["alive"]["quantized_weights"] == (facts["params"] - 2 * 320 * 64 - 5 * 64) // 2


@pytest.mark.fault(
    "gradients do not reach the adapters",
    said="gradients do not reach the adapters: ",
    does="`--no-use-reentrant`, or what else cuts them",
    exit=4,
    part="begun",
)
def test_gradients_that_are_cut_off_name_the_fix(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    import peft

    monkeypatch.setattr(peft.PeftModel, "enable_input_require_grads", lambda self: None, raising=False)
    monkeypatch.setattr("transformers.PreTrainedModel.enable_input_require_grads", lambda self: None)
    with pytest.raises(RunError, match=r"gradients do not reach the adapters: .*--no-use-reentrant"):
        trained(make(run=RUN.with_(use_reentrant=True)))


def test_a_stored_head_that_the_config_ties_is_said_to_be_more_than_planned(home: Home, tmp_path: Path) -> None:
    from qlora_planner.train import model

    def said(folder: Path) -> str | None:
        raw = json.loads((folder / "config.json").read_text())
        return checks.check_tied(model.load_folder(folder, raw, RUN, "cpu"))

    untied, own = home.model("llama"), tmp_path / "own"
    shutil.copytree(untied, own)
    raw = json.loads((own / "config.json").read_text())
    (own / "config.json").write_text(json.dumps({**raw, "tie_word_embeddings": True}))
    more = 2 * raw["vocab_size"] * raw["hidden_size"]
    assert f"ties them: {format_size(more)} more than planned" in str(said(own))
    assert said(untied) is None
    assert said(home.model("gemma")) is None  # tied, and stored so


def test_a_batch_of_padding_alone_is_named() -> None:
    with pytest.raises(RunError, match=r"no token of the longest batch is learnt from: .*--tokenizer"):
        step(None, None, {"labels": torch.full((2, 8), -100)}, RUN)


@pytest.mark.fault("nothing is quantised", said="nothing was quantised though the run says nf4", exit=4, part="begun")
@pytest.mark.fault(
    "another compute dtype", said="computes in bfloat16 and the trainer in float16", exit=4, part="begun"
)
@pytest.mark.fault(
    "another number of matrices than planned",
    said="14 matrices are quantised where the plan counts 13",
    does="a note",
    exit=0,
    part="begun",
)
def test_rules_of_a_built_model(home: Home) -> None:
    from qlora_planner.train import adapters, model

    folder = home.model("llama")
    raw = json.loads((folder / "config.json").read_text())
    adapted = adapters.add_adapters(model.load_folder(folder, raw, RUN, "cpu"), RUN)
    assert checks.check_quantized(adapted, RUN, 14) is None
    assert "14 matrices are quantised where the plan counts 13" in str(checks.check_quantized(adapted, RUN, 13))
    checks.check_compute_dtype(adapted, RUN)
    with pytest.raises(RunError, match="computes in bfloat16 and the trainer in float16"):
        checks.check_compute_dtype(adapted, RUN.with_(compute_dtype="float16"))
    with pytest.raises(RunError, match="gradients do not reach"):
        checks.check_gradients(adapted, RUN)
    for number, parameter in enumerate(p for p in adapted.parameters() if p.requires_grad):
        parameter.grad = None if number == 3 else torch.ones_like(parameter)
    assert "1 of 28 trained tensors got no gradient" in str(checks.check_gradients(adapted, RUN))
    whole = model.load_folder(folder, raw, RUN.with_(method="lora", quant="none"), "cpu")
    with pytest.raises(RunError, match="nothing was quantised though the run says nf4"):
        checks.check_quantized(whole, RUN, 14)


@pytest.mark.fault("no pad token", said="names no pad token: <unk> pads", does="a note", exit=0, part="begun")
@pytest.mark.fault(
    "the end token pads",
    said="the pad token is the end token (</s>)",
    does="a note; ends of answers are trained on all the same",
    exit=0,
    part="begun",
)
def test_a_tokenizer_without_a_pad_token_gets_one(make: Make, tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "other", pad_token=None)
    facts, told = trained(make(tokenizer=str(tmp_path / "other"), settings=Settings(max_steps=1)))
    assert facts["outcome"] == "ok" and "names no pad token: <unk> pads" in notes(told)
    write_tokenizer(tmp_path / "same", pad_token="</s>")
    facts, told = trained(make(tokenizer=str(tmp_path / "same"), settings=Settings(max_steps=1)))
    assert facts["outcome"] == "ok" and "the pad token is the end token (</s>)" in notes(told)


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"eos_token": None}, MissingError, "no end token"),
        ({"chat_template": None}, MissingError, "no chat template, and the rows are chats"),
    ],
)
@pytest.mark.fault("a tokenizer without an end token", said="no end token", exit=3, part="begun")
@pytest.mark.fault("chats, and no chat template", said="no chat template, and the rows are chats", exit=3, part="begun")
def test_tokenizers_that_do_not_serve(
    changes: dict[str, Any], error: type[Exception], says: str, make: Make, tmp_path: Path
) -> None:
    write_tokenizer(tmp_path / "other", **changes)
    with pytest.raises(error, match=says):
        trained(make(tokenizer=str(tmp_path / "other")))


@pytest.mark.fault(
    "no tokenizer", said="--tokenizer DIR", does="said before the weights are loaded", exit=3, part="begun"
)
def test_no_tokenizer(make: Make, tmp_path: Path) -> None:
    write_model(tmp_path / "bare")
    for path in [*(tmp_path / "bare").glob("tokenizer*"), *(tmp_path / "bare").glob("*.jinja")]:
        path.unlink()
    with pytest.raises(MissingError, match="--tokenizer DIR"):
        trained(make(weights=str(tmp_path / "bare")))


@pytest.mark.fault(
    "a template without an end", said="puts no end token behind an answer", does="a note", exit=0, part="begun"
)
def test_a_template_that_does_not_end_answers_is_noted(make: Make, tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "endless", chat_template="{% for m in messages %}{{ m['content'] }}{% endfor %}")
    facts, told = trained(make(tokenizer=str(tmp_path / "endless"), settings=Settings(max_steps=1)))
    assert facts["outcome"] == "ok" and "puts no end token behind an answer" in notes(told)


@pytest.mark.fault(
    "all answers cut off by `--seq-len`",
    said="no row is left at --seq-len 64",
    does="some: a note with their number",
    exit=2,
    part="begun",
)
def test_rows_whose_answers_are_cut_off(make: Make, tmp_path: Path) -> None:
    cut = [{"prompt": "count " * 100, "completion": "one"}] * 4
    kept = [{"prompt": "count", "completion": "one"}] * 4
    path = write_rows(tmp_path / "cut.jsonl", cut)
    with pytest.raises(InputError, match="no row is left at --seq-len 64"):
        trained(make(data=str(path)))
    write_rows(path, cut + kept)
    facts, told = trained(make(data=str(path), settings=Settings(max_steps=1)))
    assert facts["rows"] == 4 and "4 of 8 rows lose their whole answer to --seq-len" in notes(told)


@pytest.mark.fault("too few rows to hold some out", said="1 rows are too few to hold 1 out", exit=2, part="begun")
def test_too_few_rows_to_hold_any_out(make: Make, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "few.jsonl", rows(1))
    with pytest.raises(InputError, match="1 rows are too few to hold 1 out"):
        trained(make(data=str(path), run=RUN.with_(eval_batch_size=1)))


@pytest.mark.fault(
    "`--assistant-only-loss` without chats", said="--assistant-only-loss needs chats", exit=2, part="begun"
)
def test_answers_alone_need_chats(make: Make, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "texts.jsonl", [{"text": "one two"}] * 4)
    with pytest.raises(InputError, match="--assistant-only-loss needs chats"):
        trained(make(data=str(path), settings=Settings(assistant_only_loss=True)))


@pytest.mark.fault(
    "Ctrl-C, SIGTERM",
    does="a checkpoint after the step that runs, and the line that resumes; before the first step: at once",
    exit=130,
    part="begun",
)
def test_a_stop_between_steps_saves_and_before_them_leaves(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    import trl

    stop, inner = Stop(), trl.SFTTrainer.training_step

    def step(self: Any, *given: Any, **more: Any) -> Any:
        if self.state.global_step == 1 and not stop.asked:
            stop.ask()
        return inner(self, *given, **more)

    monkeypatch.setattr(trl.SFTTrainer, "training_step", step)
    spec = make()
    facts, _ = trained(spec, stop)
    assert (facts["outcome"], facts["steps"]) == ("interrupted", 2)
    assert fault_of(Path(spec.output) / "checkpoints" / "checkpoint-2") is None
    assert not (Path(spec.output) / "adapter").exists()
    with pytest.raises(KeyboardInterrupt):
        Stop().ask()
