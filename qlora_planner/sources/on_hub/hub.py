"""Fetch a config.json from the Hugging Face Hub, or say within seconds why that is not possible."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from qlora_planner.errors import InputError, MissingError
from qlora_planner.hub_address import check_endpoint, endpoint
from qlora_planner.sources.configs import RawConfig, is_hub_id, read_config
from qlora_planner.sources.on_hub.hub_weights import fetch_weights
from qlora_planner.text import plain, quoted

# From the call to the answer. The process starts and the library is imported in the rest of three seconds.
DEADLINE_S = 2.5
DEADLINE_VARIABLE = "QLORA_PLANNER_HUB_TIMEOUT"

_INSTEAD = "give a model folder, a config.json or a catalogue name"
_LOG_IN = "log in with `hf auth login` or set HF_TOKEN"


def fetch_config(
    repo_id: str, revision: str | None = None, *, nearest: Sequence[str] = (), deadline_s: float | None = None
) -> RawConfig:
    """The config of a Hub repository: from the local cache of Hub files if it is there, else from the Hub.

    `nearest` are catalogue names for the messages. One request decides whether the Hub answers; nothing is retried,
    and after `deadline_s` seconds (DEADLINE_S, or what QLORA_PLANNER_HUB_TIMEOUT says) waiting ends.
    Raises InputError for a name that no repository has or that holds no usable config.json, MissingError for no
    network, no answer, offline mode and a repository that needs a login.
    """
    begun = time.monotonic()
    if not is_hub_id(repo_id):
        raise InputError(f"{quoted(repo_id)} is not the id of a Hub repository, which reads org/name")
    hint = f"; nearest in the catalogue: {', '.join(nearest)}" if nearest else ""
    deadline = begun + (_deadline_s() if deadline_s is None else deadline_s)
    check_endpoint()
    # Read when the library is imported: a planner has no business reporting what people plan.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        import huggingface_hub
        from huggingface_hub import constants
    except ImportError as error:
        raise MissingError(
            f"{repo_id}: huggingface_hub cannot be imported ({plain(error)}); {_INSTEAD}{hint}"
        ) from None
    cached = huggingface_hub.try_to_load_from_cache(repo_id, "config.json", revision=revision)
    if isinstance(cached, str):
        return read_config(cached, model_id=repo_id, origin="cache")
    if constants.HF_HUB_OFFLINE:
        raise MissingError(
            f"{repo_id}: not in the catalogue nor among the cached Hub files, and HF_HUB_OFFLINE forbids asking the "
            f"Hub; {_INSTEAD}{hint}"
        )
    path = _within(
        deadline,
        lambda: _download(repo_id, revision, deadline),
        lambda config: fetch_weights(repo_id, config, endpoint(), deadline),
        repo_id,
        hint,
    )
    return read_config(path, model_id=repo_id, origin="hub")


def _deadline_s() -> float:
    text = os.environ.get(DEADLINE_VARIABLE, "")
    try:
        seconds = float(text) if text else DEADLINE_S
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 3600:
        raise InputError(f"{DEADLINE_VARIABLE}: {quoted(text)} must be seconds from 0 to 3600")
    return seconds


def _download(repo_id: str, revision: str | None, deadline: float) -> Path:
    """Ask once whether the file is there, then let the library fetch it into its cache. Raises the library's errors."""
    from huggingface_hub import get_session, hf_hub_download, hf_hub_url

    utils, address = _hub_utils(), endpoint()
    url = hf_hub_url(repo_id, "config.json", revision=revision, endpoint=address)
    # The library's own download retries a failed connection for half a minute and more; a plain request does not.
    answer = get_session().head(url, headers=utils.build_hf_headers(), timeout=max(0.1, deadline - time.monotonic()))
    if answer.status_code >= 400:
        utils.hf_raise_for_status(answer)
    with _Quiet():
        left_s = max(0.1, deadline - time.monotonic())
        return Path(hf_hub_download(repo_id, "config.json", revision=revision, endpoint=address, etag_timeout=left_s))


class _Quiet:
    """No progress bars and no warnings from the Hub library: stderr is ours, and the outcome is told in one line."""

    def __enter__(self) -> None:
        utils = _hub_utils()
        self.verbosity = utils.logging.get_verbosity()
        utils.logging.set_verbosity_error()
        self.bars = not utils.are_progress_bars_disabled()
        if self.bars:
            utils.disable_progress_bars()

    def __exit__(self, *_: object) -> None:
        utils = _hub_utils()
        utils.logging.set_verbosity(self.verbosity)
        if self.bars:
            utils.enable_progress_bars()


def _hub_utils() -> Any:
    """The library's helpers, untyped: it lists only some of them as its own."""
    return import_module("huggingface_hub.utils")


def _within(
    deadline: float, download: Callable[[], Path], beside: Callable[[Path], None], repo_id: str, hint: str
) -> Path:
    """Run `download`, then `beside` with what it brought, in a thread that is left behind at the deadline: looking a
    name up cannot be interrupted. Of `beside` nothing is needed: without it the config stands alone."""
    outcome: list[Path | BaseException] = []

    def work() -> None:
        try:
            path = download()
        except BaseException as error:
            outcome.append(error)
            return
        outcome.append(path)
        with suppress(Exception), _Quiet():
            beside(path)

    thread = threading.Thread(target=work, daemon=True, name="hub-config")
    thread.start()
    thread.join(max(0.1, deadline - time.monotonic()))
    if not outcome:
        raise MissingError(_no_network(repo_id, f"no answer in time; {DEADLINE_VARIABLE} sets the seconds", hint))
    result = outcome[0]
    if isinstance(result, BaseException):
        _refuse(result, repo_id, hint)
    return result


def _no_network(repo_id: str, reason: str, hint: str) -> str:
    return f"{repo_id}: not in the catalogue, and {endpoint()} cannot be asked ({reason}); {_INSTEAD}{hint}"


def _refuse(error: BaseException, repo_id: str, hint: str) -> NoReturn:
    """Turn what the library raised into the line that helps."""
    from huggingface_hub import errors

    page = f"{endpoint()}/{repo_id}"
    if isinstance(error, errors.GatedRepoError):
        raise MissingError(f"{repo_id}: gated; accept its licence at {page}, then {_LOG_IN}{hint}") from None
    if isinstance(error, errors.RepositoryNotFoundError):
        raise InputError(f"{repo_id}: no such model on the Hub; if it is private, {_LOG_IN}{hint}") from None
    if isinstance(error, errors.RevisionNotFoundError):
        raise InputError(f"{repo_id}: no such revision on the Hub; see {page}") from None
    if isinstance(error, errors.LocalEntryNotFoundError):  # the library's word for a connection that broke
        raise MissingError(_no_network(repo_id, _reason(error.__cause__ or error), hint)) from None
    if isinstance(error, errors.EntryNotFoundError):
        raise InputError(
            f"{repo_id}: the repository holds no config.json, so it is no transformers model{hint}"
        ) from None
    if isinstance(error, errors.HfHubHTTPError):
        status = _status(error)
        if status in (401, 403):
            raise MissingError(f"{repo_id}: the Hub refuses access; {_LOG_IN}{hint}") from None
        raise MissingError(_no_network(repo_id, f"it answers {status or 'with an error'}", hint)) from None
    if isinstance(error, (KeyboardInterrupt, SystemExit)):
        raise error
    raise MissingError(_no_network(repo_id, _reason(error), hint)) from None


def _status(error: Any) -> int | None:
    with suppress(AttributeError):
        return int(error.response.status_code)
    return None


def _reason(error: BaseException) -> str:
    """The error in a few words: its first line, or its name where it says nothing."""
    lines = str(error).strip().splitlines()
    text = plain(lines[0]) if lines else ""
    return text[:120] or type(error).__name__
