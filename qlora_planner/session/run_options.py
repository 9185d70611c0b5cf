"""Options of a run as people write them in Python."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qlora_planner.spec.run import RunConfig


def run_of(run: RunConfig | None, options: dict[str, Any]) -> RunConfig:
    """`run`, else the default one, with `options` in place, as people write them: `seq_len="8k"`, `quant="4bit"`.

    Raises InputError for unknown options and bad values.
    """
    from qlora_planner.spec.run import RunConfig as Run

    if not options:
        return run or Run()
    given = _understood(options)
    if run is None and "parallel" in given:
        from qlora_planner.memory.parallel.choice import usual_options

        given = usual_options(given)
    return (run or Run()).with_(**given)


def _understood(options: dict[str, Any]) -> dict[str, Any]:
    if not any(isinstance(value, str) for value in options.values()):
        return options
    from qlora_planner.catalog.trainers import TRAINER_NAMES
    from qlora_planner.spec.spellings import meant

    return meant(options, TRAINER_NAMES)


def given_options(run: RunConfig | None, options: dict[str, Any]) -> dict[str, Any]:
    """What of a run was given: all of `run` that differs from its defaults, with `options` in place.

    Raises InputError for unknown options and bad values.
    """
    if run is None:
        run_of(None, options)
        return dict(_understood(options))
    from qlora_planner.planner.search_space import fixed_options

    changed = run_of(run, options)
    return {name: getattr(changed, name) for name in fixed_options(changed, None) | options.keys()}
