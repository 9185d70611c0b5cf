"""What `plan` and the survey write to be handed on: a report, a table of comparisons, a picture of the screen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from qlora_planner.cli.values import Output
from qlora_planner.errors import InputError
from qlora_planner.session.plan_files import REPORTS, check_target
from qlora_planner.text import plain

if TYPE_CHECKING:
    from qlora_planner.planner.plan import Plan
    from qlora_planner.report.parts.theme import Theme
    from qlora_planner.session.cards import PlannedCard


def check_shared(files: Mapping[str, str | None], *, force: bool) -> None:
    """Look at every file before anything is planned; `files` are those of --report, --csv, --parquet and --share.

    Raises InputError for a report or picture of an unknown kind, one file for two things, a file that is there already;
    and MissingError without pyarrow or cairosvg.
    """
    given = {option: path for option, path in files.items() if path is not None}
    report = given.get("--report")
    if report is not None and PurePath(report).suffix.lower() not in REPORTS:
        raise InputError(f"--report: {plain(report)} must end in .md or .html, which says what is written")
    if len(set(given.values())) < len(given):
        raise InputError(f"{' and '.join(given)}: one file cannot hold them all; name a file each")
    for option, path in given.items():
        check_target(option, path, force)
    if "--parquet" in given:
        from qlora_planner.report.pages.tabular import check_parquet

        check_parquet()
    if "--share" in given:
        from qlora_planner.report.pages.card import check_card

        check_card("--share", given["--share"])


def write_shared(
    plan: Plan,
    files: Mapping[str, str | None],
    typed: Mapping[str, Any],
    card: PlannedCard,
    output: Output,
    *,
    force: bool,
) -> None:
    """Write every file but the picture, all rendered before the first is written."""
    kinds = {option: path for option, path in files.items() if path is not None and option != "--share"}
    _write({path: _rendered(option, path, plan, typed, card) for option, path in kinds.items()}, output, force)


def write_picture(path: str | None, shown: Callable[[Theme], str], output: Output, *, force: bool) -> None:
    """The screen that `shown` renders as a picture at `path`; None: nothing."""
    if path is None:
        return
    from qlora_planner.report.pages.card import THEME, draw_card

    _write({path: draw_card(shown(THEME), "qlora-planner", path)}, output, force)


def _write(rendered: Mapping[str, bytes], output: Output, force: bool) -> None:
    if rendered:
        from qlora_planner.exchange.files import write_bytes

        for path, data in rendered.items():
            write_bytes(path, data, force=force)
            output.warn(f"wrote {plain(path)}")


def _rendered(option: str, path: str, plan: Plan, typed: Mapping[str, Any], card: PlannedCard) -> bytes:
    if option == "--report":
        from qlora_planner.report.pages.plan_report import render_share

        return render_share(plan, typed, card.asked, html=PurePath(path).suffix.lower() == ".html").encode()
    from qlora_planner.report.pages.tabular import to_csv, to_parquet

    return (to_csv if option == "--csv" else to_parquet)(plan.to_dict())
