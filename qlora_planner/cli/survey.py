"""survey: what fits on a card, over the whole catalogue. It is what `--gpu` without a verb does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from qlora_planner.cli.blas import load_numpy
from qlora_planner.cli.exits import CANNOT_SAY
from qlora_planner.cli.options import Verb, card_options, output_options, run_from, run_options
from qlora_planner.cli.streams import answer, answer_csv, answer_json
from qlora_planner.cli.values import Card, Output, card_from, output_from
from qlora_planner.errors import MissingError

if TYPE_CHECKING:
    from qlora_planner.planner.survey.survey import SurveyRow
    from qlora_planner.spec.run import RunConfig

SCHEMA = "qlora-plan/survey/1"
# Of 4-bit weights with what stays in 16 bits, roughly: it decides an order and nothing else.
_BYTES_PER_PARAM = 0.7


@click.command("survey", cls=Verb)
@card_options()
@run_options()
@output_options(csv=True, every=True)
def command(**given: Any) -> int:
    """What fits on a card: every model of the catalogue with the recipe recommended for it.

    Grouped and folded for reading; --all, --json and --csv give every model. Exits with 1 when nothing fits.
    """
    load_numpy()
    output = output_from(given)
    run = run_from(given)
    card = card_from(given, output, required=True)
    assert card is not None
    rows = survey_rows(card, run, output)
    if output.json:
        answer_json(_document(card, run, rows))
    elif output.csv:
        from qlora_planner.report.survey import CSV_HEADS, csv_row

        answer_csv(list(CSV_HEADS), [csv_row(row) for row in rows])
    else:
        from qlora_planner.report.survey import render_survey

        answer(
            render_survey(
                rows, card.gpu, run, output.theme, asked=card.asked, every=output.every, explain=output.explain
            )
        )
    verdicts = {row.verdict for row in rows}
    return 0 if verdicts & {"fits", "tight"} else CANNOT_SAY if "cannot-say" in verdicts else 1


def survey_rows(card: Card, run: RunConfig, output: Output) -> list[SurveyRow]:
    """A row per model of the catalogue, largest first. Raises MissingError for an empty catalogue."""
    return sorted(stream_rows(card, run, output), key=lambda row: (-row.params, row.model_id))


def stream_rows(card: Card, run: RunConfig, output: Output, *, recommend: bool = True) -> Iterator[SurveyRow]:
    """The same rows as they are worked out: what is likely to fit comes first, the largest of it before the rest.

    Without `recommend` no best run is looked for, which takes a fraction of the time.
    """
    from qlora_planner.cli.indexed import indexed_candidates
    from qlora_planner.planner.budget import usable_on
    from qlora_planner.planner.candidate_memory import MemoryBudget
    from qlora_planner.planner.survey.index import serves, storages_of
    from qlora_planner.planner.survey.recommend import Recommender
    from qlora_planner.planner.survey.survey import judge, survey
    from qlora_planner.session import calibration, ranking_card
    from qlora_planner.sources.locations import models_dirs, tapes_dirs
    from qlora_planner.sources.tapes import stored_sweep

    known, others = indexed_candidates(models_dirs(output.profiles), card.gpu, run, output.warn)
    if not known and not others:
        raise MissingError("no model profile is found; reinstall qlora-planner, or name a folder with --profiles DIR")
    known_spread = calibration(output.profiles)
    usable = usable_on(card.gpu, card.reserve_bytes, card.cap_bytes, known_spread)
    limits = MemoryBudget(usable_bytes=usable, calibration=known_spread)
    recommender = Recommender(
        gpu=card.gpu, limits=limits, pace_on=ranking_card(card.gpu, profiles=output.profiles),
        calibration=known_spread,
    )  # fmt: skip
    best = recommender.best if recommend else lambda _: None
    for one in sorted(known, key=lambda one: (one.params * _BYTES_PER_PARAM > usable, -one.params)):
        yield judge(one, card.gpu, limits, best)
    folders = tapes_dirs(output.profiles)
    yield from survey(
        others,
        card.gpu,
        run,
        reserve_bytes=card.reserve_bytes,
        cap_bytes=card.cap_bytes,
        sweep_of=lambda profile: stored_sweep(profile, folders),
        calibration=known_spread,
        # With options of the user's nothing is searched: the run is theirs.
        storages_of=(lambda profile: storages_of(profile, card.gpu)) if serves(run) else (lambda _: ()),
        recommend=best,
    )


def _document(card: Card, run: RunConfig, rows: list[SurveyRow]) -> dict[str, Any]:
    from qlora_planner.catalog.gpus import remarks

    gpu = card.gpu
    return {
        "schema": SCHEMA,
        "gpu": {"name": gpu.name, "label": gpu.label, "memory_bytes": gpu.memory_bytes},
        "reserve_bytes": card.reserve_bytes,
        "cap_bytes": card.cap_bytes,
        "usable_bytes": rows[0].usable_bytes if rows else None,
        "run": run.to_dict(),
        "problems": [{"code": one.code, "message": one.message, "fix": one.fix} for one in remarks(gpu, run.stack)],
        "played": False,  # ranked by a sweep or closed forms; `plan` plays
        "models": [row.to_dict() for row in rows],
    }
