"""Option values as people write them: `8k` tokens, `4bit`, `bf16`. What is taken for what is noted on stderr."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    _Parameter = click.ParamType[int]
    _Choice = click.Choice[str]
else:  # generic from click 8.2 on
    _Parameter, _Choice = click.ParamType, click.Choice

_NOTES = "qlora_planner.notes"
_THOUSANDS = re.compile(r"(\d{1,6}(?:\.\d{1,3})?)\s*k", re.IGNORECASE)
_GROUPED = re.compile(r"\d{1,3}(?:,\d{3})+")
_SIGNS = str.maketrans("", "", "-_ .")


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
        if shortened := _THOUSANDS.fullmatch(text):
            tokens = float(shortened[1]) * 1024
            if tokens == int(tokens):
                _taken(text, f"{int(tokens):,} tokens", param, ctx)
                return int(tokens)
        if _GROUPED.fullmatch(text):
            return int(text.replace(",", ""))
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
        names = {_key(other): choice for other, choice in also.items()} | {_key(name): name for name in self.choices}
        return names.get(_key(name))

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Fails for a name that is none of them."""
        if isinstance(value, str) and value not in self.choices and (meant := self._meant(value)):
            if value.lower().replace("-", "_") != meant:
                _taken(value, meant, param, ctx)
            return meant
        return super().convert(value, param, ctx)


def _key(name: str) -> str:
    return name.strip().lower().translate(_SIGNS)


QUANT_NAMES = {
    "4bit": "nf4", "4": "nf4", "int4": "nf4", "bnb": "nf4", "bnb4": "nf4", "bnb-4bit": "nf4", "bitsandbytes": "nf4",
    "8bit": "int8", "8": "int8", "bnb8": "int8", "bnb-8bit": "int8", "llm.int8": "int8",
    "16bit": "none", "16": "none", "bf16": "none", "bfloat16": "none", "fp16": "none", "float16": "none", "no": "none",
    "off": "none",
}  # fmt: skip
DTYPE_NAMES = {
    "bf16": "bfloat16", "torch.bfloat16": "bfloat16", "fp16": "float16", "half": "float16", "f16": "float16",
    "torch.float16": "float16", "fp32": "float32", "float": "float32", "f32": "float32", "torch.float32": "float32",
}  # fmt: skip
ATTENTION_NAMES = {
    "flash": "flash_attention_2", "flash2": "flash_attention_2", "flash-attn": "flash_attention_2",
    "flash-attn-2": "flash_attention_2", "flash-attention": "flash_attention_2", "fa2": "flash_attention_2",
    "fa": "flash_attention_2", "math": "eager",
}  # fmt: skip
METHOD_NAMES = {"16bit-lora": "lora", "full-finetune": "full", "full-finetuning": "full", "fft": "full"}


def trainer_names() -> Mapping[str, str]:
    """What other tools and people call each trainer; read when such a name is met."""
    from qlora_planner.catalog.trainers import TRAINER_NAMES

    return TRAINER_NAMES
