"""The one place that cleans text from outside before anybody sees it: names, logs, files, other libraries' words.

A terminal obeys what it is sent. Escape sequences set its title and write the clipboard, direction marks turn a line
around, line ends forge lines of their own. Each such character becomes a `?`, so that columns stay where they are.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterable
from typing import Any

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60
_SHORT.maxlevel = 2

# More than that is no line that anybody reads: a file name can have 4,096 bytes, an exception the whole input.
LONGEST_LINE = 4096
# A file can hold thousands of names, each of a megabyte.
_LONGEST_NAME, _MOST_NAMES = 120, 12

# Joiners, which Persian, Hindi and emoji are spelled with; only a model's own words may hold them.
_JOINERS = "\u200c\u200d"
# C0 without tab and line feed, DEL and C1; soft hyphen; marks of direction; invisible characters; separators of lines
# and paragraphs; annotations; surrogates; tags.
_UNSAFE = (
    r"\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u115f\u1160\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\u3164\ufeff"
    r"\ufff0-\ufffb\ud800-\udfff\U000e0000-\U000e0fff"
)
_COLOUR = r"(\x1b\[[0-9;]{0,32}m)"


def quoted(value: Any) -> str:
    """`value` as it would be written in Python, shortened, on one line."""
    try:
        return plain(_SHORT.repr(value))
    except (ValueError, RecursionError):  # an integer too long to print, a list that holds itself
        return f"a {type(value).__name__}"


def plain(text: object) -> str:
    """`text` as one line: everything that a terminal would not print (line ends, escapes, stray bytes) made a `?`.

    Cut as by `cut` to LONGEST_LINE.
    """
    shown = cut(str(text))
    return shown if shown.isprintable() else "".join(c if c.isprintable() else "?" for c in shown)


def short(text: object, longest: int = LONGEST_LINE) -> str:
    """`plain` of `text`, cut as by `cut`."""
    return plain(cut(str(text), longest))


def cut(text: str, longest: int = LONGEST_LINE) -> str:
    """`text`, or its two ends and how much stood between them where it is longer than `longest` characters."""
    if len(text) <= longest:
        return text
    half = max(1, longest - 40) // 2  # the words between have room too, so that what was cut is not cut again
    return f"{text[:half]} ... {len(text) - 2 * half:,} characters ... {text[-half:]}"


def listed(names: Iterable[object], most: int = _MOST_NAMES) -> str:
    """Names from outside in one line: the first `most`, each shortened and made plain, and how many more there are."""
    every = list(names)
    shown = ", ".join(short(name, _LONGEST_NAME) for name in every[:most])
    return f"{shown} and {len(every) - most:,} more" if len(every) > most else shown


def screen(text: str, *, colour: bool = False, joiners: bool = False) -> str:
    """`text` of several lines, ready for a terminal: line feeds and tabs stay, every other control becomes a `?`.

    `colour` lets colours and styles (SGR sequences) pass, `joiners` the zero-width joiners of scripts and emoji.
    """
    if text.replace("\n", "").isprintable():
        return text
    unsafe = re.compile(f"[{_UNSAFE}{'' if joiners else _JOINERS}]")
    if not colour:
        return unsafe.sub("?", text)
    return "".join(
        piece if index % 2 else unsafe.sub("?", piece) for index, piece in enumerate(re.split(_COLOUR, text))
    )


def chatter(text: str) -> str:
    """`screen` for what libraries write to stderr: a carriage return may begin or end it, as progress bars use it."""
    body = text.strip("\r")
    if body.replace("\n", "").isprintable():
        return text
    before = "\r" if text.startswith("\r") else ""
    after = "\r" if body and text.endswith("\r") else ""
    return before + screen(body.replace("\r\n", "\n")) + after
