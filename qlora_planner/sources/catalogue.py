"""The catalogue of profiled models: one file `<org>__<name>.json` each, named without being opened."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from qlora_planner.errors import InputError, MissingError
from qlora_planner.sources.json_files import parse_object, read_bytes
from qlora_planner.spec.codec import profile_from_dict
from qlora_planner.spec.faults import refuse
from qlora_planner.spec.model import ModelProfile
from qlora_planner.text import plain, quoted

_SEPARATORS = re.compile(r"[\s_.\-]+")
_MOST_CANDIDATES = 8
_LONGEST_NAME = 120  # a Hub id has at most 96 characters; nothing longer is worth comparing


class ModelCatalogue:
    """Profiles in folders of which an earlier one wins. Files are found at first use and read when loaded."""

    def __init__(self, dirs: Sequence[Path]) -> None:
        self.dirs = tuple(dirs)
        self._files: dict[str, Path] | None = None

    def names(self) -> tuple[str, ...]:
        """Every id, in alphabetical order whatever the case. Raises InputError for a folder that cannot be listed."""
        return tuple(self._paths())

    def resolve(self, text: str) -> str | None:
        """The one id that `text` means, or None.

        Tried in turn: the id itself; the id in any case and with any of `-`, `_`, `.` and space between its parts;
        then, for a text without an organisation, the model's name written so, its end (`8b-instruct`), and the name
        without the `-hf` of converted weights. Raises InputError listing the candidates when several fit.
        """
        text = text.strip()
        names = self.names()
        if text in self._paths():
            return text
        wanted = fold(text)
        if not wanted or len(text) > _LONGEST_NAME:
            return None
        if "/" in text:
            return self._only(text, (name for name in names if fold(name) == wanted))
        tails = {name: fold(name.partition("/")[2] or name) for name in names}
        # Words that many models end in, such as `tiny` or `instruct`, say nothing without a number.
        ending = "-" + wanted if any(sign.isdigit() for sign in wanted) else "\0"
        return (
            self._only(text, self._own([name for name, tail in tails.items() if tail == wanted]))
            or self._only(text, (name for name, tail in tails.items() if tail.endswith(ending)), by_words=True)
            or self._only(text, (name for name, tail in tails.items() if tail == wanted + "-hf"))
        )

    def whole_name(self, text: str) -> str | None:
        """The id that `text` spells from its first letter to its last, with or without the organisation, in any
        case; None where it is a part of a name, or that of several."""
        wanted = fold(text.strip())
        names = [name for name in self.names() if wanted in (fold(name), fold(name.partition("/")[2]))]
        return names[0] if len(names) == 1 else None

    def nearest(self, text: str, most: int = 3) -> tuple[str, ...]:
        """Ids that `text` may have meant, the likeliest first; none when nothing is like it."""
        from qlora_planner.sources.names import Names
        from qlora_planner.sources.words import nearest_names

        return nearest_names(text, self.names(), Names(self).fame, most)

    def load(self, model_id: str) -> ModelProfile:
        """The profile with exactly this id, `source` "catalogue".

        Raises MissingError when there is none (with the nearest names), InputError when its file is not a profile.
        """
        path = self._paths().get(model_id)
        if path is None:
            raise MissingError(f"{plain(model_id)} is not in the catalogue{self.suggestion(model_id)}")
        return self._read(model_id, path)

    def load_all(self, warn: Callable[[str], None] | None = None) -> tuple[ModelProfile, ...]:
        """Every profile, in the order of `names`.

        Raises InputError for a bad file; with `warn`, says so there and leaves it out.
        """
        profiles: list[ModelProfile] = []
        collecting = gc.isenabled()
        gc.disable()  # tens of thousands of new objects, none of them garbage: collecting would cost a fifth more
        try:
            for model_id, path in self._paths().items():
                try:
                    profiles.append(self._read(model_id, path))
                except InputError as error:
                    if warn is None:
                        raise
                    warn(f"{error}; left out")
        finally:
            if collecting:
                gc.enable()
        return tuple(profiles)

    def with_config(self, config_sha256: str) -> ModelProfile | None:
        """The profile that was built from the config of this hash, whatever its name. Bad files are passed over."""
        wanted = config_sha256.encode()
        for model_id, path in self._paths().items():
            try:
                # Looking for the hash as text takes a few ms over the whole catalogue; parsing it all, 70.
                if wanted not in path.read_bytes():
                    continue
                profile = self._read(model_id, path)
            except (OSError, InputError):
                continue
            if profile.config_sha256 == config_sha256:
                return profile
        return None

    def suggestion(self, text: str) -> str:
        """`; nearest: a, b` for the end of a message, or nothing."""
        near = self.nearest(text)
        return f"; nearest: {', '.join(near)}" if near else ""

    def _paths(self) -> dict[str, Path]:
        if self._files is None:
            paths: dict[str, Path] = {}
            for folder in self.dirs:
                try:
                    for path in folder.iterdir():
                        if path.suffix == ".json" and not path.name.startswith("."):
                            paths.setdefault(_id_of(path), path)
                except OSError as error:
                    refuse([f"cannot be listed: {error.strerror}"], str(folder))
            self._files = {name: paths[name] for name in sorted(paths, key=lambda name: (name.lower(), name))}
        return self._files

    def _read(self, model_id: str, path: Path) -> ModelProfile:
        profile = profile_from_dict(parse_object(read_bytes(path), str(path)), str(path), source="catalogue")
        if profile.id != model_id:
            refuse([f"holds the profile of {quoted(profile.id)}, but its name says {quoted(model_id)}"], str(path))
        return profile

    def _own(self, names: Sequence[str]) -> Sequence[str]:
        """Of models of one name those that are no mirror's, where there are any."""
        if len(names) < 2:
            return names
        from qlora_planner.sources.names import Names

        table = Names(self)
        return [name for name in names if not table.is_mirror(name)] or names

    def _only(self, text: str, matches: Iterable[str], by_words: bool = False) -> str | None:
        """The only one of `matches`. `by_words` lists with several also those that have the words elsewhere."""
        matching = list(matches)
        if len(matching) > 1:
            from qlora_planner.sources.names import Names
            from qlora_planner.sources.words import words_of

            if by_words:
                typed = (words_of(text), words_of(fold(text)))
                if len(same := [name for name in matching if words_of(name) in typed]) == 1:
                    return same[0]
                wanted = set(words_of(text))
                matching += [name for name in self.names() if name not in matching and wanted <= set(words_of(name))]
            raise InputError(f"{quoted(text)} {candidates_line(Names(self).sorted_by_fame(text, matching))}")
        return matching[0] if matching else None


def candidates_line(names: Sequence[str]) -> str:
    """`could be a, b and 5 more; give more of the name`."""
    shown = ", ".join(names[:_MOST_CANDIDATES])
    more = f" and {len(names) - _MOST_CANDIDATES} more" if len(names) > _MOST_CANDIDATES else ""
    return f"could be {plain(shown)}{more}; give more of the name"


def fold(text: str) -> str:
    """A name as it is compared: lower case, one `-` for every separator between its parts."""
    return "/".join(_SEPARATORS.sub("-", part).strip("-") for part in text.lower().split("/"))


def file_name(model_id: str) -> str:
    """The catalogue's file name of an id: `org__name.json`."""
    return model_id.replace("/", "__", 1) + ".json"


def _id_of(path: Path) -> str:
    return path.stem.replace("__", "/", 1)
