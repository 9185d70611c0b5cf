"""The adapters of a run merged into its base, one file of weights at a time."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlora_planner.errors import InputError, RefusedError
from qlora_planner.record import record
from qlora_planner.session.packages import check_installed
from qlora_planner.units import format_size

if TYPE_CHECKING:
    from qlora_planner.runs.after.base import Base
    from qlora_planner.runs.after.merge import Merged
    from qlora_planner.runs.after.merge_plan import MergePlan
    from qlora_planner.session.session import Session

SCHEMA = "qlora-plan/merge/1"
GGUF_SCHEMA = "qlora-plan/gguf/1"
DTYPES = ("bfloat16", "float16")
PACKAGES = ("torch", "transformers", "accelerate", "peft", "safetensors")


@record
class GgufFile:
    """A file that llama.cpp's converter wrote of a "model" or of an "adapter"."""

    path: Path
    kind: str
    outtype: str
    size_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"path": str(self.path), "kind": self.kind, "outtype": self.outtype, "size_bytes": self.size_bytes}


@record
class MergedRun:
    """A model folder that was written, and what it took: sizes are bytes, None where the system does not tell."""

    merged: Merged
    base: Base
    plan: MergePlan
    dtype: str
    predicted_peak_bytes: int
    measured_peak_bytes: int | None
    gguf: GgufFile | None = None

    def to_dict(self) -> dict[str, Any]:
        """The JSON document `qlora-plan/merge/1`."""
        merged, base, plan = self.merged, self.base, self.plan
        return {
            "schema": SCHEMA,
            "output": str(merged.folder),
            "base": {"name": base.name, "folder": str(base.folder)},
            "dtype": self.dtype,
            "files": list(merged.files),
            "total_bytes": merged.total_bytes,
            "tensors": {action: plan.count(action) for action in ("merge", "replace", "copy")},
            "untied": list(plan.untied),
            "host": {
                "predicted_peak_bytes": self.predicted_peak_bytes, "measured_peak_bytes": self.measured_peak_bytes,
            },
            "gguf": None if self.gguf is None else self.gguf.to_dict(),
        }  # fmt: skip


def merge_run(
    session: Session,
    run: str | os.PathLike[str],
    *,
    output: str | os.PathLike[str] | None = None,
    base: str | None = None,
    dtype: str = "bfloat16",
    force: bool = False,
    gguf: bool = False,
) -> MergedRun:
    """See `Session.merge`."""
    if dtype not in DTYPES:
        raise InputError(f"dtype must be {' or '.join(DTYPES)}, not {dtype!r}")
    check_installed(PACKAGES)
    from qlora_planner.runs.after.base import find_base, refuse_quantised
    from qlora_planner.runs.after.finished import ADAPTER_CONFIG, read_finished
    from qlora_planner.runs.after.merge import check_target
    from qlora_planner.runs.after.weightless import refuse_adapter

    finished = read_finished(os.fspath(run))
    refuse_adapter(finished.adapter_config, finished.adapter / ADAPTER_CONFIG)
    folder = Path(output).expanduser() if output else finished.folder.absolute().with_name(_beside(finished.folder))
    check_target(folder, force=force)
    gguf_path = folder.with_name(folder.name + ".gguf")
    converter = _converter("model", gguf_path, force=force) if gguf else None
    base_model = find_base(finished.bases, base, session.tell)
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
    _check_room(session, plan, folder, peak_bytes)
    merged = merge(
        base_model, hollow, plan, folder, dtype, tokenizer=finished.adapter,
        tell=lambda file, number, count: session.tell(f"{file} ({number} of {count})"),
    )  # fmt: skip
    from qlora_planner.measure.process import rss_peak_bytes

    measured_peak_bytes = rss_peak_bytes()
    made = None if converter is None else _converted(session, "model", converter, merged.folder, gguf_path, dtype)
    return MergedRun(
        merged=merged, base=base_model, plan=plan, dtype=dtype, predicted_peak_bytes=peak_bytes,
        measured_peak_bytes=measured_peak_bytes, gguf=made,
    )  # fmt: skip


def adapter_to_gguf(
    session: Session,
    run: str | os.PathLike[str],
    *,
    output: str | os.PathLike[str] | None = None,
    base: str | None = None,
    dtype: str = "bfloat16",
    force: bool = False,
) -> GgufFile:
    """The adapter of a run alone as a GGUF file (RUN-adapter.gguf), which llama.cpp puts on its base with --lora.

    Raises as `Session.merge` does, and RunError where the converter fails.
    """
    from qlora_planner.runs.after.base import find_base
    from qlora_planner.runs.after.finished import read_finished

    finished = read_finished(os.fspath(run))
    beside = finished.folder.absolute()
    target = Path(output).expanduser() if output else beside.with_name(f"{beside.name}-adapter.gguf")
    converter = _converter("adapter", target, force=force)
    base_model = find_base(finished.bases, base, session.tell)
    return _converted(session, "adapter", converter, finished.adapter, target, dtype, base=base_model.folder)


def _converter(kind: str, target: Path, *, force: bool) -> list[str]:
    from qlora_planner.runs.after.gguf import check_gguf_target, find_converter

    check_gguf_target(target, force=force)
    return find_converter(kind)


def _converted(
    session: Session, kind: str, converter: list[str], source: Path, target: Path, dtype: str, base: Path | None = None
) -> GgufFile:
    from qlora_planner.runs.after.gguf import OUTTYPES, convert

    size = convert(converter, source, target, OUTTYPES[dtype], base=base, hear=session.tell)
    return GgufFile(path=target, kind=kind, outtype=OUTTYPES[dtype], size_bytes=size)


def _beside(run: Path) -> str:
    return f"{run.absolute().name}-merged"


def _check_room(session: Session, plan: MergePlan, folder: Path, peak_bytes: int) -> None:
    """What it needs, said before anything is done. Raises RefusedError where the machine has less."""
    from qlora_planner.runs.after.host import available_bytes, free_disk_bytes

    has, disk = available_bytes(), free_disk_bytes(folder)
    needs = f"host memory {format_size(peak_bytes)} at the peak, disk {format_size(plan.total_bytes)}"
    if plan.working_bytes > has:
        raise RefusedError(
            f"does not fit: merging works with {format_size(plan.working_bytes)} more host memory, the largest file of"
            f" weights and one module in float32, and {format_size(has)} is available"
        )
    if plan.total_bytes > disk:
        raise RefusedError(
            f"does not fit: the merged model takes {format_size(plan.total_bytes)}, the disk has {format_size(disk)}"
        )
    session.tell(f"estimate: {needs}; available {format_size(has)} and {format_size(disk)}")
