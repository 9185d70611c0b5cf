"""Short answers start no threads for products, and what they start later is not held to one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ASK = """
import os, sys
sys.argv = ["qlora-plan", "llama-3.1-8b", "--gpu", "24GB", "--quiet"]
from qlora_planner.cli.main import main
try:
    main()
except SystemExit as left:
    print(left.code, "numpy" in sys.modules, len(os.listdir("/proc/self/task")), os.environ.get("OPENBLAS_NUM_THREADS"))
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads as Linux shows them")
@pytest.mark.parametrize(("given", "left"), [(None, "None"), ("2", "2")])
def test_a_plan_runs_in_one_thread(given: str | None, left: str) -> None:
    threads_of = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")
    environment = {name: value for name, value in os.environ.items() if name not in threads_of}
    environment |= {} if given is None else {"OPENBLAS_NUM_THREADS": given}
    done = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, env=environment, check=True)
    code, loaded, threads, variable = done.stdout.splitlines()[-1].split()
    assert (code, loaded, variable) == ("0", "True", left)
    if given is None:
        assert threads == "1"
