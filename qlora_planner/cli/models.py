"""models: the catalogue of profiled models."""

from __future__ import annotations

from typing import Any

import click

from qlora_planner.cli.options import Verb, output_options
from qlora_planner.cli.streams import answer, answer_csv, answer_json
from qlora_planner.cli.values import output_from
from qlora_planner.errors import InputError
from qlora_planner.text import quoted

SCHEMA = "qlora-plan/models/1"


@click.command("models", cls=Verb)
@click.argument("words", nargs=-1, metavar="[WORD]...")
@output_options(csv=True)
def command(words: tuple[str, ...], **given: Any) -> int:
    """The models that are known by name; with WORDs, those whose name or type has all of them."""
    output = output_from(given)
    from qlora_planner.report.parts.lists import MODEL_HEADS, model_fields, render_models
    from qlora_planner.sources.catalogue import ModelCatalogue, fold
    from qlora_planner.sources.locations import models_dirs
    from qlora_planner.sources.names import Names

    catalogue = ModelCatalogue(models_dirs(output.profiles))
    rows = [model_fields(profile) for profile in catalogue.load_all(output.warn)]
    wanted = [fold(word) for word in words]
    named = Names(catalogue).searched(" ".join(words))
    matching = [
        row
        for row in rows
        if all(word in f"{fold(row['model'])} {fold(row['model_type'])}" for word in wanted) or named(row["model"])
    ]
    if not matching and wanted:
        text = " ".join(words)
        raise InputError(f"no model of the catalogue has {quoted(text)} in its name{catalogue.suggestion(text)}")
    if output.json:
        answer_json({"schema": SCHEMA, "models": matching})
    elif output.csv:
        answer_csv(list(MODEL_HEADS), [list(row.values()) for row in matching])
    else:
        answer(render_models(matching, output.theme, explain=output.explain))
    return 0
