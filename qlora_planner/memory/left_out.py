"""What the figures of a run leave out because of the model or the run itself, as `memory.unmodelled` takes it."""

from __future__ import annotations

from collections.abc import Iterator

from qlora_planner.memory.records import Unmodelled
from qlora_planner.memory.targets import WHOLE_SETS, targets_of
from qlora_planner.profile import ModelProfile
from qlora_planner.run import RunConfig


def left_out(profile: ModelProfile, run: RunConfig) -> tuple[Unmodelled, ...]:
    """Everything that the figures of `run` on this model do not count."""
    return tuple(_of_targets(profile, run))


def _of_targets(profile: ModelProfile, run: RunConfig) -> Iterator[Unmodelled]:
    if run.method == "full" or run.target_modules in WHOLE_SETS:
        return
    assert run.target_modules is not None
    numbered = targets_of(profile, run.target_modules).numbered
    if numbered:
        # Adapters on fewer layers take less; below the first of them nothing is kept for backward at all.
        yield Unmodelled(
            key=f"--target-modules {', '.join(numbered)}",
            what="adapters on some layers alone; these figures have them on every layer",
            direction="down",
        )
