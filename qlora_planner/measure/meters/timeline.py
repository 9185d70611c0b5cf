"""What happened when, in the child's own words: stages of the run, and which addresses belong to what."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field

BEFORE_TRAINING = ("load", "prepare", "adapters")
TRAINING = "training"
AFTER_TRAINING = ("eval", "save")
# Stages of a training step beside `forward`, `backward` and `optimizer`: the head starts where the last layer ends.
HEAD, LAYER = "head", "layer"


@dataclass(slots=True, kw_only=True)
class Timeline:
    """Marks in the order in which they were made.

    `stages`: (time_ns, stage). `owners`: (time_ns, address -> component name) for tensors that were alive then.
    """

    stages: list[tuple[int, str]] = field(default_factory=list)
    owners: list[tuple[int, Mapping[int, str]]] = field(default_factory=list)

    def mark(self, stage: str) -> None:
        """From now on it is `stage`."""
        self.stages.append((time.time_ns(), stage))

    def own(self, owners: Mapping[int, str]) -> None:
        """These addresses belong to these components now."""
        self.owners.append((time.time_ns(), owners))

    def phase_at(self, time_ns: int) -> str | None:
        """The phase at `time_ns`, all stages of the steps being one; None before the first."""
        stage = self.stage_at(time_ns)
        return stage if stage is None or stage in (*BEFORE_TRAINING, *AFTER_TRAINING) else TRAINING

    def index_at(self, time_ns: int) -> int:
        """Position of the stage at `time_ns`, -1 before the first."""
        return bisect_right(self.stages, time_ns, key=lambda mark: mark[0]) - 1

    def stage_at(self, time_ns: int) -> str | None:
        """The stage at `time_ns`; None before the first."""
        index = self.index_at(time_ns)
        return None if index < 0 else self.stages[index][1]
