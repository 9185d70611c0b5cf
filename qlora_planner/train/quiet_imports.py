"""The training libraries without what they print while they are imported."""

from __future__ import annotations

import logging
import sys
from contextlib import redirect_stdout

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


def _is_other(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(_KERNEL)
