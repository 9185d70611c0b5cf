"""side-by-side: a few prompts answered by the base and by what was tuned from it."""

from __future__ import annotations

from typing import Any

import click

from qlora_planner.cli import completing
from qlora_planner.cli.after_options import trying_options
from qlora_planner.cli.options import Verb, output_options
from qlora_planner.cli.sections import SectionOption
from qlora_planner.cli.streams import answer, answer_json
from qlora_planner.cli.values import output_from


@click.command("side-by-side", cls=Verb)
@click.argument("run", metavar="RUN", shell_complete=completing.files)
@click.option(
    "--prompt", "prompts", cls=SectionOption, multiple=True, metavar="TEXT",
    help="What to answer; may be given several times (three of RUN's data).",
)  # fmt: skip
@trying_options(128)
@output_options()
def command(
    run: str,
    prompts: tuple[str, ...],
    max_new_tokens: int | None,
    raw: bool,
    base: str | None,
    device: str | None,
    **given: Any,
) -> int:
    """Answer a few prompts with RUN's base and with its adapters on it, always the likeliest tokens.

    Kept in RUN/side-by-side.json and shown in RUN/report.html. What it takes is said first; exits with 1 when that is
    more than there is.
    """
    output = output_from(given)
    from qlora_planner.session.after.side_by_side import NEW_TOKENS, side_by_side
    from qlora_planner.session.packages import silent

    answers = side_by_side(
        output.session, run, prompts, max_new_tokens=max_new_tokens or NEW_TOKENS, raw=raw, base=base, device=device,
        hear=silent if output.json else output.warn,
    )  # fmt: skip
    if output.json:
        answer_json(answers.to_dict())
    else:
        from qlora_planner.report.side_by_side import render_side_by_side

        answer(render_side_by_side(answers.to_dict()["answers"], output.theme))
        if answers.kept is not None:
            output.warn(f"kept in {answers.kept} and shown in {answers.kept.with_name('report.html')}")
    return 0
