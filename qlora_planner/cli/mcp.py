"""mcp: the answers as tools of the Model Context Protocol, over standard input and output, for agents and editors."""

from __future__ import annotations

from importlib.util import find_spec

import click

from qlora_planner.cli.options import Verb
from qlora_planner.cli.sections import OutputOption
from qlora_planner.errors import MissingError


@click.command("mcp", cls=Verb)
@click.option("--profiles", cls=OutputOption, metavar="DIR", help="A folder with models/ or gpus/ to look in first.")
def command(profiles: str | None) -> int:
    """A server of the Model Context Protocol on standard input and output: survey, plan, estimate, check, explain_oom.

    A client starts it, as `claude mcp add qlora-planner -- qlora-plan mcp` does. Each answer is the text of the screen
    and the document of --json, by a schema. Files are those that the client names; nothing is written.
    """
    if find_spec("mcp") is None:
        raise MissingError("the mcp package is missing: pip install 'qlora-planner[mcp]', or in a clone '.[mcp]'")
    from qlora_planner.cli.mcp_server import serve

    serve(profiles)
    return 0
