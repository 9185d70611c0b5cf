"""Published schemas: answers that they were not learnt from are valid by them, and the stable surface is in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from qlora_planner.cli.main import cli

jsonschema = pytest.importorskip("jsonschema")
ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "qlora_planner" / "schemas"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
KILLED = "Killed\n[1234.5] Out of memory: Killed process 4711 (python) total-vm:91234567kB, anon-rss:61234567kB\n"


def schema(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return found


def answer(*words: str) -> dict[str, Any]:
    done = CliRunner().invoke(cli, [*words, "--json"], env={"QLORA_PLANNER_TRACE": "never", "HF_HUB_OFFLINE": "1"})
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_schema_is_one(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(schema(name))
    assert schema(name)["title"].startswith(f"qlora-plan/{name}/")


@pytest.mark.parametrize(
    "words",
    [
        ["estimate", "phi-3-mini-4k", "--gpu", "8GB", "--explain"],
        ["estimate", "mistral-7b-v0.3", "--gpu", "4xa100-80gb", "--parallel", "ddp"],
        ["estimate", "llama-3.1-8b", "--gpu", "24GB", "--trainer", "trl-kto", "--eval-batch-size", "2"],
        ["estimate", "qwen2.5-7b", "--stack", "trl=1.13", "--attention", "eager"],
        ["plan", "mistral-7b-v0.3", "--gpu", "t4"],
        ["plan", "mistral-7b-v0.3", "--gpu", "24GB", "--trainer", "trl-grpo", "--num-generations", "1"],
        ["audit", "mistral-7b-v0.3"],
        ["gpus", "rtx"],
        ["models", "gemma"],
        ["doctor", "CUDA error: no kernel image is available for execution on the device"],
        ["explain-oom", "{log}"],
    ],
    ids=" ".join,
)
def test_an_answer_is_valid_by_the_schema_that_it_names(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    log = tmp_path / "log"
    log.write_text(KILLED, encoding="utf-8")
    document = answer(*(word.format(log=log) for word in words))
    jsonschema.validate(document, schema(document["schema"].split("/")[1]))


def test_the_estimates_schema_has_the_stable_surface() -> None:
    parts = schema("estimate")
    stable = {
        "": ("schema", "model", "run", "stack", "static_bytes", "phases", "components", "peak", "floor_bytes", "host",
             "speed", "fit", "problems", "basis"),
        "static_bytes": ("after_load", "after_prepare", "after_adapters"),
        "peak": ("phase", "allocated_bytes", "reserved_bytes", "device_bytes", "low_bytes", "high_bytes"),
        "host": ("paged_bytes", "offloaded_bytes", "load_peak_bytes"),
        "speed": ("tokens_per_s", "step_s", "basis"),
        "fit": ("gpu", "capacity_bytes", "usable_bytes", "headroom_bytes", "verdict", "probability_oom", "reasons"),
    }  # fmt: skip
    for name, keys in stable.items():
        part = parts["properties"][name] if name else parts
        (described,) = [one for one in part.get("anyOf", [part]) if "required" in one]
        assert set(keys) <= set(described["required"]), name


def test_a_wrong_answer_is_not_valid() -> None:
    document = answer("estimate", "llama-3.1-8b", "--gpu", "24GB")
    document["fit"]["verdict"] = "maybe"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, schema("estimate"))
    document["fit"]["verdict"] = "fits"
    del document["peak"]["device_bytes"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, schema("estimate"))


def test_every_schema_is_on_its_page() -> None:
    page = (ROOT / "docs" / "json.md").read_text(encoding="utf-8")
    assert [name for name in NAMES if f"../qlora_planner/schemas/{name}.json" not in page] == []
