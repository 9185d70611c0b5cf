"""The line that is always in sight: the card that is planned for, what NVML says of a card that is here, the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.text import Text

from qlora_planner.report.parts.labels import gib
from qlora_planner.report.parts.theme import Theme
from qlora_planner.session.cards import is_local

if TYPE_CHECKING:
    from qlora_planner.measure.nvml import DeviceReading
    from qlora_planner.session.cards import PlannedCard

_GAUGE = 8
_ROOMY = 110


def card_text(card: PlannedCard, here: Sequence[DeviceReading], theme: Theme) -> Text:
    """The planned card with what a process can use of it, where it is not one that is here; what is used and free of
    those that are here, as NVML says. Without a reading there is no figure."""
    text = Text()
    if not is_local(card.asked) or not here:
        cards, each = ("", "") if card.world == 1 else (f"{card.world} x ", " each")
        text.append(f" {cards}{_short(card.gpu.label)}", style="bold")
        text.append(f" planned: {gib(card.budget(None).usable_bytes)} GiB usable{each} ")
    if here:
        name = _short(here[0].name or "GPU") if len(here) == 1 else f"{len(here)} cards"
        text.append(f" {name}", style="bold").append(" here: ").append(_held(here, theme)).append(" ")
    return text


def _held(here: Sequence[DeviceReading], theme: Theme) -> Text:
    used, free, total = (
        None if any(size is None for size in sizes) else sum(size for size in sizes if size is not None)
        for sizes in zip(*((card.used_bytes, card.free_bytes, card.total_bytes) for card in here), strict=True)
    )
    text = Text()
    if used is not None and total and theme.width >= _ROOMY:
        text = Text.assemble(*theme.gauge(used, total, _GAUGE, "cyan"), " ")
    if used is None and free is None:
        return text.append("NVML gives no figure of its memory")
    return text.append(f"{gib(used)} GiB used, {gib(free)} free")


def _short(label: str) -> str:
    return label.removeprefix("NVIDIA ").removeprefix("GeForce ")


def fitted(card: Text, model: str | None, work: Text, width: int, *, bold: bool) -> Text:
    """One line of `width`: the card, the model as far as there is room for its name, what is worked on."""
    text = card.copy()
    text.no_wrap, text.overflow = True, "ellipsis"
    room = width - card.cell_len - work.cell_len - 2
    for name in () if model is None else (model, model.rpartition("/")[2]):
        if len(name) <= room:
            text.append(f" {name} ", style="bold" if bold else "")
            break
    return text.append(work)
