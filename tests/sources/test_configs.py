"""config.json from anybody: good ones are read, bad ones are refused in one line that names the file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qlora_planner.errors import InputError, PlannerError
from qlora_planner.sources.configs import config_faults, config_sha256, is_hub_id, read_config, written_as_path
from qlora_planner.sources.json_files import LARGEST_BYTES

TRUTH = Path(__file__).parents[1] / "data" / "truth" / "configs"

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100,
    "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "tie_word_embeddings": False,
}  # fmt: skip

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def written(folder: Path, content: bytes | str | dict[str, Any]) -> Path:
    path = folder / "config.json"
    if isinstance(content, dict):
        content = json.dumps(content)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def fault(path: str | Path) -> str:
    with pytest.raises(InputError) as caught:
        read_config(path)
    assert str(caught.value).isprintable()
    return str(caught.value)


@pytest.mark.parametrize("path", sorted(TRUTH.glob("*.json")), ids=lambda path: path.stem)
def test_real_configs_are_read(path: Path) -> None:
    raw = read_config(path)
    assert raw.id == path.stem
    assert raw.origin == "file"
    assert raw.config["model_type"]


def test_a_folder_is_read_by_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "My-Model"
    folder.mkdir()
    written(folder, LLAMA)
    raw = read_config(folder)
    assert (raw.id, raw.origin, raw.weights_present, raw.path) == ("My-Model", "folder", False, folder / "config.json")
    (folder / "model-00001-of-00002.safetensors").touch()
    assert read_config(str(folder)).weights_present
    assert read_config(folder / "config.json").id == "My-Model"


def test_a_file_name_can_hold_the_id(tmp_path: Path) -> None:
    (tmp_path / "org__name.json").write_text(json.dumps(LLAMA))
    assert read_config(tmp_path / "org__name.json").id == "org/name"
    assert read_config(tmp_path / "org__name.json", model_id="a/b").id == "a/b"


def test_a_quantised_checkpoint_keeps_saying_so(tmp_path: Path) -> None:
    path = written(tmp_path, LLAMA | {"quantization_config": {"quant_method": "mxfp4"}})
    assert read_config(path).config["quantization_config"] == {"quant_method": "mxfp4"}


def test_the_hash_is_of_the_model_not_of_the_file() -> None:
    same = dict(reversed(LLAMA.items())) | {"transformers_version": "5.1", "_name_or_path": "/home/x"}
    assert config_sha256(same) == config_sha256(LLAMA)
    nested = {"text_config": LLAMA}
    assert config_sha256({"text_config": LLAMA | {"transformers_version": "4"}}) == config_sha256(nested)
    assert config_sha256(LLAMA | {"torch_dtype": "float32"}) != config_sha256(LLAMA)
    assert config_sha256(LLAMA | {"vocab_size": 101}) != config_sha256(LLAMA)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b" \n\t", "is empty"),
        (b"{", "is not JSON: Expecting property name"),
        (b"not json", "is not JSON: Expecting value at line 1, column 1"),
        (b'{"a": 1,}', "is not JSON"),
        (b"\xff\xfe\x00", "is not UTF-8 text (byte 0)"),
        (b'{"model_type": "\xe9"}', "is not UTF-8 text (byte 16)"),
        (b"[1, 2]", "must hold a JSON object, not [1, 2]"),
        (b"null", "must hold a JSON object, not None"),
        (b"[" * 100_000, "is nested too deeply"),
        (b'{"a": ' * 100_000, "is nested too deeply"),
        (b'{"hidden_size": ' + b"9" * 5000 + b"}", "is not JSON: Exceeds the limit"),
        (b'{"hidden_size": 64, "hidden_size": 65}', "'hidden_size' is given twice"),
        (b"{}", "lacks model_type; lacks hidden_size; lacks num_hidden_layers; lacks vocab_size"),
    ],
    ids=range(14),
)
def test_what_is_no_config_is_refused(tmp_path: Path, content: bytes, says: str) -> None:
    path = written(tmp_path, content)
    message = fault(path)
    assert message.startswith(f"{path}: ")
    assert says in message


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model_type": None}, "lacks model_type"),
        ({"model_type": 7}, "model_type must be a text, not 7"),
        ({"model_type": " "}, "model_type must be a text"),
        ({"hidden_size": "64"}, "hidden_size must be a whole number, not '64'"),
        ({"hidden_size": 64.0}, "hidden_size must be a whole number, not 64.0"),
        ({"hidden_size": True}, "hidden_size must be a whole number, not True"),
        ({"hidden_size": None}, "hidden_size must be a whole number, not None"),
        ({"hidden_size": -64}, "hidden_size must be from 1 to 10,000,000, not -64"),
        ({"hidden_size": 0}, "hidden_size must be from 1"),
        ({"hidden_size": 10**8}, "hidden_size must be from 1"),
        ({"hidden_size": []}, "hidden_size must be a whole number, not []"),
        ({"intermediate_size": [128, "x"]}, "intermediate_size must be a whole number, not 'x'"),
        ({"num_hidden_layers": 10**5}, "num_hidden_layers must be from 1 to 1,000, not 100000"),
        ({"vocab_size": 10**9}, "vocab_size must be from 1 to 100,000,000"),
        ({"num_attention_heads": 0}, "num_attention_heads must be from 1"),
        ({"num_key_value_heads": -2}, "num_key_value_heads must be from 1"),
        ({"rope_theta": "1e4"}, "rope_theta must be a number, not '1e4'"),
        ({"quantization_config": "4bit"}, "quantization_config must be an object, not '4bit'"),
        ({"text_config": {"hidden_size": "big"}}, "text_config.hidden_size must be a whole number"),
    ],
    ids=str,
)
def test_bad_fields_are_named(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    assert says in fault(written(tmp_path, LLAMA | change))


def test_all_faults_come_in_one_line(tmp_path: Path) -> None:
    message = fault(written(tmp_path, LLAMA | {"hidden_size": "x", "vocab_size": -1, "model_type": 3}))
    assert message.count("; ") == 2


@pytest.mark.parametrize(
    "change",
    [
        {"num_key_value_heads": None},
        {"intermediate_size": [128, 256]},
        {"time_step_limit": [0.0, float("inf")]},
        {"num_local_experts": 0},
        {"quantization_config": None},
    ],
    ids=str,
)
def test_odd_but_valid_fields_pass(tmp_path: Path, change: dict[str, Any]) -> None:
    assert read_config(written(tmp_path, LLAMA | change)).sha256


def test_a_byte_order_mark_and_a_repeated_equal_key_pass(tmp_path: Path) -> None:
    text = json.dumps(LLAMA)
    assert read_config(written(tmp_path, b"\xef\xbb\xbf" + text.encode())).config == LLAMA
    assert read_config(written(tmp_path, text[:-1] + ', "vocab_size": 100}')).config == LLAMA


def test_a_multimodal_config_may_leave_sizes_to_its_classes() -> None:
    assert config_faults({"model_type": "llava", "text_config": {"model_type": "llama"}}) == []


def test_what_is_not_there_is_told_apart(tmp_path: Path) -> None:
    assert fault(tmp_path / "nope.json").endswith("nope.json: no such file")
    assert fault(tmp_path / "nope").endswith("nope: no such file or folder")
    assert "a folder without config.json" in fault(tmp_path)
    (tmp_path / "model.gguf").touch()
    assert "holds GGUF files" in fault(tmp_path)
    (tmp_path / "adapter_config.json").touch()
    assert "holds a PEFT adapter" in fault(tmp_path)
    assert fault("a\0b.json") == "a?b.json: no such file"
    assert "no such file" in fault("x\ny/config.json")
    assert "cannot be read" in fault("~no-such-user-here/config.json")
    assert "cannot be read" in fault("n" * 5000)


def test_devices_folders_and_giants_are_not_read(tmp_path: Path) -> None:
    assert "is not a regular file" in fault("/dev/zero")
    os.mkfifo(tmp_path / "pipe.json")
    assert "is not a regular file" in fault(tmp_path / "pipe.json")
    (tmp_path / "config.json").mkdir()
    assert "is a folder" in fault(tmp_path)
    with (tmp_path / "big.json").open("wb") as file:
        file.truncate(LARGEST_BYTES + 1)
    assert "MiB large" in fault(tmp_path / "big.json")


def test_an_unreadable_file_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, LLAMA)

    def refused(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("qlora_planner.bounded.os.open", refused)
    assert fault(path) == f"{path}: cannot be read: Permission denied"


@pytest.mark.parametrize("text", ["./x", "../x", "/x", "~/x", "x/", "a/b/", "config.json", "a/b.json", ".", ".."])
def test_paths_are_known_by_their_looks(text: str) -> None:
    assert written_as_path(text)


@pytest.mark.parametrize("text", ["gpt2", "org/name", "Qwen/Qwen2.5-7B", "a_b/c.d-e"])
def test_hub_ids_are_known_by_their_looks(text: str) -> None:
    assert is_hub_id(text)
    assert not written_as_path(text)


@pytest.mark.parametrize(
    "text", ["", "a b", "a/b/c", "a/", "/a", "a--b", "a/..", "x.git", "x-", "n" * 97, "a\n", "é/é"]
)
def test_other_texts_are_no_hub_ids(text: str) -> None:
    assert not is_hub_id(text)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200) | JSON.map(lambda raw: json.dumps(raw).encode()))
def test_garbage_is_refused_or_read(tmp_path: Path, content: bytes) -> None:
    path = written(tmp_path, content)
    try:
        read_config(path)
    except PlannerError as error:
        assert str(error).isprintable()


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from([*LLAMA, "text_config", "quantization_config", "head_dim"]), JSON, max_size=4))
def test_a_changed_config_is_refused_or_read(tmp_path: Path, change: dict[str, Any]) -> None:
    path = written(tmp_path, LLAMA | change)
    try:
        raw = read_config(path)
    except PlannerError as error:
        assert str(error).isprintable()
    else:
        assert len(raw.sha256) == 64


@settings(deadline=None)
@given(st.text(max_size=40))
def test_any_path_text_is_refused_in_one_line(text: str) -> None:
    try:
        read_config(text)
    except PlannerError as error:
        assert str(error).isprintable()
