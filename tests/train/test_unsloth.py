"""Unsloth's loader, adapters and trainer are called as its own signatures have them; plain classes stand in and train.

Signatures are those of unsloth 2026.10.9, by the names that are passed. Where it is installed, the package itself runs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from qlora_planner.errors import InputError
from qlora_planner.isolation import child_environment, python_module
from qlora_planner.measure.child import set_environment
from qlora_planner.runs.child.callbacks import Tokens
from qlora_planner.spec.run import RunConfig
from qlora_planner.train.toy import toy_config
from qlora_planner.train.unsloth.options import adapter_options, loading_options, trainer_options
from tests.train.test_builder import LLAMA, Counting

torch = pytest.importorskip("torch")
pytest.importorskip("bitsandbytes")

# models/loader.py and models/llama.py, as far as verify, train and scripts say anything.
LOADER = {
    "model_name", "max_seq_length", "dtype", "load_in_4bit", "load_in_8bit", "load_in_16bit", "full_finetuning",
    "token", "device_map", "rope_scaling", "fix_tokenizer", "trust_remote_code", "use_gradient_checkpointing",
    "resize_model_vocab", "revision", "use_exact_model_name", "offload_embedding", "fast_inference",
}  # fmt: skip
ADAPTERS = {
    "model", "r", "target_modules", "lora_alpha", "lora_dropout", "bias", "layers_to_transform", "layers_pattern",
    "use_gradient_checkpointing", "random_state", "max_seq_length", "use_rslora", "modules_to_save",
    "init_lora_weights", "loftq_config", "use_dora", "exclude_modules",
}  # fmt: skip
RUN = RunConfig(
    trainer="unsloth", method="qlora", quant="nf4", seq_len=48, batch_size=2, rank=4, alpha=8, optimizer="adamw_torch",
    compute_dtype="bfloat16", gradient_checkpointing=True, target_modules="q_proj,v_proj", lora_dropout=0.0,
    dora=False, rslora=False, grad_accum=1, packing=False,
)  # fmt: skip


class Fast:
    """In place of FastLanguageModel: plain classes, what was asked kept."""

    def __init__(self) -> None:
        self.asked: dict[str, Any] = {}

    def from_pretrained(self, folder: str, **given: Any) -> tuple[Any, Any]:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        assert set(given) <= LOADER
        self.asked["loading"] = given
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=given["dtype"])
        return model, AutoTokenizer.from_pretrained(folder)

    def get_peft_model(self, model: Any, **given: Any) -> Any:
        import peft

        assert set(given) <= ADAPTERS
        self.asked["adapters"] = given
        kept = {name: given[name] for name in ("r", "lora_alpha", "target_modules", "lora_dropout")}
        return peft.get_peft_model(model, peft.LoraConfig(**kept))


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> Fast:
    module, own = ModuleType("unsloth"), Fast()
    module.FastLanguageModel = own  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "unsloth", module)
    return own


def test_random_weights_go_through_its_loader_and_a_step_is_taken_on_texts_of_full_length(
    fast: Fast, tmp_path: Path
) -> None:
    from qlora_planner.train import adapters, model
    from qlora_planner.train.data import synthetic_rows
    from qlora_planner.train.trainers import build_trainer

    raw = toy_config(LLAMA)
    weights = model.random_weights(raw, "cpu")
    loaded = model.load_random(raw, RUN, "cpu", weights)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(loaded.state_dict()[name], weights[name].to(torch.bfloat16))
    adapted = adapters.add_adapters(loaded, RUN)
    assert fast.asked["loading"]["device_map"] == {"": "cpu"}
    assert (fast.asked["adapters"]["r"], fast.asked["adapters"]["use_gradient_checkpointing"]) == (4, "unsloth")
    rows = synthetic_rows(RUN, 1, model.vocabulary(adapted))
    trainer = build_trainer(adapted, RUN, rows=rows, steps=1, folder=str(tmp_path), device="cpu")
    lengths = [len(row) for row in trainer.trainer.train_dataset["input_ids"]]  # type: ignore[attr-defined]
    assert lengths == [48, 48]
    watcher = Counting()
    trainer.train(1, watcher)
    assert watcher.heard == ["forward", "backward", "optimizer", "end"] and watcher.with_gradient


def test_a_script_says_what_is_run_here() -> None:
    from qlora_planner.exchange.scripts import unsloth as script
    from qlora_planner.exchange.scripts.python_source import literal

    written = "\n".join(script.model(RUN))
    for name, value in {**loading_options(RUN), **adapter_options(RUN)}.items():
        if name not in ("max_seq_length", "dtype"):
            assert f"{name}={literal(value)}" in written
    shared = {"gradient_checkpointing": True, "use_liger_kernel": False, "optim": "adamw_torch"}
    asked = {"optim": "adamw_torch", "max_length": 48, "packing": False, "dataset_text_field": "text"}
    assert trainer_options(RUN, shared) == asked


def test_modules_that_a_class_alone_knows_are_refused_before_anything_is_loaded() -> None:
    with pytest.raises(InputError, match="Unsloth takes names of modules"):
        adapter_options(RUN.with_(target_modules="attention"))


def test_what_changes_the_other_libraries_is_imported_with_the_environment_and_compiles_outside_the_folder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    imported: list[str] = []
    monkeypatch.setattr("importlib.import_module", imported.append)
    before = {"UNSLOTH_ALLOW_CPU": "1", "UNSLOTH_COMPILE_LOCATION": "", "UNSLOTH_DISABLE_STATISTICS": ""}
    for name, value in {**before, **dict.fromkeys(("CUDA_VISIBLE_DEVICES", "HF_DEACTIVATE_ASYNC_LOAD"), "")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("UNSLOTH_COMPILE_LOCATION")
    set_environment(RUN, device="cpu", gpu_index=0)
    assert imported == ["unsloth"] and "UNSLOTH_ALLOW_CPU" not in os.environ
    assert Path(os.environ["UNSLOTH_COMPILE_LOCATION"]).is_absolute()
    set_environment(RUN.with_(trainer="trl-sft"), device="cpu", gpu_index=0)
    assert imported == ["unsloth"]
    monkeypatch.delenv("UNSLOTH_COMPILE_LOCATION")


def test_rows_end_to_end_are_as_wide_as_they_are_on_average() -> None:
    model = SimpleNamespace(register_forward_pre_hook=lambda hook, with_kwargs: hook, training=True)
    tokens = Tokens(model)
    ids = torch.zeros(1, 120)
    tokens._count(model, (), {"input_ids": ids, "packed_seq_lengths": torch.tensor([60, 40, 20])})
    assert (tokens.seen, tokens.longest) == (120, 40)
    tokens._count(model, (), {"input_ids": torch.zeros(2, 50)})
    assert (tokens.seen, tokens.longest) == (220, 50)


@pytest.mark.skipif(find_spec("unsloth") is None, reason="unsloth needs an environment of its own")
def test_the_installed_package_takes_two_steps_without_a_card(tmp_path: Path) -> None:
    command = ["verify", "meta-llama/Llama-3.2-1B", "--trainer", "unsloth", "--device", "cpu", "--steps", "2", "--json"]
    ended = subprocess.run(
        [*python_module("qlora_planner"), *command, "--seq-len", "64", "--batch-size", "2"],
        cwd=tmp_path, env=child_environment(XDG_DATA_HOME=str(tmp_path)), capture_output=True, text=True,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert len(json.loads(ended.stdout)["measurement"]["step_s"]) == 2
