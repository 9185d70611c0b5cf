"""Logs and snapshots that are made to hang or to take gigabytes: read within bounds, and the bound is named."""

from __future__ import annotations

import io
import pickle
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlora_planner.diagnose import log_file
from qlora_planner.diagnose.oom import explain
from qlora_planner.diagnose.oom.plain_pickle import NotPlain, load_plain
from qlora_planner.diagnose.oom.snapshot import read_snapshot
from qlora_planner.errors import InputError
from qlora_planner.units import GIB
from tests.cli.conftest import Invoke, invoke, own_home

__all__ = ["invoke", "own_home"]

OOM = "CUDA out of memory. Tried to allocate 2.00 GiB"
TEXTS = {
    "a line of JSON": '{"a":"' + "x" * 300_000 + f'{OOM}"}}',
    "a line of one word": "Killed " * 300_000,
    "killed again and again": "Killed\n" * 20_000,
    "a line of one message": "CUDA out of memory " * 100_000,
    "one message again and again": f"{OOM}\n" * 50_000,
    "needles without a failure": "out of memory killed SIGKILL exitcode /dev/shm STATUS_ALLOC_FAIL MemoryError "
    * 20_000,
    "heads of tracebacks": "Traceback (most recent call last)\n" * 60_000 + OOM,
    "frames without an end": 'File "' * 400_000 + "\n" + OOM,
    "bars without an end": " 1%|" * 500_000 + "\n" + OOM,
    "processes": f"{OOM}. GPU 0 has" + " Process 1 has 1.00 GiB memory in use." * 50_000,
    "escapes without an end": "\x1b]0;" * 500_000,
    "carriage returns": "\r" * 2_000_000,
    "digits": f"{OOM[:-8]}{'9' * 5000}.00 GiB. GPU 0 has a total capacity of {'9' * 5000} GiB",
}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.fault(
    "a log of one line of 200 kB, or of 20,000 lines `Killed`",
    does="answered within seconds",
    exit="0 or 1",
    part="outside",
)
def test_no_text_takes_long(name: str) -> None:
    before = time.process_time()
    try:
        report = explain(TEXTS[name])
    except InputError:
        report = None
    assert time.process_time() - before < 3
    assert report is None or len(report.message) <= 1600


@pytest.mark.fault(
    "a log of 2 GB", does="read at both ends, and what was left out is said", exit="0 or 1", part="outside"
)
def test_a_log_of_two_gibibytes_is_read_at_both_ends_and_says_so(invoke: Invoke, tmp_path: Path) -> None:
    path = tmp_path / "long.log"
    with path.open("wb") as stream:
        stream.write(b"axolotl train x.yml\n")
        stream.seek(2 * GIB)  # a hole in the file
        stream.write(f"\n{OOM}\n".encode())
    result = invoke("explain-oom", str(path))
    assert result.exit_code == 0
    assert "2.00 GiB" in result.stdout
    assert "its first 4 and last 12 MiB were read, of 2,048" in result.stderr


def test_what_was_left_out_is_said_where_nothing_is_found(invoke: Invoke, tmp_path: Path) -> None:
    path = tmp_path / "long.log"
    with path.open("wb") as stream:
        stream.truncate(64 << 20)
    result = invoke("explain-oom", str(path))
    assert result.exit_code == 2
    assert "no out-of-memory failure" in result.stderr
    assert "last 12 MiB were read, of 64" in result.stderr


@pytest.mark.parametrize("size", [0, 30, 31, 40, 41, 200, 4000])
@pytest.mark.parametrize("piped", [False, True])
def test_beginning_and_end_are_those_of_the_text(monkeypatch: pytest.MonkeyPatch, size: int, piped: bool) -> None:
    for name, value in (("HEAD_BYTES", 10), ("TAIL_BYTES", 30), ("_CHUNK_BYTES", 7)):
        monkeypatch.setattr(log_file, name, value)
    text = bytes(ord("a") + n % 26 for n in range(size))
    read = log_file._of_stream(io.BytesIO(text), None if piped else size)
    assert (read.size_bytes, read.left_out_bytes) == (size, max(0, size - 40))
    if size <= 40:
        assert read.content == text
    else:
        assert read.content.startswith(text[:10] + b"\n[")
        assert read.content.endswith(b"]\n" + text[-30:])


def test_a_folder_and_a_pipe_are_no_logs(invoke: Invoke, tmp_path: Path) -> None:
    import os

    assert "is a folder" in invoke("explain-oom", str(tmp_path)).stderr
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        assert (
            "is not a regular file; give a log, or - and pipe it in"
            in invoke("explain-oom", str(tmp_path / "pipe")).stderr
        )


BOMBS = {
    "a memo of a thousand millions": (b"\x80\x04Nr\xff\xff\xff\x7f.", "memo"),
    "a byte array of 64 GiB": (b"\x80\x05\x96" + (1 << 36).to_bytes(8, "little") + b"x.", "byte array"),
    "bytes of 64 GiB": (b"\x80\x04\x8e" + (1 << 36).to_bytes(8, "little") + b"x.", "bytes"),
    "a text of 4 GiB": (b"\x80\x04X\xff\xff\xff\xffx.", "text of more than"),
    "dicts without an end": (b"\x80\x04" + b"}" * (8 << 20), "more than 200 MiB"),
    "marks without an end": (b"\x80\x04" + b"(" * 10_000, "levels deep"),
    "references without an end": (b"\x80\x04]\x94" + b"h\x00" * (5 << 20), "values in one list"),
    "a number of a million digits": (b"\x80\x04\x8a\xff" + b"\xff" * 255 + b".", "more than 16 bytes"),
    "a long number": (b"\x80\x04\x8b\xff\xff\xff\x7f", "instruction 0x8b"),
    "keys that are no text": (pickle.dumps({1: 2}), "key that is no text"),
    "an import": (pickle.dumps(print), "it wants builtins.print"),
    "an old import": (b"\x80\x02cos\nsystem\n.", "an import"),
    "a set": (pickle.dumps({1, 2}), "a set"),
    "an end that is missing": (pickle.dumps({"segments": []})[:-2], "cut off"),
    "an empty stack": (b"\x80\x04\x86.", "cut off"),
    "pairs for a list": (b"\x80\x04](X\x01\x00\x00\x00aNu.", "no dict"),
    "a pair that is half": (b"\x80\x04}(X\x01\x00\x00\x00au.", "no dict"),
}


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.fault(
    "a memory snapshot of kilobytes that asks for gigabytes",
    said="is no memory snapshot that can be read",
    exit=2,
    part="outside",
)
def test_a_pickle_that_asks_for_too_much_names_the_bound(name: str) -> None:
    content, says = BOMBS[name]
    before = time.process_time()
    with pytest.raises(InputError, match=rf"x: is no memory snapshot that can be read: .*{says}"):
        read_snapshot(content, "x")
    assert time.process_time() - before < 5


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"segments":' + b"[" * 2_000_000, "values"),
        (b'{"segments":[' + b"[]," * 2_000_000 + b"[]]}", "values"),
        (b'{"segments":' + b"[" * 90_000 + b"]" * 90_000 + b"}", "nested too deeply"),
        (b'{"segments":[]} {"a":1}', "Extra data"),
        (b"\x80" + bytes(49 << 20), "more than 48 MiB"),
    ],
    ids=["open lists", "empty lists", "deep lists", "two documents", "a large file"],
)
def test_other_snapshots_beyond_bounds(content: bytes, says: str) -> None:
    with pytest.raises(InputError, match=says):
        read_snapshot(content, "x")


def test_what_a_snapshot_says_of_itself_is_not_believed() -> None:
    deep: Any = "a"
    for _ in range(60):  # 2**60 letters, were it written out
        deep = [deep, deep]
    events = [{"action": "alloc"}] * 5
    document = {
        "segments": [{"device": 0, "total_size": -5, "allocated_size": 1 << 60}],
        "device_traces": [events] * 300 + [[
            {"action": "oom", "size": 1 << 100, "device": deep, "frames": [{"filename": deep, "name": deep}]}
        ]],
    }  # fmt: skip
    report = read_snapshot(pickle.dumps(document), "x")
    assert report.requested_bytes is None
    assert (report.device, report.frame, report.allocated_bytes) == (None, None, 0)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 100), 1 << 100) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(st.text(max_size=4), inner, max_size=5)
        | st.tuples(inner)
        | st.tuples(inner, inner)
        | st.tuples(inner, inner, inner, inner)
    ),
    max_leaves=30,
)


@given(PLAIN, st.integers(2, 5))
def test_plain_data_is_read_as_python_reads_it(value: Any, protocol: int) -> None:
    content = pickle.dumps([value, value], protocol=protocol)
    assert load_plain(content) == [value, value]


def test_shared_frames_stay_one_object() -> None:
    frame = {"filename": "a.py"}
    many = load_plain(pickle.dumps([frame] * 700 + [[frame, frame]]))
    assert all(one is many[0] for one in many[:700])
    with pytest.raises(NotPlain):
        load_plain(b"")
