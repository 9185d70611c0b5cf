"""gpus: the catalogue of cards."""

from __future__ import annotations

from typing import Any

import click

from qlora_planner.cli.options import Verb, output_options
from qlora_planner.cli.streams import answer, answer_csv, answer_json
from qlora_planner.cli.values import output_from
from qlora_planner.errors import InputError
from qlora_planner.text import quoted

SCHEMA = "qlora-plan/gpus/1"


@click.command("gpus", cls=Verb)
@click.argument("words", nargs=-1, metavar="[WORD]...")
@output_options(csv=True)
def command(words: tuple[str, ...], **given: Any) -> int:
    """The cards that are known by name; with WORDs, those whose name has all of them."""
    output = output_from(given)
    from qlora_planner.catalog.gpus import GpuCatalogue
    from qlora_planner.report.parts.lists import GPU_HEADS, gpu_fields, gpu_row, render_gpus
    from qlora_planner.sources.catalogue import fold
    from qlora_planner.sources.locations import gpus_dirs

    cards = GpuCatalogue(gpus_dirs(output.profiles)).all()
    wanted = [fold(word) for word in words]
    names = {
        card.name: fold(" ".join((card.name, card.label, card.vendor, card.form, *card.aliases))) for card in cards
    }
    matching = [card for card in cards if all(word in names[card.name] for word in wanted)]
    if not matching and wanted:
        text = quoted(" ".join(words))
        raise InputError(f"no card of the catalogue has {text} in its name; `qlora-plan gpus` lists all")
    if output.json:
        answer_json({"schema": SCHEMA, "gpus": [gpu_fields(card) for card in matching]})
    elif output.csv:
        answer_csv(list(GPU_HEADS), [gpu_row(card) for card in matching])
    else:
        answer(render_gpus(matching, output.theme, explain=output.explain))
    return 0
