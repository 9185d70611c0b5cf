"""Options as other tools call them, and values as people write them: understood, or answered with what to type."""

from __future__ import annotations

import json

import click
import pytest

from qlora_planner.cli.main import dispatch
from qlora_planner.cli.plan import command as plan_command
from qlora_planner.cli.typed_run import explicit_run_options
from tests.cli.conftest import Invoke

MODEL = "llama-3.1-8b"

# What is typed behind `qlora-plan llama-3.1-8b --gpu 24GB`, and what the answer says to type in its place.
THEIRS = [
    ("--batch 4", "no such option --batch: write --batch-size 4"),
    ("--bs=4", "write --batch-size 4"),
    ("--per_device_train_batch_size 4", "write --batch-size 4"),
    ("--micro-batch-size 4", "write --batch-size 4"),
    ("--max-seq-length 4096", "write --seq-len 4096"),
    ("--sequence-len 4096", "write --seq-len 4096"),
    ("--cutoff_len 4096", "write --seq-len 4096"),
    ("--ctx 8k", "write --seq-len 8k"),
    ("-c 4096", "write --seq-len 4096"),
    ("--lora-r 8", "write --rank 8"),
    ("--lora_rank 8", "write --rank 8"),
    ("--lora_alpha 32", "write --alpha 32"),
    ("--lora_target_modules q_proj", "write --target-modules q_proj"),
    ("--gradient_accumulation_steps 8", "write --grad-accum 8"),
    ("--optim adamw_torch", "write --optimizer adamw_torch"),
    ("--attn_implementation sdpa", "write --attention sdpa"),
    ("--sample_packing", "write --packing"),
    ("--load_in_4bit", "write --quant nf4"),
    ("--bits 8", "--quant int8 for 8"),
    ("--bf16", "write --compute-dtype bfloat16"),
    ("--vram 24", "write --gpu 24"),
    ("--epochs 3", "`qlora-plan train` has --epochs 3"),
    ("--lr 1e-4", "`qlora-plan train` has --learning-rate 1e-4"),
    ("--output_dir out", "`qlora-plan train` has --output out"),
    ("--num-gpus 2", "--gpu 2xrtx-3090"),
    ("--deepspeed z3.json", "write --parallel"),
    ("-ngl 99", "every layer on the card"),
    ("--model-name-or-path x", "the model is a word of its own"),
    ("--batch_siz 4", "did you mean --batch-size 4?"),
    ("--gradient-checkpoint", "--gradient-checkpointing"),
    ("--max-seq-lenght 4096", "did you mean --max-length 4096?"),
    ("--activation-offload", "write --activation-offloading"),
    ("--no-grad-checkpointing", "--gradient-checkpointing"),
]


@pytest.mark.parametrize(("typed", "says"), THEIRS, ids=[typed for typed, _ in THEIRS])
@pytest.mark.parametrize("first", [True, False], ids=["before the model", "behind it"])
def test_an_option_of_another_tool_is_answered_with_ours(invoke: Invoke, typed: str, says: str, first: bool) -> None:
    words = typed.split()
    args = [*words, MODEL, "--gpu", "24GB"] if first else [MODEL, "--gpu", "24GB", *words]
    result = invoke(*args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1
    assert says in result.stderr
    assert words[0].partition("=")[0] in result.stderr


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["estimate", MODEL, "--batch", "4"], "write --batch-size 4"),
        (["--batch", "4", "estimate", MODEL], "write --batch-size 4 (see `qlora-plan estimate --help`)"),
        (["train", MODEL, "--lr", "1e-4"], "write --learning-rate 1e-4"),
        (["verify", MODEL, "--max-steps", "4"], "`qlora-plan train` has --max-steps 4"),
        (["verify", MODEL, "--lora-r", "4"], "write --rank 4"),
        (["check", "x.yaml", "--card", "24GB"], "write --gpu 24GB"),
        (["check", "x.yaml", "--seq-len", "4"], "`qlora-plan plan` has --seq-len 4"),
        (["generate", "run", "--n-predict", "4"], "write --max-new-tokens 4"),
        (["merge", "run", "-o", "there"], "write --output there"),
        (["--gpu", "24GB", "--batch", "4"], "write --batch-size 4 (see `qlora-plan survey --help`)"),
        (["doctor", "--explane"], "did you mean --explain?"),
        (["estimate", MODEL, "--zzz", "4"], "no such option --zzz (see"),
    ],
)
def test_every_verb_answers_a_mistyped_option(invoke: Invoke, args: list[str], says: str) -> None:
    result = invoke(*args)
    assert result.exit_code == 2
    assert says in result.stderr


def test_an_unknown_option_never_makes_the_model_a_verb() -> None:
    assert dispatch([MODEL, "--batch", "4"]) == ["plan", MODEL, "--batch", "4"]
    assert dispatch(["--force", MODEL]) == ["plan", "--force", MODEL]
    assert dispatch([MODEL, "--packing", "true"]) == ["plan", MODEL, "--packing", "true"]


def parsed(*args: str) -> tuple[dict[str, object], list[str]]:
    from qlora_planner.cli.kinds import notes_of

    with click.Context(plan_command) as context:
        plan_command.parse_args(context, [MODEL, *args])
        return explicit_run_options(context.params), notes_of(context)


@pytest.mark.parametrize(
    ("typed", "option", "value", "noted"),
    [
        ("--seq-len 8k", "seq_len", 8192, "8,192 tokens"),
        ("--seq-len 1.5K", "seq_len", 1536, "1,536 tokens"),
        ("--seq-len 8,192", "seq_len", 8192, None),
        ("--seq-len 8192", "seq_len", 8192, None),
        ("--seq_len=4096", "seq_len", 4096, None),
        ("--batch_size 4", "batch_size", 4, None),
        ("--quant 4bit", "quant", "nf4", "nf4"),
        ("--quant 8-bit", "quant", "int8", "int8"),
        ("--quant NF4", "quant", "nf4", None),
        ("--compute-dtype bf16", "compute_dtype", "bfloat16", "bfloat16"),
        ("--attention flash-attention-2", "attention", "flash_attention_2", None),
        ("--attention fa2", "attention", "flash_attention_2", "flash_attention_2"),
        ("--trainer trl", "trainer", "trl-sft", "trl-sft"),
        ("--method QLoRA", "method", "qlora", None),
        ("--packing true", "packing", True, None),
        ("--packing=false", "packing", False, None),
        ("--gradient_checkpointing False", "gradient_checkpointing", False, None),
        ("--no-packing false", "packing", True, None),
    ],
)
def test_values_as_people_write_them(typed: str, option: str, value: object, noted: str | None) -> None:
    found, notes = parsed(*typed.split())
    assert found == {option: value}
    assert len(notes) == (noted is not None)
    assert noted is None or noted in notes[0]


@pytest.mark.parametrize("option", ["seq-len", "batch-size", "quant", "attention", "optimizer", "target-modules"])
def test_auto_is_what_leaving_an_option_out_means(option: str) -> None:
    assert parsed(f"--{option}", "auto") == ({}, [])


@pytest.mark.parametrize("text", ["8x", "k", "1.3333k", "8kk", "8 000", "1,00", ""])
def test_what_is_no_length_is_refused_with_how_to_write_one(text: str) -> None:
    with pytest.raises(click.BadParameter, match="8192 or 8k"):
        parsed("--seq-len", text)


def test_what_was_taken_for_what_is_said_unless_it_is_to_be_quiet(invoke: Invoke) -> None:
    args = ("estimate", MODEL, "--gpu", "24GB", "--seq-len", "4k", "--json")
    loud, quiet = invoke(*args), invoke(*args, "--quiet")
    assert "--seq-len 4k is taken as 4,096 tokens" in loud.stderr
    assert quiet.stderr == ""
    assert json.loads(loud.stdout)["run"]["seq_len"] == json.loads(quiet.stdout)["run"]["seq_len"] == 4096


@pytest.mark.parametrize("text", ["2xrtx-3090", "2x3090", "4 x RTX 3090", "rtx 3090 x 2", "3090x2", "2x rtx-3090"])
def test_of_several_cards_each_is_planned_and_speed_is_that_of_all(invoke: Invoke, text: str) -> None:
    several, single = (invoke("estimate", MODEL, "--gpu", one, "--json") for one in (text, "rtx-3090"))
    cards = 4 if "4" in text else 2
    document, alone = json.loads(several.stdout), json.loads(single.stdout)
    assert (several.exit_code, several.stderr) == (0, "")
    assert document["machine"] == {
        "nodes": 1, "gpus_per_node": cards, "link": {"kind": "PCIe 4.0 x16", "bytes_per_s": 31_510_000_000},
    }  # fmt: skip
    assert document["parallel"] == document["run"]["parallel"] == "ddp"
    assert [rank["rank"] for rank in document["ranks"]] == list(range(cards))
    assert document["peak"]["device_bytes"] > alone["peak"]["device_bytes"] + (800 << 20)
    assert (cards - 1) * alone["speed"]["tokens_per_s"] < document["speed"]["tokens_per_s"]
    assert document["speed"]["tokens_per_s"] < cards * alone["speed"]["tokens_per_s"]
    assert (alone["machine"], alone["parallel"], alone["ranks"]) == (
        {"nodes": 1, "gpus_per_node": 1, "link": None}, None, [],
    )  # fmt: skip


def test_nodes_have_as_many_cards_each(invoke: Invoke) -> None:
    document = json.loads(invoke("estimate", MODEL, "--gpu", "8xa100-80gb", "--nodes", "2", "--json").stdout)
    assert (document["machine"]["nodes"], document["machine"]["gpus_per_node"]) == (2, 8)
    assert len(document["ranks"]) == 16
    assert document["machine"]["network"] == {"kind": "8x200Gb", "bytes_per_s": 200_000_000_000, "assumed": True}
    assert document["speed"]["tokens_per_s"] > 0


@pytest.mark.parametrize("option", ["--parallel ddp", "--quant-storage bfloat16", "--load-on cpu"])
def test_an_option_of_several_cards_asks_for_their_number(invoke: Invoke, option: str) -> None:
    result = invoke("estimate", MODEL, "--gpu", "rtx-3090", *option.split())
    assert result.exit_code == 2
    assert "--gpu 2xrtx-4090" in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.parametrize("verb", ["estimate", "plan"])
def test_what_one_card_does_not_hold_several_share(invoke: Invoke, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    monkeypatch.setenv("QLORA_PLANNER_TRACE", "never")
    alone, several = (invoke(verb, "llama-3.1-70b", "--gpu", card, "--json") for card in ("rtx-3090", "4xrtx-3090"))
    assert (alone.exit_code, several.exit_code) == (1, 0)
    document = json.loads(several.stdout)
    document = document.get("estimate", document)
    assert (document["parallel"], document["run"]["optimizer"]) == ("fsdp2", "adamw_torch_fused")
    assert document["fit"]["verdict"] == "fits"
