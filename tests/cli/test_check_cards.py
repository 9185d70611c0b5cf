"""check of configs that share a run: what each card holds by phase, and which key decided what."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.cli.conftest import Invoke
from tests.exchange.test_several_cards import AXOLOTL, TRL


def test_check_says_what_each_card_holds_by_phase_and_which_key_decided_what(invoke: Invoke, tmp_path: Path) -> None:
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump(TRL | {"accelerate_config": "fsdp2", "bnb_4bit_quant_storage": "bfloat16"}))
    result = invoke("check", str(path), "--gpu", "2xh200", "--json")
    document = json.loads(result.stdout)
    estimate, mib = document["estimate"], 1 << 20
    phases = {phase["name"]: phase["allocated_bytes"] for phase in estimate["phases"]}
    assert (result.exit_code, estimate["fit"]["verdict"], estimate["parallel"]) == (0, "fits", "fsdp2")
    assert len(estimate["ranks"]) == 2
    # An 8B on two H200s, loaded by every rank: 5,539 MiB, 8,229 at wrapping and 5,037 in training, measured.
    assert phases["load"] / mib == pytest.approx(5539, abs=3)
    assert phases["wrap"] / mib == pytest.approx(8229, abs=3)
    assert phases["backward"] / mib == pytest.approx(5037, rel=0.002)
    assert document["decided"]["parallel"] == {
        "value": "fsdp2", "key": "accelerate_config: fsdp2, distributed_type: FSDP, fsdp_version: 2"
    }  # fmt: skip
    codes = {problem["code"] for problem in estimate["problems"]}
    assert {"ram-efficient-ignored", "loads-whole"} <= codes and "full-state-dict" not in codes


def test_a_70b_that_every_card_loads_whole_does_not_fit_two_of_24_gb(invoke: Invoke, tmp_path: Path) -> None:
    """Bounds suffice: loading alone takes 37 GiB of each card, whatever is offloaded afterwards."""
    path = tmp_path / "axolotl.yaml"
    says = {
        "base_model": "meta-llama/Meta-Llama-3-70B",
        "fsdp": ["full_shard"],
        "fsdp_config": {"offload_params": True},
    }
    path.write_text(yaml.safe_dump(AXOLOTL | {"gradient_checkpointing": True} | says))
    result = invoke("check", str(path), "--gpu", "2x24GB")
    text = " ".join(result.stdout.split())
    assert result.exit_code == 1 and "each card needs between" in text
    assert "FSDP1 by no fsdp_version, which axolotl takes for 1" in text and "wrapping" in text


@pytest.mark.parametrize(
    ("card", "verdict"), [("2xh200", "fits"), ("2x24GB", "fits"), ("2x20GB", "cannot-say"), ("2x16GB", "does-not-fit")]
)
def test_cards_that_share_a_sequence_are_answered_where_their_ring_decides_nothing(
    card: str, verdict: str, invoke: Invoke, tmp_path: Path
) -> None:
    """An 8B at 32,768 tokens, half of them on each card, held 12,371 MiB on two H200s."""
    path, launch = tmp_path / "train.yaml", tmp_path / "accelerate.yaml"
    path.write_text(yaml.safe_dump(TRL | {"max_length": 32_768, "bnb_4bit_quant_storage": "bfloat16"}))
    sharded = {"distributed_type": "FSDP", "num_processes": 2, "fsdp_config": {"fsdp_version": 2}}
    launch.write_text(yaml.safe_dump(sharded | {"parallelism_config": {"parallelism_config_cp_size": 2}}))
    result = invoke("check", str(path), "--gpu", card, "--accelerate-config", str(launch), "--json")
    fit = json.loads(result.stdout)["estimate"]["fit"]
    assert fit["verdict"] == verdict
    assert verdict != "cannot-say" or "the ring that passes keys and values round" in " ".join(fit["reasons"])
