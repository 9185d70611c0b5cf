"""completion: the script that lets a shell complete verbs, options, models and cards, printed or put in its place."""

from __future__ import annotations

import os
from pathlib import Path

import click

from qlora_planner.cli.options import Verb
from qlora_planner.cli.sections import SectionOption
from qlora_planner.cli.streams import PROGRAM, answer, say
from qlora_planner.errors import InputError

SHELLS = ("bash", "zsh", "fish")
PROGRAMS = (PROGRAM, "qlora-planner")
VARIABLE = "_QLORA_PLAN_COMPLETE"  # click's name for PROGRAM; both programs answer to it

_ZSH = "once in ~/.zshrc, before compinit: fpath=({folder} $fpath); autoload -Uz compinit && compinit"
_BASH = (
    f'a new bash loads them where bash-completion is; elsewhere add to ~/.bashrc: eval "$({PROGRAM} completion bash)"'
)


@click.command("completion", cls=Verb)
@click.argument("shell", type=click.Choice(SHELLS))
@click.option("--install", cls=SectionOption, is_flag=True, help="Write it where the shell looks for it.")
@click.option("--force", cls=SectionOption, is_flag=True, help="Write over a file of another kind that is there.")
def command(shell: str, install: bool, force: bool) -> int:
    """Completion of verbs, options, models and cards at the tab key of bash, zsh or fish: print its script.

    With --install it is written into the shell's own folder of completions; no start-up file is changed.
    """
    from qlora_planner.cli.completing import shell_script

    scripts = {program: shell_script(shell, program, VARIABLE) for program in PROGRAMS}
    if not install:
        answer("\n".join(scripts.values()).rstrip())
        return 0
    folder, name = _place(shell)
    paths = {folder / name.format(program): script for program, script in scripts.items()}
    foreign = [path for path in paths if path.exists() and VARIABLE not in path.read_text("utf-8", "replace")]
    if foreign and not force:
        raise InputError(f"{foreign[0]} is there and no completion of {PROGRAM}; --force writes over it")
    folder.mkdir(parents=True, exist_ok=True)
    for path, script in paths.items():
        path.write_text(script, encoding="utf-8")
        answer(str(path))
    note = {"bash": _BASH, "zsh": _ZSH.format(folder=folder), "fish": "a new fish loads them"}[shell]
    say(note)
    return 0


def _place(shell: str) -> tuple[Path, str]:
    """The user's folder of completions of `shell`, and what a file is called there."""
    data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    if shell == "bash":
        return data / "bash-completion" / "completions", "{}"
    if shell == "zsh":
        return data / "zsh" / "site-functions", "_{}"
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return config / "fish" / "completions", "{}.fish"
