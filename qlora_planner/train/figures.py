"""What trainers log of rewards beside their loss, under one set of names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

# Name -> what trl's trainers call it (trl 1.16: GRPO and RLOO; DPO, KTO and ORPO; RewardTrainer).
FIGURES: Mapping[str, tuple[str, ...]] = {
    "reward": ("reward", "mean_reward"),
    "reward_std": ("reward_std",),
    "completion_len": ("completions/mean_length",),
    "chosen_reward": ("rewards/chosen",),
    "rejected_reward": ("rewards/rejected",),
    "reward_margin": ("rewards/margins", "margin"),
    "reward_accuracy": ("rewards/accuracies", "accuracy"),
}


def figures_of(logs: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Those of FIGURES that a log line has, each with its value as it was logged."""
    for name, words in FIGURES.items():
        for word in words:
            if word in logs:
                yield name, logs[word]


def main_figure(step: Mapping[str, Any]) -> str | None:
    """What of FIGURES tells best how it goes; None for a trainer that has none."""
    return next((name for name in ("reward_margin", "reward") if step.get(name) is not None), None)


def words_of(step: Mapping[str, Any]) -> str:
    """The figures of a step in words; empty where it has none."""
    parts = []
    if step.get("reward_margin") is not None:
        parts.append(f"margin {step['reward_margin']:.4f}")
    elif step.get("reward") is not None:
        std = step.get("reward_std")
        parts.append(f"reward {step['reward']:.4f}" + ("" if std is None else f" (std {std:.4f})"))
    if step.get("reward_accuracy") is not None:
        parts.append(f"{step['reward_accuracy']:.0%} ranked right")
    if step.get("completion_len") is not None:
        parts.append(f"{step['completion_len']:,.0f} tokens a completion")
    return ", ".join(parts)
