"""Options of the verbs that try a finished run."""

from __future__ import annotations

from collections.abc import Callable

import click

from qlora_planner.cli.options import Function, adding
from qlora_planner.cli.sections import SectionOption

DEVICES = ("cuda", "cpu")


def trying_options(new_tokens: int) -> Callable[[Function], Function]:
    """How long answers are, whether there is a template around prompts, which base, where; `new_tokens` is usual."""
    options = [
        SectionOption(
            ["--max-new-tokens"], type=click.IntRange(1, 1 << 20), default=None,
            help=f"At most ({new_tokens}).",
        ),
        SectionOption(["--raw"], is_flag=True, help="Prompts as they are, without a chat template."),
        SectionOption(["--base"], metavar="DIR|ID", help="The base (what RUN names)."),
        SectionOption(["--device"], type=click.Choice(DEVICES), default=None, help="Where (as RUN was trained)."),
    ]  # fmt: skip
    return adding(options)
