"""numpy for verbs that answer in a moment."""

from __future__ import annotations

import os
import sys

_VARIABLE = "OPENBLAS_NUM_THREADS"


def load_numpy() -> None:
    """Import numpy so that its products run in this thread; processes that are started later do not inherit that.

    OpenBLAS starts a thread for every core as it is loaded, and the products here are too small for them: beside other
    work on two cores that costs a tenth of a plan. Whoever has set a number of threads keeps it.
    """
    if "numpy" in sys.modules or _VARIABLE in os.environ:
        return
    os.environ[_VARIABLE] = "1"
    try:
        import numpy  # noqa: F401
    finally:
        del os.environ[_VARIABLE]
