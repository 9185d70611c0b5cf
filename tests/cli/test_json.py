"""The JSON of the stable surface: every key it names is there, with the type it names, whatever the verdict."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest

from qlora_planner.spec.run import RUN_FIELDS
from tests.cli.conftest import Invoke

MODEL = "llama-3.1-8b"
PHASES = ["load", "prepare", "adapters", "forward", "loss", "backward", "optimizer", "eval", "save"]
COMPONENTS = {
    "quantized_weights", "quantization_constants", "unquantized_weights", "adapters", "gradients", "optimizer_states",
    "checkpoints", "activations", "logits_and_loss", "workspace", "allocator_slack", "cuda_context",
}  # fmt: skip
KEYS = {
    "schema": None,
    "model": {"id", "model_type", "params", "trainable_params", "profile"},
    "run": {
        "method", "quant", "double_quant", "compute_dtype", "seq_len", "batch_size", "grad_accum", "rank", "alpha",
        "target_modules", "lora_dropout", "dora", "gradient_checkpointing", "use_reentrant", "attention", "optimizer",
        "trainer", "upcast", "liger", "activation_offloading", "alloc_conf", "packing", "padding", "eval_batch_size",
        "stack",
    },
    "stack": {"torch", "transformers", "peft", "bitsandbytes", "trl"},
    "static_bytes": {"after_load", "after_prepare", "after_adapters", "before_training"},
    "phases": None,
    "components": COMPONENTS,
    "peak": {"phase", "allocated_bytes", "reserved_bytes", "device_bytes", "low_bytes", "high_bytes"},
    "floor_bytes": None,
    "host": {"paged_bytes", "offloaded_bytes", "load_peak_bytes", "load_file_bytes"},
    "speed": {"tokens_per_s", "step_s", "basis"},
    "fit": {
        "gpu", "capacity_bytes", "usable_bytes", "headroom_bytes", "verdict", "probability_oom", "reasons",
    },
    "problems": None,
    "basis": COMPONENTS,
}  # fmt: skip


def check_estimate(document: dict[str, Any]) -> None:
    for name, keys in KEYS.items():
        assert name in document, name
        if keys is not None and document[name] is not None:
            assert keys <= set(document[name]), (name, keys - set(document[name]))
    assert document["schema"] == "qlora-plan/estimate/1"
    assert set(document["model"]["profile"]) >= {"source", "versions"}
    assert document["model"]["profile"]["source"] in ("catalogue", "cache", "built")
    assert set(document["run"]) == {*RUN_FIELDS, "batch_unit"}
    assert [phase["name"] for phase in document["phases"]] == PHASES
    for phase in document["phases"]:
        figures = [phase[name] for name in ("allocated_bytes", "reserved_bytes", "device_bytes")]
        assert all(figure is None for figure in figures) or all(type(figure) is int for figure in figures)
    assert all(type(size) is int for size in document["components"].values())
    assert sum(document["components"].values()) == document["peak"]["device_bytes"]
    assert document["peak"]["phase"] in PHASES
    assert all(type(size) is int for size in document["static_bytes"].values())
    assert type(document["floor_bytes"]) is int
    assert set(document["basis"].values()) <= {"counted", "derived", "calibrated", "assumed"}
    for problem in document["problems"]:
        assert {"code", "message", "fix"} <= set(problem)
    fit = document["fit"]
    if fit is not None:
        assert fit["verdict"] in ("fits", "tight", "does-not-fit", "will-not-run")
        assert all(type(fit[name]) is int for name in ("capacity_bytes", "usable_bytes", "headroom_bytes"))
        assert isinstance(fit["reasons"], list)
        assert fit["probability_oom"] is None or 0 <= fit["probability_oom"] <= 1


@pytest.mark.parametrize(
    ("args", "verdict"),
    [
        (("--gpu", "24GB"), "fits"),
        (("--gpu", "6GB"), "does-not-fit"),
        (("--gpu", "t4", "--compute-dtype", "float16", "--trainer", "trl-sft"), "will-not-run"),
        (("--gpu", "rtx 4090", "--eval-batch-size", "2", "--reserve", "800MiB", "--cap", "20GiB"), None),
        ((), None),
    ],
)
def test_estimate(invoke: Invoke, args: tuple[str, ...], verdict: str | None) -> None:
    result = invoke("estimate", MODEL, *args, "--json")
    document = json.loads(result.stdout)
    check_estimate(document)
    assert (document["fit"] is None) == (not args)
    if verdict:
        assert document["fit"]["verdict"] == verdict
    assert result.exit_code == (1 if verdict in ("does-not-fit", "will-not-run") else 0)


def test_every_run_option_reaches_the_run(invoke: Invoke) -> None:
    wanted: dict[str, Any] = {
        "method": "qlora", "quant": "fp4", "double_quant": False, "compute_dtype": "bfloat16", "seq_len": 1024,
        "load_dtype": "float16",
        "batch_size": 2, "grad_accum": 4, "rank": 8, "alpha": 24, "target_modules": "q_proj,v_proj",
        "modules_to_save": "embed_tokens", "lora_dropout": 0.1, "dora": True, "rslora": True,
        "checkpoint_every": 3, "checkpoint_offload": True, "loss_kernel": "full", "expert_quant": "none",
        "gradient_checkpointing": False, "use_reentrant": True, "attention": "eager", "optimizer": "adamw_torch",
        "trainer": "hf-trainer", "upcast": True, "liger": True, "activation_offloading": True,
        "alloc_conf": "expandable_segments:True", "packing": True, "padding": True, "eval_batch_size": 3,
        "prompt_len": 100, "completion_len": 200, "max_length": 250, "loss_type": "ipo", "beta": 0.2,
        "precompute_ref_log_probs": True, "num_generations": 4, "num_iterations": 2, "steps_per_generation": 8,
        "scale_rewards": "batch",
        "vllm": "colocate", "vllm_gpu_memory_utilization": 0.5, "vllm_enable_sleep_mode": True,
        "task": "classification", "num_labels": 3, "exclude_modules": "v_proj",
        "image_size": None, "images": None, "image_tokens": None,
        "stack": {"trl": "1.13", "transformers": "5.17"},
        "parallel": "fsdp2", "quant_storage": "float16", "reshard_after_forward": False, "load_on": "gpu",
        "ddp_backend": "gloo",
    }  # fmt: skip
    assert set(wanted) == set(RUN_FIELDS)
    args = []
    for name, value in wanted.items():
        option = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            args.append(option if value else option.replace("--", "--no-", 1))
        elif isinstance(value, dict):
            args += [option, ",".join(f"{package}={version}" for package, version in value.items())]
        elif value is not None:
            args += [option, str(value)]
    result = invoke("estimate", MODEL, "--json", "--gpu", "2x24GB", *args)
    assert json.loads(result.stdout)["run"] == {**wanted, "batch_unit": "sequences"}, result.stderr


@pytest.mark.parametrize(("trainer", "seq_len", "max_length"), [("hf-trainer", 1024, None), ("trl-dpo", 1024, 1024)])
def test_max_length_is_the_sequence_where_a_row_is_one_text(
    invoke: Invoke, trainer: str, seq_len: int, max_length: int | None
) -> None:
    result = invoke("estimate", MODEL, "--trainer", trainer, "--max-length", "1024", "--json")
    run = json.loads(result.stdout)["run"]
    assert (run["seq_len"], run["max_length"]) == (seq_len, max_length)


def test_every_option_of_images_reaches_the_run(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QLORA_PLANNER_TRACE", "never")
    options = ("--image-size", "504x504", "--images", "2", "--image-tokens", "324")
    document = json.loads(invoke("estimate", "qwen2.5-vl-3b", "--gpu", "24GB", "--json", *options).stdout)
    assert {name: document["run"][name] for name in ("image_size", "images", "image_tokens")} == {
        "image_size": "504x504", "images": 2, "image_tokens": 324,
    }  # fmt: skip
    assert document["fit"]["verdict"] == "cannot-say"  # no trace


def test_only_what_was_typed_is_explicit(invoke: Invoke) -> None:
    document = json.loads(invoke("estimate", MODEL, "--json", "--rank", "8").stdout)
    assert document["run"]["alpha"] == 16
    assert document["run"]["quant"] == "nf4"
    assert {"alpha", "quant", "trainer"} <= set(document["resolved"])
    assert "alpha" not in json.loads(invoke("estimate", MODEL, "--json", "--alpha", "8").stdout)["resolved"]


def test_plan(invoke: Invoke) -> None:
    result = invoke(MODEL, "--gpu", "24GB", "--json")
    document = json.loads(result.stdout)
    assert {
        "model", "gpu", "run", "estimate", "alternatives", "prices", "frontier", "objective", "data", "stack",
    } <= set(document)  # fmt: skip
    check_estimate(document["estimate"])
    assert json.loads(invoke("plan", MODEL, "--gpu", "24GB", "--json").stdout) == document
    assert result.exit_code == 0


def test_survey_gives_every_model(invoke: Invoke) -> None:
    models = json.loads(invoke("models", "--json").stdout)["models"]
    document = json.loads(invoke("--gpu", "24GB", "--json").stdout)
    assert {row["model_id"] for row in document["models"]} == {row["model"] for row in models}
    assert document["played"] is False
    table = list(csv.DictReader(io.StringIO(invoke("--gpu", "24GB", "--csv").stdout)))
    assert [row["model"] for row in table] == [row["model_id"] for row in document["models"]]
    assert all(row["verdict"] and row["recipe"] for row in table)


def test_survey_reads_the_index_only_as_a_shortcut(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = json.loads(invoke("--gpu", "16GB", "--json").stdout)
    monkeypatch.setattr("qlora_planner.session.surveying.indexed.serves", lambda run: False)
    slow = json.loads(invoke("--gpu", "16GB", "--json").stdout)
    assert {**slow, "models": []} == {**quick, "models": []}
    # Of each range of sizes the index holds one tape, of the usual length; what fits at most may lie in another.
    sizes = {"largest_batch": None, "longest_seq_len": None, "recommended": None}
    traced = [{row["model_id"]: row for row in answer["models"] if row["traced"]} for answer in (quick, slow)]
    assert len(traced[0]) > 100
    without = [{name: row | sizes for name, row in rows.items()} for rows in traced]
    assert without[0] == without[1]
    longest = [{name: row["longest_seq_len"] for name, row in rows.items()} for rows in traced]
    assert sum(longest[0][name] != longest[1][name] for name in longest[0]) < 10


def test_the_verb_may_come_last(invoke: Invoke) -> None:
    first = invoke("estimate", MODEL, "--gpu", "24GB", "--json")
    assert invoke("--gpu", "24GB", "--json", "estimate", MODEL).stdout == first.stdout
    assert invoke("--gpu=24GB", "estimate", "--json", MODEL).stdout == first.stdout


@pytest.mark.parametrize("args", [["audit", MODEL], ["gpus"], ["gpus", "4090"], ["models", "qwen"]])
def test_other_verbs(invoke: Invoke, args: list[str]) -> None:
    result = invoke(*args, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["schema"].startswith("qlora-plan/")


@pytest.mark.parametrize("verb", ["gpus", "models"])
def test_catalogues_as_csv(invoke: Invoke, verb: str) -> None:
    rows = list(csv.reader(io.StringIO(invoke(verb, "--csv").stdout)))
    assert len(rows) > 40
    assert len({len(row) for row in rows}) == 1
