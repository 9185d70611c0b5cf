"""A script and a notebook for Unsloth say what was planned, in arguments that its own functions take."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from qlora_planner.catalog.trainers import trainer_named
from qlora_planner.errors import InputError
from qlora_planner.exchange.export import export
from qlora_planner.isolation import child_environment
from tests.exchange.test_scripts import Stand, run_script

# Every call of the script with the arguments that the installed packages' own functions take; nothing is loaded.
BOUND = """
import inspect, sys, unsloth, datasets, trl
model = type("Model", (), {})()
def bound(function, answer):
    signature = inspect.signature(function)
    def call(*args, **kwargs):
        signature.bind(*args, **kwargs)
        unknown = set(kwargs) - set(signature.parameters)
        assert not unknown, unknown
        return answer
    return call
import transformers.training_args
transformers.training_args.is_torch_bf16_gpu_available = lambda: True
own = unsloth.FastLanguageModel
tokenizer = type("Tokenizer", (), {"eos_token": "."})()
own.from_pretrained = bound(own.from_pretrained, (model, tokenizer))
own.get_peft_model = bound(own.get_peft_model, model)
rows = type("Rows", (), {"column_names": ["text"], "map": lambda self, *_, **__: self})()
datasets.load_dataset = bound(datasets.load_dataset, rows)
class Trainer:
    __init__ = lambda self, **given: print("max_length", given["args"].max_length, "optim", given["args"].optim.value)
    train = save_model = lambda self, *_: None
trl.SFTTrainer = Trainer
exec(compile(open(sys.argv[1]).read(), "script", "exec"))
"""


@pytest.fixture
def planned(document: dict[str, Any]) -> dict[str, Any]:
    document["run"] |= {"trainer": "unsloth", "lora_dropout": 0.0, "rank": 8, "seq_len": 1024}
    return document


def test_the_script_loads_and_adapts_by_unsloth_what_was_planned(
    planned: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[str, Any] = {}
    own = ModuleType("unsloth")
    own.FastLanguageModel = Pairs("FastLanguageModel", told)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "unsloth", own)
    asked = run_script(export("trl", planned), monkeypatch)
    assert told["from_pretrained"] | {"max_seq_length": 1024, "load_in_4bit": True} == told["from_pretrained"]
    assert told["get_peft_model"] | {"r": 8, "lora_dropout": 0.0, "bias": "none"} == told["get_peft_model"]
    assert {told[name]["use_gradient_checkpointing"] for name in ("from_pretrained", "get_peft_model")} == {"unsloth"}
    assert asked["SFTConfig"]["max_length"] == 1024
    assert not [name for name in asked["SFTConfig"] if name.startswith("gradient_checkpointing")]


class Pairs(Stand):
    """A class whose loader gives a model and a tokenizer."""

    def __getattr__(self, part: str) -> Any:
        if part != "from_pretrained":
            return super().__getattr__(part)
        return lambda *_, **given: self.told.update(from_pretrained=given) or (Stand("m", self.told),) * 2


def test_unsloth_is_imported_first_and_alone_installs_what_it_works_with(planned: dict[str, Any]) -> None:
    cells = json.loads(export("notebook", planned))["cells"]
    assert cells[1]["source"] == ["%pip install -q unsloth trl datasets"]
    code = "".join(line for cell in cells[2:] for line in cell["source"])
    assert code.index("from unsloth import") < min(code.index("import torch"), code.index("from trl import"))


def test_modules_that_only_a_class_knows_are_refused(planned: dict[str, Any]) -> None:
    planned["run"]["target_modules"] = "attention"
    with pytest.raises(InputError, match="names of modules"):
        export("trl", planned)


@pytest.mark.skipif(find_spec("unsloth") is None, reason="unsloth needs an environment of its own")
def test_its_own_functions_take_the_arguments_of_the_script(planned: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(export("trl", planned))
    environment = child_environment(**trainer_named("unsloth").trace_environment)
    ended = subprocess.run(
        [sys.executable, "-P", "-c", BOUND, "script.py"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert "max_length 1024 optim paged_adamw_8bit" in ended.stdout
