"""Themes that `t` goes through."""

from __future__ import annotations

from textual.theme import Theme

HIGH_CONTRAST = Theme(
    name="high-contrast", primary="#ffff00", secondary="#00ffff", accent="#ffff00", foreground="#ffffff",
    background="#000000", surface="#000000", panel="#202020", success="#00ff00", warning="#ffff00", error="#ff5050",
    dark=True,
)  # fmt: skip
THEMES = ("textual-dark", "textual-light", HIGH_CONTRAST.name)
