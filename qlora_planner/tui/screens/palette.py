"""The command palette."""

from __future__ import annotations

from typing import Any

from textual.await_complete import AwaitComplete
from textual.command import CommandList, CommandPalette


class Palette(CommandPalette):
    """The command palette; keys that come before its list is laid out, or after it is closed, do nothing.

    textual 8.2's own raises KeyError for Page Up in the first case and ScreenStackError in the second.
    """

    def _action_command_list(self, action: str) -> None:
        if self.query_one(CommandList).size.height:
            super()._action_command_list(action)

    def dismiss(self, result: Any = None) -> AwaitComplete:
        """Close, once."""
        return super().dismiss(result) if self.is_attached and self.is_current else AwaitComplete()

    def _watch__list_visible(self) -> None:
        if self.query(CommandList):
            super()._watch__list_visible()

    async def _watch__show_busy(self) -> None:
        if self.query(CommandList):
            await super()._watch__show_busy()

    def _gather_commands(self, search_value: str) -> Any:
        # What was typed last may arrive when the list is gone.
        return super()._gather_commands(search_value) if self.is_current and self.query(CommandList) else None
