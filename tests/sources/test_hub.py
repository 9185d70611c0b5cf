"""The Hub's answers, and its silence, against a server of our own: always one line, and never after three seconds."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qlora_planner.errors import InputError, MissingError, PlannerError
from qlora_planner.sources.on_hub.hub import fetch_config

constants = pytest.importorskip("huggingface_hub.constants")

CONFIG = json.dumps(
    {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 100}
).encode()
COMMIT = "c" * 40

Reply = Callable[[socket.socket, bytes], None]


class FakeHub:
    """Answers every connection with `reply` until it is closed."""

    def __init__(self, reply: Reply) -> None:
        self.reply = reply
        self.requests: list[bytes] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.open.append(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            while request := connection.recv(65536):
                self.requests.append(request)
                self.reply(connection, request)
        except OSError:
            pass

    def close(self) -> None:
        for one in (self.listener, *self.open):
            one.close()


def answer(status: str, headers: dict[str, str] | None = None, body: bytes = b"") -> Reply:
    """A reply with `body`, left out where only the headers are asked for."""

    def reply(connection: socket.socket, request: bytes) -> None:
        lines = [
            f"HTTP/1.1 {status}",
            f"Content-Length: {len(body)}",
            *(f"{k}: {v}" for k, v in (headers or {}).items()),
        ]
        shown = b"" if request.startswith(b"HEAD") else body
        connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + shown)

    return reply


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[Reply], FakeHub]]:
    """Starts a fake Hub and points the library at it, with an empty cache of files and no proxy in between."""
    started: list[FakeHub] = []
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def start(reply: Reply) -> FakeHub:
        server = FakeHub(reply)
        started.append(server)
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        return server

    yield start
    for server in started:
        server.close()


def error_of(kind: type[PlannerError], **options: object) -> str:
    begun = time.monotonic()
    with pytest.raises(kind) as caught:
        fetch_config("org/name", **options)  # type: ignore[arg-type]
    assert time.monotonic() - begun < 3
    assert type(caught.value) is kind
    message = str(caught.value)
    assert message.isprintable()
    assert message.startswith("org/name: ")
    return message


GOOD = answer("200 OK", {"ETag": '"abc"', "X-Repo-Commit": COMMIT}, CONFIG)


def test_a_config_is_fetched_once_and_then_cached(
    hub: Callable[[Reply], FakeHub], capfd: pytest.CaptureFixture[str]
) -> None:
    server = hub(GOOD)
    raw = fetch_config("org/name")
    assert (raw.id, raw.origin, raw.config["hidden_size"]) == ("org/name", "hub", 64)
    paths = [request.split()[1] for request in server.requests]
    assert paths[:2] == [b"/org/name/resolve/main/config.json"] * 2
    # What lies beside it is asked of the same commit.
    assert {path.split(b"/")[4] for path in paths[3:] if b"config" not in path} <= {COMMIT.encode()}
    asked = len(server.requests)
    again = fetch_config("org/name")
    assert (again.origin, again.sha256) == ("cache", raw.sha256)
    assert len(server.requests) == asked
    assert capfd.readouterr() == ("", "")


def test_a_revision_is_asked_for(hub: Callable[[Reply], FakeHub]) -> None:
    server = hub(GOOD)
    fetch_config("org/name", "v2")
    assert server.requests[0].split()[1] == b"/org/name/resolve/v2/config.json"


def test_a_renamed_repository_is_followed(hub: Callable[[Reply], FakeHub]) -> None:
    def reply(connection: socket.socket, request: bytes) -> None:
        moved = answer("307 Temporary Redirect", {"Location": "/new/name/resolve/main/config.json"})
        (GOOD if b" /new/" in request.split(b"\r\n")[0] else moved)(connection, request)

    hub(reply)
    assert fetch_config("org/name").config["vocab_size"] == 100


@pytest.mark.parametrize(
    ("reply", "kind", "says"),
    [
        (answer("404 Not Found", {"X-Error-Code": "RepoNotFound"}), InputError, "no such model on the Hub"),
        (answer("401 Unauthorized", {"X-Error-Code": "RepoNotFound"}), InputError, "if it is private, log in"),
        (answer("401 Unauthorized", {"X-Error-Code": "GatedRepo"}), MissingError, "accept its licence"),
        (answer("403 Forbidden", {"X-Error-Code": "GatedRepo"}), MissingError, "hf auth login"),
        (answer("403 Forbidden"), MissingError, "the Hub refuses access; log in"),
        (answer("404 Not Found", {"X-Error-Code": "EntryNotFound"}), InputError, "holds no config.json"),
        (answer("404 Not Found", {"X-Error-Code": "RevisionNotFound"}), InputError, "no such revision"),
        (answer("404 Not Found"), MissingError, "it answers 404"),
        (answer("500 Oops"), MissingError, "it answers 500"),
        (answer("503 Busy", {"Retry-After": "60"}), MissingError, "it answers 503"),
        (answer("429 Slow down", {"Retry-After": "60"}), MissingError, "it answers 429"),
        (answer("200 OK", {}, CONFIG), MissingError, "cannot be asked"),  # a captive portal: no Hub headers
        (answer("302 Found", {"Location": "/"}), MissingError, "cannot be asked"),
        (answer("200 OK", {"ETag": '"abc"', "X-Repo-Commit": COMMIT}, b"<html>"), None, "is not JSON"),
        (lambda connection, _: connection.sendall(b"\x00\xff nonsense\r\n\r\n"), MissingError, "cannot be asked"),
        (lambda connection, _: connection.close(), MissingError, "cannot be asked"),
    ],
    ids=range(16),
)
def test_what_the_hub_says_is_said_in_one_line(
    hub: Callable[[Reply], FakeHub], reply: Reply, kind: type[PlannerError] | None, says: str
) -> None:
    hub(reply)
    if kind is None:
        with pytest.raises(InputError, match=says) as caught:
            fetch_config("org/name")
        assert str(caught.value).isprintable()
    else:
        assert says in error_of(kind)


def _silent(connection: socket.socket, request: bytes) -> None:
    pass


def _trickle(connection: socket.socket, request: bytes) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    while True:
        connection.sendall(b"X-More: to come\r\n")
        time.sleep(0.2)


def _head_only(connection: socket.socket, request: bytes) -> None:
    if request.startswith(b"HEAD"):
        GOOD(connection, request)


@pytest.mark.parametrize("reply", [_silent, _trickle, _head_only])
def test_silence_is_waited_for_no_longer_than_said(hub: Callable[[Reply], FakeHub], reply: Reply) -> None:
    hub(reply)
    begun = time.monotonic()
    message = error_of(MissingError, nearest=("org/names",), deadline_s=0.7)
    assert 0.5 < time.monotonic() - begun < 1.2
    assert "no answer in time" in message or "timed out" in message
    assert message.endswith("nearest in the catalogue: org/names")


def test_the_wait_can_be_set(hub: Callable[[Reply], FakeHub], monkeypatch: pytest.MonkeyPatch) -> None:
    hub(_silent)
    monkeypatch.setenv("QLORA_PLANNER_HUB_TIMEOUT", "0.3")
    begun = time.monotonic()
    error_of(MissingError)
    assert time.monotonic() - begun < 1
    for text in ("soon", "-1", "nan", "inf"):
        monkeypatch.setenv("QLORA_PLANNER_HUB_TIMEOUT", text)
        with pytest.raises(InputError, match="QLORA_PLANNER_HUB_TIMEOUT"):
            fetch_config("org/name")


def test_a_refused_connection_is_told_at_once(hub: Callable[[Reply], FakeHub], monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
    begun = time.monotonic()
    message = error_of(MissingError)
    assert time.monotonic() - begun < 1
    assert "give a model folder, a config.json or a catalogue name" in message


def test_offline_is_respected(hub: Callable[[Reply], FakeHub], monkeypatch: pytest.MonkeyPatch) -> None:
    server = hub(GOOD)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE forbids asking the Hub" in error_of(MissingError)
    assert server.requests == []


@pytest.mark.parametrize("text", ["", "a/b/c", "a b", "../x", "a\nb"])
def test_no_id_is_not_asked_for(text: str) -> None:
    with pytest.raises(InputError, match="is not the id of a Hub repository") as caught:
        fetch_config(text)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("silent", [True, False], ids=["hangs", "unknown host"])
def test_a_whole_process_answers_within_three_seconds(hub: Callable[[Reply], FakeHub], silent: bool) -> None:
    """With the import of the library, the retries it would make, and threads that never come back."""
    endpoint = hub(_silent).url if silent else "http://no-such-host.invalid"
    program = (
        "from qlora_planner.sources.on_hub.hub import fetch_config\n"
        "from qlora_planner.errors import MissingError\n"
        "try: fetch_config('org/name')\n"
        "except MissingError as error: print(error)\n"
    )
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "HF_ENDPOINT": endpoint}, capture_output=True, text=True
    )
    assert time.monotonic() - begun < 3
    assert done.returncode == 0
    assert done.stdout.startswith("org/name: not in the catalogue") and done.stdout.count("\n") == 1
    assert done.stderr == ""
