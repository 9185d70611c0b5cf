"""Configs as people write them: the verdict and exit code of each, from tapes that ship or from closed forms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cli.conftest import Invoke

GIB = 1 << 30
AXOLOTL = {
    "base_model": "Qwen/Qwen3-4B", "load_in_4bit": True, "adapter": "qlora", "sequence_len": 2048, "lora_r": 32,
    "lora_target_linear": True, "micro_batch_size": 2, "gradient_accumulation_steps": 4, "sample_packing": True,
    "optimizer": "adamw_bnb_8bit", "gradient_checkpointing": True, "bf16": True, "flash_attention": True,
}  # fmt: skip
FACTORY = {
    "model_name_or_path": "meta-llama/Meta-Llama-3-8B", "stage": "sft", "finetuning_type": "lora", "lora_target": "all",
    "template": "llama3", "dataset": "mine", "cutoff_len": 2048, "per_device_train_batch_size": 1, "bf16": True,
}  # fmt: skip
TRL = {
    "model_name_or_path": "Qwen/Qwen2.5-3B", "dataset_name": "some/chats", "load_in_4bit": True, "lora_r": 64,
    "use_bnb_nested_quant": True, "use_peft": True, "lora_alpha": 64, "lora_target_modules": "all-linear",
    "per_device_train_batch_size": 8, "gradient_accumulation_steps": 8, "max_length": 2048, "bf16": True,
    "attn_implementation": "flash_attention_2",
}  # fmt: skip
CUT = {"plugins": ["axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin"]}
# What is written, on which card -> format, verdict, exit code, and the peak in GiB from and to.
CASES: list[tuple[dict[str, Any], str, str, str, int, float, float]] = [
    (AXOLOTL | CUT, "8GB", "axolotl", "fits", 0, 4.7, 5.9),
    (AXOLOTL | {"rl": True, "sample_packing": False}, "rtx-a6000", "axolotl", "cannot-say", 5, 8, 25),
    (
        AXOLOTL | {"base_model": "meta-llama/Meta-Llama-3-70B", "fsdp": ["full_shard"]},
        "24GB", "axolotl", "cannot-say", 5, 38, 60,
    ),
    (FACTORY | {"stage": "dpo", "quantization_bit": 4}, "24GB", "llama-factory", "cannot-say", 5, 8, 14),
    (FACTORY | {"new_special_tokens": "[a],[b]"}, "rtx-4090", "llama-factory", "does-not-fit", 1, 26, 31),
    (FACTORY | {"quantization_bit": 4, "add_tokens": "<a>"}, "16GB", "llama-factory", "does-not-fit", 1, 15.5, 18.5),
    (TRL, "24GB", "trl", "fits", 0, 8.5, 10.5),
]  # fmt: skip


@pytest.mark.parametrize(("config", "card", "kind", "verdict", "code", "least_gib", "most_gib"), CASES)
def test_a_config_is_answered_for_the_run_that_it_is(
    invoke: Invoke, tmp_path: Path, config: dict[str, Any], card: str, kind: str, verdict: str, code: int,
    least_gib: float, most_gib: float,
) -> None:  # fmt: skip
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    result = invoke("check", str(path), "--gpu", card, "--json")
    document = json.loads(result.stdout)
    estimate = document["estimate"]
    assert (document["format"], document["keys"]["unknown"]) == (kind, [])
    assert (estimate["fit"]["verdict"], result.exit_code) == (verdict, code)
    assert least_gib * GIB <= estimate["peak"]["device_bytes"] <= most_gib * GIB
    assert (verdict == "cannot-say") <= estimate["partial"]


def test_the_screen_of_what_cannot_be_said_names_it_and_offers_no_change(invoke: Invoke, tmp_path: Path) -> None:
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump(AXOLOTL | {"rl": "simpo"}))
    result = invoke("check", str(path), "--gpu", "8GB")
    assert result.exit_code == 5
    lines = result.stdout.splitlines()
    assert lines[0].endswith("cannot say: Qwen/Qwen3-4B on 8GB")
    assert lines[1].startswith("  not modelled: rl: simpo (")
    assert "change that fits" not in result.stdout
    assert "rl is not in these figures" not in " ".join(result.stdout.split())


def test_a_file_of_another_tool_is_refused_by_its_name(invoke: Invoke, tmp_path: Path) -> None:
    path = tmp_path / "sft.yaml"
    path.write_text("model: Qwen/Qwen3-8B\ntuner_type: lora\ndataset: [mine]\nquant_bits: 4\n")
    result = invoke("check", str(path), "--gpu", "24GB")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "is a config of ms-swift, which is not read here" in result.stderr
