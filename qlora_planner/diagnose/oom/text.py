"""Text from outside: what is read of it, freed of what terminals and launchers put in between."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

# A log is read whole up to their sum; of a larger one its beginning (the command, the library versions) and its end.
HEAD_BYTES = 4 << 20
TAIL_BYTES = 12 << 20
# Of a minified line, so much on either side of a place is looked at.
LINE_CHARACTERS = 300
# Colours and cursor moves (CSI), window titles and links (OSC), and the short escapes.
_ESCAPES = re.compile(r"\x1b(?:\[[0-9;:?<=>]{0,64}[ -/]{0,4}[@-~]|\][^\x07\x1b\n]{0,4096}(?:\x07|\x1b\\)?|[@-Z\\^_c])")
# `[rank0]: `, torchrun's `[trainer0|0]: `, Ray's `(Worker pid=3) `, compose's `app-1  | `, bare or after a time.
_PREFIX = re.compile(
    r"(?:\d{4}-\d\d-\d\d[T ][\d:.,]{5,20}Z?[ \t]{1,4})?"
    r"(?:\[[A-Za-z_.-]{0,24}\d{1,4}(?:\|\d{1,4})?\]:? ?|\([\w .-]{0,60}pid=\d{1,9}[^)\n]{0,60}\)[ \t]?"
    r"|[\w.-]{1,40}[ \t]{1,4}\| )"
)


@dataclass(frozen=True, slots=True)
class Failure:
    """Where a failure stands in a text: fields of an OomReport, the place, and how many there are."""

    fields: dict[str, Any]
    start: int
    times: int


def cleaned(text: str) -> str:
    """`text` without escape sequences; a carriage return ends a line, as a progress bar means it."""
    if "\x1b" in text:
        text = _ESCAPES.sub("", text)
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def line_around(text: str, start: int) -> tuple[str, int]:
    """The line that holds `start`, at most LINE_CHARACTERS each way, and where it begins."""
    low = max(text.rfind("\n", max(0, start - LINE_CHARACTERS), start) + 1, start - LINE_CHARACTERS, 0)
    end = text.find("\n", start, start + LINE_CHARACTERS)
    return text[low : end if end >= 0 else start + LINE_CHARACTERS], low


def prefix_of(line: str) -> str:
    """What a launcher wrote before the line of one of its processes; empty where it wrote nothing."""
    match = _PREFIX.match(line)
    return "" if match is None else match[0]


def shown(text: str, most: int) -> str:
    """`text` on one line, shortened, without what a terminal would act on."""
    flat = " ".join(text[: 2 * most].split())[:most]
    return flat if flat.isprintable() else "".join(c if c.isprintable() else "?" for c in flat)
