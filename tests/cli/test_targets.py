"""Target modules of which some match nothing: said on every way to an answer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Invoke


# What fits and what does not: the search for a change is no stricter than the estimate.
@pytest.mark.parametrize(("card", "code"), [("24GB", 0), ("2GiB", 1)])
def test_check_answers_for_what_matches(invoke: Invoke, tmp_path: Path, card: str, code: int) -> None:
    file = tmp_path / "axolotl.yaml"
    file.write_text(
        "base_model: meta-llama/Llama-3.2-1B\nadapter: qlora\nload_in_4bit: true\nlora_r: 16\n"
        "lora_target_modules: [q_proj, gate_up_proj]\nsequence_len: 2048\nmicro_batch_size: 4\n"
        "gradient_accumulation_steps: 4\noptimizer: adamw_8bit\ngradient_checkpointing: true\nbf16: true\n"
    )
    result = invoke("check", str(file), "--gpu", card, "--json")
    assert result.exit_code == code
    problems = json.loads(result.stdout)["estimate"]["problems"]
    assert "gate_up_proj matches nothing" in next(p["message"] for p in problems if p["code"] == "targets-unmatched")


def test_the_survey_names_them_for_each_model(invoke: Invoke) -> None:
    result = invoke("--gpu", "24GB", "--json", "--target-modules", "q_proj,query_key_value,embed_tokens")
    notes = {row["model_id"]: row["note"] or "" for row in json.loads(result.stdout)["models"]}
    assert "holds no adapters for it" in notes["meta-llama/Llama-3.2-1B"]
    assert "q_proj, embed_tokens match nothing" in notes["EleutherAI/pythia-1.4b"]


def test_what_no_run_can_take_is_said_in_the_words_of_the_refusal(invoke: Invoke) -> None:
    result = invoke("plan", "llama-3.1-8b", "--gpu", "24GB", "--target-modules", "lm_head,q_proj")
    assert result.exit_code == 1, result.output
    said = " ".join((result.stdout + result.stderr).split())
    assert "an adapter on it would never be trained; use --trainer hf-trainer" in said
