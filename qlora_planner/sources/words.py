"""Names of models as words: `llama3.1:8b`, `gemma3 27b` and `Llama-3.1-8B` are the same three."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

# Experts times size (8x7b), active size (a3b), effective size (e4b), a version (v0.3), a size, a number, letters.
_WORD = re.compile(
    r"\d+x\d+(?:\.\d+)?b|(?<![a-z\d])[ae]\d+(?:\.\d+)?b(?![a-z])|(?<![a-z\d])v\d+(?:\.\d+)*"
    r"|\d+(?:\.\d+)*[bmk](?![a-z])|\d+(?:\.\d+)*|[^\W\d_]+"
)
_SIZE = re.compile(r"(?:(\d+)x)?(\d+(?:\.\d+)?)([bm])")
_LONGEST = 120  # a Hub id has at most 96 characters; nothing longer is worth comparing
_LIKE = 0.75  # one letter of four
# Endings that say how a checkpoint was converted, not which model it is.
_CONVERTED = ("hf",)
# What ollama adds for the packing of its own file: `llama3.1:8b-instruct-q4_K_M`, `phi4:latest`.
_TAG = re.compile(r"[-:](?:latest|i?q\d\w*|fp16|bf16)$", re.IGNORECASE)
_ADDRESS = re.compile(r"^(?:https?://)?(?:huggingface\.co|hf\.co)/", re.IGNORECASE)
# Makers call a model that was taught to follow instructions by one of these.
_TUNED = frozenset(("instruct", "it", "chat"))


def words_of(name: str) -> tuple[str, ...]:
    """The words of a name, without the organisation before a slash."""
    tail = name[:_LONGEST].rpartition("/")[2].lower()
    matches = _WORD.findall(re.sub(r"(?<![\d.])(\d+)_(?=\d)", r"\1.", tail))
    words = tuple(word for word in matches if word not in _CONVERTED)
    return words[1:] if words[:2] == ("meta", "llama") else words


def name_in(text: str) -> str:
    """The name in what was typed: without the Hub's address, and without ollama's tag for a packing."""
    name = _ADDRESS.sub("", text.strip()).rstrip("/")
    return name if "/" in name else _TAG.sub("", name)


def words_tuned_alike(name: str) -> tuple[str, ...]:
    """The words of a name, with one word for `instruct`, `it` and `chat`."""
    return tuple("instruct" if word in _TUNED else word for word in words_of(name))


def is_size(word: str) -> bool:
    """Whether a word states a size: `7b`, `8x7b`, `135m`."""
    return _SIZE.fullmatch(word) is not None


def billions(words: Iterable[str]) -> float | None:
    """The size that a name states, in billions of parameters; experts times size for a mixture."""
    for word in words:
        if (size := _SIZE.fullmatch(word)) is not None:
            experts, number, unit = size.groups()
            return float(number) * int(experts or 1) / (1000 if unit == "m" else 1)
    return None


def size_distance(first: Sequence[str], second: Sequence[str]) -> float:
    """How far apart the sizes in two names are, as the logarithm of their ratio; 0 where one states none."""
    ours, theirs = billions(first), billions(second)
    if not ours or not theirs:
        return 0.0
    return abs(math.log(ours / theirs))


def squashed(text: str) -> str:
    """A name's letters and digits alone."""
    return "".join(character for character in text.rpartition("/")[2].lower() if character.isalnum())


def nearest_names(text: str, names: Iterable[str], fame: Sequence[str], most: int = 3) -> tuple[str, ...]:
    """Names that `text` may have meant, nearest first: of the same model, then by words, size, owner and fame.

    A name whose first word is another model's is none of them, unless it is that word misspelt.
    """
    from difflib import SequenceMatcher

    wanted = words_of(text)
    if not wanted:
        return ()
    matcher = SequenceMatcher(autojunk=False)
    matcher.set_seq2(wanted[0])
    ranked: list[tuple[float, ...]] = []
    candidates = list(names)
    for index, name in enumerate(candidates):
        words = words_of(name)
        likeness = 0.0
        if words and words[0] == wanted[0]:
            likeness = 1.0
        elif words:
            matcher.set_seq1(words[0])
            likeness = matcher.ratio() if matcher.quick_ratio() >= _LIKE else 0.0
        if likeness >= _LIKE:
            shared = sum(1 for word in set(words[1:]) & set(wanted[1:]) if not _SIZE.fullmatch(word))
            owned = "/" in text and SequenceMatcher(None, _owner(text), _owner(name)).ratio() >= _LIKE
            ranked.append((-likeness, -shared, size_distance(wanted, words), -owned, rank(name, fame), index))
    return tuple(candidates[int(index)] for *_, index in sorted(ranked)[:most])


def _owner(name: str) -> str:
    return name.partition("/")[0].lower()


def rank(name: str, fame: Sequence[str]) -> int:
    """The place of a name in the list of the best known; behind all of them where it is not there."""
    return fame.index(name) if name in fame else len(fame)
