"""What other tools' configs are written with: YAML with comments, names as they list them, and what they cannot do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qlora_planner.errors import InputError
from qlora_planner.spec.run import RunConfig
from qlora_planner.text import plain
from qlora_planner.train.settings import LEARNING_RATE


def document(options: Mapping[str, Any], heading: Sequence[str], above: Mapping[str, str] | None = None) -> str:
    """`options` in their order, `heading` as comments before them and `above[key]` before that key."""
    import yaml

    lines = [f"# {plain(line)}" for line in heading]
    for name, value in options.items():
        if above and name in above:
            lines += ["", f"# {plain(above[name])}"]
        lines.append(yaml.safe_dump({name: value}, sort_keys=False, width=1 << 20, allow_unicode=True).rstrip("\n"))
    return "\n".join(lines) + "\n"


def target_names(targets: str, attention_modules: Sequence[str]) -> list[str]:
    """The names of target modules. Raises InputError for `attention` where nobody said what it stands for."""
    if targets != "attention":
        return [name.strip() for name in targets.split(",") if name.strip()]
    if not attention_modules:
        raise InputError("--target-modules attention: this config needs their names, as q_proj,k_proj,v_proj,o_proj")
    return list(attention_modules)


def rows_full(run: RunConfig) -> bool:
    """Whether rows are joined until each is full: what a batch of several rows without padding is in these tools."""
    return run.packing or (not run.images and run.padding is False and run.batch_size > 1)


def differences(tool: str, trainer: str, stands_for: str, run: RunConfig, dropped: Mapping[str, str]) -> list[str]:
    """Where another tool cannot do what the plan says, so that nobody takes the plan's figures for its file's.

    `trainer` is the class that it names and `stands_for` the trainer of ours. `dropped` says of run options what
    becomes of them where they are on.
    """
    lines = [f"{tool} trains through transformers' {trainer}. `qlora-plan check` estimates this very file."]
    if run.trainer != stands_for:
        lines.append(f"The plan is for {run.trainer}, whose loss takes other memory.")
    return lines + [says for option, says in dropped.items() if getattr(run, option)]


def training_arguments(run: RunConfig, half: str | None) -> dict[str, Any]:
    """What transformers' TrainingArguments take of a run, by their names; `half` is the dtype it computes in."""
    return {
        "per_device_train_batch_size": run.batch_size,
        "gradient_accumulation_steps": run.grad_accum,
        "num_train_epochs": 1.0,
        "optim": run.optimizer,
        "lr_scheduler_type": "cosine",
        "learning_rate": LEARNING_RATE,
        "bf16": half == "bfloat16",
        "fp16": half == "float16",
    }
