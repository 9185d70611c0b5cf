"""Values of the wrong type where a library wrote none, and adapters in another form: one line each."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import click.testing
import pytest

from qlora_planner.catalog.gpus.card_file import read_card
from qlora_planner.cli.main import cli
from qlora_planner.errors import InputError
from qlora_planner.evidence.calibration_file import calibration_from_dict
from qlora_planner.evidence.checks import _is_seconds
from qlora_planner.runs.after.base import find_base
from qlora_planner.runs.after.finished import read_finished

LLAMA = json.loads(
    (Path(__file__).parent / "data" / "truth" / "configs" / "llama-3.2-1b.json").read_text(encoding="utf-8")
)


@pytest.mark.parametrize("value", [5, "LlamaForCausalLM", [5], [None], {}, True], ids=repr)
@pytest.mark.fault(
    "`architectures: 5` in a config.json", said="architectures must be a list of class names", exit=2, part="outside"
)
def test_architectures_of_another_type_are_refused(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**LLAMA, "architectures": value}))
    for verb in ("audit", "estimate"):
        result = click.testing.CliRunner().invoke(cli, [verb, str(path)], prog_name="qlora-plan")
        assert result.exit_code == 2, result.stderr
        assert "architectures must be a list of class names" in result.stderr
        assert len(result.stderr.splitlines()) == 1


@pytest.mark.fault(
    "a config of 10,000 layers", said="num_hidden_layers must be from 1 to 1,000", exit=2, part="outside"
)
def test_a_config_of_ten_thousand_layers_is_refused_before_it_is_built(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**LLAMA, "num_hidden_layers": 10_000}))
    result = click.testing.CliRunner().invoke(cli, ["audit", str(path)], prog_name="qlora-plan")
    assert result.exit_code == 2
    assert "num_hidden_layers must be from 1 to 1,000" in result.stderr


def adapter(folder: Path, **files: bytes) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "a/b"}))
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_bytes(content)
    return folder


@pytest.mark.fault("an adapter stored as a pickle", said="which can hold code and is not read", exit=2, part="outside")
def test_an_adapter_stored_as_a_pickle_is_never_opened(tmp_path: Path) -> None:
    class Runs:
        def __reduce__(self) -> tuple[Any, ...]:
            return (open, (str(tmp_path / "ran"), "w"))

    folder = adapter(tmp_path / "run", adapter_model__bin=pickle.dumps(Runs()))
    with pytest.raises(InputError, match=r"as a pickle .adapter_model.bin., which can hold code and is not read"):
        read_finished(str(folder))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "claims 0 bytes"),
        (b"\xff" * 8, "header claims 18,446,744,073,709,551,615 bytes"),
        ((1 << 40).to_bytes(8, "little") + b"{}", "header claims 1,099,511,627,776 bytes"),
        ((4096).to_bytes(8, "little") + b"{}", "cut off in its header"),
        ((2 << 20).to_bytes(8, "little") + b"[1" + b",1" * (1 << 20), "more than 1,000,000 values"),
    ],
    ids=["empty", "ones", "a terabyte", "cut off", "a million values"],
)
@pytest.mark.fault(
    "an adapter whose header claims terabytes, or lists millions of values",
    said="header claims 1,099,511,627,776 bytes",
    exit=2,
    part="outside",
)
def test_a_header_that_claims_what_is_not_there(tmp_path: Path, content: bytes, why: str) -> None:
    folder = adapter(tmp_path / "run", adapter_model__safetensors=content)
    with pytest.raises(InputError, match=why):
        read_finished(str(folder))


def test_an_adapter_without_weights_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no adapter_model\.safetensors"):
        read_finished(str(adapter(tmp_path / "run")))


def test_numbers_of_400_digits_are_no_measurements() -> None:
    """They cannot become floats: isfinite raised an OverflowError."""
    assert not _is_seconds(10**400)
    raw = {"schema": "qlora-plan/calibration/1", "created": "2026-01-01", "contexts": {},
           "residuals": {"traced": {"device_bytes": [10**400]}}}  # fmt: skip
    with pytest.raises(InputError):
        calibration_from_dict(raw)


def test_a_card_file_of_a_thousand_faults_is_short() -> None:
    document = {f"{'k' * 10_000}{number}": 1 for number in range(1_000)}
    with pytest.raises(InputError) as caught:
        read_card("x", {**document, "bandwidth_gb_per_s": 10**400}, "x.toml")
    assert len(str(caught.value)) < 12_000


@pytest.mark.parametrize(
    "name", ["9" * 400 + ".safetensors", "m\u202e-1.safetensors", "../x.safetensors", "a\0.safetensors"], ids=range(4)
)
@pytest.mark.fault(
    "an index of weights that names files elsewhere", said="is no name of a weight file", exit=2, part="outside"
)
def test_an_index_of_weights_names_files_that_can_be(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(InputError, match="is no name of a weight file") as caught:
        find_base([], str(tmp_path), print)
    assert str(caught.value).isprintable()
