"""`python -m qlora_planner` is `qlora-plan`."""

from __future__ import annotations

import sys

from qlora_planner.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
