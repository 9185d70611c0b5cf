"""Hooks of mkdocs (`make site`): pages of the site that are no files of docs/.

The README is its first page; the command line's reference is made from the program, the plot from the measurements.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from mkdocs.structure.files import Files

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

API = """# Python API

The package answers as the command line does; [from Python](python.md) has examples.

::: qlora_planner.session.session.Session

::: qlora_planner.session.workbench.Workbench

::: qlora_planner.spec.run.RunConfig
"""


def on_files(files: Files, *, config: Any) -> Files:
    """Add what is made, and what lies beside docs/."""
    from mkdocs.structure.files import File

    for name in ("CONTRIBUTING.md", "CHANGELOG.md"):
        files.append(File.generated(config, name, content=_moved(ROOT / name)))
    files.append(File.generated(config, "index.md", content=_moved(ROOT / "README.md")))
    files.append(File.generated(config, "reference.md", content=reference()))
    files.append(File.generated(config, "api.md", content=API))
    files.append(File.generated(config, "screenshots/accuracy.svg", content=accuracy_plot()))
    for path in sorted((ROOT / "qlora_planner" / "schemas").glob("*.json")):
        files.append(File.generated(config, f"schemas/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Links that lead out of docs/ in the repository lead to the site's own pages."""
    markdown = markdown.replace("](../qlora_planner/schemas/", "](schemas/").replace("](../", "](")
    if page.file.src_uri == "accuracy.md":
        plot = "\n![Predicted against measured device memory of every run of the campaign](screenshots/accuracy.svg)\n"
        markdown = markdown.replace("<!-- /table:holdout -->", f"<!-- /table:holdout -->\n{plot}")
    return markdown.replace("](README.md)", "](index.md)")


def _moved(path: Path) -> str:
    """A page of the root as one of docs/; what is on no page of the site loses its link."""
    text = re.sub(r"\]\(docs/", "](", path.read_text(encoding="utf-8"))
    return re.sub(r"\[([^\]]*)\]\((?:SECURITY\.md|LICENSE)\)", r"\1", text)


def reference() -> str:
    """Every verb with its options, as the program declares them."""
    from qlora_planner.cli.main import EXIT_CODES, VERBS, cli

    lines = ["# Command line", "", "`qlora-plan` and `qlora-planner` are the same program.", ""]
    lines += ["| exit code | means |", "|---|---|", *(f"| {code} | {text} |" for code, text in EXIT_CODES), ""]
    group = click.Context(cli, info_name="qlora-plan")
    for name in VERBS:
        command = cli.get_command(group, name)
        assert command is not None
        lines += _verb(command, click.Context(command, info_name=name, parent=group))
    return "\n".join(lines)


def _verb(command: click.Command, context: click.Context) -> Iterator[str]:
    usage = " ".join(command.collect_usage_pieces(context))
    yield from (
        f"## {context.info_name}",
        "",
        f"```text\n{context.command_path} {usage}\n```",
        "",
        command.help or "",
        "",
    )
    sections: dict[str, list[tuple[str, str]]] = {}
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context) if isinstance(parameter, click.Option) else None
        if record is not None and parameter.name != "help":
            sections.setdefault(getattr(parameter, "section", "Options"), []).append(record)
    for title, records in sections.items():
        yield from (f"| {title} | |", "|---|---|")
        yield from (
            f"| `{option.replace('|', chr(92) + '|')}` | {text.replace('|', '/')} |" for option, text in records
        )
        yield ""


def accuracy_plot() -> str:
    """Predicted against measured device memory in GiB, a dot a run of the campaign, coloured by trainer, as SVG."""
    lines = (ROOT / "profiles" / "measurements" / "h200-campaign.jsonl").read_text(encoding="utf-8").splitlines()
    dots = []
    for row in map(json.loads, lines):
        seen = row["nvml"]["process_peak_bytes"]
        if row["outcome"] == "ok" and row["predicted"] and seen:
            dots.append(
                (row["run"]["trainer"], seen / 2**30, row["predicted"]["peak"]["device_bytes"] / 2**30, row["model"])
            )
    low, high = math.log(min(dot[1] for dot in dots) * 0.8), math.log(max(dot[1] for dot in dots) * 1.25)

    def at(gib: float) -> float:
        return 60 + 520 * (math.log(gib) - low) / (high - low)

    colours = dict(zip(sorted({dot[0] for dot in dots}), ("#7e57c2", "#ef6c00", "#00897b", "#c2185b"), strict=False))
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 620 640" font-family="sans-serif" font-size="12">',
        '<rect width="620" height="640" fill="#fff"/>',
        '<line x1="60" y1="580" x2="580" y2="60" stroke="#999"/><text x="320" y="625" text-anchor="middle">'
        "measured on an H200, GiB</text>",
        '<text transform="translate(18 320) rotate(-90)" text-anchor="middle">predicted, GiB</text>',
    ]
    for tick in (1, 2, 4, 8, 16, 32, 64, 128):
        if low < math.log(tick) < high:
            x = at(tick)
            parts.append(f'<text x="{x:.0f}" y="600" text-anchor="middle">{tick}</text>')
            parts.append(f'<text x="50" y="{644 - x:.0f}" text-anchor="end">{tick}</text>')
            parts.append(f'<path d="M{x:.0f} 580v-520M60 {640 - x:.0f}h520" stroke="#eee" fill="none"/>')
    for trainer, seen, said, model in dots:
        title = f"{model}, {trainer}: {said:.2f} predicted, {seen:.2f} measured"
        parts.append(
            f'<circle cx="{at(seen):.1f}" cy="{640 - at(said):.1f}" r="4" fill="{colours[trainer]}" fill-opacity=".6">'
            f"<title>{title}</title></circle>"
        )
    for index, (trainer, colour) in enumerate(colours.items()):
        parts.append(f'<text x="80" y="{90 + 18 * index}" fill="{colour}">{trainer}</text>')
    return "\n".join([*parts, "</svg>\n"])
