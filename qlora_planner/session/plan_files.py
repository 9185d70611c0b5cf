"""What `plan` writes beside its answer: the plan itself, and its run in the words of other tools."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlora_planner.errors import InputError
from qlora_planner.record import record
from qlora_planner.text import plain, quoted

if TYPE_CHECKING:
    from qlora_planner.exchange.parsed_config import Reading
    from qlora_planner.memory import MemoryEstimate
    from qlora_planner.planner.plan import Plan
    from qlora_planner.session.model_on_card import ModelOnCard

EXPORTS = (
    "trl", "notebook", "percent", "accelerate", "axolotl", "llama-factory", "trl-config", "torchrun", "slurm",
    "skypilot",
)  # fmt: skip
_PLAN = "plan"
REPORTS = (".md", ".html")


@record
class WantedFiles:
    """Files to write, each with its kind, and at most one kind to print in place of the plan."""

    files: tuple[tuple[str, str], ...]
    printed: str | None
    force: bool


def wanted_files(save: str | None, exports: Sequence[str], *, document: bool, force: bool) -> WantedFiles:
    """Looked at before anything is planned: a typing error should not cost a trace. `document`: stdout takes JSON.

    Raises InputError for an unknown kind, for two answers on stdout, and for a file that is there already.
    """
    files = [] if save is None else [(_PLAN, save)]
    printed: list[str] = []
    for text in exports:
        kind, equals, path = text.partition("=")
        if kind not in EXPORTS:
            raise InputError(f"--export: {quoted(kind)} is not known; known: {', '.join(EXPORTS)}")
        if kind == "notebook" and path.lower().endswith(".py"):
            kind = "percent"  # a notebook as text: a .py that held JSON would be neither
        if equals and not path:
            raise InputError(f"--export {kind}=: name a file after it, or leave the = out to print it")
        if equals:
            files.append((kind, path))
        else:
            printed.append(kind)
    if len(printed) + document > 1:
        raise InputError("--export: stdout takes one answer; give the others a file, as --export trl=train.py")
    for kind, path in files:
        check_target("--save" if kind == _PLAN else f"--export {kind}", path, force)
        if kind == _PLAN:
            from qlora_planner.exchange.plan_figures import figures_path

            check_target("--save", str(figures_path(Path(path))), force)
    return WantedFiles(files=tuple(files), printed=printed[0] if printed else None, force=force)


def with_folder(plan: Plan, model: str) -> Plan:
    """The plan with the folder that its model was named by: `train` finds the weights there."""
    if not (Path(model) / "config.json").is_file():
        return plan
    return replace(plan, model=replace(plan.model, path=model))


def _seen_from(plan: str, document: dict[str, Any]) -> dict[str, Any]:
    """The document of a plan file: a model folder that was named from here is named from the plan's own folder."""
    folder = document["model"].get("path")
    if folder is None or Path(folder).expanduser().is_absolute():
        return document
    path = os.path.relpath(folder, Path(plan).parent)
    return {**document, "model": {**document["model"], "path": path}}


def save_plan(plan: Plan, path: str | os.PathLike[str], *, force: bool = False) -> Path:
    """The plan as a plan file at `path`, and its figures beside it. Raises InputError as `wanted_files` does."""
    from qlora_planner.exchange.plan_figures import figures_path
    from qlora_planner.exchange.plan_file import write_plan

    target = os.fspath(path)
    for file in (target, str(figures_path(Path(target)))):
        check_target("save", file, force)
    return write_plan(_seen_from(target, plan.to_dict()), target, force=force)[0]


def write_report(
    plan: Plan, typed: Mapping[str, Any], card: str, path: str | os.PathLike[str], *, force: bool = False
) -> Path:
    """The plan's report at `path`, in the form that its name ends in. Raises InputError for another form than .md and
    .html, a file that is there already, and one that cannot be written."""
    from qlora_planner.exchange.files import write_bytes
    from qlora_planner.report.pages.plan_report import render_share

    target = Path(path)
    form = target.suffix.lower()
    if form not in REPORTS:
        raise InputError(f"report: {plain(str(target))} must end in .md or .html, which says what is written")
    check_target("report", str(target), force)
    write_bytes(str(target), render_share(plan, typed, card, html=form == ".html").encode(), force=force)
    return target


def check_target(option: str, path: str, force: bool) -> None:
    """Raises InputError naming the option for a folder, a file that is there already, and a folder that is not."""
    if Path(path).is_dir():
        raise InputError(f"{option}: {plain(path)} is a folder; name a file in it")
    if Path(path).exists() and not force:
        raise InputError(f"{option}: {plain(path)} is there already; --force writes over it")
    if not Path(path).absolute().parent.is_dir():
        raise InputError(f"{option}: there is no folder {plain(os.path.dirname(path))}")


def exported(
    plan: Plan, kind: str, opened: ModelOnCard, data: str | None = None, rewards: Sequence[str] = ()
) -> tuple[str, tuple[MemoryEstimate, ...]]:
    """The plan as `kind`, one of EXPORTS, and the memory of the run that a config of another tool is there.

    Such a config states that memory, as `check` of it does. `data` is the path of the samples (the plan's own),
    `rewards` name what a trainer that generates learns from.
    Raises InputError for an unknown kind and for what it cannot express.
    """
    from qlora_planner.exchange.export import export
    from qlora_planner.exchange.several_cards.on_cards import on_cards
    from qlora_planner.memory.unmodelled.qualified import qualified
    from qlora_planner.session.check import Estimates, judged

    attention = opened.profile.adapters.get("attention", ())
    names = tuple(dict.fromkeys(tensor.module.rpartition(".")[2] for tensor in attention))
    estimates = Estimates(opened)
    elsewhere: list[MemoryEstimate] = []

    def judge(reading: Reading) -> MemoryEstimate:
        elsewhere.append(
            qualified(judged(on_cards(reading, opened.budget.world), estimates)[1], plan.estimate.unmodelled)
        )
        return elsewhere[-1]

    text = export(kind, plan.to_dict(), data, attention_modules=names, judge=judge, rewards=rewards)
    return text, tuple(elsewhere)


def write_export(text: str, path: str | os.PathLike[str], *, force: bool = False) -> str:
    """`text` at `path`, and again as the answer. Raises InputError as `save_plan` does."""
    from qlora_planner.exchange.files import write_text

    target = os.fspath(path)
    check_target("export", target, force)
    write_text(target, text, force=force)
    return text


def write_files(
    plan: Plan, wanted: WantedFiles, opened: ModelOnCard, data: str | None, rewards: Sequence[str] = ()
) -> str | None:
    """Write every file, all rendered before the first is written; the text to print in place of the plan, if any."""
    if not wanted.files and wanted.printed is None:
        return None
    from qlora_planner.exchange.export import READ_BACK
    from qlora_planner.exchange.files import write_text
    from qlora_planner.exchange.plan_file import write_plan
    from qlora_planner.units import format_gib

    tell = opened.session.tell
    others: dict[str, MemoryEstimate] = {}

    def rendered(kind: str) -> str:
        text, elsewhere = exported(plan, kind, opened, data, rewards)
        others.update((kind, estimate) for estimate in elsewhere)
        return text

    printed = None if wanted.printed is None else rendered(wanted.printed)
    texts = [(path, None if kind == _PLAN else rendered(kind)) for kind, path in wanted.files]
    for path, text in texts:
        if text is None:
            beside = write_plan(_seen_from(path, plan.to_dict()), path, force=wanted.force)[1:]
            figures = f", and its figures {plain(beside[0].name)} beside it" if beside else ""
            tell(f"wrote {plain(path)}{figures}")
        else:
            write_text(path, text, force=wanted.force)
            tell(f"wrote {plain(path)}")
    if plan.estimate.verdict in ("does-not-fit", "will-not-run"):
        word = "fit" if plan.estimate.verdict == "does-not-fit" else "run on"
        tell(f"what is written does not {word} this card")
    elif plan.estimate.verdict == "cannot-say":
        tell("nobody can say whether what is written fits this card: its figures are partial")
    for kind, estimate in others.items():
        if estimate.verdict != plan.estimate.verdict and estimate.verdict not in ("fits", "tight"):
            tell(
                f"as {READ_BACK[kind]} runs its file, {str(estimate.verdict).replace('-', ' ')}:"
                f" {format_gib(estimate.peak.device_bytes)}; `qlora-plan check` of the file says what would fit"
            )
    return None if printed is None else printed.rstrip("\n")
