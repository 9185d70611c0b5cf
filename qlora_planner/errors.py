"""The faults a user can meet. Each carries one clear line and the exit code of the stable surface."""

from __future__ import annotations

from qlora_planner.text import cut


class PlannerError(Exception):
    """Base of every expected fault: `str(error)` is one line that names the thing and the fix."""

    exit_code = 4

    def __init__(self, message: str = "") -> None:
        super().__init__(cut(message))  # whatever of a file it quotes


class InputError(PlannerError):
    """Something the user gave cannot be used (exit code 2)."""

    exit_code = 2


class NothingRunsError(InputError):
    """The installed libraries refuse every run that the given options leave open (exit code 1: it will not run)."""

    exit_code = 1


class NothingFitsError(InputError):
    """No card that could be taken holds what the given options leave open (exit code 1: it does not fit)."""

    exit_code = 1


class MissingError(PlannerError):
    """A package, GPU, file or profile that is needed is not there (exit code 3)."""

    exit_code = 3


class UnprofiledError(MissingError):
    """A model has no profile here, and `qlora-plan profile` would make one."""


class RefusedError(PlannerError):
    """The installed libraries refuse this run, in their own words (exit code 1: it will not run)."""

    exit_code = 1


class UnsureError(PlannerError):
    """What is asked for hangs on something that is not modelled (exit code 5)."""

    exit_code = 5


class RunError(PlannerError):
    """A training or verification run failed (exit code 4)."""

    exit_code = 4


def one_line(faults: list[str], location: str) -> str:
    """Join all faults of one file or option set into the single line that is shown.

    `faults` are sentences without a final stop; `location` is the path or option they belong to.
    """
    return f"{location}: " + "; ".join(faults)
