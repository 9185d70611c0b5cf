"""Labels of the rows that a classifier learns from: whole numbers from 0, or words that get numbers in their order."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from qlora_planner.errors import InputError
from qlora_planner.record import record
from qlora_planner.text import listed, plain, quoted

# More different words than this are no classes.
_MOST_NAMES = 10_000
_SHOWN = 8
LABELS_FILE = "labels.json"


@record
class Labels:
    """What the labels of a dataset are: `count` of them; `names` in the order of their numbers, None for numbers."""

    count: int
    names: tuple[str, ...] | None = None

    def document(self) -> str:
        """The labels as JSON, each at its number: what an adapter's folder keeps of them."""
        return json.dumps(list(self.names or range(self.count)), ensure_ascii=False) + "\n"

    def number(self, label: int | str) -> int:
        """The number of a row's label. Raises InputError for one that was not there when they were read."""
        if self.names is None:
            return int(label)
        try:
            return self.names.index(str(label))
        except ValueError:
            raise InputError(f"label {quoted(label)} is none of {listed(self.names, _SHOWN)}") from None


@dataclass(slots=True)
class LabelsSeen:
    """Collects the labels of a pass over a dataset, each with the first place it stands at."""

    place: Callable[[int, int], str]  # of a file and a line
    seen: dict[int | str, tuple[int, int]] = field(default_factory=dict)

    def add(self, file: int, line: int, label: int | str) -> None:
        """One row's label. Raises InputError where there are too many different ones to be classes."""
        if label not in self.seen:
            self.seen[label] = file, line
            if len(self.seen) > _MOST_NAMES:
                raise InputError(
                    f"{self.place(file, line)}: more than {_MOST_NAMES:,} different labels: label is no class there"
                )

    def settle(self, wanted: int | None) -> Labels:
        """What the labels are. Raises InputError naming a place for labels that do not fit together or `wanted`."""
        numbers = {label: _number(label) for label in self.seen}
        if any(number is None for number in numbers.values()):
            return self._named(wanted)
        places = {number: self.seen[label] for label, number in numbers.items() if number is not None}
        low, high = min(places), max(places)
        count = high + 1 if wanted is None else wanted
        for number in (low, high):
            if not 0 <= number < count:
                whole = "labels are counted from 0" if number < 0 else f"{count} labels are 0 to {count - 1}"
                raise InputError(f"{self.place(*places[number])} has label {number}, and {whole}")
        self._check_several(places)
        return Labels(count=count)

    def _named(self, wanted: int | None) -> Labels:
        typed = [label for label in self.seen if isinstance(label, int)]
        if typed:
            word = next(label for label in self.seen if _number(label) is None)
            raise InputError(
                f"{self.place(*self.seen[word])} has label {quoted(word)}, and {self.place(*self.seen[typed[0]])} has"
                f" {typed[0]}: labels are numbers in every row, or words in every row"
            )
        names = tuple(sorted(map(str, self.seen)))
        self._check_several(names)
        if wanted is not None and len(names) > wanted:
            path = self.place(*next(iter(self.seen.values()))).partition(": ")[0]
            raise InputError(
                f"{path}: has {len(names)} labels ({listed(names, _SHOWN)}), and --num-labels says {wanted}"
            )
        return Labels(count=len(names) if wanted is None else wanted, names=names)

    def _check_several(self, labels: Any) -> None:
        if len(labels) < 2:
            path = self.place(*next(iter(self.seen.values()))).partition(": ")[0]
            raise InputError(f"{path}: every row has the label {plain(next(iter(self.seen)))}: nothing is told apart")


def _number(label: int | str) -> int | None:
    """The whole number that a label is, as csv files write them too; None for a word."""
    if isinstance(label, int):
        return label
    digits = label.strip().removeprefix("-")
    return int(label) if digits.isascii() and digits.isdecimal() and len(digits) < 10 else None
