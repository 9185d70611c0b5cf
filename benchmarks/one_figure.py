"""Whether everything that a plan shows is what `estimate` says of that very run: the same bytes and the same verdict.

python -m benchmarks.one_figure [DRAWS] [SEED] [PROFILES]. Draws a model, a card and a recipe at random, surveys, plans,
and asks `estimate` for the row and every price, point of the frontier, rung, alternative and other card with figures.
Prints how many were compared and those that differ; no package is needed and nothing is traced.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

from qlora_planner.errors import PlannerError
from qlora_planner.planner.survey.survey import SurveyRow
from qlora_planner.session.session import Session
from qlora_planner.session.surveying import indexed
from qlora_planner.session.surveying.survey import stream_rows
from qlora_planner.sources.catalogue import ModelCatalogue
from qlora_planner.sources.locations import models_dirs, tapes_dirs
from qlora_planner.sources.traces.image_tapes import OF_IMAGES
from qlora_planner.spec.run import RunConfig

# What is typed of a run, one or two at a time.
RECIPES: tuple[Mapping[str, Any], ...] = (
    {}, {}, {"trainer": "hf-trainer"}, {"gradient_checkpointing": False}, {"seq_len": 4096}, {"seq_len": 1024},
    {"batch_size": 2}, {"batch_size": 4}, {"upcast": True}, {"rank": 64}, {"trainer": "hf-trainer", "upcast": True},
)  # fmt: skip
# Images, of models whose tapes with them ship.
SHOWN = ("640x480", "1000x700", "1280x720", "1024x1024", "1600x900")
CARDS = (
    "rtx-3060-12gb", "rtx-4060-ti-16gb", "rtx-4090", "rtx-5090", "l4", "a10", "t4", "l40s", "a100-40gb", "a100-80gb",
    "h100", "h200", "8GB", "12GB", "16GB", "24GB", "48GB", "80GB",
)  # fmt: skip


@dataclass(slots=True)
class Comparison:
    """How many figures were compared, and those that differ, in words."""

    compared: int = 0
    differing: list[str] = field(default_factory=list)

    def hold(self, what: str, shown: Any, said: Any) -> None:
        """Count one figure."""
        self.compared += 1
        if shown != said:
            self.differing.append(f"{what}: {shown} shown, {said} by estimate")


def compare(session: Session, model: str, card: str, typed: Mapping[str, Any], found: Comparison) -> None:
    """Plan `model` on `card` with the options that are `typed`, and hold what lies around the run against estimates."""
    bench = session.on(card)
    name = session.model(model).id
    for surveyed in rows_of(session, card, typed, (name,)):
        if surveyed.traced and surveyed.model_id == name:  # a survey with images has all models that read some
            said = bench.estimate(model, RunConfig(**{**typed, "seq_len": surveyed.run.seq_len})).estimate.verdict
            found.hold(f"{model} on {card} {dict(typed)}, surveyed", surveyed.verdict, said)
    others: dict[str, Any] = {} if "images" in typed else {"compare": "rtx-4090"}
    plan = bench.plan(model, **others, **typed).plan
    if plan.estimate.method != "traced" or plan.estimate.verdict == "will-not-run":
        return
    run = RunConfig(**plan.options)
    here = bench.estimate(model, run).estimate
    name = f"{model} on {card} {dict(typed)}"
    found.hold(f"{name}, the run itself", plan.estimate.floor_bytes, here.floor_bytes)
    for what, change, more, fits in _around(plan):
        there = bench.estimate(model, run.with_(**change)).estimate
        if there.method != "traced":
            continue
        if more is not None:
            found.hold(f"{name}, {what}, bytes", more, there.floor_bytes - here.floor_bytes)
        if fits is not None:
            found.hold(f"{name}, {what}, fits", fits, there.verdict == "fits")
    if plan.smallest_card is not None:
        there = session.on(plan.smallest_card.card.name).estimate(model, run).estimate
        found.hold(f"{name}, {plan.smallest_card.card.name}, fits", True, there.verdict == "fits")
        if plan.estimate.verdict == "fits" and here.fit is not None:
            small = plan.smallest_card.usable_bytes <= here.fit.usable_bytes
            found.hold(f"{name}, the smallest card is no larger", small or plan.smallest_card.card.name == card, True)
    for row in plan.compared:
        if row.played and row.change is not None:
            there = session.on(row.gpu).estimate(model, run.with_(**row.change)).estimate
            found.hold(f"{name}, on {row.gpu}, bytes", row.floor_bytes, there.floor_bytes)
            found.hold(f"{name}, on {row.gpu}, verdict", row.verdict, there.verdict)


def rows_of(session: Session, card: str, typed: Mapping[str, Any], models: Collection[str]) -> list[SurveyRow]:
    """The survey of these models alone, without their best runs."""
    every = indexed.indexed_candidates

    def few(*given: Any) -> Any:
        candidates, profiles = every(*given)
        return [one for one in candidates if one.model_id in models], [one for one in profiles if one.id in models]

    with patch.object(indexed, "indexed_candidates", few):
        return list(stream_rows(session.on(card), RunConfig(**typed), recommend=False))


def _around(plan: Any) -> Iterator[tuple[str, dict[str, Any], int | None, bool | None]]:
    """What a plan shows around its run: a name, what is changed, bytes more, and whether it fits, as far as it says."""
    for row in plan.prices:
        if row.refused is None and row.bytes is not None:
            yield f"price of {row.change}", dict(row.change), row.bytes, row.fits
    for row in plan.frontier:
        if row.seq_len is not None:
            change = {"batch_size": row.batch_size, "seq_len": row.seq_len}
            yield f"frontier {row.batch_size} x {row.seq_len}", change, None, True
    for row in plan.alternatives:
        yield f"instead {row.change}", dict(row.change), row.bytes, True
    lower: dict[str, Any] = {}
    for row in plan.ladder:
        lower |= {name: value for name, value in row.change.items() if name != "padding"}
        yield f"rung {lower}", dict(lower), row.bytes, row.fits


def draws(session: Session, count: int, seed: int) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Models, cards and recipes at random; the same for the same seed."""
    chance = random.Random(seed)
    models = sorted(ModelCatalogue(models_dirs(session.profiles)).names())
    for _ in range(count):
        yield chance.choice(models), chance.choice(CARDS), chance.choice(RECIPES)


def image_draws(session: Session, count: int, seed: int) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """The same with an image in each sequence."""
    chance = random.Random(seed)
    files = [path for folder in tapes_dirs(session.profiles) for path in (folder / OF_IMAGES).glob("*.jsonl.gz")]
    models = sorted(path.name.removesuffix(".jsonl.gz").replace("__", "/") for path in files)
    for _ in range(count):
        yield chance.choice(models), chance.choice(CARDS), {"images": 1, "image_size": chance.choice(SHOWN)}


def main(count: int, seed: int, profiles: str | None) -> int:
    """Compare and print; 1 where something differs."""
    session, found, refused = Session(profiles=profiles, stored_only=True), Comparison(), 0
    for model, card, typed in (*draws(session, count, seed), *image_draws(session, count // 5, seed)):
        try:
            compare(session, model, card, typed, found)
        except PlannerError as error:
            refused += 1
            print(f"{model} on {card} {dict(typed)}: refused: {error}"[:160])
    print(
        f"{count} draws and a fifth with images, {refused} refused: {found.compared} figures compared,"
        f" {len(found.differing)} differ"
    )
    print("\n".join(found.differing))
    return 1 if found.differing else 0


if __name__ == "__main__":
    words = sys.argv[1:]
    sys.exit(main(int((words or ["200"])[0]), int((words[1:] or ["1"])[0]), words[2] if len(words) > 2 else None))
