"""A trace in a process of its own: for a trainer that changes the libraries for whoever imports it, and where torch is
a build for CUDA and sees no card."""

from __future__ import annotations

import pickle
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlora_planner.errors import MissingError, PlannerError
from qlora_planner.isolation import child_environment, python_code

if TYPE_CHECKING:
    from qlora_planner.profiling.tracing.spec import TraceSpec
    from qlora_planner.spec.trace import Tape

_STAND_IN = "stand_in"
_REQUEST, _ANSWER = "request.pickle", "answer.pickle"
# Importing this package imports what the trainer changes, so the trainer's comes first.
_CHILD = (
    "import importlib, sys; [importlib.import_module(name) for name in sys.argv[1:]];"
    " from qlora_planner.profiling.tracing.apart import main; main()"
)


def trace_apart(raw: Mapping[str, Any], spec: TraceSpec, what: str) -> Tape:
    """The tape of one run, as `engine.trace` gives it; half a minute more, most of which are imports.

    `what` names the model in faults. Raises what `profiling.tapes.trace_run` raises.
    """
    with tempfile.TemporaryDirectory(prefix="qlora-planner-trace-") as folder:
        request, answer = (Path(folder) / name for name in (_REQUEST, _ANSWER))
        request.write_bytes(pickle.dumps((dict(raw), spec, what)))
        ended = subprocess.run(
            [*python_code(_CHILD), *spec.trainer.packages[:1]],
            cwd=folder,  # into which it writes what it compiles
            env=child_environment(**spec.trainer.trace_environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
        )
        if not answer.exists():
            last = (ended.stderr.strip() or ended.stdout.strip() or f"exit code {ended.returncode}").splitlines()[-1]
            raise MissingError(f"{what} cannot be traced for this run: {spec.trainer.name} ends with {last}")
        given = pickle.loads(answer.read_bytes())
    if isinstance(given, PlannerError):
        raise given
    tape: Tape = given
    return tape


def sees_no_card() -> bool:
    """Whether torch is a build for CUDA and sees no card: it takes CUDA for its accelerator all the same, and autograd
    asks for the context of a card that it has not (`hasPrimaryContext`)."""
    import torch

    return torch.version.cuda is not None and not torch.cuda.device_count()


def stands_in() -> bool:
    """Whether this process has the device that stands in."""
    import torch

    return torch._C._get_privateuse1_backend_name() == _STAND_IN


def stand_in() -> None:
    """Let autograd find a kind of device that is really there: torch's own empty one, for backends in Python.

    This holds for the whole process, which does nothing else.
    """
    from torch.utils import backend_registration

    set_up = getattr(backend_registration, "_setup_privateuseone_for_python_backend", None)
    if set_up is not None and sees_no_card():
        set_up(_STAND_IN)


def main() -> None:
    """Trace the run that the working directory's request names."""
    from qlora_planner.profiling.refusals import traced_fault
    from qlora_planner.profiling.tracing.engine import trace

    stand_in()
    raw, spec, what = pickle.loads(Path(_REQUEST).read_bytes())
    answer: Any
    try:
        answer = trace(raw, spec)
    except PlannerError as error:
        answer = error
    except Exception as error:  # any model code may fail on fake tensors; the cause is passed on
        answer = traced_fault(error, what)
    Path(_ANSWER).write_bytes(pickle.dumps(answer))
