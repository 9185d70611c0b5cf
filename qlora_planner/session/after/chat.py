"""A conversation with a run: what was said so far is read anew for each answer, and the oldest of it goes first."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qlora_planner.errors import InputError
from qlora_planner.session.after.generate import NEW_TOKENS, ready_run

if TYPE_CHECKING:
    from qlora_planner.runs.after.generate import Generated, TunedModel
    from qlora_planner.session.session import Session

LONGEST_TOKENS = 2048  # of a conversation with its next answer: memory is said for so many


@dataclass(slots=True)
class Chat:
    """A model and what was said. `tuned` says whether the adapters are on; `dropped` counts messages that were too old.

    Without a chat template nothing is remembered: each prompt is gone on with by itself.
    """

    model: TunedModel
    tokenizer: Any
    new_tokens: int
    temperature: float
    raw: bool
    longest_tokens: int
    tuned: bool = True
    messages: list[dict[str, str]] = field(default_factory=list)
    dropped: int = 0

    @property
    def remembers(self) -> bool:
        """Whether an answer hangs on what was said before."""
        return bool(self.tokenizer.chat_template) and not self.raw

    def say(self, text: str, hear: Callable[[str], None]) -> Generated:
        """Answer `text`; `hear` gets the answer as it comes. What is refused is not remembered.

        Raises InputError for a text that is no token or too long, RunError where memory runs out.
        """
        from qlora_planner.runs.after.generate import encode

        messages = [*(self.messages if self.remembers else ()), {"role": "user", "content": text}]
        dropped = 0
        prompt = encode(messages, self.tokenizer, raw=self.raw)
        while prompt.tokens + self.new_tokens > self.longest_tokens:
            if len(messages) == 1:
                raise InputError(
                    f"{prompt.tokens:,} tokens and an answer of {self.new_tokens:,} are more than"
                    f" {self.longest_tokens:,}; say less, or give fewer --max-new-tokens"
                )
            messages, dropped = messages[2:], dropped + 2
            prompt = encode(messages, self.tokenizer, raw=self.raw)
        answered = self.model.answer(
            prompt, new_tokens=self.new_tokens, temperature=self.temperature, tuned=self.tuned, tell=hear
        )
        self.dropped += dropped
        self.messages = [*messages, {"role": "assistant", "content": answered.text}] if self.remembers else []
        return answered

    def forget(self) -> None:
        """Begin anew."""
        self.messages, self.dropped = [], 0


def open_chat(
    session: Session,
    run: str | os.PathLike[str],
    *,
    max_new_tokens: int | None = None,
    temperature: float = 0.0,
    raw: bool = False,
    base: str | None = None,
    device: str | None = None,
) -> Chat:
    """Load a run to talk with; what it takes is said first. Raises as `Session.generate` does.

    An answer has at most 256 tokens, or half of what a model with few positions knows.
    """
    from qlora_planner.runs.after.generate import read_tokenizer

    there = ready_run(session, run, base=base, device=device)
    tokenizer = read_tokenizer(there.finished.adapter, there.base.folder)
    longest = min(there.positions or LONGEST_TOKENS, LONGEST_TOKENS)
    new_tokens = max_new_tokens or min(NEW_TOKENS, longest // 2)
    if new_tokens >= longest:
        raise InputError(f"--max-new-tokens: {new_tokens:,} leave no room for a prompt in {longest:,} tokens")
    _, model = there.load(longest - new_tokens, new_tokens)
    return Chat(
        model=model, tokenizer=tokenizer, new_tokens=new_tokens, temperature=temperature, raw=raw,
        longest_tokens=longest,
    )  # fmt: skip
