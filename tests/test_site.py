"""The documentation's site: its pages are in its menu, its reference is the program's, its commands can be typed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
import yaml

from qlora_planner.cli.main import VERBS, cli
from tools.site import accuracy_plot, reference

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))


def test_the_menu_has_every_page() -> None:
    listed = re.findall(r"[\w-]+\.md", str(SITE["nav"]))
    made = {"index.md", "reference.md", "api.md", "CONTRIBUTING.md"}
    assert sorted(listed) == sorted(made | {page.name for page in PAGES[1:]})


def test_the_reference_has_every_verb_and_option() -> None:
    text = reference()
    for name in VERBS:
        assert f"\n## {name}\n" in text
    (train,) = re.findall(r"^## train\n.*?(?=^## )", text, re.DOTALL | re.MULTILINE)
    for option in ("--resume", "--max-steps", "--gpu", "--seq-len", "--json"):
        assert f"| `{option}" in train


def test_the_plot_has_a_dot_for_every_run_that_was_measured() -> None:
    text = accuracy_plot()
    assert text.count("<circle") > 150
    assert "trl-sft</text>" in text


def commands(page: Path) -> list[str]:
    """Command lines of `qlora-plan` in a page's blocks and tables, those of one line."""
    text = page.read_text(encoding="utf-8")
    blocks = "\n".join(re.findall(r"^```(?:console|bash)\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
    blocks = blocks.replace("\\\n", " ")
    found = re.findall(r"^(?:\$ )?(qlora-plan(?:ner)? [^|;&#\n]*)", blocks, re.MULTILINE)
    found += [line for line in re.findall(r"`(qlora-plan [^`|]*)`", text) if page.name == "commands.md"]
    return [line.strip() for line in found]


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda page: page.name)
def test_every_command_on_a_page_can_be_typed(page: Path) -> None:
    for line in commands(page):
        words = shlex.split(line)[1:]
        group = cli.make_context("qlora-plan", list(words), resilient_parsing=True)
        name, command, rest = cli.resolve_command(group, [*group._protected_args, *group.args])
        assert command is not None, line
        options = {opt for parameter in command.params for opt in (*parameter.opts, *parameter.secondary_opts)}
        unknown = [
            word for word in rest if word.startswith("--") and word.partition("=")[0] not in options | {"--help"}
        ]
        assert unknown == [], f"{line}: {name} has no {unknown}"
        assert isinstance(command, click.Command)
