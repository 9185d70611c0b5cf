"""What the server of `qlora-plan mcp` offers: each tool's name, what it takes by schema, and its answer."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import msgspec

from qlora_planner.cli.options import run_options
from qlora_planner.cli.plan import OBJECTIVES
from qlora_planner.errors import InputError
from qlora_planner.record import record
from qlora_planner.report.parts.theme import Theme
from qlora_planner.session import Session
from qlora_planner.spec.run import RUN_FIELDS, RunConfig

_SCHEMAS = Path(__file__).resolve().parent.parent / "schemas"
_MOST_ROWS = 20


class Shown(Protocol):
    """An answer of a Session."""

    def render(self, theme: Theme) -> str: ...
    def to_dict(self) -> dict[str, Any]: ...


@record
class AgentTool:
    """A tool: `properties` by JSON Schema, of which `required` must be given; `document` names its schema."""

    name: str
    description: str
    properties: dict[str, Any]
    required: tuple[str, ...]
    document: str
    ask: Callable[[Session, Mapping[str, Any]], Shown]

    @property
    def takes(self) -> dict[str, Any]:
        """The schema of what it takes."""
        return {
            "type": "object", "properties": self.properties, "required": list(self.required),
            "additionalProperties": False,
        }  # fmt: skip

    @property
    def gives(self) -> dict[str, Any]:
        """The schema of its document."""
        schema: dict[str, Any] = json.loads((_SCHEMAS / f"{self.document}.json").read_text(encoding="utf-8"))
        return schema

    def answer(self, session: Session, given: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """The screen as text, and the document. Raises PlannerError as the command line does."""
        unknown = [name for name in given if name not in self.properties]
        missing = [name for name in self.required if given.get(name) is None]
        if unknown or missing:
            raise InputError(
                f"{self.name}: {', '.join(unknown or missing)} {'is not an argument' if unknown else 'is missing'};"
                f" it takes {', '.join(self.properties)}"
            )
        answer = self.ask(session, {name: value for name, value in given.items() if value is not None})
        document = answer.to_dict()
        if self.document == "survey":
            document["models"] = document["models"][: given.get("most") or _MOST_ROWS]
        return answer.render(Theme(unicode=True)), document


def _run_schema() -> dict[str, Any]:
    """RunConfig's fields by their types, with the help of the command line's options."""

    @run_options()
    def all_options() -> None: ...

    helps = {option.name: option.help for option in all_options.__click_params__}  # type: ignore[attr-defined]
    fields = msgspec.json.schema(RunConfig)["$defs"]["RunConfig"]["properties"]
    properties = {name: {**fields[name], "description": helps.get(name) or name} for name in RUN_FIELDS}
    for field in properties.values():
        field.pop("default", None)
    return {"type": "object", "properties": properties, "additionalProperties": False}


_MODEL = {"type": "string", "description": "A catalogue name (llama-3.1-8b), a Hub id, a folder or a config.json."}
_GPU = {"type": "string", "description": "24GB, rtx-4090, 2xa100-80gb, or local."}
_RUN = {**_run_schema(), "description": "Options of the run; what is left out is chosen."}
_FILE = {"type": "string", "description": "A path on the machine of this server."}


def _estimate(session: Session, given: Mapping[str, Any]) -> Shown:
    run = given.get("run", {})
    if "gpu" in given:
        return session.on(given["gpu"]).estimate(given["model"], **run)
    return session.estimate(given["model"], **run)


def _plan(session: Session, given: Mapping[str, Any]) -> Shown:
    more = {name: given[name] for name in ("objective", "data") if name in given}
    if "gpu" in given:
        return session.on(given["gpu"]).plan(given["model"], **more, **given.get("run", {}))
    return session.plan(given["model"], **more, **given.get("run", {}))


def _survey(session: Session, given: Mapping[str, Any]) -> Shown:
    return session.on(given["gpu"]).survey(**given.get("run", {}))


def _read(given: Mapping[str, Any], name: str, suffix: str, ask: Callable[[Path], Shown]) -> Shown:
    """`ask` of the file that was named, or of a file with the text that was given."""
    if (name in given) == ("text" in given):
        raise InputError(f"give {name}, a path, or text, what stands in it; one of the two")
    if name in given:
        return ask(Path(given[name]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"text{suffix}"
        path.write_text(given["text"], encoding="utf-8")
        return ask(path)


def _check(session: Session, given: Mapping[str, Any]) -> Shown:
    return _read(given, "file", ".yaml", lambda path: session.on(given["gpu"]).check(path))


def _explain_oom(session: Session, given: Mapping[str, Any]) -> Shown:
    return _read(given, "log", ".log", lambda path: session.explain_oom(path, plan=given.get("plan")))


_TEXT = {"type": "string", "description": "The contents, where there is no file."}
TOOLS = (
    AgentTool(
        name="survey",
        description="Which models can be fine-tuned on a card, the largest that fit first, with the recommended run.",
        properties={
            "gpu": _GPU, "run": _RUN,
            "most": {"type": "integer", "minimum": 1, "description": f"Rows of the document ({_MOST_ROWS})."},
        },
        required=("gpu",), document="survey", ask=_survey,
    ),
    AgentTool(
        name="plan",
        description="The recommended run of a model on a card: memory, speed, price, and what each knob changes.",
        properties={
            "model": _MODEL, "gpu": {**_GPU, "description": _GPU["description"] + " None: the cheapest card."},
            "objective": {"enum": list(OBJECTIVES)},
            "data": {**_FILE, "description": "A dataset (jsonl, json, csv, tsv, parquet) to plan for."}, "run": _RUN,
        },
        required=("model",), document="plan", ask=_plan,
    ),
    AgentTool(
        name="estimate",
        description="The GPU memory of exactly this run by phase and component, its verdict on a card, and its speed.",
        properties={"model": _MODEL, "gpu": _GPU, "run": _RUN},
        required=("model",), document="estimate", ask=_estimate,
    ),
    AgentTool(
        name="check",
        description="Whether a plan or config of TRL, axolotl, LLaMA-Factory fits, and the smallest change that does.",
        properties={"file": _FILE, "text": _TEXT, "gpu": _GPU},
        required=("gpu",), document="check", ask=_check,
    ),
    AgentTool(
        name="explain_oom",
        description="What a log or traceback says about running out of GPU memory: what, when, who held it, what fits.",
        properties={"log": _FILE, "text": _TEXT, "plan": {**_FILE, "description": "The plan of the run that failed."}},
        required=(), document="oom", ask=_explain_oom,
    ),
)  # fmt: skip
