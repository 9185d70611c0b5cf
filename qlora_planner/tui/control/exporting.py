"""What a run can be written as, without a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qlora_planner.spec.run import RunConfig

if TYPE_CHECKING:
    from qlora_planner.tui.core import Subject

# Kind -> what it is, and how its file is called beside the model's name.
KINDS = {
    "plan": ("plan file, for verify, check and train", ".plan.yaml"),
    "trl": ("training script for TRL", ".trl.py"),
    "notebook": ("the same for a notebook", ".ipynb"),
    "accelerate": ("accelerate config", ".accelerate.yaml"),
    "axolotl": ("axolotl config", ".axolotl.yaml"),
    "llama-factory": ("LLaMA-Factory config", ".llama-factory.yaml"),
}


def file_name(model: str, kind: str) -> str:
    """What the file is called unless somebody says otherwise."""
    return f"{model.rstrip('/').rpartition('/')[2]}{KINDS[kind][1]}"


def write(subject: Subject, run: RunConfig, kind: str, path: str, *, data: str | None, force: bool) -> None:
    """Write the run as `kind`, whole or not at all; `data` are the samples that it names.

    Raises InputError for a run that a plan would change, what `kind` cannot express, and a file that is there already
    without `force`.
    """
    from qlora_planner.session.plan_files import exported, save_plan, write_export

    plan = subject.plan_of(run)
    if kind == "plan":
        save_plan(plan, path, force=force)
    else:
        write_export(exported(plan, kind, subject, data)[0], path, force=force)
