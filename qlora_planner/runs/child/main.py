"""The training child: `python -m qlora_planner.runs.child.main SPEC.json [--with-parent PID [--rank]]`.

SPEC.json is a `LaunchSpec`. Progress goes to stdout, one JSON object a line: `{"event": "phase" | "data" | "note" |
"rehearsed" | "begin" | "step" | "evaluation" | "checkpoint" | "memory" | "refused" | "result", "elapsed_s": ..., ...}`.
What libraries print goes to stderr. SIGTERM or SIGINT: a checkpoint after the step that runs, then the end. Exit codes:
0 for a result of any outcome but an error, else as the program's. Several ranks, as `accelerate launch` starts them,
write to one stdout, each line with its `rank`, and first of all `rank` with its process id.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

from qlora_planner.errors import PlannerError
from qlora_planner.measure import process
from qlora_planner.measure.child import Lines, own_stdout, read_specification, set_environment
from qlora_planner.runs.child.callbacks import Stop
from qlora_planner.runs.child.reporters import set_places
from qlora_planner.runs.directory import RunDirectory
from qlora_planner.runs.spec import LaunchSpec
from qlora_planner.train.ranks import RANK, Ranks

_PARENTS_OWN = [number for name in ("SIGHUP", "SIGUSR1") if (number := getattr(signal, name, None)) is not None]
# What libraries say when the disk is full and their own exception carries no errno.
_FULL = ("No space left on device", "os error 28", "Disk quota exceeded")


def main(arguments: list[str] | None = None) -> int:
    """Run the specification named on the command line."""
    given = sys.argv[1:] if arguments is None else arguments
    launched = given[-1:] == [RANK]
    given = given[:-1] if launched else given
    alone = len(given) == 1
    if not alone and (len(given) != 3 or given[1] != "--with-parent" or not given[2].isdecimal()):
        print("usage: python -m qlora_planner.runs.child.main SPEC.json [--with-parent PID [--rank]]", file=sys.stderr)
        return 2
    if not alone:
        process.die_with_parent(int(given[2]))
    ranks = Ranks.from_environment() if launched else Ranks()
    lines, stop = Lines(own_stdout(), ranks, turn=Path(given[0])), Stop()
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, stop.ask)
    for name in _PARENTS_OWN:  # sent to a whole group: the parent passes them on as SIGTERM
        signal.signal(name, signal.SIG_IGN)
    if not alone:
        process.stop_without_parent(int(given[2]))
    if ranks.world > 1:
        lines.tell("rank", {"pid": os.getpid()})
    try:
        spec = LaunchSpec.from_dict(read_specification(given[0]), given[0])
        set_environment(spec.run, device=spec.device, gpu_index=spec.gpu_index, ranks=spec.cards)
        set_places(spec.settings.report_to, RunDirectory(Path(spec.output)), os.environ)
        # Imported only now: torch reads the allocator's settings when it is imported.
        from qlora_planner.runs.child.training import Training

        training = Training(spec, lines.tell, stop, ranks)
        result = attempt(training, stop)
    except PlannerError as error:
        print(str(error), file=sys.stderr)
        lines.tell("refused", {"message": str(error), "exit_code": error.exit_code})
        return error.exit_code
    except KeyboardInterrupt:
        lines.tell("result", {"outcome": "interrupted", "phase": "start"})
        return 130
    lines.tell("result", result)
    return 4 if result["outcome"] == "error" else 0


def attempt(training: Any, stop: Stop) -> dict[str, Any]:
    """The facts of one attempt, whatever became of it. PlannerErrors pass through."""
    outcome, message, more = "ok", None, dict[str, Any]()
    try:
        outcome = "ok" if training.execute() else "interrupted"
    except PlannerError:
        if training.phase != "training":
            raise
        outcome, message = "error", process.one_line(sys.exception() or RuntimeError()).partition(": ")[2]
    except KeyboardInterrupt:
        outcome = "interrupted"
    except Exception as error:  # whatever the libraries raise is the finding; its trace goes to the log
        with suppress(OSError):  # the log may lie on the disk that is full
            traceback.print_exc()
        message = process.one_line(error)
        if is_disk_full(error):
            outcome = "disk-full"
        elif process.is_out_of_memory(error):
            outcome = "out-of-memory"
            more = {"requested_bytes": process.requested_bytes(str(error)), "alive": training.alive()}
        else:
            outcome = "error"
    return {**training.report(), "outcome": outcome, "message": message, **more}


def is_disk_full(error: BaseException) -> bool:
    """Whether this exception, or one that led to it, says that the disk took no more."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(sign in str(cause) for sign in _FULL):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


if __name__ == "__main__":
    sys.exit(main())
