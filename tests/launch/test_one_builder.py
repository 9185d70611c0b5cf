"""What is verified, what is trained and what an exported script trains are one run: the libraries are told the same."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

from qlora_planner.exchange.export import export
from qlora_planner.train import adapters, model
from qlora_planner.train.data import synthetic_rows
from qlora_planner.train.trainers import build_trainer
from tests.launch.conftest import RUN, Home, Make, trained

# What differs between a measurement, a run over real data and a script, and takes no memory: how long, how watched,
# in which order, from rows of which preparation. Nothing else may.
FREE = {
    "output_dir", "logging_dir", "run_name", "max_steps", "num_train_epochs", "seed", "data_seed", "disable_tqdm",
    "report_to", "use_cpu", "train_sampling_strategy", "dataset_kwargs", "save_strategy", "save_steps",
    "save_total_limit", "do_eval", "logging_steps", "logging_nan_inf_filter", "eval_strategy", "eval_steps",
    "warmup_steps", "learning_rate", "lr_scheduler_type",
}  # fmt: skip


class Seen(Exception):
    """Raised where a trainer would have been made."""


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What trl's trainer was given, by each that made one."""
    import trl

    found: list[dict[str, Any]] = []

    class Recorder:
        def __init__(self, *, model: Any, args: Any, **_: Any) -> None:
            lora = model.peft_config["default"].to_dict()
            found.append({
                "arguments": args.to_dict(),
                "lora": {name: value for name, value in lora.items() if name != "base_model_name_or_path"},
                "quantization": model.get_base_model().config.quantization_config.to_dict(),
                "dtypes": {name: str(parameter.dtype) for name, parameter in model.named_parameters()},
                "attention": model.get_base_model().config._attn_implementation,
            })  # fmt: skip
            raise Seen

    monkeypatch.setattr(trl, "SFTTrainer", Recorder)
    return found


def assert_alike(verified: dict[str, Any], launched: dict[str, Any], exported: dict[str, Any]) -> None:
    """What verify, train and an exported script gave a trainer is the same, but for the arguments that are FREE."""
    for other in (launched, exported):
        assert {name: value for name, value in other.items() if name != "arguments"} == {
            name: value for name, value in verified.items() if name != "arguments"
        }
        first, second = verified["arguments"], other["arguments"]
        assert {name for name in first.keys() | second.keys() if first.get(name) != second.get(name)} <= FREE


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"grad_accum": 2, "eval_batch_size": 2, "optimizer": "adamw_torch", "gradient_checkpointing": False},
        {
            "rslora": True,
            "double_quant": False,
            "target_modules": "q_proj,v_proj",
            "use_reentrant": True,
            "upcast": True,
        },
        {"packing": True, "padding": False, "quant": "fp4", "activation_offloading": True, "attention": "eager"},
    ],
    ids=["usual", "evaluated", "other adapters", "packed"],
)
def test_all_three_tell_the_libraries_the_same(
    options: dict[str, Any], seen: list[dict[str, Any]], home: Home, make: Make, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    run = RUN.with_(**options)
    folder = home.model("llama")
    raw = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **_config(folder)}
    adapted = adapters.add_adapters(adapters.prepare(model.load_folder(folder, raw, run, "cpu"), run), run)
    with pytest.raises(Seen):
        build_trainer(adapted, run, rows=synthetic_rows(run, 1, 300), steps=1, folder=str(tmp_path), device="cpu")
    facts, _ = trained(make(run=run))
    assert facts["message"] == "Seen"
    plan = {"schema": "qlora-plan/plan/1", "model": {"id": str(folder)}, "gpu": None, "run": run.to_dict()}
    (tmp_path / "train.py").write_text(export("trl", plan, data=str(home.data)))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Seen):
        runpy.run_path("train.py", run_name="__main__")
    assert_alike(*seen)


def _config(folder: Path) -> dict[str, Any]:
    import json

    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found
