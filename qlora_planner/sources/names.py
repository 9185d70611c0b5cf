"""Names that people type for models of the catalogue: derived repositories, mirrors and a few words.

profiles/names.json lists, by the catalogue model whose tensors they have, ids whose published config is known to
be the same in everything that shapes it, and the best known models in their order.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

from qlora_planner.bounded import small_json
from qlora_planner.errors import InputError, RefusedError
from qlora_planner.record import record
from qlora_planner.sources.catalogue import ModelCatalogue, candidates_line, fold
from qlora_planner.sources.words import (
    billions,
    is_size,
    name_in,
    rank,
    size_distance,
    squashed,
    words_of,
    words_tuned_alike,
)
from qlora_planner.text import plain, quoted

NAMES_SCHEMA = "qlora-plan/names/1"
NAMES_FILE = "names.json"
# Repositories whose name says that another program packed their weights into a format that no adapter trains on here.
_FORMATS = r"gptq|awq|gguf|ggml|exl2|exl3|mlx|hqq|aqlm|fp8|nvfp4|mxfp4|w\d+a\d+|int4|int8"
_PACKED = re.compile(rf"[-_.]({_FORMATS})(?![a-z\d])|^mlx-community/", re.IGNORECASE)
_AFTER_PACKED = re.compile(
    rf"[-_.](?:quantized[-_.])?(?:{_FORMATS}|4bit|8bit|q\d\w*|\d+bpw)(?![a-z]).*$", re.IGNORECASE
)
# A size as people say it and the exact count: phi4:14b has 14.66 billion parameters.
_SAID_SIZE = 0.06


@record
class Named:
    """What a text names: `id` as the Hub writes it, and the catalogue model that has the same tensors."""

    id: str
    base: str
    stored: str | None = None  # how its weights are stored, if not as the base's: `bitsandbytes-nf4-double`, `none`
    max_position_embeddings: int | None = None  # where it was trained for other lengths than its base


class Names:
    """The table of names beside a catalogue, and the search by words through both."""

    def __init__(self, catalogue: ModelCatalogue) -> None:
        self._catalogue = catalogue

    @cached_property
    def derived(self) -> dict[str, Named]:
        """Every derived id of a model that the catalogue has."""
        by_id: dict[str, Named] = {}
        bases = set(self._catalogue.names())
        for group in self._table.get("derived", ()):
            if group["base"] in bases:
                for model_id in group["ids"]:
                    by_id.setdefault(
                        model_id,
                        Named(
                            id=model_id, base=group["base"], stored=group.get("stored"),
                            max_position_embeddings=group.get("max_position_embeddings"),
                        ),
                    )  # fmt: skip
        return by_id

    @cached_property
    def fame(self) -> tuple[str, ...]:
        """The best known models, best known first."""
        return tuple(self._table.get("fame", ()))

    def find(self, text: str) -> Named | None:
        """What `text` names: a derived id in any case, the name of one without its owner, or words; None for nothing.

        Raises InputError listing the candidates when several models fit, RefusedError for a repository whose weights
        are packed, with the model to give instead.
        """
        wanted = fold(text)
        whole = "/" in text
        same = [
            named for name, named in self.derived.items()
            if fold(name if whole else _tail(name)) == wanted and (whole or not self.is_mirror(name))
        ]  # fmt: skip
        if same and wanted not in self._ambiguous:
            return self._one(text, same, same)
        if (nickname := self._nicknames.get(wanted)) is not None:
            return Named(id=nickname, base=nickname)
        self._refuse_packed(text)
        if whole:
            return None
        named = self._by_words(text)
        if named is None:
            self._refuse_unplanned(text)
        return named

    def searched(self, text: str) -> Callable[[str], bool]:
        """Whether a catalogue model, or one derived from it, has every word of `text` in its name."""
        wanted = set(words_tuned_alike(name_in(text)))
        if not wanted:
            return lambda _name: False
        bases = {named.base for name, named in self.derived.items() if wanted <= set(words_tuned_alike(name))}
        return lambda name: name in bases or wanted <= set(words_tuned_alike(name))

    def is_mirror(self, name: str) -> bool:
        """Whether an id is another organisation's copy, which is meant only where its owner is named."""
        return name.partition("/")[0] in self._table.get("mirrors", ())

    @property
    def _ambiguous(self) -> tuple[str, ...]:
        """Names of one model by which people mean another of several more often."""
        return tuple(self._table.get("ambiguous", ()))

    @cached_property
    def _nicknames(self) -> dict[str, str]:
        """What people call one model of the catalogue though other names hold the word too."""
        known = set(self._catalogue.names())
        return {word: model_id for word, model_id in self._table.get("nicknames", {}).items() if model_id in known}

    @cached_property
    def _table(self) -> dict[str, Any]:
        for folder in self._catalogue.dirs:
            path: Path = folder.parent / NAMES_FILE
            if path.is_file():
                table = small_json(path)
                if isinstance(table, dict) and table.get("schema") == NAMES_SCHEMA:
                    return table
        return {}

    def _by_words(self, text: str) -> Named | None:
        wanted = words_of(text)
        if not wanted:
            return None
        pool = [*(Named(id=name, base=name) for name in self._catalogue.names()), *self.derived.values()]
        words, hits = words_of, [named for named in pool if set(wanted) <= set(words_of(named.id))]
        if not hits:
            words, wanted = words_tuned_alike, words_tuned_alike(text)
            hits = [named for named in pool if set(wanted) <= set(words(named.id))]
        if not hits and len(squashed(text)) > 2:
            hits = [named for named in pool if squashed(named.id).startswith(squashed(text))]
        if not hits:
            hits = self._of_said_size(wanted, pool)
        best = hits
        if fold(text) not in self._ambiguous:
            best = [named for named in hits if words(named.id) == wanted and not self.is_mirror(named.id)] or hits
        best = [named for named in best if words_of(named.id)[0] == wanted[0]] or best
        best = [named for named in best if not self.is_mirror(named.id)] or best
        # The model's makers before others who named theirs after it.
        best = [named for named in best if wanted[0] in named.id.partition("/")[0].lower()] or best
        return self._one(text, best, hits) if best else None

    def _of_said_size(self, wanted: tuple[str, ...], pool: list[Named]) -> list[Named]:
        """Models whose names state no size and have the other words of `wanted`, of the size that it states."""
        size, rest = billions(wanted), {word for word in wanted if not is_size(word)}
        if not size or not rest:
            return []
        named_so = [
            named for named in pool
            if rest <= set(words_tuned_alike(named.id)) and billions(words_of(named.id)) is None
        ]  # fmt: skip
        counts = {base: self._catalogue.load(base).params / 1e9 for base in {named.base for named in named_so}}
        return [named for named in named_so if abs(counts[named.base] / size - 1) <= _SAID_SIZE]

    def _one(self, text: str, best: list[Named], hits: list[Named]) -> Named:
        """The only model that `best` names, as the catalogue has it where that is among `hits`."""
        own = {named.base: named for named in hits if named.id == named.base}
        by_base: dict[str, Named] = {}
        for named in best:
            by_base.setdefault(named.base, own.get(named.base, named))
        if len(by_base) == 1:
            return next(iter(by_base.values()))
        shown = self.sorted_by_fame(text, (named.id for named in by_base.values()))
        raise InputError(f"{quoted(text)} {candidates_line(shown)}")

    def sorted_by_fame(self, text: str, names: Iterable[str]) -> list[str]:
        """Names nearest in size to what `text` states, the best known first; then models of the catalogue's own."""
        wanted = words_of(text)

        def key(name: str) -> tuple[float, int, bool, int, str]:
            named = self.derived.get(name)
            base = named.base if named else name
            distance = size_distance(wanted, words_of(name))
            return distance, rank(name, self.fame), named is not None, rank(base, self.fame), name

        return sorted(names, key=key)

    def _refuse_packed(self, text: str) -> None:
        packed = _PACKED.search(text)
        if packed is None:
            return
        bare = _AFTER_PACKED.sub("", _tail(text))
        try:
            base = self._catalogue.resolve(bare)
            named = None if base else self._by_words(bare)
        except InputError:
            base, named = None, None
        origin = base or (named.id if named else None)
        instead = f"give {origin}, which it was made from" if origin else "give the 16-bit model that it was made from"
        format_name = (packed[1] or "mlx").upper()
        raise RefusedError(
            f"{plain(text)} will not run: its weights are packed as {format_name}, and a fine-tune starts from"
            f" ordinary weights, which bitsandbytes packs as it loads them; {instead}"
        )

    def _refuse_unplanned(self, text: str) -> None:
        """Raises RefusedError for a name of models that cannot be planned, with the reason."""
        words = set(words_of(text))
        for group in self._table.get("unplanned", ()):
            if words & set(group["words"]):
                raise RefusedError(f"{plain(text)}: {group['why']}")


def _tail(name: str) -> str:
    return name.rpartition("/")[2]
