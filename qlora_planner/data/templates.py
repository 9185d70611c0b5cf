"""Chat templates, rendered with jinja2 as transformers renders them, without importing transformers.

The environment is that of transformers/utils/chat_template_utils.py: sandboxed and immutable, blocks trimmed, loop
controls, `tojson` without escapes, `raise_exception`, `strftime_now`, and a `generation` tag that marks nothing here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from qlora_planner.data.shapes import RowFaultError
from qlora_planner.errors import MissingError
from qlora_planner.installing import install_line
from qlora_planner.text import listed, plain


class ChatTemplate:
    """The chat template of one tokenizer: a text, or texts by name of which `default` and `tool_use` are used."""

    def __init__(self, template: str | Mapping[str, str], special_tokens: Mapping[str, str], name: str) -> None:
        """`special_tokens` (bos_token, eos_token, ...) can be used in the template; `name` is for messages.

        Raises MissingError without jinja2 and for a template that has no default or that jinja2 cannot read.
        """
        texts = {"default": template} if isinstance(template, str) else dict(template)
        if "default" not in texts:
            raise MissingError(
                f"{name}: its chat templates are called {listed(sorted(texts)) or 'nothing'} and none is the "
                "default; give another tokenizer with --tokenizer"
            )
        environment = _environment(name)
        self._special_tokens = dict(special_tokens)
        self._templates = {}
        for key, text in texts.items():
            try:
                self._templates[key] = environment.from_string(text)
            except Exception as error:
                raise MissingError(f"{name}: its chat template cannot be read ({_reason(error)})") from None

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Any = None,
        add_generation_prompt: bool = False,
        options: Mapping[str, Any] | None = None,
    ) -> str:
        """The text of one conversation. Raises RowFaultError where the template refuses it or fails on it."""
        key = "tool_use" if tools is not None and "tool_use" in self._templates else "default"
        given = {**self._special_tokens, **(options or {})}
        given = {"documents": None, "add_generation_prompt": add_generation_prompt, **given}
        try:
            return str(self._templates[key].render(messages=messages, tools=tools, **given))
        except Exception as error:
            # Anything can go wrong in a template, which is a program that comes with the model.
            raise RowFaultError(f"is refused by the chat template ({_reason(error)})") from None


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return plain(lines[0])[:120] if lines else type(error).__name__


def _environment(name: str) -> Any:
    try:
        import jinja2
        import jinja2.ext
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:
        raise MissingError(f"{name}: its chat template needs jinja2; install it with {install_line('data')}") from None
    from datetime import datetime

    class Generation(jinja2.ext.Extension):
        """`{% generation %}` encloses what an assistant says; its text stays as it is."""

        tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

        def parse(self, parser: Any) -> Any:
            """The nodes inside."""
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("_inside"), [], [], body).set_lineno(line)

        def _inside(self, caller: Any) -> str:
            return str(caller())

    def tojson(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def raise_exception(message: str) -> None:
        raise jinja2.exceptions.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment
