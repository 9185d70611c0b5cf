"""How processes of Python are started so that nothing beside the user's data is imported, and nothing reads stdin.

Python puts the working directory first where it looks for modules: a `random.py` beside a dataset would be run by the
first library that draws a number. `-P` leaves it out, and the environment passes that on to whatever a child starts.
"""

from __future__ import annotations

# `python -m qlora_planner` imports this while the working directory is still looked at first: no module but these two.
import os
import sys

SAFE_PATH_VARIABLE = "PYTHONSAFEPATH"


def python_module(name: str) -> tuple[str, ...]:
    """The command that runs a module of this package, or this program, with the Python that runs here."""
    return (sys.executable, "-P", "-m", name)


def python_code(code: str) -> tuple[str, ...]:
    """The command that runs a line of code with the Python that runs here, where even packages must wait their turn."""
    return (sys.executable, "-P", "-c", code)


def child_environment(**more: str) -> dict[str, str]:
    """This environment for a child, which finds this very package; `more` is added to it."""
    import sysconfig

    # An empty entry means the working directory: it comes of `PYTHONPATH=$PYTHONPATH:...` and nobody meant it.
    folders = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    home = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    # Where packages are installed is looked at anyway, and after Python's own modules, not before them.
    if home not in (*folders, sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        folders.append(home)
    path = {"PYTHONPATH": os.pathsep.join(folders)} if folders else {}
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {**inherited, **path, SAFE_PATH_VARIABLE: "1", **more}


def leave_working_directory_out() -> None:
    """Take the working directory off this process's own import path, where `python -m` has put it first."""
    if not sys.flags.safe_path and sys.path and sys.path[0] in ("", os.getcwd()):
        del sys.path[0]
