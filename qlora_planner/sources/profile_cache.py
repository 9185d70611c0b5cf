"""Profiles built on this machine, kept by the hash of their config and the library versions they hold for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from qlora_planner import installing
from qlora_planner.bounded import write_whole
from qlora_planner.errors import InputError
from qlora_planner.sources.json_files import parse_object, read_bytes
from qlora_planner.spec.codec import PROFILE_SCHEMA, profile_from_dict, profile_to_json
from qlora_planner.spec.model import ModelProfile
from qlora_planner.text import plain

# What a profile's facts depend on. Another version of one of them means another profile.
PROFILE_PACKAGES = ("torch", "transformers", "accelerate", "bitsandbytes", "peft", "trl")

Warn = Callable[[str], None]


def installed_versions() -> dict[str, str]:
    """Versions of PROFILE_PACKAGES by their metadata, without importing any; what is not installed is left out."""
    return installing.installed_versions(PROFILE_PACKAGES)


def cache_key(config_sha256: str, versions: Mapping[str, str]) -> str:
    """The file's stem: hash of the config, then hash of the versions and of the profile's own schema."""
    held_for = [PROFILE_SCHEMA, *(f"{package}={versions.get(package)}" for package in PROFILE_PACKAGES)]
    digest = hashlib.sha256(json.dumps(held_for).encode()).hexdigest()
    return f"{config_sha256}-{digest[:16]}"


class ProfileCache:
    """Profiles in one folder. Trouble with the folder or a file goes to `warn`, once each; it never stops a run."""

    def __init__(self, folder: Path, warn: Warn) -> None:
        self.folder = folder
        self._warn = warn
        self._warned: set[str] = set()

    def load(self, key: str) -> ModelProfile | None:
        """The profile of exactly this key, `source` "cache"; None when there is none or its file is damaged."""
        return self._read(self.folder / f"{key}.json")

    def newest(self, config_sha256: str) -> ModelProfile | None:
        """The profile of this config that was built last, for whatever versions: all that is left without torch."""
        try:
            paths = [path for path in self.folder.iterdir() if _is_for(path, config_sha256)]
            paths.sort(key=lambda path: path.stat().st_mtime, reverse=True)
        except OSError:  # no folder, or a file went away meanwhile
            return None
        return next((profile for path in paths if (profile := self._read(path))), None)

    def store(self, profile: ModelProfile) -> Path | None:
        """Write `profile` under its own key, whole or not at all; None, and a warning, where that is not possible."""
        path = self.folder / f"{cache_key(profile.config_sha256, profile.versions)}.json"
        try:
            write_whole(path, profile_to_json(profile).encode())
        except OSError as error:
            self._say(f"{plain(self.folder)}: the profile cannot be kept ({error.strerror}); going on without")
            return None
        return path

    def _read(self, path: Path) -> ModelProfile | None:
        try:
            if not path.exists():
                return None
            profile = profile_from_dict(parse_object(read_bytes(path), str(path)), str(path), source="cache")
        except OSError as error:
            self._say(f"{plain(path)}: cannot be read ({error.strerror}); the profile will be built again")
            return None
        except InputError as error:
            self._say(f"{error}; the profile will be built again")
            return None
        expected = cache_key(profile.config_sha256, profile.versions)
        if path.stem != expected:
            self._say(f"{plain(path)}: holds another model's profile; the profile will be built again")
            return None
        return profile

    def _say(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            self._warn(text)


def _is_for(path: Path, config_sha256: str) -> bool:
    return path.suffix == ".json" and path.name.startswith(f"{config_sha256}-")
