"""How far a run was when it failed, from the progress bars in its log: tqdm's, and the one that notebooks show."""

from __future__ import annotations

import re
from dataclasses import dataclass

# ` 12%|#2   | 31/250 [01:02<07:20,  2.01s/it]`; two bars may stand on one line.
_TQDM = re.compile(r"\d{1,3}%\|[^|\n]{0,200}\| {0,8}(\d{1,9})/(\d{1,9}) \[(?:\d{1,3}:){1,3}\d\d<")
# transformers' bar in a notebook: ` [ 31/250 01:02 < 07:20, 0.50 it/s, Epoch 0.12/1]`.
_NOTEBOOK = re.compile(r"\[ {0,8}(\d{1,9})/(\d{1,9}) (?:\d{1,3}:){1,3}\d\d < ")
_LOADS = re.compile(r"(?i)loading|checkpoint shards|download|fetching")
_PREPARES = re.compile(
    r"(?i)\b(?:map|filter|tokeniz|generating|saving the|packing|truncat|adding|applying|casting|convert)"
)
_EVALUATES = re.compile(r"(?i)\b(?:eval|validat|predict)")
# A bar writes a line a step: the last of them, and what a closing bar writes after the traceback.
_BEFORE_CHARACTERS = 64 << 10
_AFTER_CHARACTERS = 4 << 10
_NAME_CHARACTERS = 60


@dataclass(frozen=True, slots=True)
class Progress:
    """`step` of `steps` optimizer steps were made; None where only another bar ran. `phase`: of the last bar."""

    step: int | None
    steps: int | None
    phase: str | None


@dataclass(frozen=True, slots=True)
class _Bar:
    phase: str | None  # None: a bar without a name, as a trainer's
    done: int
    total: int


def progress_at(text: str, start: int, *, evaluating: bool = False) -> Progress | None:
    """What the bars before the message at `start` say, else those shortly after it; None without any.

    `evaluating`: the traceback shows an evaluation, so the last bar can be that one's.
    """
    bars = _bars(text[max(0, start - _BEFORE_CHARACTERS) : start]) or _bars(text[start : start + _AFTER_CHARACTERS])
    if not bars:
        return None
    steps = [bar for bar in bars if bar.phase is None and 0 <= bar.done <= bar.total and bar.total]
    phase = bars[-1].phase
    if not steps:
        return Progress(step=None, steps=None, phase=phase)
    total = _trained(steps, evaluating)
    own = [bar for bar in steps if bar.total == total]
    if phase is None and steps[-1].total != total:
        phase = "eval"
    return Progress(step=own[-1].done, steps=total, phase=phase)


def _trained(steps: list[_Bar], evaluating: bool) -> int:
    """The length of the run's own bar among those without a name.

    Bars of preparing data come before it and are full when it begins; an evaluation's bar comes while it stands.
    """
    last = {bar.total: bar for bar in steps}
    order = list(dict.fromkeys(bar.total for bar in steps))
    if evaluating and len(order) > 1 and order[-1] == steps[-1].total:
        order = order[:-1]
    return next((total for total in order if last[total].done < total), order[-1])


def _bars(text: str) -> list[_Bar]:
    bars: list[tuple[int, _Bar]] = []
    for pattern in (_TQDM, _NOTEBOOK):
        for match in pattern.finditer(text):
            low = max(text.rfind("\n", 0, match.start()) + 1, match.start() - _NAME_CHARACTERS)
            bars.append((match.start(), _Bar(_named(text[low : match.start()]), int(match[1]), int(match[2]))))
    return [bar for _, bar in sorted(bars, key=lambda pair: pair[0])]


def _named(before: str) -> str | None:
    for pattern, phase in ((_LOADS, "load"), (_PREPARES, "data"), (_EVALUATES, "eval")):
        if pattern.search(before):
            return phase
    return None
