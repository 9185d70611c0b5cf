"""Trainers that vLLM generates for: what trl tells it, on a CPU where its own part stands in for a card's."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("trl")

from qlora_planner.spec.run import RunConfig
from qlora_planner.train import model
from qlora_planner.train.data import synthetic_rows
from qlora_planner.train.trainers import build_trainer
from tests.launch.conftest import Home
from tests.launch.test_online import GRPO, RLOO
from tests.train.test_builder import Silent

COLOCATED = {"vllm": "colocate", "vllm_gpu_memory_utilization": 0.45, "vllm_enable_sleep_mode": True}


class Sampler:
    """Takes what trl gives its class of vLLM, and answers with completions that end as soon as they may."""

    def __init__(self, **told: Any) -> None:
        self.told, self.synced, self.asked = told, 0, 0
        self.generation_kwargs: dict[str, Any] = told["generation_kwargs"] or {}
        server = {"model_config": {"logprobs_mode": "processed_logprobs"}}
        self.vllm_client = SimpleNamespace(get_server_info=lambda: server)

    def sync_weights(self) -> None:
        self.synced += 1

    def generate(self, *, prompts: list[list[int]], **_: Any) -> tuple[Any, ...]:
        self.asked += 1
        tokens = self.told["max_completion_length"] if self.generation_kwargs.get("ignore_eos") else 2
        return prompts, [[5] * tokens for _ in prompts], [[[-1.0]] * tokens for _ in prompts], None


@pytest.mark.parametrize(
    ("run", "says"),
    [
        (GRPO.with_(vllm="server"), {"mode": "server"}),
        (GRPO.with_(**COLOCATED), {"mode": "colocate", "gpu_memory_utilization": 0.45, "enable_sleep_mode": True}),
        (RLOO.with_(vllm="colocate", vllm_gpu_memory_utilization=0.3), {"gpu_memory_utilization": 0.3}),
    ],
    ids=["grpo server", "grpo colocated", "rloo colocated"],
)
def test_trl_s_own_config_tells_vllm_what_was_typed(
    run: RunConfig, says: dict[str, Any], home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trl.trainer import grpo_trainer, rloo_trainer

    for module in (grpo_trainer, rloo_trainer):
        monkeypatch.setattr(module, "VLLMGeneration", Sampler)
    config = json.loads((home.model("llama") / "config.json").read_text())
    loaded = model.load_folder(home.model("llama"), config, run, "cpu")
    made: Any = build_trainer(
        loaded, run, rows=synthetic_rows(run, 2, 300), steps=2, folder=str(tmp_path), device="cpu"
    )
    sampler = made.trainer.vllm_generation
    assert {name: sampler.told[name] for name in says} == says
    # vLLM loads the weights by itself, from where the trainer's own came.
    assert sampler.told["model"].name_or_path == str(home.model("llama"))
    made.trainer.args.logging_steps = 1
    ends = made.trainer.eos_token_ids
    made.train(2, Silent())
    assert sampler.asked == 2 and sampler.synced == 2
    steps = [step for step in made.trainer.state.log_history if "reward" in step]
    # Measured steps have whole completions, and afterwards they end where they end.
    assert {step["completions/min_length"] for step in steps} == {float(run.completion_len or 0)}
    assert sampler.generation_kwargs == {} and made.trainer.eos_token_ids == ends
