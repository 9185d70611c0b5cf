"""What a run can be written as, without a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qlora_planner.spec.run import RunConfig

if TYPE_CHECKING:
    from qlora_planner.exchange.parsed_config import Reading
    from qlora_planner.memory import MemoryEstimate
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
    from qlora_planner.exchange.export import export
    from qlora_planner.exchange.files import write_text
    from qlora_planner.exchange.meant import meant
    from qlora_planner.exchange.plan_file import write_plan
    from qlora_planner.memory.unmodelled.qualified import qualified

    document = subject.plan_of(run).to_dict()
    attention = subject.profile.adapters.get("attention", ())
    names = tuple(dict.fromkeys(tensor.module.rpartition(".")[2] for tensor in attention))

    def judge(reading: Reading) -> MemoryEstimate:
        meant_here = meant(reading, subject.profile)
        return qualified(subject.estimate(meant_here.run), meant_here.unmodelled)

    if kind == "plan":
        write_plan(document, path, force=force)
    else:
        write_text(path, export(kind, document, data, attention_modules=names, judge=judge), force=force)
