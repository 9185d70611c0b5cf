"""Options that know the section in which `--help` shows them."""

from __future__ import annotations

from typing import Any

import click

RUN, CARD, DATA, OUTPUT, OTHER = "Run options", "Card options", "Data options", "Output options", "Options"


class SectionOption(click.Option):
    """An option that knows its section in the help."""

    section = OTHER

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """`--[no-]dora` for a switch, as short as people write it."""
        if self.secondary_opts:
            return self.opts[0].replace("--", "--[no-]", 1), self.help or ""
        return super().get_help_record(ctx)


class RunOption(SectionOption):
    """What decides the run. `auto` is what leaving it out means."""

    section = RUN

    def type_cast_value(self, ctx: click.Context, value: Any) -> Any:
        """The value; None for `auto`."""
        if isinstance(value, str) and value.strip().lower() == "auto":
            return None
        return super().type_cast_value(ctx, value)


class CardOption(SectionOption):
    """What decides the card."""

    section = CARD


class DataOption(SectionOption):
    """What decides the dataset."""

    section = DATA


class OutputOption(SectionOption):
    """What decides how the answer looks."""

    section = OUTPUT
