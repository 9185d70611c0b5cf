"""Base and tuned model on the same prompts, and a conversation with either."""

from __future__ import annotations

import json
from pathlib import Path

from qlora_planner.runs.directory import SCHEMA
from tests.after.conftest import torch, transformers
from tests.after.test_generate import cache, expected, run, trained

__all__ = ("cache", "trained")


def words(ids: list[int]) -> list[str]:
    return [f"w{n}" for n in ids if n > 2]


def base_answer(folder: Path, ids: list[int], count: int) -> list[str]:
    """By a model that never saw an adapter."""
    base = json.loads((folder / "run.json").read_text())["model"]["folder"]
    config = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.bfloat16, quantization_config=config, device_map={"": "cpu"}
    )
    answered = model.generate(
        torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), max_new_tokens=count,
        do_sample=False, pad_token_id=2,
    )[0, len(ids) :]  # fmt: skip
    return words(answered.tolist())


def finish(folder: Path, data: Path) -> None:
    """Make a folder that holds an adapter the folder of a run of ours that has ended."""
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(record | {"schema": SCHEMA, "data": {"path": str(data)}}))
    loss = {"first": 2.0, "last": 1.0, "evaluation": None}
    settings = {
        "max_steps": 4, "epochs": 1, "learning_rate": 1e-3, "scheduler": "linear", "warmup": 0, "save_steps": 2,
        "seed": 0,
    }  # fmt: skip
    summary = {
        "outcome": "ok", "message": None, "steps": 4, "of": 4, "loss": loss, "model": {"id": "toy"},
        "settings": settings, "run": record["run"], "attempts": [], "notes": [], "trainable_params": None,
        "data": {"rows": None, "eval_rows": None, "longest": None}, "speed": {"tokens_per_s": None}, "wall_s": 1.0,
        "memory": {"predicted": None, "device_bytes": None, "host_bytes": 1 << 20, "allocated_bytes": None},
        "adapter": {"path": "adapter"}, "checkpoint": None,
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "metrics.jsonl").write_text("")


def test_base_and_tuned_answer_the_same_prompts_of_the_data(trained: Path, tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "w<5>"}]}
        for text in ("w20 w30", "w20 w30", "w40")
    ]
    data = tmp_path / "train.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    finish(trained, data)
    result = run("side-by-side", trained, "--max-new-tokens", 4, "--device", "cpu", "--json")
    assert result.exit_code == 0, result.stderr
    first, second = json.loads(result.stdout)["answers"]
    assert (first["prompt"], second["prompt"], first["expected"]) == ("w20 w30", "w40", "w<5>")
    assert first["tuned"].split() == words(expected(trained, [9, 20, 30, 8], 4))
    assert first["base"].split() == base_answer(trained, [9, 20, 30, 8], 4) != first["tuned"].split()
    assert json.loads((trained / "side-by-side.json").read_text())["answers"] == [first, second]
    page = (trained / "report.html").read_text()
    assert f"<td>w20 w30</td><td>{first['base']}</td><td>{first['tuned']}</td>" in page


def test_without_prompts_or_data_it_says_what_to_give(trained: Path) -> None:
    result = run("side-by-side", trained, "--device", "cpu", "--quiet")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "give --prompt TEXT" in result.stderr
    assert not (trained / "report.html").exists()


def test_a_conversation_remembers_and_either_model_answers(trained: Path) -> None:
    said = "w20\nw30\n/new\n/base\nw20\n/what\n/quit\nw1\n"
    result = run("chat", trained, "--max-new-tokens", 3, "--device", "cpu", input=said)
    assert result.exit_code == 0, result.stderr
    one = words(expected(trained, [9, 20, 8], 3))
    ids = [int(word[1:]) for word in one]
    two = words(expected(trained, [9, 20, *([9, *ids] if ids else [9]), 9, 30, 8], 3))
    assert [line.split() for line in result.stdout.splitlines()] == [one, two, base_answer(trained, [9, 20, 8], 3)]
    assert "'/what' is no command" in result.stderr


def test_a_conversation_that_grows_too_long_drops_its_oldest_messages(trained: Path) -> None:
    said = f"{'w20 ' * 60}\n" * 2 + f"{'w20 ' * 130}\nw20\n"
    result = run("chat", trained, "--max-new-tokens", 2, "--device", "cpu", input=said)
    assert result.exit_code == 0, result.stderr
    assert "2 messages were too old to be read again" in result.stderr
    assert "are more than 128" in result.stderr
    assert len(result.stdout.splitlines()) == 3
