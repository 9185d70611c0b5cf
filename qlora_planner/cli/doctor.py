"""doctor: what is installed, what is missing, what will break, and the line that fixes it."""

from __future__ import annotations

from typing import Any

import click

from qlora_planner.cli.options import Verb, output_options
from qlora_planner.cli.streams import answer, answer_json, patience
from qlora_planner.cli.values import output_from
from qlora_planner.errors import InputError

SYMPTOM_SCHEMA = "qlora-plan/symptom/1"


@click.command("doctor", cls=Verb)
@click.argument("error", nargs=-1, metavar="[ERROR LINE]...")
@output_options()
def command(error: tuple[str, ...], **given: Any) -> int:
    """What is installed, what is missing and what will break, each with the line that fixes it.

    With an ERROR LINE pasted after it (in quotes), its known causes. Exits with 3 when training cannot work here.
    """
    output = output_from(given)
    from qlora_planner.report.doctor import render_doctor, render_findings

    color, width = output.theme.color, output.theme.width
    if error:
        from qlora_planner.diagnose.symptom_search import explain_symptom, unknown_symptom
        from qlora_planner.record import document

        line = " ".join(error)
        findings = explain_symptom(line)
        if not findings:
            raise InputError(unknown_symptom(line))
        if output.json:
            answer_json({"schema": SYMPTOM_SCHEMA, "findings": document(findings)})
        else:
            answer(render_findings(findings, color=color, width=width))
            if output.explain:
                answer("\n" + "\n".join(f"{finding.code}: {finding.source}" for finding in findings))
        return 0
    from qlora_planner.diagnose.doctor import examine

    with patience("asking torch and bitsandbytes in a process of their own", output.quiet):
        doctor = examine()
    if output.json:
        answer_json(doctor.to_dict())
    else:
        answer(render_doctor(doctor, color=color, width=width))
        if output.explain:
            sources = [f"{finding.code}: {finding.source}" for finding in doctor.findings if finding.source]
            if sources:
                answer("\n" + "\n".join(sources))
    return doctor.exit_code
