"""Tokens of examples, as trl's SFTTrainer would make them: with a tokenizer, of rows that have theirs, or guessed.

trl/trainer/sft_trainer.py, `_prepare_dataset`, of 1.16: text gets the end-of-sequence token where it does not end in
it and is tokenised with the tokenizer's special tokens; a completion likewise, behind its prompt; chats are rendered
by the template, which brings all special tokens itself.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Protocol

from qlora_planner.data.shapes import Example, RowFaultError
from qlora_planner.data.templates import ChatTemplate
from qlora_planner.errors import MissingError

# What templates put around a message: ChatML's <|im_start|> role \n <|im_end|> \n, and as much in Llama 3's.
TEMPLATE_TOKENS = 5
IGNORED = -100

Counted = tuple[int, int] | str
"""Tokens of a row and how many of them, at its start, carry no loss; or why the row cannot be used."""


class Counter(Protocol):
    """Anything that knows how many tokens examples have."""

    @property
    def name(self) -> str | None:
        """Of the tokenizer, if there is one."""

    @property
    def basis(self) -> str:
        """counted or assumed."""

    @property
    def chars_per_token(self) -> float | None:
        """What a guess is made with."""

    def count(self, examples: Sequence[Example]) -> list[Counted]:
        """One answer for each example, in order."""


class TokenisedRows:
    """Rows of `input_ids`: trl takes them as they are."""

    name: str | None = None
    basis = "counted"
    chars_per_token: float | None = None

    def count(self, examples: Sequence[Example]) -> list[Counted]:
        """The length of each; what its labels leave out at the start carries no loss."""
        return [(len(example["input_ids"]), _ignored(example.get("labels"))) for example in examples]


def _ignored(labels: list[int] | None) -> int:
    if labels is None or labels[0] != IGNORED:
        return 0
    return next((index for index, label in enumerate(labels) if label != IGNORED), len(labels))


class Guess:
    """Characters over a ratio that somebody gave: no tokenizer is at hand."""

    name: str | None = None
    basis = "assumed"

    def __init__(self, chars_per_token: float) -> None:
        self.chars_per_token: float | None = chars_per_token
        self._ratio = chars_per_token

    def count(self, examples: Sequence[Example]) -> list[Counted]:
        """Rounded up, with one token for the end of a text and TEMPLATE_TOKENS around each message."""
        return [self._one(example) for example in examples]

    def _one(self, example: Example) -> Counted:
        if "messages" in example:
            return self._chat(example["messages"]), 0
        if "text" in example:
            return self._text(example["text"]) + 1, 0  # its end, or the start of a text without one
        prompt, completion = example["prompt"], example.get("completion")
        if completion is None:
            return (self._chat(prompt) + TEMPLATE_TOKENS if isinstance(prompt, list) else self._text(prompt) + 1), 0
        if isinstance(prompt, list):
            return self._chat(prompt + completion), self._chat(prompt)
        return self._text(prompt + completion) + 1, self._text(prompt)

    def _text(self, text: str) -> int:
        return int(-(-len(text) // self._ratio))

    def _chat(self, messages: list[dict[str, Any]]) -> int:
        return sum(TEMPLATE_TOKENS + self._text(_words(message.get("content"))) for message in messages)


def _words(content: Any) -> str:
    if isinstance(content, list):
        return "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return content or ""


class Tokenised:
    """Counts with a fast tokenizer; `backend` is a `tokenizers.Tokenizer`."""

    basis = "counted"
    chars_per_token: float | None = None

    def __init__(self, backend: Any, eos_token: str | None, template: ChatTemplate | None, name: str) -> None:
        self.name: str | None = name
        self._backend, self._eos, self._template, self._called = backend, eos_token, template, name
        backend.no_truncation()
        backend.no_padding()

    def count(self, examples: Sequence[Example]) -> list[Counted]:
        """One batch for all; row by row only where a row breaks it."""
        counts: list[Counted] = [(0, 0)] * len(examples)
        # Texts with the tokenizer's own special tokens and chats without them, each in one call.
        for chats in (False, True):
            chosen = [index for index, example in enumerate(examples) if is_chat(example) is chats]
            texts, prompts, at = [], [], []
            for index in chosen:
                try:
                    whole, prompt = self._texts(examples[index])
                except RowFaultError as fault:
                    counts[index] = str(fault)
                    continue
                at.append(index)
                texts.append(whole)
                prompts.append(prompt)
            for index, counted in zip(at, self._lengths(texts, prompts, special=not chats), strict=True):
                counts[index] = counted
        return counts

    def _texts(self, example: Example) -> tuple[str, str | None]:
        """The whole text of an example and that of its prompt alone."""
        if "label" in example and "text" in example:
            return example["text"], None  # a classifier's text has no end of its own
        if "text" in example:
            return self._ended(example["text"]), None
        if "messages" in example:
            return self._rendered(example["messages"], example), None
        prompt, completion = example["prompt"], example.get("completion")
        if completion is None:  # the answer begins behind it, and is not there yet
            return (self._rendered(prompt, {}, generate=True) if isinstance(prompt, list) else prompt), None
        if isinstance(prompt, list):
            return self._rendered(prompt + completion, example), self._rendered(prompt, example, generate=True)
        return prompt + self._ended(completion), prompt

    def _ended(self, text: str) -> str:
        if self._eos is None:
            raise MissingError(
                f"{self._called}: has no end-of-sequence token, which trl appends to every text; give another tokenizer"
                " with --tokenizer"
            )
        return text if text.endswith(self._eos) else text + self._eos

    def _rendered(self, messages: list[dict[str, Any]], example: Example, generate: bool = False) -> str:
        if self._template is None:
            raise MissingError(
                f"{self._called}: has no chat template, and these rows are chats; give the tokenizer of an instruct "
                "model with --tokenizer"
            )
        return self._template.render(
            messages,
            tools=_tools(example.get("tools")),
            add_generation_prompt=generate,
            options=example.get("chat_template_kwargs"),
        )

    def _lengths(self, texts: list[str], prompts: list[str | None], special: bool) -> list[Counted]:
        wanted = texts + [prompt for prompt in prompts if prompt is not None]
        if not wanted:
            return []
        try:
            encoded = self._backend.encode_batch_fast(wanted, add_special_tokens=special)
        except (TypeError, UnicodeEncodeError):
            if len(texts) == 1:
                return ["holds half of a surrogate pair, which is no text"]
            pairs = zip(texts, prompts, strict=True)
            return [self._lengths([text], [prompt], special)[0] for text, prompt in pairs]
        starts = iter(encoded[len(texts) :])
        return [
            (len(whole), 0 if prompt is None else _common(next(starts).ids, whole.ids))
            for whole, prompt in zip(encoded, prompts, strict=False)
        ]


def is_chat(example: Example) -> bool:
    """Whether a chat template makes its text."""
    return "messages" in example or isinstance(example.get("prompt"), list)


def _tools(tools: Any) -> Any:
    """trl reads tools that are written as JSON."""
    if not isinstance(tools, str):
        return tools
    try:
        return json.loads(tools)
    except ValueError:
        raise RowFaultError("tools is text and no JSON") from None


def _common(start: list[int], whole: list[int]) -> int:
    """Tokens that a prompt and prompt with completion begin with alike: where trl lets the loss begin."""
    if whole[: len(start)] == start:
        return len(start)
    return next(index for index, (a, b) in enumerate(zip([*start, None], [*whole, None], strict=False)) if a != b)
