"""What a shell offers behind a tab: verbs, models, cards, names of options' values. Read when a tab is pressed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

# Sizes that cards are sold with, beside the cards' own names.
_SIZES = ("8GB", "12GB", "16GB", "24GB", "32GB", "40GB", "48GB", "80GB", "96GB", "141GB")


def _items(names: Iterable[str]) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    return [CompletionItem(name) for name in names]


def model_names(incomplete: str) -> list[str]:
    """Names of the catalogue that begin with `incomplete` in any case: short ones, or with an organisation."""
    from qlora_planner.sources.catalogue import ModelCatalogue
    from qlora_planner.sources.locations import models_dirs

    wanted = incomplete.lower()
    names = ModelCatalogue(models_dirs()).names()
    if "/" in incomplete:
        return [name for name in names if name.lower().startswith(wanted)]
    short = [name.partition("/")[2].lower() for name in names]
    return sorted({name for name in short if name.startswith(wanted) and short.count(name) == 1})


def models(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Models; folders and files too where a path is begun."""
    if incomplete.startswith((".", "/", "~")):
        return files(ctx, param, incomplete)
    return _items(model_names(incomplete))


def runs(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Models, and what lies in this folder: a plan or a run."""
    return [*models(ctx, param, incomplete), *files(ctx, param, incomplete)]


def cards(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Sizes, cards by name, and `local`; behind `2x` or a comma too."""
    from qlora_planner.catalog.gpus import GpuCatalogue
    from qlora_planner.sources.locations import gpus_dirs

    head, comma, last = incomplete.rpartition(",")
    count, times, name = last.partition("x")
    before = head + comma
    if times and count.isdigit():
        before, last = f"{before}{count}x", name
    names = [*_SIZES, "local", *(card.name for card in GpuCatalogue(gpus_dirs()).all())]
    return _items(before + name for name in names if name.lower().startswith(last.lower()))


def optimizers(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """transformers' names of the optimizers that are modelled."""
    from qlora_planner.catalog.optimizers import OPTIMIZERS

    return _items(name for name in OPTIMIZERS if name.startswith(incomplete))


def files(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Files, which the shell itself lists."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="file")]


def shell_script(shell: str, program: str, variable: str) -> str:
    """click's script for `shell` that asks `program` at every tab, by the environment variable `variable`."""
    from click.shell_completion import get_completion_class

    from qlora_planner.cli.main import cli

    kind = get_completion_class(shell)
    assert kind is not None, f"click knows {shell}"
    made = kind(cli, {}, program, variable)
    return made.source_template % made.source_vars()
