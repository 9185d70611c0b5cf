"""A model that has no profile yet, profiled by the command line in a process of its own: torch is not imported here."""

from __future__ import annotations

from collections.abc import Callable
from threading import Timer

from qlora_planner.errors import InputError, MissingError
from qlora_planner.measure.children import NOWHERE, PIPE, spawn
from qlora_planner.text import short
from qlora_planner.tui.control.child_process import Launch

# Building the largest class without weights takes some ten seconds.
_LIMIT_S = 300.0


def profile(model: str, profiles: str | None, tell: Callable[[str], None]) -> None:
    """Build and keep the profile of a model as `qlora-plan profile MODEL` does; `tell` hears what it says meanwhile.

    Raises InputError in its words for what describes no model, and MissingError for everything else that went wrong.
    """
    words = ["profile", model, "--json", *(("--profiles", profiles) if profiles else ())]
    child = spawn([*Launch.program, *words], stdout=NOWHERE, stderr=PIPE, variables={"PYTHONUNBUFFERED": "1"})
    ending = Timer(_LIMIT_S, child.kill)
    ending.daemon = True
    ending.start()
    last = ""
    assert child.stderr is not None, "it is a pipe"
    try:
        for line in child.stderr:
            if line.startswith("qlora-plan: "):  # the rest is libraries' own
                last = short(line.removeprefix("qlora-plan: ").strip())
                tell(last)
        code = child.wait()
    finally:
        ending.cancel()
        child.stderr.close()
    if code:
        fault = last or f"{short(model)} cannot be profiled: exit code {code}"
        raise InputError(fault) if code == InputError.exit_code else MissingError(fault)
