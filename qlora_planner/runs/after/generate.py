"""Try a prompt on a run: the base as it was trained on, its adapters, the tokenizer's own chat template."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_planner.diagnose.oom import explain
from qlora_planner.errors import InputError, RunError
from qlora_planner.record import record
from qlora_planner.runs.after.base import Base
from qlora_planner.spec.run import RunConfig
from qlora_planner.text import plain
from qlora_planner.units import format_size


@record
class Prompt:
    """A prompt in tokens: `input_ids` is [1, tokens], with what else the tokenizer gives. `chat`: by its template."""

    inputs: dict[str, Any]
    tokens: int
    chat: bool
    tokenizer: Any


@record
class Generated:
    """The answer. `generate_s` has the reading of the prompt in it; `peak_bytes` is torch's, None off the card."""

    text: str
    new_tokens: int
    load_s: float
    generate_s: float
    peak_bytes: int | None


def read_tokenizer(adapter: Path, base: Path) -> Any:
    """The run's own tokenizer, else that of the base. Raises InputError for one that cannot be read."""
    from transformers import AutoTokenizer

    folder = adapter if (adapter / "tokenizer_config.json").is_file() else base
    try:
        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if "trust_remote_code" in str(error):
            reason = "it has code of its own, which is never run here"
        raise InputError(f"{plain(folder)}: its tokenizer cannot be read: {plain(reason)[:160]}") from None


def read_prompt(text: str, adapter: Path, base: Path, *, raw: bool) -> Prompt:
    """`text` in tokens of the run's own tokenizer, else of the base's; as a chat where it has a template and not `raw`.

    Raises InputError for a tokenizer that cannot be read and a prompt that is empty.
    """
    return encode([{"role": "user", "content": text}], read_tokenizer(adapter, base), raw=raw)


def encode(messages: Sequence[Mapping[str, str]], tokenizer: Any, *, raw: bool) -> Prompt:
    """What was said so far, in tokens: by the tokenizer's template, or one after the other where there is none.

    Raises InputError for what is no token, and for messages that the template refuses.
    """
    chat = bool(tokenizer.chat_template) and not raw
    if chat:
        from jinja2 import TemplateError

        try:
            encoded = tokenizer.apply_chat_template(
                list(messages), add_generation_prompt=True, return_dict=True, return_tensors="pt"
            )
        except (TemplateError, ValueError, TypeError) as error:
            raise InputError(f"the chat template refuses it: {plain(error)[:160]}") from None
    else:
        encoded = tokenizer("\n".join(message["content"] for message in messages), return_tensors="pt")
    inputs = {name: encoded[name] for name in ("input_ids", "attention_mask") if name in encoded}
    tokens = int(inputs["input_ids"].shape[-1])
    if not tokens:
        raise InputError("--prompt: is no token of this tokenizer")
    return Prompt(inputs=inputs, tokens=tokens, chat=chat, tokenizer=tokenizer)


@dataclass(slots=True)
class TunedModel:
    """A base with its adapters on it, loaded on `device` in `load_s` seconds."""

    model: Any
    device: str
    load_s: float

    @classmethod
    def load(cls, base: Base, adapter: Path, run: RunConfig, device: str) -> TunedModel:
        """`run` is resolved. Raises RunError where memory runs out, InputError where the adapter does not fit."""
        import peft
        import torch
        from safetensors import SafetensorError

        from qlora_planner.train.model import load_folder

        begun = time.monotonic()
        with _memory_said():
            model = load_folder(base.folder, base.config, run, device)
            try:
                model = peft.PeftModel.from_pretrained(model, str(adapter)).eval()
            except (SafetensorError, ValueError, RuntimeError, KeyError) as error:
                if isinstance(error, torch.OutOfMemoryError):
                    raise
                lines = [line.strip() for line in str(error).splitlines() if line.strip()]
                raise InputError(
                    f"{plain(adapter)}: PEFT cannot load it on {plain(base.name)}: {plain(' '.join(lines[:2]))[:240]}"
                ) from None
        return cls(model=model, device=device, load_s=time.monotonic() - begun)

    def answer(
        self,
        prompt: Prompt,
        *,
        new_tokens: int,
        temperature: float = 0.0,
        tuned: bool = True,
        tell: Callable[[str], None],
    ) -> Generated:
        """`tell` gets the text as it comes. With `temperature` 0 the likeliest token is always taken.

        Without `tuned` the base answers, its adapters and what was trained in its place put aside. Raises RunError
        where memory runs out.
        """
        import torch
        from transformers import TextStreamer

        class Stream(TextStreamer):  # type: ignore[misc]
            def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
                tell(text)

        begun = time.monotonic()
        sampling: dict[str, Any] = (
            {"do_sample": True, "temperature": temperature}
            if temperature > 0
            else {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        )
        tokenizer = prompt.tokenizer
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        with _memory_said(), torch.inference_mode(), nullcontext() if tuned else self.model.disable_adapter():
            ids = self.model.generate(
                **{name: value.to(self.model.device) for name, value in prompt.inputs.items()},
                max_new_tokens=new_tokens,
                pad_token_id=pad,
                streamer=Stream(tokenizer, skip_prompt=True, skip_special_tokens=True),
                **sampling,
            )
        answered = ids[0, prompt.tokens :]
        return Generated(
            text=tokenizer.decode(answered, skip_special_tokens=True),
            new_tokens=len(answered),
            load_s=self.load_s,
            generate_s=time.monotonic() - begun,
            peak_bytes=int(torch.cuda.max_memory_allocated()) if self.device == "cuda" else None,
        )


@contextmanager
def _memory_said() -> Iterator[None]:
    """torch's own error as a line."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        failure = explain(f"{type(error).__name__}: {error}")
        raise RunError(
            f"ran out of memory after all: {format_size(failure.requested_bytes)} was asked for and"
            f" {format_size(failure.free_bytes)} free; use a shorter prompt or fewer --max-new-tokens"
        ) from None
