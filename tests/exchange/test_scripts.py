"""An exported script gives the libraries the very arguments that `verify` gives them; run here against stand-ins."""

from __future__ import annotations

import json
import os
import sys
from contextlib import nullcontext
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from qlora_planner.errors import InputError
from qlora_planner.exchange.export import KINDS, export
from qlora_planner.exchange.scripts.training import packages
from qlora_planner.spec.run import RunConfig
from qlora_planner.train import options


class Stand:
    """An object that answers to everything, and tells which names were called with what."""

    def __init__(self, name: str, told: dict[str, Any]) -> None:
        self.name, self.told = name, told

    def __getattr__(self, part: str) -> Any:
        if part.startswith("__"):
            raise AttributeError(part)
        if part == "architectures":
            return ["LlamaForCausalLM"]
        return Stand(part, self.told)

    def __format__(self, _: str) -> str:
        return self.name

    def __call__(self, *args: Any, **arguments: Any) -> Any:
        self.told[self.name] = arguments
        return Stand(self.name, self.told)

    def __getitem__(self, key: Any) -> Any:
        return Stand(str(key), self.told)

    def __iter__(self) -> Any:
        return iter(())


def run_script(text: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Every call of a script by name, last arguments win."""
    told: dict[str, Any] = {}
    torch = ModuleType("torch")
    torch.__dict__.update(
        bfloat16="bfloat16",
        float16="float16",
        float32="float32",
        nn=SimpleNamespace(Linear=type("Linear", (), {})),
        cuda=SimpleNamespace(is_available=lambda: True, max_memory_allocated=lambda: 1),
        utils=Stand("utils", told),
        stack=Stand("stack", told),
        no_grad=nullcontext,
    )
    monkeypatch.setitem(sys.modules, "torch", torch)
    for name in ("datasets", "peft", "transformers", "transformers.pytorch_utils", "trl", "liger_kernel.transformers",
                 "transformers.modeling_outputs", "cut_cross_entropy"):  # fmt: skip
        module = ModuleType(name)
        module.__getattr__ = lambda part, told=told: Stand(part, told)  # type: ignore[method-assign, misc]
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, "liger_kernel", ModuleType("liger_kernel"))
    monkeypatch.setattr(sys.modules["transformers"], "Trainer", Trainer(told), raising=False)
    for name in options.ALLOCATOR_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    exec(compile(text, "script", "exec"), {"__name__": "__main__"})
    return told


class Trainer(Stand):
    """transformers' Trainer, whose table of optimizers gives a pair."""

    def __init__(self, told: dict[str, Any]) -> None:
        super().__init__("Trainer", told)

    def get_optimizer_cls_and_kwargs(self, *_: Any) -> Any:
        return Stand("kind", self.told), {}


RUNS: dict[str, dict[str, Any]] = {
    "default": {},
    "fp4 float16": {"quant": "fp4", "double_quant": False, "compute_dtype": "float16", "load_dtype": "float16",
                    "trainer": "hf-trainer"},
    "int8 upcast": {"quant": "int8", "upcast": True, "trainer": "hf-trainer", "use_reentrant": True},
    "lora": {"method": "lora", "quant": "none", "target_modules": "q_proj,v_proj", "modules_to_save": "lm_head, embed",
             "dora": True, "rslora": True, "rank": 8, "alpha": 4, "lora_dropout": 0.0, "optimizer": "adamw_torch"},
    "full": {"method": "full", "quant": "none", "target_modules": None, "lora_dropout": 0.0, "optimizer": "adafactor",
             "gradient_checkpointing": False},
    "packed": {"packing": True, "liger": True, "activation_offloading": True, "batch_size": 4, "grad_accum": 8,
               "alloc_conf": "expandable_segments:True", "seq_len": 512, "eval_batch_size": 3},
    "loop": {"trainer": "loop", "eval_batch_size": 2, "liger": True, "attention": "eager", "optimizer": "lion_8bit"},
    "cut": {"trainer": "hf-trainer", "loss_kernel": "cut-cross-entropy", "checkpoint_every": 2},
    "loop cut": {"trainer": "loop", "loss_kernel": "cut-cross-entropy", "checkpoint_offload": True},
    "liger's loss": {"trainer": "hf-trainer", "loss_kernel": "liger-fused"},
    "classifier": {"task": "classification", "num_labels": 3, "trainer": "hf-trainer", "eval_batch_size": 2,
                   "upcast": True},
    "loop upcast": {"trainer": "loop", "upcast": True, "compute_dtype": "float32"},
}  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
def test_arguments(document: dict[str, Any], monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    document["run"] |= RUNS[name]
    run = RunConfig.from_dict(document["run"])
    told = run_script(export("trl", document), monkeypatch)
    loading = dict(told["from_pretrained"])
    del loading["device_map"]
    assert loading.pop("quantization_config", None) is None or options.quantization_options(run)
    assert loading.pop("num_labels", None) == run.num_labels
    assert loading == options.model_options(run)
    assert told.get("BitsAndBytesConfig", {}) == options.quantization_options(run)
    assert told.get("LoraConfig", {}) == ({} if run.method == "full" else options.lora_options(run))
    assert ("prepare_model_for_kbit_training" in told) == bool(run.upcast)
    if run.upcast:
        assert told["prepare_model_for_kbit_training"]["gradient_checkpointing_kwargs"] == (
            options.checkpointing_options(run)
        )
    trains = {"trl-sft": "SFTConfig", "hf-trainer": "TrainingArguments", "loop": "TrainingArguments"}
    asked = told[trains[run.trainer or ""]]
    wanted = options.trainer_options(run)
    if run.trainer == "loop":
        wanted = {key: wanted[key] for key in ("optim", "learning_rate")}
        on = told.get("gradient_checkpointing_enable")
        layers = {
            "gradient_checkpointing_kwargs": options.checkpointing_options(run),
            **options.checkpointed_layers(run),
        }
        # Preparing switches checkpointing on by itself, for every layer.
        assert on == (None if run.upcast and not options.checkpointed_layers(run) else layers)
    if run.trainer == "trl-sft":
        wanted |= options.sequence_options(run)
    assert {key: asked.get(key) for key in wanted} == wanted
    assert ("use_cut_cross_entropy" in export("trl", document)) == (run.loss_kernel == "cut-cross-entropy")
    assert ("_apply_liger_kernel_to_instance" in told) == (run.liger and run.trainer == "loop")
    for variable, value in options.allocator_environment(run).items():
        assert os.environ.get(variable) == value


def test_what_a_script_adds_takes_no_memory(document: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunConfig.from_dict(document["run"])
    told = run_script(export("trl", document), monkeypatch)
    decided = {**options.trainer_options(run), **options.sequence_options(run)}
    assert set(told["SFTConfig"]) - set(decided) == {
        "output_dir", "num_train_epochs", "logging_steps", "save_strategy", "report_to", "use_cpu",
    }  # fmt: skip


def test_the_allocator_is_set_before_torch_is_imported(document: dict[str, Any]) -> None:
    document["run"]["alloc_conf"] = "expandable_segments:True"
    for kind in ("trl", "percent"):
        text = export(kind, document)
        assert 0 < text.index('"PYTORCH_ALLOC_CONF"') < text.index("import torch\n")
    assert '"torch" not in sys.modules' in text


def test_hostile_names_stay_strings(document: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    evil = 'x"""\'\\\nraise SystemExit  # '
    document["model"]["id"] = evil
    document["gpu"]["label"] = evil
    document["stack"] = {evil: evil}
    run_script(export("trl", document, data=evil), monkeypatch)
    assert export("accelerate", document).count("\nraise") == 0


def test_notebook_installs_what_it_imports(document: dict[str, Any]) -> None:
    run = RunConfig.from_dict(document["run"])
    assert set(packages(run)) == {"torch", "transformers", "accelerate", "datasets", "peft", "bitsandbytes", "trl"}
    plain = run.with_(method="full", quant="none", optimizer="adamw_torch", trainer="hf-trainer")
    assert set(packages(plain)) == {"torch", "transformers", "accelerate", "datasets"}
    cells = json.loads(export("notebook", document))["cells"]
    assert cells[1]["source"][0].startswith("%pip install -q torch ")


@pytest.mark.parametrize("name", RUNS)
def test_a_notebook_is_the_script_in_cells(
    document: dict[str, Any], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    document["run"] |= RUNS[name]
    found = json.loads(export("notebook", document))
    assert (found["nbformat"], found["nbformat_minor"]) == (4, 5)
    names = [cell["id"] for cell in found["cells"]]
    order = ["plan", "install", "allocator", "imports", "config", "model", "data", "trainer", "train"]
    assert names == [one for one in order if one != "allocator" or document["run"]["alloc_conf"]]
    kinds = ["markdown", *["code"] * (len(names) - 1)]
    assert [cell["cell_type"] for cell in found["cells"]] == kinds
    for cell in found["cells"]:
        assert set(cell) == {"id", "cell_type", "metadata", "source"} | (
            {"outputs", "execution_count"} if cell["cell_type"] == "code" else set()
        )
    assert "Llama-3.1-8B" in "".join(found["cells"][0]["source"])
    cells = ["".join(cell["source"]) for cell in found["cells"][2:]]
    told = run_script("\n".join(cells).replace('assert "torch" not in', "str not in"), monkeypatch)
    assert told.keys() == run_script(export("trl", document), monkeypatch).keys()
    assert all(line.endswith("\n") for cell in found["cells"] for line in cell["source"][:-1])


def test_a_notebook_as_text_runs_as_a_script(document: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    text = export("percent", document)
    titles = [line for line in text.splitlines() if line.startswith("# %%")]
    assert titles == [
        "# %% [markdown]", "# %% Install", "# %% Imports", "# %% Config", "# %% Model", "# %% Data", "# %% Trainer",
        "# %% Train",
    ]  # fmt: skip
    assert run_script(text, monkeypatch).keys() == run_script(export("trl", document), monkeypatch).keys()


@pytest.mark.parametrize(
    ("data", "call"),
    [
        ("rows.jsonl", 'load_dataset("json", data_files=DATA, split="train")'),
        ("rows.csv", 'load_dataset("csv", data_files=DATA, split="train")'),
        ("rows.tsv", 'load_dataset("csv", data_files=DATA, delimiter="\\t", split="train")'),
        ("a/rows.parquet", 'load_dataset("parquet", data_files=DATA, split="train")'),
        ("tatsu-lab/alpaca", 'load_dataset(DATA, split="train")'),
    ],
)
def test_samples_are_loaded_as_what_they_are(document: dict[str, Any], data: str, call: str) -> None:
    assert call in export("trl", document, data)


def test_data(document: dict[str, Any]) -> None:
    assert 'DATA = "train.jsonl"' in export("trl", document)
    document["data"] = {"path": "chats.jsonl"}
    assert 'DATA = "chats.jsonl"' in export("trl", document)
    assert 'DATA = "other.jsonl"' in export("trl", document, data="other.jsonl")


def test_refused(document: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=", ".join(KINDS)):
        export("unsloth", document)
    with pytest.raises(InputError, match="names its model"):
        export("trl", {**document, "model": {}})
    document["run"]["target_modules"] = "attention"
    for kind in ("axolotl", "llama-factory"):
        with pytest.raises(InputError, match="q_proj"):
            export(kind, document)


def test_accelerate_reads_its_config(document: dict[str, Any], tmp_path: Any) -> None:
    pytest.importorskip("accelerate")
    from accelerate.commands.config.config_args import load_config_from_file

    path = tmp_path / "accelerate.yaml"
    for change, precision in (({}, "bf16"), ({"trainer": "loop"}, "no"), ({"compute_dtype": "float16"}, "fp16")):
        path.write_text(export("accelerate", {**document, "run": {**document["run"], **change}}))
        found = load_config_from_file(str(path))
        assert (found.mixed_precision, found.num_processes) == (precision, 1)
        assert found.distributed_type.value == "NO"


SEVERAL = [
    ({"parallel": "ddp"}, "MULTI_GPU", None),
    (
        {"parallel": "fsdp2", "optimizer": "adamw_torch_fused", "quant_storage": "bfloat16", "load_on": "cpu",
         "reshard_after_forward": True},
        "FSDP",
        {"fsdp_version": 2, "fsdp_reshard_after_forward": True, "fsdp_state_dict_type": "FULL_STATE_DICT",
         "fsdp_cpu_ram_efficient_loading": False, "fsdp_activation_checkpointing": False},
    ),
    (
        {"parallel": "fsdp1", "quant_storage": "bfloat16", "load_on": "cpu"}, "FSDP",
        {"fsdp_version": 1, "fsdp_sharding_strategy": "FULL_SHARD", "fsdp_state_dict_type": "FULL_STATE_DICT"},
    ),
    ({"parallel": "zero2"}, "DEEPSPEED", None),
]  # fmt: skip


@pytest.mark.parametrize(("options", "kind", "fsdp"), SEVERAL, ids=lambda value: str(value)[:40])
@pytest.mark.parametrize(("count", "nodes"), [(2, 1), (8, 2)])
def test_accelerate_reads_its_config_of_several_cards(
    document: dict[str, Any], tmp_path: Any, options: dict[str, Any], kind: str, fsdp: Any, count: int, nodes: int
) -> None:
    pytest.importorskip("accelerate")
    from accelerate.commands.config.config_args import load_config_from_file

    several = {
        **document, "gpu": {**document["gpu"], "count": count, "nodes": nodes},
        "run": {**document["run"], "quant_storage": "uint8", "load_on": "gpu", **options},
    }  # fmt: skip
    path = tmp_path / "accelerate.yaml"
    path.write_text(export("accelerate", several))
    config = load_config_from_file(str(path))
    assert config.distributed_type.value == kind
    assert (config.num_processes, config.num_machines, config.mixed_precision) == (count * nodes, nodes, "bf16")
    if fsdp is not None:
        assert fsdp.items() <= config.fsdp_config.items()
    script = export("trl", several)
    compile(script, "train.py", "exec")
    assert 'int(os.environ.get("LOCAL_RANK", 0))' in script
    assert ("ddp_find_unused_parameters=False" in script) == (options["parallel"] == "ddp")
    assert ("bnb_4bit_quant_storage=torch.bfloat16" in script) == ("quant_storage" in options)
    assert ('device_map={"": "cpu"}' in script) == (options.get("load_on") == "cpu")


def test_what_launches_no_process_a_card_is_not_written_as_if_it_did(document: dict[str, Any]) -> None:
    pipeline = {**document, "run": {**document["run"], "parallel": "pipeline"}}
    sharded = {**document, "run": {**document["run"], "parallel": "fsdp2", "optimizer": "adamw_torch"}}
    partitioned = {**document, "run": {**sharded["run"], "parallel": "zero3"}}
    for kind, plan in (("accelerate", pipeline), ("trl", pipeline), ("axolotl", partitioned), ("notebook", sharded)):
        with pytest.raises(InputError, match=f"--export {kind}"):
            export(kind, plan)
