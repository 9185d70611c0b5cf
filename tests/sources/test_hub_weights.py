"""Weights on the Hub are compared with the law by their index and one header; the config stands alone without them."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from qlora_planner.errors import UnprofiledError
from qlora_planner.session import load_model, packages
from qlora_planner.sources.on_hub import hub_weights
from tests.sources.test_hub import COMMIT, FakeHub, Reply, answer, hub  # noqa: F401  (a fixture)
from tests.sources.test_law_weights import CONFIG, shapes

ROOT = Path(__file__).parents[2] / "profiles"
Hub = Callable[[Reply], FakeHub]
ABSENT = answer("404 Not Found", {"X-Error-Code": "EntryNotFound"})


@pytest.fixture(autouse=True)
def _base_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(packages, "missing_packages", lambda *_: ["torch"])
    monkeypatch.setattr(hub_weights, "cache_dir", lambda: tmp_path / "own")


def file(content: bytes) -> Reply:
    return answer("200 OK", {"ETag": f'"{len(content)}"', "X-Repo-Commit": COMMIT}, content)


def header(tensors: dict[str, list[int]], dtype: str = "BF16") -> bytes:
    entries = {name: {"dtype": dtype, "shape": shape, "data_offsets": [0, 0]} for name, shape in tensors.items()}
    text = json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode()
    return len(text).to_bytes(8, "little") + text


def index(tensors: dict[str, list[int]]) -> bytes:
    return json.dumps({"weight_map": dict.fromkeys(tensors, "model-00001-of-00002.safetensors")}).encode()


def repository(**files: Reply) -> Reply:
    """Replies by the last part of the path, with a config; what is not there is answered as the Hub does."""
    known = {"config.json": file(json.dumps(CONFIG).encode()), **files}

    def reply(connection: socket.socket, request: bytes) -> None:
        name = request.split()[1].decode().rpartition("/")[2]
        known.get(name, ABSENT)(connection, request)

    return reply


def test_a_repository_without_safetensors_is_answered_by_its_config(hub: Hub) -> None:  # noqa: F811
    server = hub(repository())
    assert load_model("org/name", profiles=ROOT).source == "family"
    asked = {request.split()[1].decode().rpartition("/")[2] for request in server.requests}
    assert asked == {"config.json", hub_weights.INDEX, hub_weights.SINGLE}


def test_weights_that_are_what_the_config_makes_are_answered(hub: Hub) -> None:  # noqa: F811
    weights = header(shapes()) + bytes(1 << 20)
    server = hub(repository(**{"model.safetensors": file(weights)}))
    assert load_model("org/name", profiles=ROOT).source == "family"
    ranges = [request for request in server.requests if b"range: bytes=0-65535" in request.lower()]
    assert len(ranges) == 1
    # From the cached files alone, with nothing asked.
    asked = len(server.requests)
    assert load_model("org/name", profiles=ROOT).source == "family"
    assert len(server.requests) == asked


@pytest.mark.parametrize(
    ("tensors", "dtype", "said"),
    [
        (shapes() | {"model.embed_tokens.weight": [1008, 256]}, "BF16", r"of \[1008, 256\] where the config makes it"),
        (shapes() | {"model.layers.0.self_attn.q_proj.bias": [256]}, "BF16", "which the config gives no model"),
        (shapes(3), "BF16", "where the config makes it 2"),
        (shapes(), "U8", "as 'U8', and the config names no quantization"),
    ],
)
def test_a_header_on_the_hub_is_right_where_the_config_disagrees(
    tensors: dict[str, list[int]],
    dtype: str,
    said: str,
    hub: Hub,  # noqa: F811
) -> None:
    hub(repository(**{"model.safetensors": file(header(tensors, dtype))}))
    for _ in range(2):  # and again from the cached files
        with pytest.raises(UnprofiledError, match=said) as caught:
            load_model("org/name", profiles=ROOT)
        assert str(caught.value).isprintable()


def test_an_index_on_the_hub_tells_the_layers_and_one_file_the_shapes(hub: Hub) -> None:  # noqa: F811
    first = {"model.embed_tokens.weight": [1003, 256]}
    files = {
        hub_weights.INDEX: file(index(shapes())), "model-00001-of-00002.safetensors": file(header(first)),
    }  # fmt: skip
    hub(repository(**files))
    assert load_model("org/name", profiles=ROOT).source == "family"
    files[hub_weights.INDEX] = file(index(shapes(3)))
    hub(repository(**files))
    with pytest.raises(UnprofiledError, match="where the config makes it 2"):
        load_model("org/other", profiles=ROOT)
    files[hub_weights.INDEX] = file(index(shapes()))
    files["model-00001-of-00002.safetensors"] = file(header({"model.embed_tokens.weight": [1004, 256]}))
    hub(repository(**files))
    with pytest.raises(UnprofiledError, match=r"of \[1004, 256\] where the config makes it \[1003, 256\]"):
        load_model("org/third", profiles=ROOT)


@pytest.mark.parametrize(
    "reply",
    [lambda connection, request: None, answer("500 Oops"), file(b"<html>"), file(b"\xff" * 64)],
    ids=["silent", "broken", "a page", "a huge header"],
)
def test_weights_that_the_hub_does_not_tell_leave_the_config_alone(
    reply: Reply,
    hub: Hub,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("QLORA_PLANNER_HUB_TIMEOUT", "0.7")
    hub(repository(**{"model.safetensors": reply}))
    begun = time.monotonic()
    assert load_model("org/name", profiles=ROOT).source == "family"
    assert time.monotonic() - begun < 1.5
