"""What the Hub says of a repository's weights beside its config: their index, and the header of one file of them.

The index names every tensor; a header gives the shapes and dtypes of those in its file, the first of several. Both take
a few kilobytes, whatever the weights weigh. They lie where the law's comparison looks for them: the index beside the
config among the library's cached files, the header in a folder of our own.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from qlora_planner.sources.locations import cache_dir

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_FIRST_BYTES = 64 << 10  # the header of most files; a longer one takes a second request
_LARGEST_HEADER = 16 << 20


def fetch_weights(repo_id: str, config: Path, address: str, deadline: float) -> None:
    """Bring what tells the tensors of the repository that `config` was fetched of; nothing where it has no safetensors.

    `deadline` is on the monotonic clock. Raises what the library raises where the Hub does not answer as it should.
    """
    from huggingface_hub import errors, hf_hub_download

    commit, file = config.parent.name, SINGLE
    with suppress(errors.EntryNotFoundError):
        index = hf_hub_download(repo_id, INDEX, revision=commit, endpoint=address, etag_timeout=_left_s(deadline))
        file = min(json.loads(Path(index).read_bytes())["weight_map"].values())
    folder = header_folder(repo_id, config)
    if folder is None or (folder / SINGLE).is_file():
        return
    with suppress(errors.EntryNotFoundError):
        header = _header(repo_id, file, commit, address, deadline)
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f"{SINGLE}.{os.getpid()}.part"
        part.write_bytes(header)
        part.replace(folder / SINGLE)


def header_folder(repo_id: str, config: Path) -> Path | None:
    """Where the header beside a cached config is kept; None for a config outside the library's cached files."""
    if config.parent.parent.name != "snapshots":
        return None
    return cache_dir() / "headers" / repo_id.replace("/", "--") / config.parent.name


def _header(repo_id: str, file: str, commit: str, address: str, deadline: float) -> bytes:
    """The length and the header of a safetensors file: a file of that format without tensors."""
    from huggingface_hub import hf_hub_url

    url = hf_hub_url(repo_id, file, revision=commit, endpoint=address)
    first = _bytes(url, _FIRST_BYTES, deadline)
    size = 8 + int.from_bytes(first[:8], "little")
    if not 8 < size <= _LARGEST_HEADER:
        raise ValueError(f"{file}: no safetensors file, or one with a header of {size} bytes")
    return first[:size] if size <= len(first) else _bytes(url, size, deadline)


def _bytes(url: str, count: int, deadline: float) -> bytes:
    """The first `count` bytes behind an address, fewer where there are no more: servers may ignore the range."""
    from huggingface_hub import get_session

    utils: Any = import_module("huggingface_hub.utils")
    headers = {**utils.build_hf_headers(), "Range": f"bytes=0-{count - 1}", "Accept-Encoding": "identity"}
    session: Any = get_session()
    with session.stream("GET", url, headers=headers, timeout=_left_s(deadline), follow_redirects=True) as answer:
        if answer.status_code >= 400:
            utils.hf_raise_for_status(answer)
        content = b""
        for part in answer.iter_bytes():
            content += part
            if len(content) >= count:
                break
    return content[:count]


def _left_s(deadline: float) -> float:
    return max(0.1, deadline - time.monotonic())
