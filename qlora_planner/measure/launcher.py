"""`python -m qlora_planner.measure.launcher PARENT CONFIG MODULE ARGUMENT...`: `accelerate launch` as a child.

It starts one process of MODULE a rank with ARGUMENTs, `--with-parent PID`, its own, and `--rank`, and ends when PARENT
does. Ranks write their lines to its stdout; beside them stands `{"event": "lost", "pid": ..., "code": ...}` for each
process that ends otherwise than well, the moment it does: torch's agent says so only when all others have ended, half a
minute later where they wait for the lost one. A negative code is the number of a signal.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qlora_planner.measure import process
from qlora_planner.train.ranks import RANK

_LOOK_S = 0.02


def main(arguments: list[str] | None = None) -> int:
    """Launch, and wait for every rank; 1 where one of them failed."""
    parent, config, module, *rest = sys.argv[1:] if arguments is None else arguments
    process.die_with_parent(int(parent))
    if hasattr(os, "waitid"):
        threading.Thread(target=tell_lost, daemon=True).start()
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    settings = read_config(Path(config))
    share_cores(int(settings["num_processes"]))
    if "deepspeed_config" in settings:
        # accelerate (1.15, utils/launch.py) has DeepSpeed's ranks import from the working folder, whatever lies there:
        # this one holds the specification alone.
        config = str(Path(config).absolute())
        os.chdir(Path(rest[0]).parent)

    # Port 0 is any that is free: several runs may share a machine.
    given = ["--config_file", config, "--main_process_port", "0", "--module", module, *rest]
    try:
        launch_command(launch_command_parser().parse_args([*given, "--with-parent", str(os.getpid()), RANK]))
    except ChildFailedError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def read_config(config: Path) -> Mapping[str, Any]:
    """A config of accelerate's, which this program wrote."""
    import yaml

    settings: Mapping[str, Any] = yaml.safe_load(config.read_text(encoding="utf-8"))
    return settings


def share_cores(ranks: int) -> None:
    """Give every rank its part of the cores: torch's agent (2.13, `distributed/run.py`) leaves one thread to each where
    nothing is said, and a 4-bit model that is quantised on the host takes as many times as long then."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // ranks)))


def tell_lost() -> None:
    """Look at children that have ended and leave them to be waited for by whoever started them."""
    seen: set[int] = set()
    while True:
        try:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
        except ChildProcessError:  # none yet
            ended = None
        if ended is not None and ended.si_pid not in seen:
            seen.add(ended.si_pid)
            code = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
            if code:
                line = json.dumps({"event": "lost", "pid": ended.si_pid, "code": code}) + "\n"
                os.write(1, line.encode())
        time.sleep(_LOOK_S)


if __name__ == "__main__":
    sys.exit(main())
