"""A training run as a screen: what came of it, how the loss went, predicted beside measured, and what to do next."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from qlora_planner.catalog.parallel import strategy_row
from qlora_planner.report.parts.labels import count, gib, recipe
from qlora_planner.report.parts.theme import Line, Theme
from qlora_planner.spec.run import RunConfig
from qlora_planner.units import format_gib, format_size

_OUTCOMES = {
    "ok": ("✓", "+", "trained", "bold green"),
    "interrupted": ("≈", "~", "interrupted", "bold yellow"),
    "out-of-memory": ("✗", "x", "out of memory", "bold red"),
    "disk-full": ("✗", "x", "disk full", "bold red"),
    "killed": ("✗", "x", "killed", "bold red"),
    "error": ("✗", "x", "failed", "bold red"),
}

_REWARDS = (
    ("reward", "mean", ".4g"), ("reward_std", "std", ".4g"), ("completion_len", "tokens a completion", ",.0f"),
    ("chosen_reward", "chosen", ".4f"), ("rejected_reward", "rejected", ".4f"), ("reward_margin", "margin", ".4f"),
    ("reward_accuracy", "ranked right", ".0%"),
)  # fmt: skip
_PHASES = {"load": "loading", "prepare": "preparing", "adapters": "adapters", "training": "training", "save": "saving"}


def render_training(summary: Mapping[str, Any], theme: Theme, *, folder: str) -> str:
    """The whole screen of a summary.json; `folder` is the run's, as it was typed."""
    lines = [*_headline(summary, theme), []]
    for name, text in _rows(summary):
        lines += theme.wrap(text, 10, name, first_style="dim")
    for attempt in summary["attempts"]:
        if attempt["rung"]:
            lines += theme.wrap(
                f"{attempt['says']}; went on with {attempt['rung']}", 10, "recovered", first_style="yellow"
            )
    for note in summary["notes"]:
        lines += theme.wrap(note, 10, "note", first_style="yellow")
    lines += [[], *_next(summary, theme, folder)]
    return theme.render(lines)


def model_name(summary: Mapping[str, Any]) -> str:
    """A Hub id as it is, a folder by its name."""
    model_id = str(summary["model"]["id"])
    return model_id.rpartition("/")[2] if model_id.startswith("/") else model_id


def _headline(summary: Mapping[str, Any], theme: Theme) -> Iterator[Line]:
    fancy, plain, word, style = _OUTCOMES[summary["outcome"]]
    loss = summary["loss"]
    text = f"{model_name(summary)}: {summary['steps']} of {summary['of'] or '?'} steps"
    if loss["first"] is not None:
        text += f", loss {loss['first']:.3f} to {loss['last']:.3f}"
    if summary["message"] and summary["outcome"] != "interrupted":
        text += f"; {summary['message']}"
    yield from theme.wrap(text, first=f"{theme.sign(fancy, plain)} {word}: ", first_style=style, style="bold")


def _rows(summary: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    settings, data, speed = summary["settings"], summary["data"], summary["speed"]
    yield "run", recipe(RunConfig.from_dict(summary["run"]))
    steps = f"{settings['max_steps']} steps at most" if settings["max_steps"] else f"epochs {settings['epochs']:g}"
    yield (
        "settings",
        (
            f"{steps}, learning rate {settings['learning_rate']:g}, {settings['scheduler']}, warm-up"
            f" {settings['warmup']:g}, a checkpoint every {settings['save_steps']} steps, seed {settings['seed']}"
        ),
    )
    if data["rows"] is not None:
        held = "" if data["eval_rows"] is None else f", {data['eval_rows']:,} held out"
        longest = "" if data["longest"] is None else f", the longest batch {data['longest']:,} tokens wide"
        packed = f"{data['rows_given']:,} rows packed into {data['rows']:,}" if summary["run"].get("packing") else None
        yield "data", f"{packed or format(data['rows'], ',') + ' rows'}{held}{longest}"
    if summary["trainable_params"]:
        yield "trained", f"{count(summary['trainable_params'])} of {count(summary['params'])} parameters"
    if summary["loss"]["evaluation"] is not None:
        yield "held out", f"loss {summary['loss']['evaluation']:.3f}"
    if rewards := _rewards(summary.get("rewards") or {}):
        yield "rewards", rewards
    if speed["tokens_per_s"] is not None:
        predicted = (speed["predicted"] or {}).get("tokens_per_s")
        beside = "" if predicted is None else f", {predicted:,.0f} predicted"
        yield "speed", f"{speed['tokens_per_s']:,.0f} tokens/s{beside}; {speed['step_s']:.2f} s per step"
    yield "memory", _memory(summary["memory"])
    if ranks := summary["memory"].get("ranks"):
        yield "ranks", f"{len(ranks)} by {strategy_row(summary['run']['parallel']).label}; {_by_rank(ranks)}"
    if phases := _by_phase(summary["memory"].get("phases") or {}):
        yield "phases", phases
    yield "time", f"{summary['wall_s']:,.0f} s"


def _rewards(rewards: Mapping[str, Mapping[str, float]]) -> str:
    """From the first step to the last: margins of pairs, or rewards of completions and how long these are."""
    parts = []
    for name, words, form in _REWARDS:
        if name in rewards:
            parts.append(f"{words} {rewards[name]['first']:{form}} to {rewards[name]['last']:{form}}")
    return ", ".join(parts)


def _memory(memory: Mapping[str, Any]) -> str:
    predicted, device = memory["predicted"], memory["device_bytes"]
    if device is None:
        host = f"{format_size(memory['host_bytes'])} of host memory at the most"
        return (
            host if memory["allocated_bytes"] is None else f"{format_gib(memory['allocated_bytes'])} allocated; {host}"
        )
    text = f"peak {format_gib(device)} measured"
    if predicted is None:
        return f"{text}, nothing predicted"
    low, high = predicted["low_bytes"], predicted["high_bytes"]
    inside = "inside" if low <= device <= high else "OUTSIDE"
    off = 100 * (device / predicted["device_bytes"] - 1)
    return (
        f"{text}, {format_gib(predicted['device_bytes'])} predicted ({off:+.1f} %), {inside} the interval of"
        f" {format_gib(low)} to {format_gib(high)}"
    )


def _by_rank(ranks: Sequence[Mapping[str, Any]]) -> str:
    """What each of several ranks took at the most: of its card, else of the host."""
    parts = [
        f"{rank['rank']}: {format_gib(rank['device_bytes'])}" if rank["device_bytes"] is not None
        else f"{rank['rank']}: {format_size(rank['host_bytes'])} of host memory"
        for rank in ranks
    ]  # fmt: skip
    return f"{', '.join(parts)} at the most"


def _by_phase(phases: Mapping[str, Mapping[str, Any]]) -> str:
    """The process at the most in each phase, beside its prediction."""
    parts = []
    for phase, figures in phases.items():
        if phase in _PHASES:
            beside = "" if figures["predicted_bytes"] is None else f" of {gib(figures['predicted_bytes'])}"
            parts.append(f"{_PHASES[phase]} {gib(figures['device_bytes'])}{beside}")
    return f"{', '.join(parts)} GiB at the most, of what was predicted" if parts else ""


def _next(summary: Mapping[str, Any], theme: Theme, folder: str) -> Iterator[Line]:
    run_folder = shlex.quote(folder)
    if summary["outcome"] == "ok":
        yield from theme.wrap(f"the adapter and its tokenizer are in {summary['adapter']['path']}")
        return
    kept = summary["checkpoint"]
    state = "no checkpoint was written yet" if kept is None else f"the last good checkpoint is {kept}"
    yield from theme.wrap(state)
    yield from theme.wrap(f"qlora-plan train {run_folder} --resume", 9, "go on:", first_style="bold")
