"""Plan files: a plan as YAML that people read, keep beside their training code, and give back to every verb."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qlora_planner.errors import InputError
from qlora_planner.evidence.calibration import TRACED
from qlora_planner.exchange import plan_figures
from qlora_planner.exchange.files import check_new, read_yaml, write_text
from qlora_planner.planner.plan import SCHEMA
from qlora_planner.record import record
from qlora_planner.spec.faults import refuse
from qlora_planner.spec.run import RunConfig
from qlora_planner.text import plain, quoted
from qlora_planner.units import format_gib

# Section -> what it is.
SECTIONS: Mapping[str, str] = {
    "model": "The model, and the library versions that its profile was counted with.",
    "gpu": "The card that was planned for; memory_bytes is its total as the driver counts it.",
    "run": "The run that is recommended. Change what you like: `qlora-plan check` says whether it still fits.",
    "estimate": "Its memory: phases, components and peak in bytes, and the verdict. Worked out again when it is read.",
    "alternatives": "Other runs that fit too, with what each buys and costs.",
    "prices": "What changing one option would cost or save.",
    "frontier": "The longest sequence that fits, by batch size.",
    "objective": "What this run was chosen for.",
    "data": "The samples that it was planned for; null: none were given.",
    "stack": "The library versions that the figures hold for.",
    "options": "What to type for this run: options that are neither defaults nor what these become here.",
    "ladder": "What to give up, in order, if memory runs out; `train` climbs down it by itself.",
    "advice": "What these library versions cost on this model, in bytes.",
    "smallest_card": "The smallest card of the catalogue that holds this run.",
    "compared": "The best run of the model on other cards, ranked.",
    "cost": "Dollars, by the catalogue's price of the card; null where it has none.",
    "search": "How many candidates were looked at, and the rules that left others out.",
    "adjusted": "Options that were asked for and became others, so that it fits, as they were asked for.",
    "shortened_from": "The length that nobody asked for and that does not fit; null: it does.",
    "nearest": "The run that fits nearest to the one asked for, which does not; null: nothing was asked that does not.",
    "nearest_change": "What that run has otherwise.",
    "nearest_estimate": "Its memory.",
    plan_figures.KEY: "Estimate, prices, frontier and the rest, beside this file; worked out again without it.",
}
KNOWN_KEYS = frozenset({"schema", *SECTIONS})


@record
class PlanFile:
    """What a plan file says. `gpu` is None where it names no card; `document` is all of it, as it was written.

    `model_path` is the folder that the model was named by, None where it was named by its id.
    """

    model_id: str
    model_path: str | None
    gpu: Mapping[str, Any] | None
    run: RunConfig
    document: Mapping[str, Any]


def is_plan(raw: Mapping[str, Any]) -> bool:
    """Whether a parsed YAML or JSON file says that it is a plan, of this or another version."""
    schema = raw.get("schema")
    return isinstance(schema, str) and schema.startswith("qlora-plan/plan/")


def write_plan(plan_document: Mapping[str, Any], path: str | os.PathLike[str], *, force: bool = False) -> list[Path]:
    """Write `Plan.to_dict()` as commented YAML of what one may change, and its figures into a file beside it.

    `read_plan` gives the very same document back. Returns the paths written, the plan first. Raises InputError where
    one of them exists (unless `force`) or cannot be written; then neither is, or the figures alone.
    """
    target = Path(path)
    mine, figures = plan_figures.split(plan_document, target)
    text = "\n".join(_lines(mine, plan_document)) + "\n"
    beside = plan_figures.figures_path(target)
    if figures is None:
        write_text(target, text, force=force)
        return [target]
    check_new(target, force=force)
    write_text(beside, plan_figures.render(figures), force=force)
    write_text(target, text, force=force)
    return [target, beside]


def render_plan_file(plan_document: Mapping[str, Any]) -> str:
    """The text of a plan file that holds its figures itself, as the copy in a run's folder does.

    PyYAML writes the data and comments are put between its sections: it never has to read them back, so nothing of
    the data depends on them, and a second YAML library (ruamel.yaml keeps comments) would earn nothing more.
    """
    return "\n".join(_lines(plan_document, plan_document)) + "\n"


def _lines(document: Mapping[str, Any], whole: Mapping[str, Any]) -> Iterator[str]:
    yield f"# {headline(whole)}"
    yield "# Read back by `qlora-plan verify FILE`, `qlora-plan check FILE` and `qlora-plan train FILE`."
    estimate = whole.get("estimate")
    why = estimate.get("resolved", {}) if isinstance(estimate, Mapping) else {}
    for name, value in document.items():
        yield ""
        if name in SECTIONS:
            yield f"# {SECTIONS[name]}"
        if name == "run" and isinstance(value, Mapping):
            yield "run:"
            for option, chosen in value.items():
                reason = f"  # {plain(why[option])}" if option in why else ""
                # Written as {option: value}, without the braces: one line, whatever the value.
                yield f"  {_dumped({option: chosen}, flow=True)[1:-1]}{reason}"
        else:
            yield _dumped({name: value}, flow=False)


def _dumped(value: Mapping[str, Any], *, flow: bool) -> str:
    """YAML of a mapping in its own order; lines are never folded, so that a comment can follow one."""
    import yaml

    text: str = yaml.safe_dump(dict(value), sort_keys=False, default_flow_style=flow, width=1 << 20, allow_unicode=True)
    return text.rstrip("\n")


def headline(document: Mapping[str, Any]) -> str:
    """One printable line: what is trained, on which card, and the peak that is expected."""
    model, gpu, run, estimate = (
        part if isinstance(part := document.get(name), Mapping) else {} for name in ("model", "gpu", "run", "estimate")
    )
    peak, fit = estimate.get("peak"), estimate.get("fit")
    words = f"{run.get('method', 'a run')} of {model.get('id')} on {gpu.get('label') or gpu.get('name')}"
    if isinstance(peak, Mapping) and isinstance(peak.get("device_bytes"), int):
        words += f": peak {format_gib(peak['device_bytes'])}"
    if isinstance(fit, Mapping):
        words += f" of {format_gib(fit.get('usable_bytes'))} usable, {fit.get('verdict')}"
        floor = estimate.get("floor_bytes")
        if fit.get("verdict") in ("fits", "tight") and isinstance(floor, int) and fit.get("headroom_bytes", 0) < 0:
            words += f" (cached blocks given back, it needs at least {format_gib(floor)})"
    if estimate.get("footing", TRACED) != TRACED:
        words += ", by formulas"
    return plain(words)


def read_plan(path: str | os.PathLike[str]) -> PlanFile:
    """The plan in `path`, YAML or JSON.

    Raises InputError naming `path` and every fault in it.
    """
    return plan_of(read_yaml(path), str(path))


def plan_of(raw: Mapping[str, Any], location: str) -> PlanFile:
    """`read_plan` for a file that is parsed already; `location` is its path, beside which its figures lie."""
    faults: list[str] = []
    raw = plan_figures.joined(raw, location)
    if raw.get("schema") != SCHEMA:
        faults.append(f"schema must be {SCHEMA}, not {quoted(raw.get('schema'))}")
    model, gpu = raw.get("model"), raw.get("gpu")
    model_id, model_path = (model.get("id"), model.get("path")) if isinstance(model, Mapping) else (None, None)
    if not isinstance(model_id, str) or not model_id.strip():
        faults.append("a plan names its model (model.id)")
    if model_path is not None and not isinstance(model_path, str):
        faults.append("model.path must be the model's folder")
        model_path = None
    if gpu is not None and not (isinstance(gpu, Mapping) and isinstance(gpu.get("name"), str)):
        faults.append("gpu must name its card (gpu.name)")
    if raw.get("estimate") is not None and not isinstance(raw["estimate"], Mapping):
        faults.append("estimate must hold names with values")
    run = None
    if not isinstance(raw.get("run"), Mapping):
        faults.append("a plan holds its run")
    else:
        try:
            run = RunConfig.from_dict({str(name): value for name, value in raw["run"].items()}, "run")
        except InputError as error:
            faults.append(str(error))
    if faults or run is None or not isinstance(model_id, str):
        refuse(faults, location)
    return PlanFile(model_id=model_id, model_path=model_path, gpu=gpu, run=run, document=dict(raw))
