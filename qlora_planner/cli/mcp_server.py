"""The server of `qlora-plan mcp`: the official SDK's low-level server over standard input and output."""

from __future__ import annotations

from typing import Any

import anyio
import anyio.to_thread
from mcp import types
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server

from qlora_planner import __version__
from qlora_planner.cli.mcp_tools import TOOLS
from qlora_planner.cli.streams import say
from qlora_planner.errors import PlannerError
from qlora_planner.session import Session

_INSTRUCTIONS = (
    "Answers whether a QLoRA, LoRA or full fine-tune fits a GPU, from traces of the models' own code. Bytes are exact"
    " integers, null is unknown. `verdict` is fits, tight, cannot-say (not modelled: fit.reasons names it),"
    " does-not-fit or will-not-run. Without a model or a card in mind begin with survey."
)


def server(profiles: str | None = None) -> Server[Any]:
    """The server with its tools, of one Session; talk goes to standard error."""
    session = Session(profiles, tell=say)
    tools = {tool.name: tool for tool in TOOLS}
    one_at_a_time = anyio.Lock()  # a Session keeps what it opened, and is not made for several threads

    async def listed(context: Any, request: Any) -> types.ListToolsResult:
        return types.ListToolsResult(
            tools=[
                types.Tool(
                    name=tool.name, description=tool.description, input_schema=tool.takes, output_schema=tool.gives,
                    annotations=types.ToolAnnotations(read_only_hint=True, open_world_hint=False),
                )
                for tool in TOOLS
            ]
        )  # fmt: skip

    async def called(context: Any, request: types.CallToolRequestParams) -> types.CallToolResult:
        tool = tools.get(request.name)
        if tool is None:
            return _failed(f"no tool {request.name}; there are {', '.join(tools)}")
        async with one_at_a_time:
            try:
                text, document = await anyio.to_thread.run_sync(tool.answer, session, request.arguments or {})
            except PlannerError as error:
                return _failed(str(error))
        return types.CallToolResult(content=[types.TextContent(type="text", text=text)], structured_content=document)

    return Server(
        "qlora-planner", version=__version__, instructions=_INSTRUCTIONS, on_list_tools=listed, on_call_tool=called
    )


def _failed(text: str) -> types.CallToolResult:
    """What a client shows as the tool's own error, in the words of the command line."""
    return types.CallToolResult(content=[types.TextContent(type="text", text=text)], is_error=True)


def serve(profiles: str | None) -> None:
    """Serve until the client closes standard input."""

    async def run() -> None:
        made = server(profiles)
        async with stdio_server() as (reading, writing):
            await made.run(reading, writing, made.create_initialization_options())

    anyio.run(run)
