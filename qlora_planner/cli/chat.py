"""chat: a conversation with a run in the terminal."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from qlora_planner.cli import completing
from qlora_planner.cli.after_options import trying_options
from qlora_planner.cli.options import Verb, output_options
from qlora_planner.cli.sections import SectionOption
from qlora_planner.cli.streams import answer, answer_part
from qlora_planner.cli.values import output_from
from qlora_planner.errors import InputError
from qlora_planner.text import quoted

if TYPE_CHECKING:
    from qlora_planner.cli.values import Output
    from qlora_planner.session.after.chat import Chat

_COMMANDS = "/base the base answers, or the tuned model again; /new forgets what was said; /quit or Ctrl-D ends"
_LONGEST_CHARACTERS = 1 << 20


@click.command("chat", cls=Verb)
@click.argument("run", metavar="RUN", shell_complete=completing.files)
@click.option("--temperature", cls=SectionOption, type=click.FloatRange(0, 10), default=0.0, help="0: no chance (0).")
@trying_options(256)
@output_options()
def command(
    run: str,
    temperature: float,
    max_new_tokens: int | None,
    raw: bool,
    base: str | None,
    device: str | None,
    **given: Any,
) -> int:
    """Talk with RUN: its base as it was trained on, with its adapters; a line is a message, the answer is on stdout.

    /base has the base answer, and the tuned model again; /new forgets; /quit or Ctrl-D ends. Without a chat template
    each line is gone on with by itself.
    """
    output = output_from(given)
    if output.json:
        raise InputError("--json: a conversation is no document; `generate --json` answers one prompt")
    from qlora_planner.session.after.chat import open_chat

    chat = open_chat(
        output.session, run, max_new_tokens=max_new_tokens, temperature=temperature, raw=raw, base=base, device=device
    )
    output.warn(_COMMANDS)
    if not chat.remembers:
        output.warn("there is no chat template: each line is gone on with by itself")
    while (line := _next_line(chat)) is not None:
        if not _obey(line, chat, output):
            return 0
    return 0


def _next_line(chat: Chat) -> str | None:
    """What is typed; None at the end. Only a terminal is shown who answers."""
    if not sys.stdin.isatty():
        return sys.stdin.readline(_LONGEST_CHARACTERS) or None
    try:
        # On a terminal `input` edits the line and keeps a history where readline is there.
        return input(f"{'tuned' if chat.tuned else 'base'}> ") + "\n"
    except EOFError:
        return None


def _obey(line: str, chat: Chat, output: Output) -> bool:
    """Answer a line, or do what it commands; False ends the conversation."""
    text = line.strip()
    if text in ("/quit", "/exit"):
        return False
    if text == "/base":
        chat.tuned = not chat.tuned
        output.warn("the tuned model answers" if chat.tuned else "the base answers; /base again is the tuned model")
    elif text == "/new":
        chat.forget()
        output.warn("forgotten")
    elif text.startswith("/") and " " not in text:
        output.warn(f"{quoted(text)} is no command: {_COMMANDS}")
    elif text:
        before = chat.dropped
        try:
            chat.say(text, partial(answer_part, joiners=True))
        except InputError as error:
            output.warn(str(error))
        else:
            answer("")
        if chat.dropped > before:
            output.warn(f"{chat.dropped - before} messages were too old to be read again")
    return True
