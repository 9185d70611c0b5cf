"""generate: a prompt tried on a run, with what it takes said first."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import click

from qlora_planner.cli import completing
from qlora_planner.cli.after_options import trying_options
from qlora_planner.cli.options import Verb, output_options
from qlora_planner.cli.sections import SectionOption
from qlora_planner.cli.streams import answer, answer_json, answer_part
from qlora_planner.cli.values import output_from
from qlora_planner.errors import InputError

_LONGEST_BYTES = 4 << 20


@click.command("generate", cls=Verb)
@click.argument("run", metavar="RUN", shell_complete=completing.files)
@click.option("--prompt", cls=SectionOption, required=True, metavar="TEXT", help="What to answer; - reads stdin.")
@click.option("--temperature", cls=SectionOption, type=click.FloatRange(0, 10), default=0.0, help="0: no chance (0).")
@trying_options(256)
@output_options()
def command(
    run: str,
    prompt: str,
    max_new_tokens: int | None,
    temperature: float,
    raw: bool,
    base: str | None,
    device: str | None,
    **given: Any,
) -> int:
    """Load RUN's base as it was trained on, put its adapters on it, and answer a prompt; only the answer is on stdout.

    What it takes is said first; exits with 1 when that is more than the card, or the host with --device cpu, has left.
    """
    output = output_from(given)
    from qlora_planner.session.after.generate import PACKAGES, generate_on
    from qlora_planner.session.packages import check_installed, silent

    check_installed(PACKAGES)
    generation = generate_on(
        output.session, run, _prompt(prompt), max_new_tokens=max_new_tokens, temperature=temperature, raw=raw,
        base=base, device=device, hear=silent if output.json else partial(answer_part, joiners=True),
    )  # fmt: skip
    if output.json:
        answer_json(generation.to_dict())
    else:
        answer("")
        done = generation.generated
        speed = done.new_tokens / done.generate_s if done.generate_s > 0 else 0.0
        output.warn(f"{done.new_tokens} tokens, {speed:,.1f} tokens/s after {done.load_s:.1f} s of loading")
    return 0


def _prompt(given: str) -> str:
    text = sys.stdin.read(_LONGEST_BYTES) if given == "-" else given
    if not text.strip():
        raise InputError("--prompt: is empty" + ("; nothing came from stdin" if given == "-" else ""))
    return text
