"""What the figures of a run leave out because of the model or the run itself, as `qualified` takes it."""

from __future__ import annotations

from collections.abc import Iterator

from qlora_planner.catalog.attention import nearest_kernel
from qlora_planner.catalog.images import IMAGE_READERS
from qlora_planner.catalog.losses import FUSED_BY_LIGER
from qlora_planner.catalog.parallel import BOUNDED, FSDP2, PLAYED, strategy_row
from qlora_planner.catalog.stack import stack_of
from qlora_planner.catalog.trainers import TRAINER_ROWS, parse_version, trainer_named
from qlora_planner.evidence.calibration import TRACED
from qlora_planner.memory.parallel.fsdp2 import unplayed
from qlora_planner.memory.records import Component, MemoryEstimate, Unmodelled
from qlora_planner.memory.unmodelled import compiled, experts, prepared
from qlora_planner.memory.unmodelled.qualified import qualified
from qlora_planner.memory.weights.targets import WHOLE_SETS, targets_of
from qlora_planner.spec.model import ModelProfile
from qlora_planner.spec.run import RunConfig
from qlora_planner.text import listed


def left_out(profile: ModelProfile, run: RunConfig) -> tuple[Unmodelled, ...]:
    """Everything that the figures of `run` on this model do not count."""
    return (
        *of_text_part(profile.text_part_of), *_of_targets(profile, run), *_of_stack(profile, run), *of_strategy(run),
        *_of_attention(run),
    )  # fmt: skip


def _of_attention(run: RunConfig) -> Iterator[Unmodelled]:
    near = nearest_kernel(run.attention)
    if near is not None and near.at_most != 0:
        yield Unmodelled(key=f"--attention {run.attention}", what=near.why, at_most=near.at_most)


def of_strategy(run: RunConfig) -> Iterator[Unmodelled]:
    """What the figures do not know of a strategy for several cards."""
    why = unplayed(run) if run.parallel == FSDP2 else None
    if run.parallel is None or (run.parallel in (*PLAYED, *BOUNDED) and why is None):
        return
    row = strategy_row(run.parallel)
    yield Unmodelled(
        key=f"--parallel {row.name}",
        what=f"{why or row.says}: what {row.label} takes of each card is not counted, and these figures hold all of it",
    )


def whole(profile: ModelProfile, estimate: MemoryEstimate) -> MemoryEstimate:
    """`estimate` with all that its figures leave out."""
    things = (
        *left_out(profile, estimate.run), *_of_forms(profile, estimate), *experts.of_kernels(profile, estimate),
        *compiled.of_layers(profile, estimate), *prepared.of_trained(profile, estimate),
    )  # fmt: skip
    return compiled.widened(qualified(estimate, things))


def _of_forms(profile: ModelProfile, estimate: MemoryEstimate) -> Iterator[Unmodelled]:
    """What closed forms do not know of a run that could not be traced: on a model that Liger does not know, it changes
    nothing, and what its loss leaves of the logits is counted."""
    if estimate.method == TRACED:
        return
    yield from _of_trainer(estimate, profile)
    if estimate.run.parallel == FSDP2 and not unplayed(estimate.run):
        yield Unmodelled(
            key=f"--parallel {FSDP2}",
            what="a share is simulated from a recorded step, and none is at hand: these figures hold the whole model",
        )
    if estimate.run.images and not trainer_named(estimate.run.trainer).traced_types:
        yield Unmodelled(
            key="--images",
            what="activations of the tower that reads images; only a trace knows them, for which the training packages"
            " must be installed",
            direction="up",
        )
    if not estimate.run.liger or profile.model_type not in FUSED_BY_LIGER:
        return
    share = estimate.components[Component.ACTIVATIONS.value] / max(estimate.peak.device_bytes, 1)
    yield Unmodelled(
        key="--liger",
        what="its kernels hold fewer activations; only a trace knows how many, for which liger-kernel and triton must"
        " be installed, and these figures are with all of them",
        direction="down",
        at_most=round(share, 4),
    )


def guessed(estimate: MemoryEstimate, profile: ModelProfile) -> str | None:
    """Why an estimate is no prediction of its run, in words that end a sentence; None where it is one."""
    if estimate.method == TRACED:
        return None
    return next((thing.what for thing in _of_trainer(estimate, profile)), None)


def _of_trainer(estimate: MemoryEstimate, profile: ModelProfile) -> Iterator[Unmodelled]:
    """A trainer whose step no closed form knows: its static bytes are counted, and nothing bounds the rest."""
    trainer = trainer_named(estimate.run.trainer)
    if trainer.closed_forms:
        return
    key = f"--trainer {trainer.name}"
    whole = profile.text_part_of or profile.model_type
    if trainer.traced_types and whole not in trainer.traced_types:
        what = (
            f"{trainer.name} has no layers of its own for {whole} and hands such a model to torch's compiler whole, so"
            " that what a step keeps is in no trace: weights and adapters are counted, the rest is a guess"
        )
    else:
        what = (
            f"a step of {trainer.name} is known by a trace alone, of its package as it is installed, and none is at"
            f" hand: weights and adapters are counted, the rest is a guess; with {', '.join(trainer.packages)}"
            " installed `estimate` records one"
        )
    counted = estimate.static.after_adapters / max(estimate.floor_bytes, 1)
    yield Unmodelled(key=key, what=what, direction="up")
    yield Unmodelled(key=key, what=what, direction="down", at_most=round(max(1 - counted, 0.0), 4))


def of_text_part(whole_model: str | None) -> Iterator[Unmodelled]:
    """What the figures of a text part do not count of the model of this type; nothing for None, a model of text."""
    if whole_model is None:
        return
    heard = any(word in whole_model for word in ("audio", "voxtral", "asr"))
    kind, inputs = ("model for sound and text", "sounds") if heard else ("vision-language model", "images")
    how = "; --image-size WIDTHxHEIGHT on the command line counts them" if whole_model in IMAGE_READERS else ""
    yield Unmodelled(
        key=f"{inputs} and the tower that reads them",
        what=f"a {kind} ({whole_model}): its text part alone is planned, {inputs} are not counted{how}",
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
            key=f"--target-modules {listed(numbered)}",
            what="adapters on some layers alone; these figures have them on every layer",
            direction="down",
        )


def _of_stack(profile: ModelProfile, run: RunConfig) -> Iterator[Unmodelled]:
    own = trainer_named(run.trainer).versioned_by
    others = {row.versioned_by for row in TRAINER_ROWS.values()} - {own}
    for named in stack_of(profile.counted, run.stack).unmodelled:
        if (named.package, run.liger) == ("liger-kernel", False):
            continue
        if named.package in others:
            continue
        what = f"these are the figures of {named.package} {named.instead}"
        if named.package == "transformers" and parse_version(named.version) < (5, 0) and profile.modules_of("experts"):
            what += ", and before 5 experts are linear layers, which 4-bit loading takes too"
        yield Unmodelled(key=f"{named.package} {named.version}", what=what)
