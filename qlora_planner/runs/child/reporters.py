"""The trainer's own reporters: whether they can be used is known before anything is loaded, and where they write."""

from __future__ import annotations

import os
from collections.abc import Iterable, MutableMapping
from importlib import import_module
from importlib.util import find_spec
from netrc import NetrcParseError, netrc
from urllib.parse import urlsplit
from uuid import uuid4

from qlora_planner.errors import MissingError
from qlora_planner.runs.directory import RunDirectory
from qlora_planner.text import plain

_ID = "wandb-run"
_WANDB_HOST = "https://api.wandb.ai"


def check_reporters(names: Iterable[str]) -> None:
    """Raises MissingError for a package that is not here or cannot be imported, and for wandb without a login."""
    chosen = list(dict.fromkeys(names))
    if missing := [name for name in chosen if find_spec(name) is None]:
        raise MissingError(f"--report-to: missing here: {', '.join(missing)}; pip install {' '.join(missing)}")
    for name in chosen:
        try:
            # tensorboard is a lazy package: what the trainer takes of it is its writer.
            import_module("tensorboard.summary.writer.event_file_writer" if name == "tensorboard" else name)
        except Exception as error:  # a package that is broken raises what it likes
            reason = plain(" ".join(str(error).split()) or type(error).__name__)[:120]
            raise MissingError(
                f"--report-to {name}: cannot be imported ({reason}); pip install --upgrade {name}"
            ) from None
    if "wandb" in chosen and not _logged_in():
        raise MissingError("--report-to wandb: not logged in; `wandb login`, or set WANDB_MODE=offline and sync later")


def _logged_in() -> bool:
    """Where wandb would look, without asking it: it would ask the person, or the network."""
    if os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun") or os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or _WANDB_HOST).hostname or ""
    path = os.environ.get("NETRC") or next((p for n in (".netrc", "_netrc") if os.path.exists(p := _home(n))), None)
    try:
        return path is not None and netrc(path).authenticators(host) is not None
    except (OSError, NetrcParseError):
        return False


def _home(name: str) -> str:
    return os.path.join(os.path.expanduser("~"), name)


def set_places(names: Iterable[str], folder: RunDirectory, environment: MutableMapping[str, str]) -> None:
    """Have reporters write into the run's own folder, and wandb go on with one run at every attempt.

    What the environment says already stays.
    """
    chosen = set(names)
    if "tensorboard" in chosen:
        environment.setdefault("TENSORBOARD_LOGGING_DIR", str(folder.logs))
    if "wandb" in chosen:
        folder.logs.mkdir(parents=True, exist_ok=True)
        id_file = folder.logs / _ID
        if not id_file.exists():
            id_file.write_text(uuid4().hex[:8], encoding="ascii")
        for name, value in {
            "WANDB_DIR": str(folder.logs),
            "WANDB_NAME": folder.path.name,
            "WANDB_RUN_ID": id_file.read_text(encoding="ascii").strip(),
            "WANDB_RESUME": "allow",
        }.items():
            environment.setdefault(name, value)
