"""The tokenizer files of a Hub repository: from the local cache of Hub files if they are there, else from the Hub."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path

from qlora_planner.errors import InputError, MissingError
from qlora_planner.profile.faults import plain, quoted

# What AutoTokenizer may read; weights are not among them.
_PATTERNS = [
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.tiktoken", "tekken.json",
    "spiece.model", "sentencepiece*.model", "chat_template*", "additional_chat_templates/*", "config.json",
]  # fmt: skip
_WAIT_S = 5.0


def files_of(repo_id: str, instead: str) -> Path:
    """The folder with the files. Raises InputError for what is no repository's name, MissingError for no access.

    `instead` ends the messages: what else can be done.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        from huggingface_hub import constants, errors, snapshot_download, try_to_load_from_cache
    except ImportError as error:
        raise MissingError(
            f"{plain(repo_id)}: huggingface_hub cannot be imported ({plain(error)}); {instead}"
        ) from None
    where = plain(repo_id)
    try:
        known = try_to_load_from_cache(repo_id, "tokenizer_config.json")
        local = isinstance(known, str) and (Path(known).parent / "tokenizer.json").exists()
        if not local and constants.HF_HUB_OFFLINE:
            raise MissingError(
                f"{where}: its tokenizer is not among the cached Hub files, and HF_HUB_OFFLINE forbids asking; "
                f"{instead}"
            )
        import_module("huggingface_hub.utils").disable_progress_bars()
        return Path(snapshot_download(repo_id, allow_patterns=_PATTERNS, etag_timeout=_WAIT_S, local_files_only=local))
    except errors.HFValidationError:
        raise InputError(f"--tokenizer: {quoted(repo_id)} is neither a folder nor the id of a Hub repository") from None
    except errors.GatedRepoError:
        raise MissingError(
            f"{where}: gated; accept its licence and log in with `hf auth login`; or {instead}"
        ) from None
    except errors.RepositoryNotFoundError:
        raise MissingError(f"{where}: no such repository on the Hub, or a private one; {instead}") from None
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, OSError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise MissingError(f"{where}: its tokenizer cannot be fetched ({plain(lines[0])[:120]}); {instead}") from None
