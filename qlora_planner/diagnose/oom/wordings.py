"""How others than torch's allocator say that memory ran out: one row a wording, with where it comes from.

`needles` are searched as they stand; where one is found, one of `says` must hold for its line. Rows of the card count
before those of the host: a host that kills what is left after a failure on the card only cleans up.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from qlora_planner.diagnose.oom.text import Failure, line_around, shown
from qlora_planner.diagnose.oom.torch_messages import SIZE, size_of

# What a row may look at: of lines that are repeated without end, some are enough.
_LOOKED_AT_CHARACTERS = 400_000
_SHOWN_CHARACTERS = 300
_ASKED = re.compile(rf"(?:tried to allocate|[Uu]nable to allocate|[Ii]nvalid buffer size:|size:|of size) {SIZE}")
_ASKED_BARE = re.compile(r"(?:mmap|malloc of size|realloc of size) (\d{1,20})\b")


@dataclass(frozen=True, slots=True)
class Wording:
    """One way of saying it. `headline` is what ran out, `advice` what helps, in order; `rank` orders kinds."""

    cause: str
    kind: str
    needles: tuple[str, ...]
    says: tuple[str, ...]
    headline: str
    advice: tuple[str, ...]
    source: str
    rank: int = 0
    backend: str | None = None

    @property
    def pattern(self) -> re.Pattern[str]:
        """All of `says`."""
        return _compiled(self.says)


@cache
def _compiled(says: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(says))


def find_other(text: str) -> Failure | None:
    """The failure that counts among all rows: what the card says, then kernels, then the host; the first of those."""
    from qlora_planner.diagnose.oom.wordings_card import CARD
    from qlora_planner.diagnose.oom.wordings_host import HOST

    best: tuple[tuple[int, int], Wording, str] | None = None
    places: dict[str, set[int]] = {}
    for row in (*CARD, *HOST):
        for start, message in _occurrences(text, row):
            places.setdefault(row.kind, set()).add(start)
            key = (row.rank, start)
            if best is None or key < best[0]:
                best = (key, row, message)
    if best is None:
        return None
    (_, start), row, message = best
    fields: dict[str, Any] = {
        "kind": row.kind,
        "cause": row.cause,
        "message": shown(message, _SHOWN_CHARACTERS),
        "backend": row.backend,
    }
    sized, bare = _ASKED.search(message), _ASKED_BARE.search(message)
    if sized is not None:
        fields["requested_bytes"] = size_of(sized[1], sized[2])
    elif bare is not None:
        fields["requested_bytes"] = int(bare[1])
    return Failure(fields=fields, start=start, times=len(places[row.kind]))


def wording(cause: str | None) -> Wording | None:
    """The row of a cause."""
    from qlora_planner.diagnose.oom.wordings_card import CARD
    from qlora_planner.diagnose.oom.wordings_host import HOST

    return next((row for row in (*CARD, *HOST) if row.cause == cause), None)


def _occurrences(text: str, row: Wording) -> Iterator[tuple[int, str]]:
    """Where the row's pattern holds, with what is shown of the line; a line counts once."""
    left, pattern = _LOOKED_AT_CHARACTERS, row.pattern
    for needle in row.needles:
        at = text.find(needle)
        while at >= 0 and left > 0:
            line, low = line_around(text, at)
            left -= len(line) + 1
            match = pattern.search(line)
            if match is not None:
                yield low + match.start(), line[match.start() :]
            at = text.find(needle, max(low + len(line), at + len(needle)))
