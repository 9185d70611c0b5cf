"""Try a prompt on a run: the base as it was trained on, its adapters, the tokenizer's own chat template."""

from __future__ import annotations

import time
from collections.abc import Callable
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


def read_prompt(text: str, adapter: Path, base: Path, *, raw: bool) -> Prompt:
    """`text` in tokens of the run's own tokenizer, else of the base's; as a chat where it has a template and not `raw`.

    Raises InputError for a tokenizer that cannot be read and a prompt that is empty.
    """
    from transformers import AutoTokenizer

    folder = adapter if (adapter / "tokenizer_config.json").is_file() else base
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if "trust_remote_code" in str(error):
            reason = "it has code of its own, which is never run here"
        raise InputError(f"{plain(folder)}: its tokenizer cannot be read: {plain(reason)[:160]}") from None
    chat = bool(tokenizer.chat_template) and not raw
    if chat:
        messages = [{"role": "user", "content": text}]
        encoded = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
    else:
        encoded = tokenizer(text, return_tensors="pt")
    inputs = {name: encoded[name] for name in ("input_ids", "attention_mask") if name in encoded}
    tokens = int(inputs["input_ids"].shape[-1])
    if not tokens:
        raise InputError("--prompt: is no token of this tokenizer")
    return Prompt(inputs=inputs, tokens=tokens, chat=chat, tokenizer=tokenizer)


def generate(
    base: Base,
    adapter: Path,
    run: RunConfig,
    prompt: Prompt,
    *,
    device: str,
    new_tokens: int,
    temperature: float,
    tell: Callable[[str], None],
) -> Generated:
    """Load and answer; `tell` gets the text as it comes. With `temperature` 0 the likeliest token is always taken.

    `run` is resolved. Raises RunError where memory runs out, InputError where the adapter does not fit the base.
    """
    import peft
    import torch
    from safetensors import SafetensorError
    from transformers import TextStreamer

    from qlora_planner.train.model import load_folder

    class Stream(TextStreamer):  # type: ignore[misc]
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            tell(text)

    begun = time.monotonic()
    try:
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
        loaded = time.monotonic()
        sampling: dict[str, Any] = (
            {"do_sample": True, "temperature": temperature}
            if temperature > 0
            else {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        )
        tokenizer = prompt.tokenizer
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        with torch.inference_mode():
            ids = model.generate(
                **{name: value.to(model.device) for name, value in prompt.inputs.items()},
                max_new_tokens=new_tokens,
                pad_token_id=pad,
                streamer=Stream(tokenizer, skip_prompt=True, skip_special_tokens=True),
                **sampling,
            )
    except torch.OutOfMemoryError as error:
        failure = explain(f"{type(error).__name__}: {error}")
        raise RunError(
            f"ran out of memory after all: {format_size(failure.requested_bytes)} was asked for and"
            f" {format_size(failure.free_bytes)} free; use a shorter prompt or fewer --max-new-tokens"
        ) from None
    answered = ids[0, prompt.tokens :]
    return Generated(
        text=tokenizer.decode(answered, skip_special_tokens=True),
        new_tokens=len(answered),
        load_s=loaded - begun,
        generate_s=time.monotonic() - loaded,
        peak_bytes=int(torch.cuda.max_memory_allocated()) if device == "cuda" else None,
    )
