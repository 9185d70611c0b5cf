"""merge: the adapters of a run merged into its base, one file of weights at a time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qlora_planner.cli.options import SectionOption, Verb, output_options
from qlora_planner.cli.streams import answer, answer_json, say
from qlora_planner.cli.values import Output, output_from
from qlora_planner.errors import MissingError
from qlora_planner.hub_address import check_endpoint
from qlora_planner.installing import install_packages
from qlora_planner.text import plain
from qlora_planner.units import format_size

if TYPE_CHECKING:
    from qlora_planner.runs.after.base import Base
    from qlora_planner.runs.after.merge import Merged
    from qlora_planner.runs.after.merge_plan import MergePlan
    from qlora_planner.runs.after.weightless import WeightlessModel

SCHEMA = "qlora-plan/merge/1"
DTYPES = ("bfloat16", "float16")
PACKAGES = ("torch", "transformers", "accelerate", "peft", "safetensors")


@click.command("merge", cls=Verb)
@click.argument("run", metavar="RUN")
@click.option("--output", "target", cls=SectionOption, metavar="DIR", help="Where to (RUN-merged).")
@click.option("--base", cls=SectionOption, metavar="DIR|ID", help="The full-precision base (what RUN names).")
@click.option("--dtype", cls=SectionOption, type=click.Choice(DTYPES), default="bfloat16", help="Stored as (bfloat16).")
@click.option("--force", cls=SectionOption, is_flag=True, help="Write over a merged model.")
@output_options()
def command(run: str, target: str | None, base: str | None, dtype: str, force: bool, **given: Any) -> int:
    """Merge the adapters of RUN, a folder of `train` or of PEFT, into its base and write a model folder.

    On the host, by PEFT's own arithmetic, one file of weights at a time. Exits with 1 when memory or disk is too small.
    """
    output = output_from(given)
    check_packages(PACKAGES)
    from qlora_planner.runs.after.base import find_base, refuse_quantised
    from qlora_planner.runs.after.finished import ADAPTER_CONFIG, read_finished
    from qlora_planner.runs.after.merge import check_target
    from qlora_planner.runs.after.weightless import refuse_adapter

    finished = read_finished(run)
    refuse_adapter(finished.adapter_config, finished.adapter / ADAPTER_CONFIG)
    folder = Path(target).expanduser() if target else finished.folder.absolute().with_name(_beside(finished.folder))
    check_target(folder, force=force)
    base_model = find_base(finished.bases, base, output.warn)
    refuse_quantised(base_model)

    import torch

    from qlora_planner.runs.after.host import resident_bytes
    from qlora_planner.runs.after.merge import merge
    from qlora_planner.runs.after.merge_plan import plan_merge
    from qlora_planner.runs.after.weightless import weightless_model
    from qlora_planner.train.quiet_imports import import_libraries

    import_libraries()
    kind = getattr(torch, dtype)
    hollow = weightless_model(base_model.config, finished.adapter)
    plan = plan_merge(base_model, hollow, kind)
    peak_bytes = resident_bytes() + plan.working_bytes
    if not _has_room(plan, folder, peak_bytes, output):
        return 1
    merged = merge(
        base_model, hollow, plan, folder, dtype, tokenizer=finished.adapter,
        tell=lambda file, number, count: output.warn(f"{file} ({number} of {count})"),
    )  # fmt: skip
    _show(base_model, plan, hollow, merged, dtype, peak_bytes, output)
    return 0


def check_packages(names: tuple[str, ...]) -> None:
    """Raises MissingError with the line that installs what is missing."""
    from importlib.util import find_spec

    check_endpoint()  # before transformers imports the Hub library
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise MissingError(f"missing here: {', '.join(missing)}; {install_packages(missing)}")


def _beside(run: Path) -> str:
    return f"{run.absolute().name}-merged"


def _has_room(plan: MergePlan, folder: Path, peak_bytes: int, output: Output) -> bool:
    """What it needs, said before anything is done; False, and why, where the machine has less."""
    from qlora_planner.runs.after.host import available_bytes, free_disk_bytes

    has, disk = available_bytes(), free_disk_bytes(folder)
    needs = f"host memory {format_size(peak_bytes)} at the peak, disk {format_size(plan.total_bytes)}"
    if plan.working_bytes > has:
        say(
            f"does not fit: merging works with {format_size(plan.working_bytes)} more host memory, the largest file of"
            f" weights and one module in float32, and {format_size(has)} is available"
        )
        return False
    if plan.total_bytes > disk:
        say(f"does not fit: the merged model takes {format_size(plan.total_bytes)}, the disk has {format_size(disk)}")
        return False
    output.warn(f"estimate: {needs}; available {format_size(has)} and {format_size(disk)}")
    return True


def _show(
    base: Base, plan: MergePlan, hollow: WeightlessModel, merged: Merged, dtype: str, peak_bytes: int, output: Output
) -> None:
    from qlora_planner.measure.process import rss_peak_bytes

    measured = rss_peak_bytes()
    if output.json:
        answer_json(
            {
                "schema": SCHEMA,
                "output": str(merged.folder),
                "base": {"name": base.name, "folder": str(base.folder)},
                "dtype": dtype,
                "files": list(merged.files),
                "total_bytes": merged.total_bytes,
                "tensors": {action: plan.count(action) for action in ("merge", "replace", "copy")},
                "untied": list(plan.untied),
                "host": {"predicted_peak_bytes": peak_bytes, "measured_peak_bytes": measured},
            }
        )
        return
    untied = f"; no longer tied: {', '.join(plan.untied)}" if plan.untied else ""
    replaced = f", {plan.count('replace')} replaced" if plan.count("replace") else ""
    answer(
        f"{plain(merged.folder)}\n"
        f"  {format_size(merged.total_bytes)} in {dtype}: {plan.count('merge')} weights merged{replaced},"
        f" {plan.count('copy')} as in {plain(base.name)}{untied}\n"
        f"  host memory: predicted {format_size(peak_bytes)}, measured {format_size(measured)} at the peak"
    )
