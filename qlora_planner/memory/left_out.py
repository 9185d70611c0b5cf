"""What the figures of a run leave out because of the model or the run itself, as `memory.unmodelled` takes it."""

from __future__ import annotations

from collections.abc import Iterator

from qlora_planner.memory.records import Unmodelled
from qlora_planner.memory.targets import WHOLE_SETS, targets_of
from qlora_planner.profile import ModelProfile
from qlora_planner.run import RunConfig


def left_out(profile: ModelProfile, run: RunConfig) -> tuple[Unmodelled, ...]:
    """Everything that the figures of `run` on this model do not count."""
    return (*_of_model(profile), *_of_targets(profile, run))


def _of_model(profile: ModelProfile) -> Iterator[Unmodelled]:
    if profile.text_part_of is None:
        return
    heard = any(word in profile.text_part_of for word in ("audio", "voxtral", "asr"))
    kind, inputs = ("model for sound and text", "sounds") if heard else ("vision-language model", "images")
    yield Unmodelled(
        key=f"{inputs} and the tower that reads them",
        what=f"a {kind} ({profile.text_part_of}): its text part alone is planned, {inputs} are not counted",
        direction="up",
    )


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
