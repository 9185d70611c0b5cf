"""Numbers beyond all sense: one short line that says what is possible, never an overflow."""

from __future__ import annotations

import time

import click.testing
import pytest

from qlora_planner.cli.main import cli
from qlora_planner.errors import InputError
from qlora_planner.spec.run import RunConfig
from qlora_planner.train.settings import Settings
from qlora_planner.units import parse_size

HUGE = "9" * 400


@pytest.mark.parametrize(
    "args",
    [
        *(["--gpu", f"{HUGE}{unit}"] for unit in ("GB", "GiB", "MiB", "")),
        *(
            ["--gpu", "24GB", option, f"{HUGE}{unit}"]
            for option in ("--reserve", "--cap")
            for unit in ("GiB", "GB", "B")
        ),
        ["--gpu", "24GB", "--seq-len", HUGE],
        ["--gpu", "24GB", "--seq-len", "9" * 5_000],
        ["--gpu", "24GB", "--grad-accum", str(10**9)],
        ["--gpu", "24GB", "--batch-size", HUGE],
        ["--gpu", "24GB", "--lora-dropout", "1e999"],
        ["--gpu", f"{HUGE}xrtx-3090"],
    ],
    ids=lambda args: " ".join(args)[:30],
)
@pytest.mark.fault(
    "sizes and counts of 400 digits, `--grad-accum` beyond all sense",
    does="one line that says what is more than anything has",
    exit=2,
    part="outside",
)
def test_sizes_of_400_digits_are_refused_in_one_line(args: list[str]) -> None:
    result = click.testing.CliRunner().invoke(cli, ["estimate", "llama-3.1-8b", *args], prog_name="qlora-plan")
    assert result.exit_code == 2, result.stderr
    assert "bug" not in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert len(result.stderr) < 600


def test_a_size_in_python_is_refused_too() -> None:
    with pytest.raises(InputError, match="403 characters is more than anything has"):
        parse_size(f"{HUGE}GiB")
    with pytest.raises(InputError, match="--rank must be from"):
        RunConfig(rank=int(HUGE))


@pytest.mark.parametrize("name", ["max_steps", "save_steps", "logging_steps", "seed", "epochs", "warmup"])
@pytest.mark.fault(
    "`--max-steps`, `--epochs`, `--seed` of 400 digits", does="refused before anything begins", exit=2, part="outside"
)
def test_settings_of_training_have_bounds(name: str) -> None:
    with pytest.raises(InputError, match=name.replace("_", "-")) as caught:
        Settings(**{name: 10**400})  # type: ignore[arg-type]
    assert len(str(caught.value)) < 400


def test_a_verification_makes_up_no_more_tokens_than_it_needs() -> None:
    args = ["verify", "llama-3.1-8b", "--device", "cpu", "--grad-accum", "65536"]
    result = click.testing.CliRunner().invoke(cli, args, prog_name="qlora-plan")
    assert result.exit_code == 2
    assert "smaller --grad-accum take the same memory" in result.stderr


def test_a_card_of_a_hundred_kilobytes_is_not_searched_for() -> None:
    """Looking for near names took half a minute."""
    args = ["estimate", "llama-3.1-8b", "--gpu", "rtx-4090" + "9tx-40" * 15_000]
    begun = time.monotonic()
    result = click.testing.CliRunner().invoke(cli, args, prog_name="qlora-plan")
    assert time.monotonic() - begun < 5
    assert result.exit_code == 2
    assert "90,008 characters" in result.stderr
