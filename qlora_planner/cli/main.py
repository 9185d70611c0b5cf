"""`qlora-plan`: verbs from a table, loaded when called; without a verb, a survey of a card or the plan of a model."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from qlora_planner import __version__
from qlora_planner.cli.streams import PROGRAM, guarded_stderr, say
from qlora_planner.errors import InputError, PlannerError
from qlora_planner.text import quoted

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

DEBUG_VARIABLE = "QLORA_PLAN_DEBUG"
BUG, INTERRUPTED = 4, 130
_NO_COMMAND = "qlora_planner.no_command"

# Verb -> module in this package, what it does.
VERBS: dict[str, tuple[str, str]] = {
    "plan": ("plan", "The recommended run for one model on a card; MODEL alone does the same."),
    "survey": ("survey", "What fits on a card, over the whole catalogue; --gpu alone does the same."),
    "estimate": ("estimate", "The memory of exactly this run."),
    "check": ("check", "Whether a plan, an axolotl or a LLaMA-Factory file fits."),
    "audit": ("audit", "What will really be 4-bit, what will not, and why."),
    "profile": ("profile", "Build and keep the profile of a model (needs torch)."),
    "gpus": ("gpus", "The cards that are known by name."),
    "models": ("models", "The models that are known by name."),
    "doctor": ("doctor", "What is installed, what is missing, what will break."),
    "verify": ("verify", "Predict, run real steps, compare (needs torch)."),
    "table": ("table", "Memory by model and method, and the largest model per card."),
    "myths": ("myths", "What people say about memory, and the figures that say otherwise."),
    "train": ("train", "Run a plan: watched, recovered, resumable (needs torch)."),
    "calibrate": ("calibrate", "Turn measurements of this machine into calibration."),
    "merge": ("merge", "Merge the adapters of a run into its base (needs torch)."),
    "generate": ("generate", "Try a prompt on a run (needs torch)."),
    "side-by-side": ("side_by_side", "Base and tuned model on a few prompts (needs torch)."),
    "chat": ("chat", "Talk with a run in the terminal; /base asks its base (needs torch)."),
    "explain-oom": ("explain_oom", "What ran out of memory, from a log."),
    "mcp": ("mcp", "The answers as tools for agents, by the Model Context Protocol."),
    "completion": ("completion", "Completion at the tab key of bash, zsh and fish; --install puts it in place."),
    "tui": ("tui", "The explorer: models, knobs, frontier and prices in the terminal."),
}

EXAMPLES = (
    (f"{PROGRAM} --gpu 24GB", "what fits on this card"),
    (f"{PROGRAM} llama-3.1-8b --gpu rtx-4090", "the recommended run of one model"),
    (f"{PROGRAM} estimate qwen2.5-7b --gpu 16GB", "will exactly this run fit"),
    (f"{PROGRAM} audit Qwen/Qwen3-30B-A3B", "what will not be 4-bit"),
)

EXIT_CODES = (
    ("0", "it fits, tightly or not; or the verb did its work"),
    ("1", "it does not fit, or will not run"),
    ("2", "bad input"),
    ("3", "something is missing: a package, a GPU, a file, a profile"),
    ("4", "a run failed"),
    ("5", "cannot say: something is not modelled that could change the verdict"),
    ("130", "interrupted"),
)


def dispatch(args: Sequence[str]) -> list[str]:
    """The arguments with the verb first: given, or `plan` for a word that is none, or `survey` without a word.

    Raises InputError for several words of which none is a verb, and for one that is nearly a verb and no model.
    """
    if not args or args[0] in ("--help", "-h", "--version"):
        return list(args) or ["--help"]
    places, unknown = _words(args)
    if not places:
        return ["--help"] if {"--help", "-h"} & set(args) else ["survey", *args]
    if unknown:
        unknown = _of_no_plan(args, unknown)
    # Behind an unknown option stands its value, or the verb.
    first = next((index for index in places if args[index] in VERBS), places[0]) if unknown else places[0]
    word = args[first]
    if word in VERBS:
        return [word, *args[:first], *args[first + 1 :]]
    if unknown:  # the verb itself says what to type in its place
        values = {index + 1 for index in unknown}
        return ["plan" if set(places) - values else "survey", *args]
    _check_word(word, len(places))
    return ["plan", *args]


def _words(args: Sequence[str]) -> tuple[list[int], list[int]]:
    """Where the words stand that are neither options nor their values, and where options that no plan has."""
    from qlora_planner.cli.options import TRUTHS, flags_and_values, option_name

    flags, values = flags_and_values()
    places: list[int] = []
    unknown: list[int] = []
    skip = only_words = False
    for index, arg in enumerate(args):
        following = "".join(args[index + 1 : index + 2])
        if skip:
            skip = False
        elif only_words or not arg.startswith("-") or arg == "-":
            places.append(index)
        elif arg == "--":
            only_words = True
        else:
            name = option_name(arg)
            # A plan's --csv names a file; a survey's is a switch.
            valued = name in values or (name == "--csv" and following.endswith(".csv"))
            skip = "=" not in arg and (valued or (name in flags and following.lower() in TRUTHS))
            if name not in values and name not in flags:
                unknown.append(index)
    return places, unknown


def _of_no_plan(args: Sequence[str], places: Sequence[int]) -> list[int]:
    """Those of `places` whose option a plan does not have."""
    from qlora_planner.cli.options import option_name
    from qlora_planner.cli.plan import command

    own = {spelling for parameter in command.params for spelling in (*parameter.opts, *parameter.secondary_opts)}
    return [index for index in places if option_name(args[index]) not in own]


def _check_word(word: str, words: int) -> None:
    """Refuse what would be looked for on the Hub though it was meant as a verb."""
    from difflib import get_close_matches

    near = get_close_matches(word.lower(), [*VERBS], 1, 0.75)
    meant = f"; did you mean `{PROGRAM} {near[0]}`?" if near else ""
    if words > 1:
        meant = meant or "; a MODEL is one word, so quote a name that has spaces"
        raise InputError(f"{quoted(word)} is no verb{meant}")
    if not near or "/" in word or Path(word).exists():
        return
    from qlora_planner.sources.catalogue import ModelCatalogue
    from qlora_planner.sources.locations import models_dirs

    if ModelCatalogue(models_dirs()).resolve(word) is None:
        raise InputError(f"{quoted(word)} is no verb and no model of the catalogue{meant}")


class Program(click.Group):
    """The group of all verbs, and the one place where faults become a line and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every verb, in the order in which the help shows them."""
        return [*VERBS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a verb's module."""
        if cmd_name in VERBS:
            command = import_module(f"qlora_planner.cli.{VERBS[cmd_name][0]}").command
            return command if isinstance(command, click.Command) else None
        return None

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the verb first, then parse as any group does."""
        try:
            args = dispatch(args)
        except InputError:
            if not ctx.resilient_parsing:
                raise
            args, ctx.meta[_NO_COMMAND] = [], True  # a shell that completes a line is offered nothing
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Verbs and models, whose plan a model alone is; the options of both forms without a verb."""
        from click.shell_completion import CompletionItem

        from qlora_planner.cli.completing import model_names

        if ctx.meta.get(_NO_COMMAND):
            return []
        if incomplete.startswith("-"):
            offers = [
                item
                for verb in ("plan", "survey")
                if (command := self.get_command(ctx, verb))
                for item in command.shell_complete(ctx, incomplete)
            ]
            return list({item.value: item for item in offers}.values())
        verbs = [CompletionItem(name, help=text) for name, (_, text) in VERBS.items() if name.startswith(incomplete)]
        return verbs + [CompletionItem(name) for name in model_names(incomplete)] if incomplete else verbs

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The verbs from their table: help imports none of them."""
        with formatter.section("Examples"):
            formatter.write_dl(EXAMPLES, col_max=44)
        with formatter.section("Verbs"):
            formatter.write_dl([(name, text) for name, (_, text) in VERBS.items()])
        with formatter.section("Exit codes"):
            formatter.write_dl(EXIT_CODES)

    def main(self, *args: Any, **extra: Any) -> NoReturn:
        """Run, turn every fault into one line on stderr, and exit with its code."""
        extra["standalone_mode"] = False
        sys.exit(self._code(*args, **extra))

    def _code(self, *args: Any, **extra: Any) -> int:
        with guarded_stderr():
            return self._guarded(*args, **extra)

    def _guarded(self, *args: Any, **extra: Any) -> int:
        try:
            code = super().main(*args, **extra)
        except (click.Abort, KeyboardInterrupt):
            say("interrupted")
            return INTERRUPTED
        except click.ClickException as error:
            say(_usage(error))
            return 2
        except PlannerError as error:
            say(str(error))
            return error.exit_code
        except Exception as error:
            return _bug(error)
        return code if isinstance(code, int) else 0


def _usage(error: click.ClickException) -> str:
    """click's own words on one line, and where to read on."""
    context = getattr(error, "ctx", None)
    command_path = context.command_path if context is not None else PROGRAM
    return f"{' '.join(error.format_message().split()).removesuffix('.')} (see `{command_path} --help`)"


def _bug(error: Exception) -> int:
    if os.environ.get(DEBUG_VARIABLE):
        import traceback

        traceback.print_exception(error)
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    line = f" at {Path(frame.tb_frame.f_code.co_filename).name}:{frame.tb_lineno}" if frame is not None else ""
    what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    say(f"a bug in qlora-planner{line}: {what}; {DEBUG_VARIABLE}=1 shows the traceback")
    return BUG


_COLLECT_EVERY = 50_000  # objects made and not freed


@click.group(
    cls=Program,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    options_metavar="[OPTIONS]",
    subcommand_metavar="[VERB | MODEL] ...",
)
@click.version_option(__version__, prog_name=PROGRAM, message="%(prog)s %(version)s")
def cli() -> None:
    """Will it fit, what exactly to run, what it costs, and why: GPU memory of QLoRA fine-tuning, before the night."""


def main() -> NoReturn:
    """The console script."""
    # A plan makes hundreds of thousands of small records that live to its end: looking for cycles among them every
    # 700 takes a twentieth of its time.
    gc.set_threshold(_COLLECT_EVERY)
    try:
        cli.main(prog_name=PROGRAM)
    finally:
        # Leaving looks through it all once more, a twentieth of a plan. What torch holds may need that.
        if "torch" not in sys.modules:
            gc.freeze()
