"""Waiting for the Hub, and giving up: a server that hangs, drips or never ends costs seconds and not the night."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from qlora_planner.bounded import Unreadable, check_json
from qlora_planner.errors import MissingError
from qlora_planner.hub_address import endpoint
from qlora_planner.text import plain

HUB_VARIABLE = "QLORA_PLANNER_HUB_TIMEOUT"
# Until the list of files is there, and without anything new on the disk: the library writes ten MB at a time, which
# takes a minute at 170 kB/s.
LISTED_S, STALLED_S = 10.0, 60.0
_LOOK_S = 0.25
# What the Hub says about a repository: a hundred bytes a file, of which the largest have some hundred thousand.
LARGEST_ANSWER_BYTES = 32 << 20


def fetched(
    download: Callable[[Callable[[], None]], Path], kept_in: Path, *, largest_bytes: int | None, repository: str
) -> Path:
    """What `download` returns, run in a thread that is left behind where nothing comes any more.

    `download` calls what it is given once it knows what there is to fetch; `kept_in` is the folder that grows while it
    does. Raises MissingError when it is given up, and above `largest_bytes`; else whatever `download` raises.
    """
    listed = threading.Event()
    outcome: list[Path | BaseException] = []

    def work() -> None:
        try:
            outcome.append(download(listed.set))
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=work, daemon=True, name="hub-files")
    first_bytes = known_bytes = _size(kept_in)
    moved = time.monotonic()
    thread.start()
    while True:
        thread.join(_LOOK_S)
        if not thread.is_alive():
            break
        size_bytes = _size(kept_in)
        if size_bytes != known_bytes:
            known_bytes, moved = size_bytes, time.monotonic()
        if largest_bytes is not None and size_bytes - first_bytes > largest_bytes:
            raise MissingError(f"{repository}: more than {largest_bytes >> 20:,} MiB came, so these are other files")
        waits_s = STALLED_S if listed.is_set() else _listed_s()
        if time.monotonic() - moved > waits_s:
            raise MissingError(
                f"{repository}: nothing came from the Hub for {waits_s:g} s; again, it goes on with what it has"
                + ("" if listed.is_set() else f"; {HUB_VARIABLE} sets the seconds")
            )
    result = outcome[0]
    if isinstance(result, BaseException):
        raise result
    return result


def bound_answers() -> None:
    """From here on the Hub library gives up an answer of the Hub's API that passes LARGEST_ANSWER_BYTES, unpacked: it
    would keep all of it in memory, however much comes. Files are written to the disk as they come, and are not bound.
    """
    from huggingface_hub import get_session

    session = get_session()
    hooks: dict[str, list[Callable[..., Any]]] = session.event_hooks
    if _bound not in hooks["response"]:
        session.event_hooks = {**hooks, "response": [*hooks["response"], _bound]}


def _bound(response: Any) -> None:
    """Read an answer of the API before the library does. Raises MissingError for one that is too large."""
    path = response.url.path
    if "/api/" not in path or "/resolve/" in path or response.request.method == "HEAD":
        return
    parts: list[bytes] = []
    size_bytes = 0
    for part in response.iter_bytes():
        size_bytes += len(part)
        if size_bytes > LARGEST_ANSWER_BYTES:
            raise MissingError(
                f"{plain(endpoint())}: its answer about {plain(path)} passes {LARGEST_ANSWER_BYTES >> 20} MiB, so it is"
                " no list of files"
            )
        parts.append(part)
    content = b"".join(parts)
    try:
        check_json(content, endpoint())
    except Unreadable as error:
        raise MissingError(str(error)) from None
    response._content = content  # what `response.read` gives from now on: httpx keeps it so itself


def _listed_s() -> float:
    with suppress(ValueError):
        return max(0.1, min(3600.0, float(os.environ.get(HUB_VARIABLE, ""))))
    return LISTED_S


def _size(folder: Path) -> int:
    total = 0
    with suppress(OSError):
        for entry in os.scandir(folder / "blobs"):
            with suppress(OSError):
                total += entry.stat(follow_symlinks=False).st_size
    return total
