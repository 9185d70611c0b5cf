"""Option values as people write them: `8k` tokens, `4bit`, `bf16`. What is taken for what is noted on stderr."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from qlora_planner.spec.spellings import choice_meant, tokens_meant

if TYPE_CHECKING:
    _Parameter = click.ParamType[int]
    _Choice = click.Choice[str]
else:  # generic from click 8.2 on
    _Parameter, _Choice = click.ParamType, click.Choice

_NOTES = "qlora_planner.notes"


def notes_of(ctx: click.Context) -> list[str]:
    """What was taken for what while this command line was read."""
    notes: list[str] = ctx.meta.setdefault(_NOTES, [])
    return notes


def _taken(text: str, value: object, param: click.Parameter | None, ctx: click.Context | None) -> None:
    if ctx is not None and param is not None and not ctx.resilient_parsing:
        notes_of(ctx).append(f"{param.opts[0]} {text} is taken as {value}")


class Tokens(_Parameter):
    """A whole number of tokens. `8k` is 8,192, as context lengths are named: 1,024 times the number."""

    name = "integer"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Fails for what is no whole number."""
        if isinstance(value, int):
            return value
        text = str(value).strip()
        if (tokens := tokens_meant(text)) is not None:
            if not text.replace(",", "").isdigit():
                _taken(text, f"{tokens:,} tokens", param, ctx)
            return tokens
        try:
            return int(text)
        except ValueError:
            self.fail(f"{text[:60]!r} is not a valid integer; write 8192 or 8k.", param, ctx)


class Named(_Choice):
    """One of `choices`, or another name that `also` gives for one of them, or gives when it is asked."""

    def __init__(self, choices: Sequence[str], also: Mapping[str, str] | Callable[[], Mapping[str, str]]) -> None:
        super().__init__(choices)
        self._also = also

    def _meant(self, name: str) -> str | None:
        also = self._also() if callable(self._also) else self._also
        return choice_meant(name, tuple(self.choices), also)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Fails for a name that is none of them."""
        if isinstance(value, str) and value not in self.choices and (meant := self._meant(value)):
            if value.lower().replace("-", "_") != meant:
                _taken(value, meant, param, ctx)
            return meant
        return super().convert(value, param, ctx)


class Kernel(Named):
    """An attention kernel: one that is modelled, or another that it stands in for; `owner/name` is one on the Hub."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Fails for a name that is none of them."""
        if isinstance(value, str) and value not in self.choices:
            from qlora_planner.catalog.attention import KERNEL_NAMES, nearest_kernel

            kernel: str = KERNEL_NAMES.get(value.lower(), value)
            if nearest_kernel(kernel) is not None:
                return kernel
        return super().convert(value, param, ctx)


def trainer_names() -> Mapping[str, str]:
    """What other tools and people call each trainer; read when such a name is met."""
    from qlora_planner.catalog.trainers import TRAINER_NAMES

    return TRAINER_NAMES
