"""States of embeddings under 8-bit optimizers, against what real trainers hold after a real step on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
bitsandbytes = pytest.importorskip("bitsandbytes")
pytest.importorskip("peft")
pytest.importorskip("trl")

import peft  # noqa: E402
from datasets import Dataset  # noqa: E402
from transformers import AutoConfig, AutoModelForCausalLM, Trainer, TrainingArguments  # noqa: E402

from qlora_planner.catalog import OPTIMIZERS, TRAINER_ROWS, OptimizerRow, trainer_row  # noqa: E402
from qlora_planner.memory.options.refusals import refusals  # noqa: E402
from qlora_planner.memory.options.resolve import resolve  # noqa: E402
from qlora_planner.memory.weights.placement import Placement  # noqa: E402
from qlora_planner.memory.weights.static import static_memory  # noqa: E402
from qlora_planner.memory.weights.trainable import Trainable  # noqa: E402
from qlora_planner.spec.model import ModelProfile  # noqa: E402
from qlora_planner.spec.run import RunConfig  # noqa: E402
from tests.profiles import toy_profile  # noqa: E402

# A table of words, and in GPT-2 one of positions beside it.
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 1024, "max_position_embeddings": 128,
        "tie_word_embeddings": False,
    },
    "gpt2": {"model_type": "gpt2", "n_embd": 64, "n_layer": 1, "n_head": 4, "vocab_size": 1024, "n_positions": 96},
}  # fmt: skip
CONFIGS["tied"] = CONFIGS["llama"] | {"tie_word_embeddings": True}
LORA = {"r": 64, "target_modules": ["q_proj"]}
IDS = list(range(8))


@pytest.fixture(autouse=True)
def _one_training_in_this_process() -> None:
    """bitsandbytes keeps overrides once per process, by a parameter's place among its group, for good."""
    bitsandbytes.optim.GlobalOptimManager.get_instance().initialize()


def real_states(config: dict[str, Any], run: RunConfig, folder: Path) -> list[tuple[tuple[int, ...], int]]:
    """Shape of each trained tensor and the bytes of its states, quantisation maps apart."""
    fields = {name: value for name, value in config.items() if name != "model_type"}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(config["model_type"], **fields), dtype=torch.bfloat16)
    if run.method == "lora":
        saved = (run.modules_to_save or "").split(",")
        model = peft.get_peft_model(model, peft.LoraConfig(**LORA, modules_to_save=saved))
    usual: dict[str, Any] = {
        "output_dir": str(folder), "optim": run.optimizer, "max_steps": 1, "per_device_train_batch_size": 1,
        "report_to": [], "use_cpu": True, "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True,
    }  # fmt: skip
    rows = Dataset.from_list([{"input_ids": IDS, "labels": IDS}])
    if run.trainer == "trl-sft":
        trainer = sft(model, usual, rows)
    else:
        trainer = Trainer(model=model, args=TrainingArguments(**usual), train_dataset=rows)
    trainer.train()
    return sorted(
        (tuple(parameter.shape), sum(_bytes(value) for key, value in state.items() if not key.startswith("qmap")))
        for parameter, state in trainer.optimizer.optimizer.state.items()
    )


def sft(model: Any, options: dict[str, Any], rows: Dataset) -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "</s>": 2}, unk_token="a"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", pad_token="b")
    arguments = SFTConfig(**options, bf16=False, dataset_kwargs={"skip_prepare_dataset": True})
    return SFTTrainer(model=model, args=arguments, train_dataset=rows, processing_class=tokenizer)


def _bytes(value: object) -> int:
    return value.numel() * value.element_size() if isinstance(value, torch.Tensor) else 0


def profile_and_run(name: str, run: RunConfig) -> tuple[ModelProfile, RunConfig]:
    profile = toy_profile(CONFIGS[name])
    return profile, resolve(profile, run).run


def our_states(trained: tuple[Trainable, ...], run: RunConfig) -> list[tuple[tuple[int, ...], int]]:
    """On the CPU nothing is paged, so that both kinds of state count alike."""
    row: OptimizerRow = OPTIMIZERS[run.optimizer]
    trainer = TRAINER_ROWS[run.trainer or ""]
    return sorted(
        (each.shape, sum(s.size_bytes for s in row.states(each.shape, each.dtype, each.forced_32bit(trainer))))
        for each in trained
        for _ in range(each.count)
    )


FULL: dict[str, Any] = {"method": "full", "quant": "none", "trainer": "hf-trainer"}
SAVED: dict[str, Any] = {
    "method": "lora", "quant": "none", "rank": 64, "target_modules": "q_proj", "trainer": "hf-trainer",
    "modules_to_save": "embed_tokens,lm_head",
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("llama", FULL | {"optimizer": "adamw_8bit"}),
        ("llama", FULL | {"optimizer": "lion_8bit", "trainer": "trl-sft"}),
        ("tied", FULL | {"optimizer": "ademamix_8bit"}),
        ("gpt2", FULL | {"optimizer": "paged_adamw_8bit"}),
        ("llama", SAVED | {"optimizer": "paged_lion_8bit"}),
        ("tied", SAVED | {"optimizer": "adamw_8bit", "trainer": "trl-sft"}),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value['method']}-{value['optimizer']}",
)
def test_states_are_those_of_the_trainers_optimizer(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    profile, run = profile_and_run(name, RunConfig(**options))
    trained = static_memory(Placement(profile, run)).trainable
    assert any(each.embedding for each in trained)
    assert our_states(trained, run) == real_states(CONFIGS[name], run, tmp_path)


def test_a_full_fine_tune_pages_whole_states_of_a_large_embedding() -> None:
    """Under the Trainer four bytes per element and moment instead of one, and no block constants on the device."""
    config = CONFIGS["llama"] | {"vocab_size": 4096}
    elements = 4096 * 64
    row = OPTIMIZERS["paged_adamw_8bit"]
    (table,) = (each for each in _trained(config) if each.embedding)
    forced = {
        trainer: row.states(table.shape, "bfloat16", table.forced_32bit(TRAINER_ROWS[trainer]))
        for trainer in TRAINER_ROWS
    }
    for trainer in ("trl-sft", "hf-trainer"):
        assert [(state.size_bytes, state.paged) for state in forced[trainer]] == [(4 * elements, True)] * 2
    assert [state.size_bytes for state in forced["loop"] if state.paged] == [elements] * 2


def _trained(config: dict[str, Any]) -> tuple[Trainable, ...]:
    profile = toy_profile(config)
    return static_memory(Placement(profile, resolve(profile, RunConfig(**FULL)).run)).trainable


def test_rmsprop_has_no_kernel_for_the_16_bit_gradient_of_an_embedding() -> None:
    options: dict[str, Any] = SAVED | {"optimizer": "rmsprop_bnb_8bit", "compute_dtype": "bfloat16"}
    refused = {}
    for saved in ("embed_tokens", "lm_head"):  # the head's states are 8-bit ones, for which there is a kernel
        profile, run = profile_and_run("llama", RunConfig(**(options | {"modules_to_save": saved})))
        refused[saved] = "optimizer-refused" in {
            problem.code for problem in refusals(profile, run, *trainer_row("trl-sft", {}), None)
        }
    assert refused == {"embed_tokens": True, "lm_head": False}
