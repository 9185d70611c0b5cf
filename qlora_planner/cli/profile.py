"""profile: build and keep the profile of a model."""

from __future__ import annotations

import time
from typing import Any

import click

from qlora_planner.cli import completing
from qlora_planner.cli.options import Verb, output_options
from qlora_planner.cli.streams import answer, answer_json
from qlora_planner.cli.values import output_from
from qlora_planner.text import plain


@click.command("profile", cls=Verb)
@click.argument("model", shell_complete=completing.models)
@output_options()
def command(model: str, **given: Any) -> int:
    """Build the model's real class without weights, see what loading and PEFT do to it, and keep what was found.

    MODEL is a Hub id, a model folder or a config.json. No weights are downloaded. Needs the [train] packages.
    """
    output = output_from(given)
    from qlora_planner.session import load_model

    begun = time.monotonic()
    output.warn(f"profiling {plain(model)}: building its class without weights takes some seconds")
    profile = load_model(model, profiles=output.profiles, build="always", warn=output.warn)
    if output.json:
        from qlora_planner.spec.codec import profile_to_dict

        answer_json(profile_to_dict(profile))
    else:
        from qlora_planner.report.parts.lists import render_profile

        answer(render_profile(profile, time.monotonic() - begun, output.theme, explain=output.explain))
    return 0
