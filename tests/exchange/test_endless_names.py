"""A config whose keys and names have no end: each is told, shortened, in an answer that somebody can read."""

from __future__ import annotations

import json
from pathlib import Path

import click.testing
import pytest

from qlora_planner.cli.main import cli

ENDLESS = "k" * 200_000
AXOLOTL = {
    "base_model": "meta-llama/Llama-3.1-8B", "adapter": "qlora", "load_in_4bit": True, "lora_r": 8, "lora_alpha": 16,
    "sequence_len": 2048, "micro_batch_size": 1, "gradient_accumulation_steps": 1, "lora_target_linear": True,
}  # fmt: skip
MANY = {f"key_{number}": 1 for number in range(5000)}
NAMES = {"lora_target_linear": False, "lora_target_modules": ["q_proj", *MANY, ENDLESS]}


@pytest.mark.parametrize(
    ("changes", "codes"),
    [
        ({ENDLESS: 1}, (0, 5)), (MANY, (0, 5)), (NAMES, (0, 5)), ({"base_model": ENDLESS}, (2,)),
        ({"lora_target_linear": False, "lora_target_modules": [ENDLESS]}, (2,)), ({"optimizer": ENDLESS}, (2,)),
        ({"lora_modules_to_save": [ENDLESS]}, (2,)), ({"bnb_config_kwargs": {ENDLESS: 1}}, (0, 5)),
        ({"lora_target_linear": False, "lora_target_modules": ["layers.3.self_attn.q_proj"] * 5000}, (0, 5)),
    ],
    ids=["key", "keys", "targets", "model", "target", "optimizer", "saved", "settings", "numbered"],
)  # fmt: skip
def test_an_answer_stays_short(tmp_path: Path, changes: dict[str, object], codes: tuple[int, ...]) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps({**AXOLOTL, **changes}))
    result = click.testing.CliRunner().invoke(cli, ["check", str(path), "--gpu", "24GB"], prog_name="qlora-plan")
    assert result.exit_code in codes, result.output
    assert len(result.stdout) + len(result.stderr) < 12_000
