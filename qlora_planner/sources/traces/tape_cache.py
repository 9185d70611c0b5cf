"""Tapes that were traced on this machine, one file per run, and the configs they are traced from."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from qlora_planner.bounded import Unreadable, read_bytes, small_json, unpacked, write_whole
from qlora_planner.spec.model import ModelProfile
from qlora_planner.spec.run import RunConfig
from qlora_planner.spec.trace import CompiledTape, Tape

_LARGEST_BYTES = 4 << 20


class TapeCache:
    """Traced tapes under one folder; what cannot be read or written is as good as absent."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self, profile: ModelProfile, run: RunConfig, variant: str, versions: Mapping[str, str]) -> Tape | None:
        """The tape of this very run, if it was traced with these library versions."""
        try:
            packed = read_bytes(self._path(profile, run, variant, versions), _LARGEST_BYTES)
            raw = json.loads(unpacked(packed, 16 * _LARGEST_BYTES))
            return CompiledTape.from_dict(raw).at(run.batch_size, run.seq_len, run.rank)
        except (Unreadable, ValueError, KeyError, TypeError, IndexError, RecursionError):
            return None

    def store(
        self, profile: ModelProfile, run: RunConfig, variant: str, versions: Mapping[str, str], tape: Tape
    ) -> None:
        """Keep a tape; a folder that cannot be written keeps nothing, which only costs time."""
        text = json.dumps(CompiledTape.of(tape, variant).to_dict(), separators=(",", ":")).encode()
        with suppress(OSError):
            write_whole(self._path(profile, run, variant, versions), gzip.compress(text, mtime=0))

    def _path(self, profile: ModelProfile, run: RunConfig, variant: str, versions: Mapping[str, str]) -> Path:
        sizes = f"{run.batch_size} {run.seq_len} {run.rank}"
        word = json.dumps([profile.config_sha256, variant, sizes, sorted(versions.items())])
        return self._folder / f"{hashlib.sha256(word.encode()).hexdigest()[:32]}.json.gz"


class ConfigCache:
    """Configs by their hash, so that a profiled model can be traced later."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self, sha256: str) -> dict[str, Any] | None:
        """The config with this hash, or None."""
        try:
            raw = small_json(self._folder / f"{sha256}.json")
        except (OSError, ValueError):
            return None
        return raw if isinstance(raw, dict) else None

    def store(self, sha256: str, config: Mapping[str, Any]) -> None:
        """Keep a config; a folder that cannot be written keeps nothing."""
        with suppress(OSError):
            write_whole(self._folder / f"{sha256}.json", json.dumps(dict(config)).encode())
