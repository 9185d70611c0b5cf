"""A prompt tried on a run, with what it takes said first."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from qlora_planner.errors import MissingError, RefusedError
from qlora_planner.record import record
from qlora_planner.session.packages import check_installed, silent
from qlora_planner.units import format_size

if TYPE_CHECKING:
    from qlora_planner.runs.after.base import Base
    from qlora_planner.runs.after.finished import Finished
    from qlora_planner.runs.after.forecast import Forecast
    from qlora_planner.runs.after.generate import Generated, TunedModel
    from qlora_planner.session.session import Session
    from qlora_planner.spec.run import RunConfig

SCHEMA = "qlora-plan/generation/1"
PACKAGES = ("torch", "transformers", "accelerate", "bitsandbytes", "peft")
NEW_TOKENS = 256  # of an answer, where the model has positions for so many


@record
class Generation:
    """An answer to a prompt; `chat` says that the tokenizer's template was put around it. Sizes are bytes, times s."""

    generated: Generated
    base: Base
    device: str
    chat: bool
    prompt_tokens: int
    forecast: Forecast

    def __str__(self) -> str:
        return self.generated.text

    def to_dict(self) -> dict[str, Any]:
        """The JSON document `qlora-plan/generation/1`."""
        generated, base = self.generated, self.base
        return {
            "schema": SCHEMA,
            "base": {"name": base.name, "folder": str(base.folder)},
            "device": self.device,
            "chat": self.chat,
            "prompt_tokens": self.prompt_tokens,
            "new_tokens": generated.new_tokens,
            "text": generated.text,
            "load_s": generated.load_s,
            "generate_s": generated.generate_s,
            "memory": {"forecast": self.forecast.to_dict(), "measured_allocated_bytes": generated.peak_bytes},
        }


def generate_on(
    session: Session,
    run: str | os.PathLike[str],
    prompt: str,
    *,
    max_new_tokens: int | None = None,
    temperature: float = 0.0,
    raw: bool = False,
    base: str | None = None,
    device: str | None = None,
    hear: Callable[[str], None] = silent,
) -> Generation:
    """See `Session.generate`; `hear` gets the answer piece by piece.

    An answer has at most 256 tokens, or as many as the model has positions after the prompt.
    """
    from qlora_planner.runs.after.generate import read_prompt

    there = ready_run(session, run, base=base, device=device)
    encoded = read_prompt(prompt, there.finished.adapter, there.base.folder, raw=raw)
    left = (there.positions or NEW_TOKENS + encoded.tokens) - encoded.tokens
    new_tokens = max_new_tokens or (min(NEW_TOKENS, left) if left > 0 else NEW_TOKENS)
    forecast, model = there.load(encoded.tokens, new_tokens)
    generated = model.answer(encoded, new_tokens=new_tokens, temperature=temperature, tell=hear)
    return Generation(
        generated=generated, base=there.base, device=there.device, chat=encoded.chat, prompt_tokens=encoded.tokens,
        forecast=forecast,
    )  # fmt: skip


@record
class ReadyRun:
    """A finished run with its base, and where it is to be tried; `room` is what that has left, in bytes, and its name.

    Nothing is loaded yet.
    """

    session: Session
    finished: Finished
    base: Base
    device: str
    room: tuple[int, str]

    @property
    def positions(self) -> int | None:
        """Tokens that the base knows positions for; None where it says nothing of that."""
        config = self.base.config
        text = config.get("text_config")
        known = config.get("max_position_embeddings") or (
            text.get("max_position_embeddings") if isinstance(text, dict) else None
        )
        return known if isinstance(known, int) else None

    def load(self, prompt_tokens: int, new_tokens: int) -> tuple[Forecast, TunedModel]:
        """The model, for prompts and answers of at most so many tokens; what it takes is said first.

        Raises RefusedError where there is less room, and as `TunedModel.load` does.
        """
        from qlora_planner.runs.after.generate import TunedModel

        finished, base, device = self.finished, self.base, self.device
        resolved, forecast = _forecast(finished, base, prompt_tokens, new_tokens, device, self.session)
        _check_room(forecast, self.room, device, self.session)
        tokens, positions = prompt_tokens + new_tokens, self.positions
        if positions is not None and tokens > positions:
            self.session.tell(f"prompt and answer may reach {tokens:,} tokens; the model knows {positions:,} positions")
        return forecast, TunedModel.load(base, finished.adapter, resolved, device)


def ready_run(session: Session, run: str | os.PathLike[str], *, base: str | None, device: str | None) -> ReadyRun:
    """The run in folder `run` and its base, looked at and not loaded.

    Raises MissingError for packages, a card or a base that are not there, InputError for what is no run.
    """
    check_installed(PACKAGES)
    from qlora_planner.runs.after.base import find_base
    from qlora_planner.runs.after.finished import read_finished

    finished = read_finished(os.fspath(run))
    device = device or _trained_on(finished, session)
    room = _room(device)
    base_model = find_base(finished.bases, base, session.tell)
    _quiet_libraries()
    return ReadyRun(session=session, finished=finished, base=base_model, device=device, room=room)


def _trained_on(finished: Finished, session: Session) -> str:
    """Where the run was trained; on a card where nobody wrote it down."""
    if finished.device == "cpu":
        session.tell("trained on the CPU, so it is tried there; --device cuda takes a card")
    return finished.device or "cuda"


def _room(device: str) -> tuple[int, str]:
    """Bytes that this process can have now, and of what.

    Raises MissingError without a card.
    """
    if device == "cpu":
        from qlora_planner.runs.after.host import available_bytes

        return available_bytes(), "the host"
    from qlora_planner.catalog.gpus import usable_bytes
    from qlora_planner.measure.nvml import local_gpu

    try:
        local = local_gpu()
    except MissingError as error:
        raise MissingError(f"{error}; or try it on the CPU with --device cpu") from None
    return usable_bytes(local.spec, local.reserve_bytes)[0], local.spec.label


def _quiet_libraries() -> None:
    """No advice and no bars: stderr is ours."""
    import transformers

    from qlora_planner.train.quiet_imports import import_libraries

    import_libraries()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def _forecast(
    finished: Finished, base: Base, prompt_tokens: int, new_tokens: int, device: str, session: Session
) -> tuple[RunConfig, Forecast]:
    """The run without auto options, and what it takes: loading from the simulated allocator, the rest by sizes."""
    from qlora_planner.memory.budget import Budget
    from qlora_planner.memory.estimate import estimate_within
    from qlora_planner.runs.after.forecast import Forecast, adapter_bytes, cache_bytes, step_bytes
    from qlora_planner.spec.run import RunConfig as Run

    profile = session.model(str(base.folder))
    gpu = None if device == "cpu" else session.gpu("local")
    budget = Budget.of(gpu, calibration=session.calibration)
    estimate = estimate_within(budget, profile, finished.run or Run())
    beside = 0 if device == "cpu" else budget.context.total_bytes
    load = next((phase.allocated_bytes for phase in estimate.phases if phase.name == "load"), None) or 0
    if device == "cuda":
        load = next((phase.device_bytes for phase in estimate.phases if phase.name == "load"), None) or load
    return estimate.run, Forecast(
        load_bytes=load,
        weights_bytes=estimate.static.after_load,
        adapter_bytes=adapter_bytes(finished.adapter),
        cache_bytes=cache_bytes(base.config, prompt_tokens + new_tokens),
        step_bytes=step_bytes(base.config, prompt_tokens),
        context_bytes=beside,
    )


def _check_room(forecast: Forecast, room: tuple[int, str], device: str, session: Session) -> None:
    """What it takes, said before anything is loaded. Raises RefusedError where there is less."""
    has, owner = room
    parts = (
        f"weights {format_size(forecast.weights_bytes)}, adapters {format_size(forecast.adapter_bytes)}, cache"
        f" {format_size(forecast.cache_bytes)}, one step {format_size(forecast.step_bytes)}"
        + (f", context {format_size(forecast.context_bytes)}" if device == "cuda" else "")
    )
    if forecast.peak_bytes > has:
        raise RefusedError(
            f"does not fit: it takes {format_size(forecast.peak_bytes)} ({parts}), {owner} has {format_size(has)} left"
        )
    session.tell(f"estimate: {format_size(forecast.peak_bytes)} of {format_size(has)} ({parts})")
