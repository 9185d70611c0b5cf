"""Datasets and Hubs that would take the night or the memory: one line that names the bound, within seconds."""

from __future__ import annotations

import base64
import gzip
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pytest

from qlora_planner.data import files, hub, patience, summarise
from qlora_planner.data.files import find_files
from qlora_planner.data.readers import read_rows
from qlora_planner.data.tokenizers import load_tokenizer
from qlora_planner.errors import InputError, MissingError, PlannerError
from qlora_planner.hub_address import check_endpoint
from qlora_planner.sources.on_hub.hub import fetch_config


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
@pytest.mark.parametrize("pattern", ["/proc/**", "/proc/**/*.jsonl"])
@pytest.mark.fault("`--data '/proc/**'`", said="no end of folders", exit=2, part="outside")
def test_a_pattern_over_proc_ends(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "WALK_S", 0.3)
    monkeypatch.setattr(files, "MOST_FILES", 50)
    begun = time.monotonic()
    with pytest.raises(InputError, match=r"no end of folders|more than 50 files|no file matches"):
        find_files(pattern)
    assert time.monotonic() - begun < 5


@pytest.mark.fault("a pipe or a device as data", said="regular file", exit=2, part="outside")
def test_pipes_devices_and_files_of_the_kernel_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "zero.jsonl").symlink_to("/dev/zero")
    for name, why in (("pipe.jsonl", "regular file"), ("zero.jsonl", "regular file")):
        with pytest.raises(InputError, match=why):
            find_files(tmp_path / name)
    if Path("/proc/kmsg").exists():
        (tmp_path / "log.jsonl").symlink_to("/proc/kmsg")
        with pytest.raises(InputError, match="empty"):
            find_files(tmp_path / "log.jsonl")


@pytest.mark.fault(
    "a parquet file of kilobytes that unpacks to gigabytes", said="unpacks to 65 MiB", exit=2, part="outside"
)
def test_a_parquet_file_that_unpacks_to_far_more_is_refused(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "rows.parquet"
    parquet.write_table(
        pa.table({"text": ["\0" * (65 << 20)]}), path, compression="zstd", use_dictionary=False, write_statistics=False
    )
    assert path.stat().st_size < 100_000
    before = pa.total_allocated_bytes()
    with pytest.raises(InputError, match="unpacks to 65 MiB"):
        next(read_rows(find_files(path)[0]))
    assert pa.total_allocated_bytes() - before < 32 << 20


# A million brackets, and one word after another, in the place of a column's name.
LONG_NAMES = ("mes" + "[" * 1_000_000, "m" + "- " * 60_000, "9" * 133_000)


@pytest.mark.parametrize("name", LONG_NAMES, ids=["brackets", "dashes", "digits"])
@pytest.mark.parametrize("kind", ["jsonl", "json", "csv"])
@pytest.mark.fault(
    "a column whose name is a megabyte", said="its columns are ", does="shortened", exit=2, part="outside"
)
def test_a_column_with_an_endless_name_is_told_in_one_short_line(tmp_path: Path, kind: str, name: str) -> None:
    row = json.dumps({name: 1, "n": 2})
    content = {"jsonl": f"{row}\n", "json": f"[{row}]", "csv": f"n,{name}\n2,1\n"}[kind]
    path = tmp_path / f"rows.{kind}"
    path.write_text(content)
    with pytest.raises(InputError, match="its columns are ") as caught:
        summarise(path, chars_per_token=4.0, bad_rows="skip")
    assert len(str(caught.value)) < 600


# Asked for the metadata of its column, pyarrow 26 throws what nobody catches, and the process ends.
ABORTING = (
    "UEFSMRUEFSYVKkwVAhUAEgAAE0gPAAAAc29tZSB3b3JkcyBoZXJlFQAVEhUWLBUoFRBRBhUGHDYAKA9zb21lIHdvcmRzIGhlcmUY"
    "D3NvbWUgd29yZHMgaGVyZRERAAAACSACAAAAKAEnASgAFQQZLDUAGAZzY2hlbWEVAgAVDCVhGAR0ZXh0JQBMHAAAABYoGRwZHCYA"
    "HBUMGTUABhAZGAR0ZXh0FQIWKBbGARbOASZOJggcNgAoD3NvbWUgd29yZHMgaGVyZRgPc29tZSB3b3JkcyBoZXJlEREAGSwVBBUA"
    "FQIAFQAVEBUCADwW2AQZBhkmACgAAAAWxgEWKCYIFs4BABkcGAxBUlJPVzpzY2hlbWEYoAEvLy8vLzNBQUFBQVFBQUFBQUFBS0FB"
    "d0FCZ0FGQUFnQUNnQUFBQUFCQkFBTUFBQUFDQUFJQUFBQUJBQUlBQUFBQkFBQUFBRUFBQUFVQUFBQUVBQVVBQWdBQmdBSEFBd0FB"
    "QUFRQUJBQUFBQUFBQUVGRUFBQUFCd0FBQUFFQUFBQUFBQUFBQVFBQUFCMFpYaDBBQUFBQUFRQUJBQUVBQUFBABggcGFycXVldC1j"
    "cHAtYXJyb3cgdmVyc2lvbiAyNi4wLjEZHBwAAABzAQAAUEFSMQ=="
)


@pytest.mark.fault("a damaged parquet file", said="cannot be read: Definition level histogram", exit=2, part="outside")
def test_a_damaged_parquet_file_does_not_end_the_process(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    path = tmp_path / "rows.parquet"
    path.write_bytes(base64.b64decode(ABORTING))
    with pytest.raises(InputError, match="cannot be read: Definition level histogram"):
        list(read_rows(find_files(path)[0]))


def test_one_value_for_every_row_is_unpacked_a_few_rows_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "rows.parquet"
    value = pa.DictionaryArray.from_arrays(pa.array([0] * 3000, pa.int32()), pa.array(["a" * (4 << 20)]))
    parquet.write_table(pa.table({"text": value}), path, compression="zstd", write_statistics=False)
    assert path.stat().st_size < 10_000
    rows = list(islice(read_rows(find_files(path)[0]), 20))
    assert len(rows[0].columns["text"]) == 4 << 20  # type: ignore[index]
    assert pa.total_allocated_bytes() < 128 << 20
    monkeypatch.setattr("qlora_planner.data.readers._ALWAYS_UNPACKED_BYTES", 64 << 20)
    with pytest.raises(InputError, match="so it is no dataset"):
        list(islice(read_rows(find_files(path)[0]), 100))


@pytest.mark.parametrize(
    "text", ["foo", "http://[::1", "ftp://x", "http://x:99999", "http://", "://", "http://a b", "http://a\x1b[m", "/x"]
)
@pytest.mark.fault("a broken HF_ENDPOINT", said="is no address", exit=2, part="outside")
def test_an_endpoint_that_is_no_address_is_one_line(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", text)
    for ask in (check_endpoint, lambda: fetch_config("org/name"), lambda: hub.tokenizer_files("org/name", "x")):
        with pytest.raises(InputError, match=r"HF_ENDPOINT: .* is no address") as caught:
            ask()
        assert str(caught.value).isprintable()


def test_a_usual_endpoint_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("https://huggingface.co", "http://localhost:8080/hf/", "http://[::1]:80", ""):
        monkeypatch.setenv("HF_ENDPOINT", text)
        check_endpoint()


def _hang(_: socket.socket, __: str) -> None:
    time.sleep(30)


def _drip(client: socket.socket, _: str) -> None:
    client.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n{")
    while True:
        client.sendall(b" ")
        time.sleep(0.1)


def _circle(client: socket.socket, path: str) -> None:
    client.sendall(f"HTTP/1.1 302 Found\r\nLocation: {path}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())


def _garbage(client: socket.socket, _: str) -> None:
    client.sendall(b"\x1b]0;mine\x07 nothing\r\n\r\n")


def _list(client: socket.socket, _: str) -> None:
    client.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n[]")


def _endless(client: socket.socket, _: str) -> None:
    client.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n[")
    while True:
        client.sendall(b"1," * 50_000)


def _packed(client: socket.socket, _: str) -> None:
    body = gzip.compress(b"[" + b" " * (33 << 20) + b"]", 1)
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    client.sendall(head.encode() + body)


def _many(client: socket.socket, _: str) -> None:
    body = b"[" + b"[]," * 1_100_000 + b"[]]"
    client.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)


@pytest.mark.parametrize(
    ("answer", "says"),
    [(_endless, "passes 32 MiB, so it is no list"), (_packed, "passes 32 MiB"), (_many, "more than 1,000,000 values")],
    ids=["endless", "packed", "values"],
)
@pytest.mark.fault(
    "a Hub whose list of files has no end, packed or not",
    said="passes 32 MiB, so it is no list",
    exit=3,
    part="outside",
)
def test_an_endless_list_of_files_is_cut_by_its_size(
    answer: Callable[[socket.socket, str], None],
    says: str,
    serve: Callable[[Callable[[socket.socket, str], None]], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    as_hub(serve(answer), tmp_path, monkeypatch)
    for ask in (lambda: hub.rows_of("org/rows"), lambda: load_tokenizer("org/words", chats=False)):
        with pytest.raises(MissingError, match=says):
            ask()


def as_hub(address: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub library asks `address` alone, and knows nothing yet."""
    from huggingface_hub import hf_api

    monkeypatch.setenv("HF_ENDPOINT", address)
    for name in ("ENDPOINT", "HF_HUB_CACHE", "HF_HUB_OFFLINE"):
        value = {"ENDPOINT": address, "HF_HUB_CACHE": str(cache)}.get(name, False)
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    monkeypatch.setattr(hf_api.api, "endpoint", address)


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[socket.socket, str], None]], str]]:
    """Start a server of one answer; its address."""
    listeners = []

    def started(answer: Callable[[socket.socket, str], None]) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def one(client: socket.socket) -> None:
            try:
                asked = client.recv(65536).split(b" ")
                answer(client, asked[1].decode() if len(asked) > 1 else "/")
            except OSError:
                pass
            finally:
                client.close()

        def work() -> None:
            while True:
                try:
                    client = listener.accept()[0]
                except OSError:
                    return
                threading.Thread(target=one, args=(client,), daemon=True).start()

        threading.Thread(target=work, daemon=True).start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield started
    for listener in listeners:
        listener.close()


@pytest.mark.parametrize("answer", [_hang, _drip, _circle, _garbage, _list], ids=lambda answer: answer.__name__)
@pytest.mark.fault(
    "a Hub that hangs, drips, redirects in a circle or answers garbage",
    said="nothing came",
    does="within seconds",
    exit=3,
    part="outside",
)
def test_a_hub_that_does_not_answer_as_one(
    answer: Callable[[socket.socket, str], None],
    serve: Callable[[Callable[[socket.socket, str], None]], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    as_hub(serve(answer), tmp_path, monkeypatch)
    monkeypatch.setenv(patience.HUB_VARIABLE, "0.6")
    for ask in (
        lambda: hub.rows_of("org/rows"), lambda: load_tokenizer("org/words", chats=False), lambda: fetch_config("o/m")
    ):  # fmt: skip
        begun = time.monotonic()
        with pytest.raises(MissingError, match=r"cannot be fetched|nothing came|cannot be asked") as caught:
            ask()
        assert time.monotonic() - begun < 5
        assert str(caught.value).isprintable()


@pytest.mark.fault(
    "a download that stands still or never ends",
    said="nothing came from the Hub for 0.6 s",
    does="after a minute; again, it goes on with what it has",
    exit=3,
    part="outside",
)
def test_a_download_that_stands_still_or_never_ends_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "STALLED_S", 0.6)
    (tmp_path / "blobs").mkdir()

    def still(listed: Callable[[], None]) -> Path:
        listed()
        time.sleep(20)
        return tmp_path

    def endless(listed: Callable[[], None]) -> Path:
        listed()
        with (tmp_path / "blobs" / "x.incomplete").open("wb") as stream:
            for _ in range(400):
                stream.write(bytes(100_000))
                stream.flush()
                time.sleep(0.02)
        return tmp_path

    with pytest.raises(MissingError, match=r"nothing came from the Hub for 0.6 s"):
        patience.fetched(still, tmp_path, largest_bytes=None, repository="org/x")
    with pytest.raises(MissingError, match="more than 1 MiB came"):
        patience.fetched(endless, tmp_path, largest_bytes=1 << 20, repository="org/x")
    assert patience.fetched(lambda _: tmp_path, tmp_path, largest_bytes=None, repository="org/x") == tmp_path


@pytest.mark.fault(
    "a tokenizer of gigabytes", said="MiB large, so it is no file of a tokenizer", exit="2 or 3", part="outside"
)
def test_a_tokenizer_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate(4 << 30)  # no blocks are written
    with pytest.raises(PlannerError, match="MiB large, so it is no file of a tokenizer"):
        load_tokenizer(str(tmp_path), chats=False)
    (tmp_path / "tokenizer.json").write_text(json.dumps({"a": 1}))
    (tmp_path / "chat_template.jinja").write_text("x" * (2 << 20))
    with pytest.raises(PlannerError):
        load_tokenizer(str(tmp_path), chats=True)
