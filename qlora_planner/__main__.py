"""`python -m qlora_planner` is `qlora-plan`."""

from __future__ import annotations

from qlora_planner.isolation import leave_working_directory_out

if __name__ == "__main__":
    leave_working_directory_out()  # before anything else is imported

    from qlora_planner.cli.main import main

    main()
