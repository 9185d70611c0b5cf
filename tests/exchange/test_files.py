"""YAML that cannot be used is refused in one line that names the file; nothing in it is ever run."""

from __future__ import annotations

from pathlib import Path

import pytest

from qlora_planner.errors import InputError
from qlora_planner.exchange.files import read_yaml, write_text


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_yaml(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [1, 2", "line 1"),
        ("- a\n- b\n", "not a list"),
        ("just words", "bare value 'just words'"),
        ("", "is empty"),
        ("a: 1\nb: 2\na: 3\n", "'a' is given twice"),
        ('{"a": 1, "a": 2}', "'a' is given twice"),
        ("1: one\n", "1 is no name"),
        ("a: 1\n---\nb: 2\n", "another document"),
        pytest.param("[" * 3000, "is no YAML", id="deep"),
    ],
)
def test_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    assert says in refusal(path)


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system ['touch {mark}']", "!!python/name:os.system"])
def test_no_code_is_run(tmp_path: Path, tag: str) -> None:
    mark, path = tmp_path / "mark", tmp_path / "run.yaml"
    path.write_text("base_model: " + tag.format(mark=mark) + "\n")
    assert "could not determine a constructor" in refusal(path)
    assert not mark.exists()


def test_what_is_no_text_file(tmp_path: Path) -> None:
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    assert "no UTF-8 text" in refusal(tmp_path / "bytes.yaml")
    assert "is a folder" in refusal(tmp_path)
    assert "no such file" in refusal(tmp_path / "nowhere.yaml")


def test_json_with_tabs_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text('\ufeff{\n\t"a": 1\n}', encoding="utf-8")
    assert read_yaml(path) == {"a": 1}


def test_a_file_is_written_whole_and_not_over_another(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    write_text(path, "one")
    with pytest.raises(InputError, match="--force"):
        write_text(path, "two")
    assert path.read_text() == "one"
    write_text(path, "two", force=True)
    assert path.read_text() == "two"
    assert [one.name for one in tmp_path.iterdir()] == ["plan.yaml"]
    with pytest.raises(InputError, match="is a folder"):
        write_text(tmp_path, "three", force=True)
    with pytest.raises(InputError, match="cannot be written"):
        write_text(tmp_path / "nowhere" / "plan.yaml", "three")
