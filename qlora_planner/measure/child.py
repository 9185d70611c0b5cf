"""The measuring child: `python -m qlora_planner.measure.child SPEC.json OUT.json [--with-parent]`.

SPEC.json is a `ChildSpec`; OUT.json becomes a `Measurement`. Progress goes to stdout, one JSON object a line:
`{"event": "phase"|"begin"|"step"|"memory"|"result", "elapsed_s": ..., ...}`. What libraries print goes to stderr.
Exit codes: 0 measured (an out-of-memory is a measurement), 2 bad specification, 3 something is missing, 4 the run
failed otherwise, 130 interrupted; a failed run has its OUT.json too. With --with-parent it dies when its parent does.
As one of several ranks, which `measure.launcher` starts, it writes OUT-RANK.json.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from qlora_planner.bounded import write_whole
from qlora_planner.errors import InputError, MissingError, PlannerError
from qlora_planner.measure import process
from qlora_planner.measure.spec import ChildSpec
from qlora_planner.spec.run import RunConfig
from qlora_planner.train.options import environment
from qlora_planner.train.ranks import RANK, Ranks
from qlora_planner.train.unsloth.model import import_first

_EXIT = {"ok": 0, "out-of-memory": 0, "error": 4, "interrupted": 130}
# The sampler reads fifty times a second; nobody watches more often than this.
_MEMORY_LINES_S = 0.25


# What every rank tells; of the rest the first rank's is enough.
_OF_EACH_RANK = ("rank", "memory", "refused", "result")


class Lines:
    """Progress as JSON lines; several threads may tell, and several `ranks` into one pipe, each by its number."""

    def __init__(self, out: TextIO, ranks: Ranks | None = None, turn: Path | None = None) -> None:
        self._out, self._lock = out, threading.Lock()
        self._started = time.monotonic()
        self._last_memory = 0.0
        self._rank = None if ranks is None or ranks.world == 1 else ranks.rank
        self._turn = turn

    def tell(self, event: str, fields: Mapping[str, Any]) -> None:
        """Write one line, unless it is a memory reading too soon after another, or the first rank's to tell."""
        elapsed = time.monotonic() - self._started
        if self._rank is not None:
            if self._rank and event not in _OF_EACH_RANK:
                return
            fields = {**fields, "rank": self._rank}
        with self._lock, self._whole():
            if event == "memory":
                if elapsed - self._last_memory < _MEMORY_LINES_S:
                    return
                self._last_memory = elapsed
            with suppress(BrokenPipeError):  # the parent has gone: what is being saved is saved all the same
                print(
                    json.dumps({"event": event, "elapsed_s": round(elapsed, 3), **fields}), file=self._out, flush=True
                )

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """A pipe takes 4 KiB at once: where others write to it too, longer lines need a turn, held on a file."""
        if self._rank is None or self._turn is None or sys.platform == "win32":
            yield
            return
        import fcntl

        with self._turn.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield


def main(arguments: list[str] | None = None) -> int:
    """Run the specification named on the command line."""
    given = sys.argv[1:] if arguments is None else arguments
    launched = given[-1:] == [RANK]
    if launched:  # the launcher's own process stands after --with-parent
        process.die_with_parent(int(given[-2]))
        given = given[:-3]
    paths = [argument for argument in given if not argument.startswith("--")]
    if len(paths) != 2 or set(given) - set(paths) - {"--with-parent"}:
        print("usage: python -m qlora_planner.measure.child SPEC.json OUT.json [--with-parent]", file=sys.stderr)
        return 2
    if "--with-parent" in given:
        process.die_with_parent()
    ranks = Ranks.from_environment() if launched else Ranks()
    lines = Lines(own_stdout(), ranks, turn=Path(paths[0]))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # asked to end: still say how far it came
    if launched:
        lines.tell("rank", {"pid": os.getpid()})
    try:
        spec = ChildSpec.from_dict(read_specification(paths[0]), paths[0])
        set_environment(spec.run, device=spec.device, gpu_index=spec.gpu_index, ranks=spec.ranks)
        # Imported only now: torch reads the allocator's settings when it is imported.
        from qlora_planner.measure.execution import Execution

        measurement = Execution(spec, lines.tell, ranks).measure()
    except PlannerError as error:
        print(str(error), file=sys.stderr)
        lines.tell("refused", {"message": str(error), "exit_code": error.exit_code})
        return error.exit_code
    out = Path(paths[1])
    write_whole(rank_path(out, ranks.rank) if launched else out, json.dumps(measurement.to_dict()).encode())
    lines.tell("result", {"outcome": measurement.outcome, "phase": measurement.failed_phase})
    return _EXIT[measurement.outcome]


def rank_path(out: Path, rank: int) -> Path:
    """The file of one of several ranks, beside the one that was named."""
    return out.with_name(f"{out.stem}-{rank}{out.suffix}")


def own_stdout() -> TextIO:
    """The real stdout for progress; whatever else is printed in this process goes to stderr."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return out


def read_specification(path: str) -> Any:
    """The JSON of a specification file as it stands; raises InputError naming a file that cannot be read."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error


def set_environment(run: RunConfig, *, device: str, gpu_index: int, ranks: int = 1) -> None:
    """What must be set before torch is imported: the allocator, no network, the cards of all `ranks` or none; then the
    package that changes others is imported, where the run's trainer has one.

    Raises MissingError where there are no such cards.
    """
    for name, value in environment(run).items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    if device == "cuda":
        _show_cards(gpu_index, ranks)
    else:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        # torch's profiler hears of allocations on the thread that started it, not on a loader's workers.
        os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"
    import_first(run, device)


def _show_cards(first: int, count: int) -> None:
    """Leave as many cards visible as there are ranks, in NVML's order: transformers would spread the run of one
    process over all that it sees."""
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    wanted = range(first, first + count)
    names = [str(index) for index in wanted] if visible is None else visible.split(",")[first : first + count]
    if len(names) < count:
        which = f"GPU {first} is" if count == 1 else f"{count} GPUs are"
        raise MissingError(f"{which} not here: CUDA_VISIBLE_DEVICES={visible!r}")
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(names)


if __name__ == "__main__":
    sys.exit(main())
