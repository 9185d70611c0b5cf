"""The training libraries without what they print while they are imported."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import redirect_stdout
from importlib import import_module
from types import ModuleType

_KERNEL = "Failed to load CPU gemm_4bit_forward"


def import_libraries() -> None:
    """Import transformers, and make ready for bitsandbytes, without two remarks that are no errors.

    bitsandbytes (backends/cpu/ops.py) warns on CPUs with AVX-512 that a faster kernel of the optional package
    `kernels` is not there, and goes on with its own. transformers (integrations/integration_utils.py) prints on stdout
    that WANDB_MODE is offline; stdout is for answers. Everything else that they say is heard as before.
    """
    logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_is_other)
    with redirect_stdout(sys.stderr):
        import transformers.integrations.integration_utils  # noqa: F401


def trl_module(name: str) -> ModuleType:
    """trl, or one of its modules, without the warning that its experimental part (experimental/__init__.py) may change:
    which version is modelled is the catalogue's to say."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    return import_module(name)


def _is_other(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(_KERNEL)
