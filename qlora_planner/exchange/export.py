"""A plan in the words of other tools: scripts, notebooks, accelerate, axolotl, LLaMA-Factory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from qlora_planner.catalog.parallel import DDP, FSDP1, FSDP2, ZERO2, ZERO3, strategy_row
from qlora_planner.catalog.trainers import trainer_named
from qlora_planner.errors import InputError
from qlora_planner.exchange.parsed_config import Reading
from qlora_planner.exchange.plan_file import headline, plan_of
from qlora_planner.memory.records import MemoryEstimate
from qlora_planner.spec.run import RunConfig
from qlora_planner.text import plain

DATA = "train.jsonl"
NODES = ("torchrun", "slurm", "skypilot")  # what starts a run's script on the cards of one or more machines
Judge = Callable[[Reading], MemoryEstimate]
# Kinds that are configs of other tools, which `check` reads.
READ_BACK: Mapping[str, str] = {"axolotl": "axolotl", "llama-factory": "LLaMA-Factory", "trl-config": "TRL"}
_FORMATS: Mapping[str, str] = {kind: "trl" if kind == "trl-config" else kind for kind in READ_BACK}
# How cards share a run, in the words of these tools.
_SHARED: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("axolotl", "llama-factory"), (FSDP1, FSDP2)),
    "trl-config": (FSDP1, FSDP2, ZERO2, ZERO3),
}


def export(
    kind: str,
    plan_document: Mapping[str, Any],
    data: str | None = None,
    *,
    attention_modules: Sequence[str] = (),
    judge: Judge | None = None,
    rewards: Sequence[str] = (),
) -> str:
    """The plan of `Plan.to_dict()` as `kind` (see EXPORTS), ready to be run or written to a file.

    `data` is the path of the samples, JSON lines; without it the plan's own, else a placeholder. `attention_modules`
    are the names that the target `attention` stands for, for tools whose configs cannot say so. A config of another
    tool is another run than the plan's: what is written is read back as `check` reads it, and `judge` gives the memory
    of that for the file's first line, which has no figure without it. `rewards` name what the script of a trainer that
    generates learns from.
    Raises InputError for an unknown kind, a document that is no plan, and what `kind` cannot express.
    """
    if kind not in EXPORTS:
        raise InputError(f"--export {plain(kind)}: is not known; known: {', '.join(EXPORTS)}")
    plan = plan_of(plan_document, "the plan")
    if plan.run.task is not None and kind in READ_BACK:
        raise InputError(
            f"--export {kind}: {READ_BACK[kind]}'s config for --task {plan.run.task} is not written;"
            " --export trl is the script of this run"
        )
    if plan.run.shows_images:
        _check_images(kind, plan.run)
    strategies = (DDP, *_SHARED.get(kind, ()))
    if (
        plan.run.parallel is not None
        and plan.run.parallel not in strategies
        and kind not in ("trl", "accelerate", *NODES)
    ):
        raise InputError(
            f"--export {kind}: {strategy_row(plan.run.parallel).label} is not written there; --export accelerate and"
            " --export trl are the launch config and the script of this run"
        )
    if plan.run.parallel is not None and kind in ("notebook", "percent"):
        raise InputError(f"--export {kind}: a notebook is one process on one card; --export trl is the script")
    samples = data or _path_of(plan_document.get("data")) or DATA
    model = plan.model_path or plan.model_id
    if kind == "accelerate":
        from qlora_planner.exchange.scripts.accelerate import render

        gpu = plan.gpu or {}
        count, nodes = (number if isinstance(number := gpu.get(name), int) else 1 for name in ("count", "nodes"))
        return render(plan.run, _heading(plan_document), count, nodes)
    if kind in NODES:
        from qlora_planner.exchange.scripts.nodes import WRITERS, Cards

        return WRITERS[kind](plan.run, _heading(plan_document), Cards.of(plan.gpu or {}))
    if kind not in READ_BACK:
        return KINDS[kind](plan.run, model, samples, _heading(plan_document), rewards)
    config = KINDS[kind](plan.run, model, samples, [], attention_modules)
    heading = _as_read(kind, config, plan_document, judge)
    return KINDS[kind](plan.run, model, samples, heading, attention_modules)


def _check_images(kind: str, run: RunConfig) -> None:
    """Raises InputError for what a file of this kind does not say of images."""
    if kind == "accelerate" or kind in NODES:
        return
    if kind == "trl-config" or trainer_named(run.trainer).patches_libraries:
        other = "--export trl with --trainer trl-sft is the script of a run with images"
        raise InputError(f"--export {kind}: nothing there makes batches of images; {other}")
    if run.images and run.image_size is None:
        raise InputError(f"--export {kind}: images are made to fit a size: say --image-size WIDTHxHEIGHT")
    if run.images != 1 and kind in READ_BACK:
        raise InputError(
            f"--export {kind}: {READ_BACK[kind]} has no key for how many images a row holds, so its file is counted"
            f" with one, not {run.images}; --export trl is the script of this run"
        )


def _as_read(kind: str, config: str, document: Mapping[str, Any], judge: Judge | None) -> list[str]:
    """The first lines of another tool's config: the run that the file itself is, not the plan that it was made from."""
    import yaml

    from qlora_planner.exchange.configs import FORMATS

    if judge is None:
        as_read: Mapping[str, Any] = {**document, "estimate": None}
    else:
        estimate = judge(FORMATS[_FORMATS[kind]][1](yaml.safe_load(config), kind, {}))
        as_read = {**document, "run": estimate.run.to_dict(), "estimate": estimate.to_dict()}
    tool = READ_BACK[kind]
    return [f"{headline(as_read)} (as {tool} runs this file)", f"The plan itself: {headline(document)}"]


def _path_of(data: object) -> str | None:
    """The file that a plan was made for, where it names a single one."""
    if not isinstance(data, Mapping):
        return None
    paths = data.get("paths")
    path = data.get("path") or (paths[0] if isinstance(paths, list) and len(paths) == 1 else None)
    return path if isinstance(path, str) else None


def _heading(document: Mapping[str, Any]) -> list[str]:
    """What stands at the top of every file: the plan, and the versions that its figures hold for."""
    stack = document.get("stack")
    versions = " ".join(f"{name}=={version}" for name, version in stack.items()) if isinstance(stack, Mapping) else ""
    return [headline(document), *([plain(f"Planned for {versions}")] if versions else [])]


# The last are the modules that a config names, or the rewards of a script.
Writer = Callable[[RunConfig, str, str, list[str], Sequence[str]], str]


def _script(run: RunConfig, model_id: str, data: str, heading: list[str], rewards: Sequence[str]) -> str:
    from qlora_planner.exchange.scripts.training import script

    return script(run, model_id, data, heading, rewards)


def _notebook(run: RunConfig, model_id: str, data: str, heading: list[str], rewards: Sequence[str]) -> str:
    from qlora_planner.exchange.scripts.notebook import notebook

    return notebook(run, model_id, data, heading, rewards)


def _percent(run: RunConfig, model_id: str, data: str, heading: list[str], rewards: Sequence[str]) -> str:
    from qlora_planner.exchange.scripts.notebook import percent

    return percent(run, model_id, data, heading, rewards)


def _accelerate(run: RunConfig, _model: str, _data: str, heading: list[str], _modules: Sequence[str]) -> str:
    from qlora_planner.exchange.scripts.accelerate import render

    return render(run, heading)


def _axolotl(run: RunConfig, model_id: str, data: str, heading: list[str], modules: Sequence[str]) -> str:
    from qlora_planner.exchange.axolotl.write import render

    return render(run, model_id, data, heading, modules)


def _llama_factory(run: RunConfig, model_id: str, data: str, heading: list[str], modules: Sequence[str]) -> str:
    from qlora_planner.exchange.llama_factory.write import render

    return render(run, model_id, data, heading, modules)


def _trl_config(run: RunConfig, model_id: str, data: str, heading: list[str], modules: Sequence[str]) -> str:
    from qlora_planner.exchange.trl.write import render

    return render(run, model_id, data, heading, modules)


KINDS: Mapping[str, Writer] = {
    "trl": _script,
    "notebook": _notebook,
    "percent": _percent,
    "accelerate": _accelerate,
    "axolotl": _axolotl,
    "llama-factory": _llama_factory,
    "trl-config": _trl_config,
}
EXPORTS = (*KINDS, *NODES)
