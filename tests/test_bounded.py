"""Files that ask for more than there is: refused by name of the bound, at once, and without the memory they ask for."""

from __future__ import annotations

import gzip
import json
import os
import time
import tracemalloc
from pathlib import Path

import pytest

from qlora_planner import bounded
from qlora_planner.errors import InputError
from qlora_planner.exchange.files import read_yaml
from qlora_planner.sources.json_files import read_object


def aliases(levels: int, times: int, *, merge: bool = False) -> str:
    """Each line stands `times` over for the one before it."""
    lines = ["a0: &a0 {x: 1}" if merge else "a0: &a0 [x, x]"]
    for level in range(1, levels):
        inside = ", ".join([f"*a{level - 1}"] * times)
        lines.append(f"a{level}: &a{level} " + (f"{{<<: [{inside}]}}" if merge else f"[{inside}]"))
    return "\n".join(lines)


YAML = {
    "aliases that multiply": (aliases(20, 9), "aliases multiply to more than"),
    "merges that multiply": (aliases(12, 9, merge=True), "aliases multiply to more than"),
    "an alias in itself": ("a: &a [*a]", "part of"),
    "100,000 keys": ("".join(f"k{i}: 1\n" for i in range(60_000)), "more than 50,000 tokens"),
    "100,000 keys of JSON, twice": ("{" + ",".join(f'"k{i % 50_000}":1' for i in range(70_000)) + "}", "given twice"),
    "deep lists": ("a: " + "[" * 20_000, "nested too deeply"),
    "deep dashes": ("- " * 30_000, "nested too deeply"),
    "deep JSON": ('{"a":' * 5_000 + "1" + "}" * 5_000, "nested too deeply"),
    "deep JSON that parses": ('{"a": "[", "b":' + "[" * 300 + "]" * 300 + "}", "nested too deeply"),
    "JSON of a million values": ('{"a": [' + "[]," * 360_000 + "1]}", "MiB"),
    "two megabytes": ("a: " + "x" * (2 << 20), "MiB large"),
    "5,000 digits": ("a: " + "9" * 5_000, "digits"),
    "a boolean that is none": ("a: !!bool maybe", "'maybe'"),
    "a number that is none": ('a: !!int ""', "does not suit"),
    "a time that is none": ("a: !!timestamp x", "does not suit"),
    "a day that is none": ("a: 2024-99-99", "month"),
    "bytes that are none": ("a: !!binary ü", "base64"),
    "a tag that calls": ("a: !!python/object/apply:os.system [true]", "constructor"),
}


@pytest.mark.parametrize("name", YAML)
@pytest.mark.fault(
    "YAML whose aliases multiply, with 100,000 keys, nested without end, or with a tag that calls",
    said="aliases multiply to more than",
    exit=2,
    part="outside",
)
@pytest.mark.fault(
    "`!!bool maybe`, a day that is none, numbers of 5,000 digits in YAML",
    said="does not suit",
    does="within seconds, the place named",
    exit=2,
    part="outside",
)
def test_hostile_yaml_is_one_line_within_seconds(tmp_path: Path, name: str) -> None:
    text, why = YAML[name]
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    begun = time.monotonic()
    with pytest.raises(InputError, match=why) as caught:
        read_yaml(path)
    assert time.monotonic() - begun < 5
    assert len(str(caught.value)) < 1_000
    assert "\n" not in str(caught.value)


def test_anchors_that_people_use_are_read(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("base: &b {rank: 8}\nrun: {<<: *b, seq_len: 512}\nlist: [*b, *b]\n")
    assert read_yaml(path)["run"] == {"rank": 8, "seq_len": 512}


JSON = {
    "deep": ('{"a":' * 100 + "1" + "}" * 100, "nested too deeply .more than 64 levels"),
    "deeper than Python": ('{"a":' * 100_000, "nested too deeply"),
    "deep behind a bracket in a text": ('{"x": "]]]", "a": ' + "[" * 90 + "]" * 90 + "}", "nested too deeply"),
    "many": ('{"a": [' + "[]," * 1_100_000 + "1]}", "more than 1,000,000 values"),
    "digits": ('{"a": ' + "9" * 5_000 + "}", "digits"),
    "large": ('{"a": "' + "x" * (17 << 20) + '"}', "MiB large"),
}


@pytest.mark.parametrize("name", JSON)
@pytest.mark.fault(
    "JSON that is nested deeply, or holds millions of values",
    said="more than 1,000,000 values",
    does="before it takes memory",
    exit=2,
    part="outside",
)
def test_hostile_json_is_one_line_without_its_memory(tmp_path: Path, name: str) -> None:
    text, why = JSON[name]
    path = tmp_path / "config.json"
    path.write_text(text)
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=why) as caught:
            read_object(path)
        assert tracemalloc.get_traced_memory()[1] < 100 << 20
    finally:
        tracemalloc.stop()
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.fault(
    "a pipe, a device or a folder where a file is read",
    said="is not a regular file",
    does="nothing waits for it",
    exit=2,
    part="outside",
)
def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), Path("/dev/stdin"), tmp_path):
        with pytest.raises(bounded.Unreadable, match=r"is not a regular file|is a folder"):
            bounded.read_bytes(path, 1 << 20)
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    with pytest.raises(bounded.Unreadable, match="is not a regular file"):
        bounded.read_bytes(tmp_path / "link", 1 << 20)
    with pytest.raises(bounded.Unreadable) as caught:
        bounded.read_bytes(tmp_path / "none", 1)
    assert caught.value.missing


@pytest.mark.skipif(not Path("/proc/self/pagemap").exists(), reason="no such file without Linux")
@pytest.mark.fault("a file without an end, as in /proc", said="holds more than 1 MiB", exit=2, part="outside")
def test_a_file_without_an_end_ends_at_the_bound() -> None:
    with pytest.raises(bounded.Unreadable, match=r"holds more than 1 MiB|cannot be read"):
        bounded.read_bytes(Path("/proc/self/pagemap"), 1 << 20)


@pytest.mark.fault(
    "a trace of kilobytes that unpacks to gigabytes",
    said="unpacks to more than 1 MiB",
    does="not unpacked any further",
    exit="-",
    part="outside",
)
def test_what_gzip_packed_is_unpacked_up_to_the_bound() -> None:
    assert bounded.unpacked(gzip.compress(b"x" * 1000), 1000) == b"x" * 1000
    bomb = gzip.compress(b"\0" * (64 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="unpacks to more than 1 MiB"):
            bounded.unpacked(bomb, 1 << 20)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    for broken in (bomb[:-9], b"", b"no gzip"):
        with pytest.raises(ValueError, match=r"cut off|incorrect header"):
            bounded.unpacked(broken, 100 << 20)


def test_a_small_document_is_read_as_json_does(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    with pytest.raises(FileNotFoundError):
        bounded.small_json(path)
    path.write_text(json.dumps({"a": [1, {"b": None}]}))
    assert bounded.small_json(path) == {"a": [1, {"b": None}]}
    for text in ("[" * 100_000, "[" * 80 + "]" * 80, "x" * (5 << 20), "{"):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"deeply|MiB|Expecting"):
            bounded.small_json(path)
