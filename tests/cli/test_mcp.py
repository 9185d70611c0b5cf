"""The server for agents: a client of the official SDK, and what a tool refuses."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mcp")

import anyio
from mcp import Client, StdioServerParameters

from qlora_planner.cli.mcp_server import server
from qlora_planner.cli.mcp_tools import TOOLS
from tests.cli.conftest import Invoke

ROOT = Path(__file__).parents[2]
OOM = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.96 GiB. GPU 0 has a total capacity of 23.52 GiB."


def talk(story: Any, to: Any) -> None:
    async def run() -> None:
        async with Client(to) as client:
            await story(client)

    anyio.run(run)


def test_a_client_starts_the_program_lists_its_tools_and_asks_one(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(client: Client) -> None:
        tools = (await client.list_tools()).tools
        assert [tool.name for tool in tools] == ["survey", "plan", "estimate", "check", "explain_oom"]
        assert all(tool.output_schema and tool.output_schema["title"].startswith("qlora-plan/") for tool in tools)
        answer = await client.call_tool("estimate", {"model": "llama-3.1-8b", "gpu": "12GB", "run": {"seq_len": 1024}})
        assert not answer.is_error
        assert answer.structured_content["run"]["seq_len"] == 1024
        assert "fits: meta-llama/Llama-3.1-8B on 12GB" in answer.content[0].text

    environment = {**os.environ, "QLORA_PLANNER_TRACE": "never", "HF_HUB_OFFLINE": "1"}
    talk(story, StdioServerParameters(command=sys.executable, args=["-m", "qlora_planner", "mcp"], env=environment))


def test_every_tool_answers_by_its_schema_as_the_verb_does(monkeypatch: pytest.MonkeyPatch, invoke: Invoke) -> None:
    monkeypatch.setenv("QLORA_PLANNER_TRACE", "never")
    config = (ROOT / "examples" / "trl-sft.yaml").read_text(encoding="utf-8")
    asked: dict[str, dict[str, Any]] = {
        "survey": {"gpu": "8GB", "most": 3},
        "plan": {"model": "qwen2.5-7b", "gpu": "12GB", "run": {"rank": 32}},
        "estimate": {"model": "mistral-7b-v0.3"},
        "check": {"text": config, "gpu": "10GB"},
        "explain_oom": {"text": OOM},
    }
    assert list(asked) == [tool.name for tool in TOOLS]

    async def story(client: Client) -> None:
        await client.list_tools()  # with their schemas, by which the client checks each answer
        found = {name: await client.call_tool(name, given) for name, given in asked.items()}
        assert not any(answer.is_error for answer in found.values())
        documents = {name: answer.structured_content for name, answer in found.items()}
        assert len(documents["survey"]["models"]) == 3
        assert documents["plan"]["run"]["rank"] == 32
        keys = documents["check"]["fix"]["smallest"]["keys"]
        assert keys.keys() == {"per_device_train_batch_size", "gradient_accumulation_steps"}
        assert "smallest change that fits" in found["check"].content[0].text

    talk(story, server())


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("estimate", {"model": "no-such-model-9x"}, "no-such-model-9x"),
        ("estimate", {"gpu": "24GB"}, "model is missing"),
        ("estimate", {"model": "gpt2", "card": "24GB"}, "card is not an argument"),
        ("estimate", {"model": "gpt2", "gpu": "24GB", "run": {"rank": -1}}, "rank"),
        ("check", {"gpu": "24GB"}, "one of the two"),
        ("explain_oom", {"log": "/no/such/file"}, "/no/such/file"),
    ],
)
def test_what_a_tool_refuses_is_said_in_the_words_of_the_command_line(
    name: str, given: dict[str, Any], said: str
) -> None:
    async def story(client: Client) -> None:
        answer = await client.call_tool(name, given)
        assert answer.is_error
        assert said in answer.content[0].text

    talk(story, server())


def test_without_the_extra_the_verb_names_it(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qlora_planner.cli.mcp.find_spec", lambda name: None)
    done = invoke("mcp")
    assert done.exit_code == 3
    assert done.stderr.count("\n") == 1
    assert "[mcp]" in done.stderr
