"""Where the Hub is: HF_ENDPOINT, looked at before a library that breaks on it is imported."""

from __future__ import annotations

import os

from qlora_planner.errors import InputError
from qlora_planner.text import quoted

ENDPOINT_VARIABLE = "HF_ENDPOINT"


def endpoint() -> str:
    """The address that the Hub library asks."""
    from huggingface_hub import constants

    return os.environ.get(ENDPOINT_VARIABLE, "").rstrip("/") or str(constants.ENDPOINT)


def check_endpoint() -> None:
    """Raises InputError for an HF_ENDPOINT that is no address: the Hub library breaks on some as it is imported."""
    text = os.environ.get(ENDPOINT_VARIABLE, "")
    if not text:
        return
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(text)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and text.isprintable() and " " not in text
        parts.port  # noqa: B018  (raises ValueError for one that is none)
    except ValueError:
        good = False
    if not good:
        raise InputError(
            f"{ENDPOINT_VARIABLE}: {quoted(text)} is no address; write it like https://huggingface.co, or unset it"
        )
