"""Which models a table of the whole catalogue shows, and which it folds into a line."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from qlora_planner.planner.survey.survey import SurveyRow

# Families that people ask for most, and how many rows each may take in one group; any other takes one.
ASKED_FOR = {
    "llama": 3, "qwen3": 2, "qwen2": 2, "qwen3_5": 2, "mistral": 2, "gemma3": 2, "gemma4": 2, "phi3": 1, "gpt_oss": 1,
    "gemma2": 1, "ministral3": 1, "qwen3_moe": 1, "mixtral": 1, "granite": 1, "olmo3": 1, "smollm3": 1, 
    "deepseek_v2": 1,
}  # fmt: skip
_NUMBERS = re.compile(r"\d+(?:\.\d+)?")


def family(row: SurveyRow) -> str:
    """The family as it is spoken of: the text half of a multimodal model is no other family."""
    return row.family.removesuffix("_text").replace("_moe_text", "_moe")


def pick(
    rows: Sequence[SurveyRow], most: int, catalogue: Sequence[SurveyRow], *, nearest: bool = False
) -> list[SurveyRow]:
    """At most `most` of `rows`, spread over families: of each its maker's own, largest and newest first.

    `catalogue` is all there is, which tells who the maker is. With `nearest`, those that lack least come first.
    """
    if len(rows) <= most:
        return sorted(rows, key=lambda row: row.shortfall_bytes or 0) if nearest else list(rows)
    makers = _makers(catalogue)
    by_family: dict[str, list[SurveyRow]] = {}
    for row in sorted(rows, key=lambda row: _rank(row, makers, nearest)):
        by_family.setdefault(family(row), []).append(row)
    order = list(ASKED_FOR)
    rank = {name: order.index(name) if name in order else len(order) for name in by_family}
    names = sorted(by_family, key=lambda name: (rank[name], -len(by_family[name]), name))
    chosen: list[SurveyRow] = []
    for name in names:
        chosen += _distinct(by_family[name])[: ASKED_FOR.get(name, 1)]
    if nearest:
        chosen.sort(key=lambda row: row.shortfall_bytes or 0)
        return chosen[:most]
    kept = {row.model_id for row in chosen[:most]}
    return [row for row in rows if row.model_id in kept]


def _makers(catalogue: Iterable[SurveyRow]) -> dict[str, str]:
    """Family -> the organisation that has most of it."""
    counts: dict[str, Counter[str]] = {}
    for row in catalogue:
        counts.setdefault(family(row), Counter())[row.model_id.partition("/")[0]] += 1
    return {name: max(of_family, key=lambda org: (of_family[org], org)) for name, of_family in counts.items()}


def _rank(row: SurveyRow, makers: dict[str, str], nearest: bool) -> tuple[object, ...]:
    """Smaller is shown sooner."""
    foreign = row.model_id.partition("/")[0] != makers[family(row)]
    size = (row.shortfall_bytes or 0) if nearest else -row.params
    # Of two models of a size the later version: 3.1 before 3 before 2.
    newest = [-float(part) for part in _NUMBERS.findall(row.model_id.partition("/")[2])]
    return (foreign, size, newest, row.model_id)


def _distinct(rows: Sequence[SurveyRow]) -> list[SurveyRow]:
    """One model per size."""
    seen: set[int] = set()
    distinct = []
    for row in rows:
        size = round(row.params / 5e8) if row.params > 2e9 else round(row.params / 1e8)
        if size not in seen:
            seen.add(size)
            distinct.append(row)
    return distinct


def larger_than(shown: Iterable[SurveyRow], hidden: Iterable[SurveyRow]) -> int:
    """How many of `hidden` have more parameters than any that is shown."""
    largest = max((row.params for row in shown), default=0)
    return sum(row.params > largest for row in hidden)


def fold_text(hidden: Sequence[SurveyRow], ellipsis: str, names: int = 6, larger: int = 0) -> str:
    """What a group does not show: `… and 24 more: 9 llama, 7 qwen2, 8 in 5 other families (--all)`.

    `larger` of them have more parameters than any that is shown, which is said.
    """
    counts = Counter(family(row) for row in hidden)
    largest = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    shown, rest = largest[:names], largest[names:]
    if len(rest) == 1:
        shown, rest = largest, []
    words = [f"{count} {name}" for name, count in shown]
    others = sum(count for _, count in rest)
    if rest:
        words.append(f"{others} others" if others == len(rest) else f"{others} in {len(rest)} other families")
    bigger = f", {larger} larger than these" if larger else ""
    return f"{ellipsis} and {len(hidden)} more{bigger}: {', '.join(words)} (--all)"
