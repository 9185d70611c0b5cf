"""Shared fixtures: profiles of the measured models are built once per worker."""

from __future__ import annotations

import gc
import os
import random
import signal
import sys
from collections.abc import Iterator

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Tracing takes ten seconds a run: tests of screens and options do without; tests/tracing calls the tracer itself.
os.environ.setdefault("QLORA_PLANNER_TRACE", "never")
if "PYTEST_XDIST_WORKER" in os.environ:
    # A worker per core: more threads than one each would wait for one another. Processes that tests start inherit it.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell that starts the tests in the background has Ctrl-C ignored; what tests start would inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

from qlora_planner.spec.model import ModelProfile

# Another seed looks for tests that hold for some random weights only: QLORA_PLANNER_TEST_SEED=1 pytest
SEED = int(os.environ.get("QLORA_PLANNER_TEST_SEED", "0"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Random weights are the same in every run, whichever tests a worker had before this one."""
    random.seed(SEED)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(SEED)


@pytest.fixture(autouse=True, scope="session")
def own_caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Each worker has caches and data of its own, so that none reads what another, or the user, has written."""
    home = tmp_path_factory.mktemp("session")
    with pytest.MonkeyPatch.context() as patch:
        for variable, folder in (("XDG_DATA_HOME", "data"), ("XDG_CACHE_HOME", "cache")):
            patch.setenv(variable, str(home / folder))
        yield


@pytest.fixture(autouse=True, scope="module")
def quick_collection() -> None:
    """Tracing collects garbage first; what the libraries left since the last module is not looked through each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def measured_profiles() -> dict[str, ModelProfile]:
    """Profiles of all models in the truth rows, built from their configs."""
    pytest.importorskip("torch")
    from qlora_planner.sources.configs import read_config
    from tests.profiles import unprobed
    from tests.truth import config_path, rows

    return {model: unprobed(read_config(config_path(model))) for model in sorted({row.model for row in rows()})}
