"""generate: a prompt tried on a run, with what it takes said first."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from qlora_planner.cli.merge import check_packages
from qlora_planner.cli.options import SectionOption, Verb, output_options
from qlora_planner.cli.streams import answer, answer_json, answer_part, say
from qlora_planner.cli.values import Output, output_from
from qlora_planner.errors import InputError, MissingError
from qlora_planner.units import format_size

if TYPE_CHECKING:
    from qlora_planner.runs.after.base import Base
    from qlora_planner.runs.after.finished import Finished
    from qlora_planner.runs.after.forecast import Forecast
    from qlora_planner.spec.run import RunConfig

SCHEMA = "qlora-plan/generation/1"
DEVICES = ("cuda", "cpu")
PACKAGES = ("torch", "transformers", "accelerate", "bitsandbytes", "peft")
_LONGEST_BYTES = 4 << 20


@click.command("generate", cls=Verb)
@click.argument("run", metavar="RUN")
@click.option("--prompt", cls=SectionOption, required=True, metavar="TEXT", help="What to answer; - reads stdin.")
@click.option(
    "--max-new-tokens", cls=SectionOption, type=click.IntRange(1, 1 << 20), default=256, help="At most (256)."
)
@click.option("--temperature", cls=SectionOption, type=click.FloatRange(0, 10), default=0.0, help="0: no chance (0).")
@click.option("--raw", cls=SectionOption, is_flag=True, help="The prompt as it is, without a chat template.")
@click.option("--base", cls=SectionOption, metavar="DIR|ID", help="The base (what RUN names).")
@click.option(
    "--device", cls=SectionOption, type=click.Choice(DEVICES), default=None, help="Where (as RUN was trained)."
)
@output_options()
def command(
    run: str,
    prompt: str,
    max_new_tokens: int,
    temperature: float,
    raw: bool,
    base: str | None,
    device: str | None,
    **given: Any,
) -> int:
    """Load RUN's base as it was trained on, put its adapters on it, and answer a prompt; only the answer is on stdout.

    What it takes is said first; exits with 1 when that is more than the card, or the host with --device cpu, has left.
    """
    output = output_from(given)
    check_packages(PACKAGES)
    text = _prompt(prompt)
    from qlora_planner.runs.after.base import find_base
    from qlora_planner.runs.after.finished import read_finished

    finished = read_finished(run)
    device = device or _trained_on(finished, output)
    room = _room(device)
    base_model = find_base(finished.bases, base, output.warn)
    _quiet_libraries()
    from qlora_planner.runs.after.generate import generate, read_prompt

    encoded = read_prompt(text, finished.adapter, base_model.folder, raw=raw)
    resolved, forecast = _forecast(finished, base_model, encoded.tokens, max_new_tokens, device, output)
    if not _fits(forecast, room, device, output):
        return 1
    _warn_length(base_model, encoded.tokens + max_new_tokens, output)
    done = generate(
        base_model, finished.adapter, resolved, encoded, device=device, new_tokens=max_new_tokens,
        temperature=temperature, tell=_silent if output.json else partial(answer_part, joiners=True),
    )  # fmt: skip
    if output.json:
        answer_json(
            {
                "schema": SCHEMA,
                "base": {"name": base_model.name, "folder": str(base_model.folder)},
                "device": device,
                "chat": encoded.chat,
                "prompt_tokens": encoded.tokens,
                "new_tokens": done.new_tokens,
                "text": done.text,
                "load_s": done.load_s,
                "generate_s": done.generate_s,
                "memory": {"forecast": forecast.to_dict(), "measured_allocated_bytes": done.peak_bytes},
            }
        )
    else:
        answer("")
        speed = done.new_tokens / done.generate_s if done.generate_s > 0 else 0.0
        output.warn(f"{done.new_tokens} tokens, {speed:,.1f} tokens/s after {done.load_s:.1f} s of loading")
    return 0


def _silent(_text: str) -> None:
    """The document has the text."""


def _prompt(given: str) -> str:
    text = sys.stdin.read(_LONGEST_BYTES) if given == "-" else given
    if not text.strip():
        raise InputError("--prompt: is empty" + ("; nothing came from stdin" if given == "-" else ""))
    return text


def _trained_on(finished: Finished, output: Output) -> str:
    """Where the run was trained; on a card where nobody wrote it down."""
    if finished.device == "cpu":
        output.warn("trained on the CPU, so it is tried there; --device cuda takes a card")
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
    finished: Finished, base: Base, prompt_tokens: int, new_tokens: int, device: str, output: Output
) -> tuple[RunConfig, Forecast]:
    """The run without auto options, and what it takes: loading from the simulated allocator, the rest by sizes."""
    from qlora_planner import session
    from qlora_planner.memory.budget import Budget
    from qlora_planner.memory.estimate import estimate_within
    from qlora_planner.runs.after.forecast import Forecast, adapter_bytes, cache_bytes, step_bytes
    from qlora_planner.spec.run import RunConfig

    profile = output.session.model(str(base.folder))
    gpu = None if device == "cpu" else session.load_gpu("local")
    budget = Budget.of(gpu, calibration=session.calibration(output.profiles))
    estimate = estimate_within(budget, profile, finished.run or RunConfig())
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


def _fits(forecast: Forecast, room: tuple[int, str], device: str, output: Output) -> bool:
    has, owner = room
    parts = (
        f"weights {format_size(forecast.weights_bytes)}, adapters {format_size(forecast.adapter_bytes)}, cache"
        f" {format_size(forecast.cache_bytes)}, one step {format_size(forecast.step_bytes)}"
        + (f", context {format_size(forecast.context_bytes)}" if device == "cuda" else "")
    )
    if forecast.peak_bytes > has:
        say(f"does not fit: it takes {format_size(forecast.peak_bytes)} ({parts}), {owner} has {format_size(has)} left")
        return False
    output.warn(f"estimate: {format_size(forecast.peak_bytes)} of {format_size(has)} ({parts})")
    return True


def _warn_length(base: Base, tokens: int, output: Output) -> None:
    text = base.config.get("text_config")
    positions = base.config.get("max_position_embeddings") or (
        text.get("max_position_embeddings") if isinstance(text, dict) else None
    )
    if isinstance(positions, int) and tokens > positions:
        output.warn(f"prompt and answer may reach {tokens:,} tokens; the model knows {positions:,} positions")
