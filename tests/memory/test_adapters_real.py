"""Trainable tensors against a real PEFT injection: every shape, with LoRA, DoRA and modules_to_save."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

from transformers import AutoConfig, AutoModelForCausalLM  # noqa: E402

from qlora_planner.memory.options.resolve import resolve  # noqa: E402
from qlora_planner.memory.parallel.ddp import states  # noqa: E402
from qlora_planner.memory.weights.placement import Placement  # noqa: E402
from qlora_planner.memory.weights.static import static_memory  # noqa: E402
from qlora_planner.spec.run import RunConfig  # noqa: E402
from tests.profiles import toy_profile  # noqa: E402

CONFIG: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512, "max_position_embeddings": 128,
}  # fmt: skip


@pytest.mark.parametrize(
    ("options", "more"),
    [
        ({}, {}),
        ({"rank": 5}, {}),
        ({"dora": True}, {"use_dora": True}),
        ({"modules_to_save": "lm_head,embed_tokens"}, {"modules_to_save": ["lm_head", "embed_tokens"]}),
        ({"target_modules": "q_proj,down_proj"}, {}),
        ({"target_modules": "attention"}, {}),
    ],
)
def test_trainable_tensors_are_those_that_peft_makes(options: dict[str, Any], more: dict[str, Any]) -> None:
    run = RunConfig(method="lora", **options)
    profile = toy_profile(CONFIG)
    static = static_memory(Placement(profile, resolve(profile, run).run))
    fields = {key: value for key, value in CONFIG.items() if key != "model_type"}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **fields), dtype=torch.bfloat16)
    targets: Any = options.get("target_modules", "all-linear")
    if targets == "attention":
        targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    elif targets != "all-linear":
        targets = targets.split(",")
    real = peft.get_peft_model(
        model, peft.LoraConfig(r=run.rank, target_modules=targets, task_type="CAUSAL_LM", **more)
    )
    expected = sorted(
        (tuple(p.shape), str(p.dtype).removeprefix("torch.")) for p in real.parameters() if p.requires_grad
    )
    ours = sorted((each.shape, each.dtype) for each in static.trainable for _ in range(each.count))
    assert ours == expected


EXPERTS: dict[str, Any] = {
    "model_type": "olmoe", "hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4, "vocab_size": 512, "num_experts": 4, "num_experts_per_tok": 2,
    "max_position_embeddings": 128,
}  # fmt: skip


@pytest.mark.parametrize("config", [CONFIG, EXPERTS], ids=["linears", "fused-experts"])
def test_ddp_cuts_its_buckets_along_the_parameters_in_the_order_that_peft_leaves(config: dict[str, Any]) -> None:
    run = RunConfig(method="lora", lora_dropout=0.0)
    profile = toy_profile(config)
    resolution = resolve(profile, run)
    fields = {key: value for key, value in config.items() if key != "model_type"}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(config["model_type"], **fields), dtype=torch.bfloat16)
    more = {"target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]} if config is EXPERTS else {}
    chosen = peft.LoraConfig(r=run.rank, target_modules="all-linear", task_type="CAUSAL_LM", **more)
    real = peft.get_peft_model(model, chosen)
    theirs = [
        (str(p.dtype).removeprefix("torch."), p.numel() * p.element_size(), p.requires_grad) for p in real.parameters()
    ]
    ours = [
        (dtype, size, trained)
        for (dtype, size), trained in states(Placement(profile, resolution.run), resolution.trainer)
    ]
    assert ours[: len(theirs)] == theirs
