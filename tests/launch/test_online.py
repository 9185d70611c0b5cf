"""trl's online trainers train a toy with rewards from a file, in this process and through the command line."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click.testing
import pytest

from examples.toy_model import NUMBERS, write_rows
from qlora_planner.cli.main import cli
from qlora_planner.errors import InputError
from qlora_planner.exchange.export import export
from qlora_planner.measure.execution import Execution
from qlora_planner.measure.spec import ChildSpec
from qlora_planner.spec.run import RunConfig
from qlora_planner.train import model
from qlora_planner.train.data import synthetic_rows
from qlora_planner.train.settings import Settings
from qlora_planner.train.trainers import build_trainer
from tests.launch.conftest import RUN, Home, Make, Start, finished, interrupt_at, same, tensors, trained
from tests.launch.test_one_builder import Seen, assert_alike
from tests.train.test_builder import Silent

PROMPTS = [
    {"prompt": f"count from {word}" + " and on" * (at % 3), "start": at, "label": "kept"}
    for at, word in enumerate(NUMBERS)
]
CHATS = [{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in PROMPTS]
REWARDS = '''
def length(completions, **kwargs):
    """Longer is better; prints nothing that a program would read."""
    print("asked")
    return [float(len(completion)) for completion in completions]


def start(completions, start, label, **kwargs):
    assert set(label) == {"kept"}
    return [float(number) for number in start]


def narrow(completions):
    return [0.0 for _ in completions]


def broken(completions, **kwargs):
    return [completion.nothing for completion in completions]


def few(completions, **kwargs):
    return [1.0]


figure = 5
'''
PLAIN = RUN.with_(
    method="lora", quant="none", seq_len=30, prompt_len=20, completion_len=10, num_generations=4, num_iterations=1,
    steps_per_generation=2, grad_accum=2, lora_dropout=0.0,
)  # fmt: skip
GRPO = PLAIN.with_(trainer="trl-grpo", loss_type="dapo", beta=0.0)
RLOO = PLAIN.with_(trainer="trl-rloo", beta=0.05)


@pytest.fixture
def rewards(tmp_path: Path) -> Callable[[str], str]:
    (tmp_path / "rewards.py").write_text(REWARDS)
    return lambda name: f"{tmp_path / 'rewards.py'}:{name}"


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    return str(write_rows(tmp_path / "prompts.jsonl", PROMPTS))


@pytest.mark.parametrize(
    ("run", "names"),
    [(GRPO, ("length", "start")), (RLOO, ("length",)), (GRPO.with_(steps_per_generation=1, beta=0.1), ("length",))],
    ids=["grpo", "rloo", "grpo generating twice a step"],
)
def test_each_learns_from_rewards(
    run: RunConfig, names: tuple[str, ...], make: Make, prompts: str, rewards: Callable[[str], str]
) -> None:
    settings = Settings(max_steps=2, save_steps=2, reward=tuple(map(rewards, names)))
    facts, told = trained(make(run=run, settings=settings, data=prompts))
    assert (facts["outcome"], facts["steps"]) == ("ok", 2), facts
    saved = tensors(Path(make().output) / "adapter")
    assert any("lora_B" in name and tensor.abs().max() > 0 for name, tensor in saved.items())
    rehearsed = next(facts for event, facts in told if event == "rehearsed")
    assert rehearsed["rows"] == run.batch_size and rehearsed["longest"] <= run.seq_len
    steps = [facts for event, facts in told if event == "step"]
    assert all(0 < step["completion_len"] <= 10 and step["reward_std"] >= 0 for step in steps)
    # Of the rehearsal, whose completions are all whole, nothing is among the first step's figures.
    assert len(steps) == 2 and steps[0]["reward"] > 0


def test_the_longest_prompts_are_rehearsed_with_whole_completions(
    make: Make, prompts: str, rewards: Callable[[str], str]
) -> None:
    settings = Settings(max_steps=1, reward=(rewards("length"),))
    _, told = trained(make(run=GRPO, settings=settings, data=str(write_rows(Path(prompts), CHATS))))
    rehearsed = next(facts for event, facts in told if event == "rehearsed")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(make().weights)
    rendered = [
        tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=True)["input_ids"]
        for row in CHATS
    ]
    assert rehearsed["longest"] == max(map(len, rendered)) + 10


def test_a_run_of_prompts_goes_on_where_it_was(make: Make, prompts: str, rewards: Callable[[str], str]) -> None:
    settings = Settings(max_steps=4, save_steps=2, reward=(rewards("length"),))
    assert trained(make(run=GRPO, settings=settings, data=prompts))[0]["outcome"] == "ok"
    folder = Path(make().output)
    whole = (folder / "adapter").rename(folder.parent / "whole")
    first = sorted((folder / "checkpoints").glob("checkpoint-*"))[0]
    facts, _ = trained(make(run=GRPO, settings=settings, data=prompts, resume=str(first)))
    assert facts["outcome"] == "ok"
    assert same(whole, folder / "adapter")


def test_the_command_line_trains_and_goes_on(home: Home, start: Start) -> None:
    """Interrupted in the middle: the checkpoint is gone on from, with the reward that was named at first."""
    home.model("llama")
    (home.path / "rewards.py").write_text(REWARDS)
    write_rows(home.path / "prompts.jsonl", PROMPTS)
    metrics = home.path / "online" / "metrics.jsonl"
    # A plan needs no profile, which takes longer to make than the whole run.
    plan = home.plan("llama", GRPO).rename(home.path / "online-plan.yaml")
    process = start(
        plan.name, "--data", "prompts.jsonl", "--reward", "rewards.py:length", "--max-steps", "12",
        "--save-steps", "50", "--device", "cpu", "--output", "online",
    )  # fmt: skip
    interrupt_at(process, metrics, 2)
    code, _, err = finished(process)
    assert code == 130, err
    assert "tokens a completion" in err
    code, out, err = finished(start("online", "--resume", "--json"))
    assert code == 0, err
    summary = json.loads(out)
    assert (summary["outcome"], summary["steps"]) == ("ok", 12)
    assert summary["settings"]["reward"] == [f"{(home.path / 'rewards.py').absolute()}:length"]
    assert summary["rewards"]["reward"]["last"] > 0
    assert "Rewards by step" in (home.path / "online" / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ((), 2, "trl-grpo learns from rewards: name a function of a Python file, as --reward rewards.py:length"),
        (("--reward", "nothing.py:length"), 2, "there is no such file"),
        (("--reward", "rewards.py"), 2, "name one of its functions after it, as rewards.py:length"),
        (("--reward", "rewards.py:missing"), 2, "rewards.py has no missing; it has length, start"),
        (("--reward", "rewards.py:figure"), 2, "figure is int, which cannot be called"),
        (("--reward", "rewards.py:narrow"), 2, "unexpected keyword argument 'prompts'; let it take **kwargs"),
        (("--reward", "syntax.py:length"), 2, "it raised SyntaxError"),
        (("--reward", "lacking.py:length"), 3, "No module named 'never_heard_of' at line 1"),
        (("--reward", "length"), 2, "the installed trl has no such reward; it has accuracy_reward"),
        (("--reward", "accuracy_reward"), 2, "missing a required argument: 'solution'"),
        (("--reward", "get_soft_overlong_punishment"), 2, "missing a required argument: 'max_completion_len'"),
        (("--reward", "think_format_reward"), 2, "made for prompts that are lists of messages"),
        (("--trainer", "trl-dpo", "--reward", "rewards.py:length"), 2, "trl-dpo learns from its data"),
        (("--vllm", "server", "--reward", "rewards.py:length"), 2, "--device cpu: vLLM generates on a card"),
        (
            ("--data", "texts.jsonl", "--reward", "rewards.py:length"),
            2,
            "its columns are text; a trainer that generates",
        ),
    ],
)
def test_a_reward_that_cannot_work_is_told_before_anything_starts(
    arguments: tuple[str, ...], code: int, says: str, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in home.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(home.path)
    home.model("llama")
    (home.path / "rewards.py").write_text(REWARDS)
    (home.path / "syntax.py").write_text("def length(:\n")
    (home.path / "lacking.py").write_text("import never_heard_of\n")
    write_rows(home.path / "prompts.jsonl", PROMPTS)
    write_rows(home.path / "texts.jsonl", [{"text": "count"}])
    common = ("train", "./llama", "--trainer", "trl-grpo", "--data", "prompts.jsonl", "--device", "cpu", "--yes")
    result = click.testing.CliRunner().invoke(cli, [*common, *arguments, "--output", "none"], prog_name="qlora-plan")
    assert result.exit_code == code, result.stderr
    (line,) = [line for line in result.stderr.splitlines() if says in line]
    assert line.startswith("qlora-plan: ") and result.stdout == ""
    assert not (home.path / "none").exists()


@pytest.mark.parametrize(
    ("name", "says"),
    [("broken", "it raised AttributeError.*at line 18"), ("few", "it returned 1 rewards for 8 completions")],
)
def test_a_reward_that_breaks_is_told_by_the_rehearsal(
    name: str, says: str, make: Make, prompts: str, rewards: Callable[[str], str]
) -> None:
    with pytest.raises(InputError, match=says):
        trained(make(run=GRPO, settings=Settings(max_steps=1, reward=(rewards(name),)), data=prompts))


def test_longer_prompts_than_planned_are_refused_or_left_out(
    make: Make, prompts: str, rewards: Callable[[str], str]
) -> None:
    run, settings = GRPO.with_(prompt_len=14, seq_len=24), Settings(max_steps=1, reward=(rewards("length"),))
    with pytest.raises(
        InputError, match=r"prompts are longer than --prompt-len 14, and trl cuts none: --prompt-len 17"
    ):
        trained(make(run=run, settings=settings, data=prompts))
    facts, told = trained(make(run=run, settings=settings, data=prompts, bad_rows="skip"))
    assert facts["outcome"] == "ok" and facts["rows"] < len(PROMPTS)
    assert any("they are left out" in facts["message"] for event, facts in told if event == "note")


def test_trl_s_own_rewards_are_made_with_what_they_need() -> None:
    from qlora_planner.train.rewarding.rewards import checked, loaded

    row = {"prompt": [{"role": "user", "content": "why"}]}
    names = (
        "think_format_reward",
        "trl.rewards.get_soft_overlong_punishment(max_completion_len=20, soft_punish_cache=4)",
    )
    assert len(checked(names, row)) == 2
    answers = [[{"content": "<think>so</think> yes"}], [{"content": "yes"}]]
    assert loaded("think_format_reward")(completions=answers) == [1.0, 0.0]
    with pytest.raises(InputError, match="is no maker of rewards"):
        loaded("think_format_reward(a=1)")


def test_a_verification_says_what_generating_takes(home: Home) -> None:
    config = json.loads((home.model("llama") / "config.json").read_text())
    run = GRPO.with_(completion_len=4, seq_len=24, grad_accum=1, steps_per_generation=1)
    spec = ChildSpec(run=run, config=config, device="cpu", steps=1, toy=False)
    measured = Execution(spec, lambda _event, _facts: None).measure()
    assert (measured.outcome, measured.error) == ("ok", None)
    generate, training = (measured.phases[name].allocated_bytes or 0 for name in ("generate", "training"))
    assert 0 < generate <= training
    assert (measured.components or {})["adapters"] == 4 * (measured.trainable_params or 0)


@pytest.mark.parametrize("run", [GRPO, RLOO], ids=["grpo", "rloo"])
def test_a_verified_step_generates_whole_completions(run: RunConfig, home: Home, tmp_path: Path) -> None:
    heard: list[str] = []

    class Listener(Silent):
        def generation_begins(self) -> None:
            heard.append("generate")

        def backward_begins(self) -> None:
            heard.append("backward")

    config = json.loads((home.model("llama") / "config.json").read_text())
    loaded = model.load_folder(home.model("llama"), config, run, "cpu")
    made: Any = build_trainer(
        loaded, run, rows=synthetic_rows(run, 2, 300), steps=2, folder=str(tmp_path), device="cpu"
    )
    made.trainer.args.logging_steps = 1
    made.train(2, Listener())
    assert heard == ["generate", "backward", "backward"] * 2
    assert {step["completions/clipped_ratio"] for step in made.trainer.state.log_history if "reward" in step} == {1.0}
    assert {step["completions/min_length"] for step in made.trainer.state.log_history if "reward" in step} == {10.0}


@pytest.mark.parametrize(
    ("run", "name"),
    [(GRPO.with_(scale_rewards="batch", loss_type="grpo"), "GRPO"), (RLOO, "RLOO")],
    ids=["grpo", "rloo"],
)
def test_verify_train_and_script_tell_trl_the_same(
    run: RunConfig, name: str, home: Home, make: Make, tmp_path: Path, prompts: str, rewards: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    import trl

    seen: list[dict[str, Any]] = []

    class Recorder:
        def __init__(self, *, model: Any, args: Any, peft_config: Any, reward_funcs: list[Any], **_: Any) -> None:
            seen.append({"arguments": args.to_dict(), "lora": peft_config.to_dict(), "class": type(model).__name__})
            seen[-1]["rewards"] = [len(function(completions=["a", "bc"])) for function in reward_funcs]
            raise Seen

    monkeypatch.setattr(trl, f"{name}Trainer", Recorder)
    folder = home.model("llama")
    raw = json.loads((folder / "config.json").read_text())
    loaded = model.load_folder(folder, raw, run, "cpu")
    with pytest.raises(Seen):
        build_trainer(loaded, run, rows=synthetic_rows(run, 1, 300), steps=1, folder=str(tmp_path), device="cpu")
    settings = Settings(reward=(rewards("length"),))
    assert trained(make(run=run, data=prompts, settings=settings))[0]["message"] == "Seen"
    plan = {"schema": "qlora-plan/plan/1", "model": {"id": str(folder)}, "gpu": None, "run": run.to_dict()}
    (tmp_path / "train.py").write_text(export("trl", plan, data=prompts, rewards=[rewards("length")]))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Seen):
        runpy.run_path("train.py", run_name="__main__")
    verified, launched, exported = seen
    assert_alike(verified, launched, exported)
    assert verified["arguments"]["max_completion_length"] == run.completion_len


def test_an_exported_script_trains_with_its_rewards(
    home: Home, tmp_path: Path, prompts: str, rewards: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = GRPO.with_(grad_accum=4, steps_per_generation=4)
    plan = {"schema": "qlora-plan/plan/1", "model": {"id": str(home.model("llama"))}, "gpu": None, "run": run.to_dict()}
    with pytest.raises(InputError, match="a script of trl-grpo holds what it learns from"):
        export("trl", plan, data=prompts)
    own = "get_soft_overlong_punishment(max_completion_len=10, soft_punish_cache=2)"
    text = export("trl", plan, data=prompts, rewards=[rewards("length"), own])
    assert "qlora_planner" not in text
    (tmp_path / "train.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    runpy.run_path("train.py", run_name="__main__")
    state = json.loads((next((tmp_path / "outputs").glob("checkpoint-*")) / "trainer_state.json").read_text())
    assert state["global_step"] == 2 and (tmp_path / "outputs" / "adapter_model.safetensors").is_file()
