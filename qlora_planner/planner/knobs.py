"""The knobs of a run, each with what turning it would make of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import lcm, sqrt
from typing import Any

from qlora_planner.catalog import TRAINER_ROWS, TrainerRow
from qlora_planner.catalog.images import picture_of
from qlora_planner.catalog.trainers import DIVERGENCE, REFERENCE, trainer_named
from qlora_planner.record import record
from qlora_planner.spec.model import ModelProfile
from qlora_planner.spec.run import RunConfig

# Of so many layers one is checkpointed: half of all recomputing is saved, two thirds, three quarters, seven eighths.
SOME_LAYERS = (2, 3, 4, 8)


@record
class Knob:
    """A knob, and what turning it would make of a run; None where it is there already."""

    name: str
    turn: Callable[[RunConfig], dict[str, Any] | None]
    note: str = ""
    with_images: bool = False  # whether it is worth a trace, which every turn of a run with images takes


def _halved(run: RunConfig) -> dict[str, Any] | None:
    if run.batch_size == 1:
        return None
    return {
        "batch_size": run.batch_size // 2,
        "grad_accum": -(-run.batch_size * run.grad_accum // (run.batch_size // 2)),
        **whole_steps(run),
    }


def _doubled(run: RunConfig) -> dict[str, Any] | None:
    return {"batch_size": 2 * run.batch_size, "grad_accum": max(1, run.grad_accum // 2), **whole_steps(run)}


def whole_steps(run: RunConfig) -> dict[str, Any]:
    """What keeps the completions of one optimizer step together where its micro-batches become others."""
    return {"steps_per_generation": None} if run.steps_per_generation == run.grad_accum else {}


def generates(run: RunConfig) -> bool:
    """Whether the run's trainer generates the completions that it trains on."""
    return trainer_named(run.trainer).generation is not None


def _sequence(turn: Callable[[int], int]) -> Callable[[RunConfig], dict[str, Any] | None]:
    """Longer or shorter sequences; of a trainer that generates, completions."""

    def turned(run: RunConfig) -> dict[str, Any] | None:
        name = "completion_len" if generates(run) else "seq_len"
        length = getattr(run, name) or 1
        changed = max(1, turn(length))
        return {name: changed} if changed != length else None

    return turned


def of_length(run: RunConfig, seq_len: int, prompt_len: int | None = None) -> RunConfig:
    """The run with sequences of this length: a prompt (`prompt_len`, where the run leaves it open) stays as it is, and
    completions take the rest; a limit that cuts rows moves too."""
    changes: dict[str, Any] = {"seq_len": seq_len}
    prompt = run.prompt_len if prompt_len is None else prompt_len
    if generates(run) and prompt is not None:
        prompt = min(prompt, seq_len - 1)  # of lengths that are ranked but hold no whole prompt
        changes |= {"prompt_len": prompt, "completion_len": seq_len - prompt}
    elif run.completion_len is not None and (prompt is not None or not trainer_named(run.trainer).scores_completions):
        changes["completion_len"] = seq_len - (prompt or 0)
    if run.max_length is not None:
        changes["max_length"] = seq_len
    return run.with_(**changes)


def whole_groups(run: RunConfig) -> bool:
    """Whether what a trainer that generates makes at a time is whole groups of completions; true of others."""
    return run.batch_size * (run.steps_per_generation or 1) % (run.num_generations or 1) == 0 or not generates(run)


def in_whole_groups(run: RunConfig) -> RunConfig:
    """A run as typed, with as much accumulation as a trainer that generates needs for whole groups of completions, or
    as large a batch as a trainer needs that takes none of one. What is scored in as many passes as there are
    micro-batches is one of them, as it is traced."""
    trainer = trainer_named(run.trainer)
    generation = trainer.generation
    if generation is None:
        alone = run.batch_size == 1 and DIVERGENCE in trainer.passes_of(run)
        return run.with_(batch_size=2) if alone else run
    if run.steps_per_generation is not None:
        return run
    together = lcm(run.batch_size * run.grad_accum, run.num_generations or generation.num_generations)
    if generation.always_scores:
        return run.with_(batch_size=together // run.grad_accum)
    return run.with_(grad_accum=together // run.batch_size)


def at_batch(run: RunConfig, batch: int) -> dict[str, Any]:
    """The change to another micro-batch; a trainer that generates keeps the completions of a step."""
    if not generates(run):
        return {"batch_size": batch}
    accumulated = max(1, run.batch_size * run.grad_accum // batch)
    return {"batch_size": batch, "grad_accum": accumulated, **whole_steps(run)}


def fewer_together(run: RunConfig) -> dict[str, Any] | None:
    """Half as many micro-batches generated together, as long as they hold whole groups of completions."""
    steps = (run.steps_per_generation or 1) // 2
    if not generates(run) or not steps or not whole_groups(run.with_(steps_per_generation=steps)):
        return None
    return {"steps_per_generation": steps}


def _generations(*, more: bool) -> Callable[[RunConfig], dict[str, Any] | None]:
    """Twice or half as many completions of each prompt, as many of them in a step: trl needs two and whole groups."""

    def turn(run: RunConfig) -> dict[str, Any] | None:
        now = run.num_generations or 1
        count = 2 * now if more else now // 2
        if not generates(run) or count < 2 or not whole_groups(run.with_(num_generations=count)):
            return None
        return {"num_generations": count}

    return turn


def _reference_first(run: RunConfig) -> dict[str, Any] | None:
    """Log-probabilities of the reference made once before training, or in every step again."""
    row = trainer_named(run.trainer)
    if "precompute_ref_log_probs" not in row.own_options or REFERENCE not in row.passes:
        return None
    return {"precompute_ref_log_probs": not run.precompute_ref_log_probs}


def _layers_checkpointed(*, fewer: bool) -> Callable[[RunConfig], dict[str, Any] | None]:
    """The next larger or smaller number of layers of which one is checkpointed; the smallest is every layer."""

    def turn(run: RunConfig) -> dict[str, Any] | None:
        every = run.checkpoint_every or 1
        row = trainer_named(run.trainer)
        if not run.gradient_checkpointing or run.use_reentrant or run.parallel or not row.one_pass:
            return None
        steps = [n for n in SOME_LAYERS if n > every] if fewer else [n for n in (*SOME_LAYERS[::-1], 1) if n < every]
        return {"checkpoint_every": steps[0]} if steps else None

    return turn


def _set(**options: Any) -> Callable[[RunConfig], dict[str, Any] | None]:
    def turn(run: RunConfig) -> dict[str, Any] | None:
        changed = {name: value for name, value in options.items() if getattr(run, name) != value}
        return changed or None

    return turn


def _trainer(row: TrainerRow) -> Callable[[RunConfig], dict[str, Any] | None]:
    """Another trainer of the same task: none stands in for one that has to be named."""
    plain = _set(trainer=row.name, **row.without_others())
    return lambda run: plain(run) if trainer_named(run.trainer).automatic else None


def _base(**options: Any) -> Callable[[RunConfig], dict[str, Any] | None]:
    plain = _set(**options)

    def turn(run: RunConfig) -> dict[str, Any] | None:
        return None if run.method == "full" or run.quant == options["quant"] else plain(run)

    return turn


KNOBS = (
    Knob(name="batch_size", turn=_halved, note="the same effective batch", with_images=True),
    Knob(
        name="batch_size",
        turn=_doubled,
        note="the same effective batch while there is accumulation to halve",
        with_images=True,
    ),
    Knob(name="seq_len", turn=_sequence(lambda length: 2 * length), with_images=True),
    Knob(name="seq_len", turn=_sequence(lambda length: length // 2), with_images=True),
    Knob(name="steps_per_generation", turn=fewer_together, note="fewer completions are generated together"),
    Knob(name="num_generations", turn=_generations(more=True), note="fewer prompts, as many completions"),
    Knob(name="num_generations", turn=_generations(more=False), note="more prompts, as many completions"),
    Knob(name="precompute_ref_log_probs", turn=_reference_first, note="a pass over all data before training"),
    Knob(
        name="rank",
        turn=lambda run: None if run.method == "full" else {"rank": 2 * run.rank, "alpha": None},
        with_images=True,
    ),
    Knob(
        name="target_modules",
        turn=lambda run: None if run.method == "full" else _set(target_modules="attention")(run),
    ),
    Knob(name="quant", turn=_base(method="qlora", quant="nf4", double_quant=True)),
    Knob(name="quant", turn=_base(method="qlora", quant="int8"), note="outliers of real activations cost more"),
    Knob(name="quant", turn=_base(method="lora", quant="none")),
    Knob(
        name="double_quant",
        turn=lambda run: {"double_quant": not run.double_quant} if run.quant in ("nf4", "fp4") else None,
    ),
    Knob(name="checkpoint_every", turn=_layers_checkpointed(fewer=True), note="layers that keep all are not run again"),
    Knob(name="checkpoint_every", turn=_layers_checkpointed(fewer=False)),
    Knob(
        name="gradient_checkpointing",
        turn=lambda run: {"gradient_checkpointing": not run.gradient_checkpointing, "checkpoint_every": None},
        with_images=True,
    ),
    Knob(name="attention", turn=_set(attention="eager")),
    Knob(name="optimizer", turn=_set(optimizer="paged_adamw_8bit"), with_images=True),
    Knob(name="optimizer", turn=_set(optimizer="adamw_torch"), with_images=True),
    *(
        Knob(name="trainer", turn=_trainer(row))
        for row in sorted(TRAINER_ROWS.values(), key=lambda row: len(row.own_options))
        if row.launches and row.automatic
    ),
    Knob(name="upcast", turn=lambda run: {"upcast": not run.upcast}, note="prepare_model_for_kbit_training"),
    Knob(
        name="activation_offloading",
        turn=_set(activation_offloading=True),
        note="needs host RAM; its speed is not modelled",
    ),
    Knob(
        name="alloc_conf", turn=_set(alloc_conf="expandable_segments:True"),
        note="less slack between what is reserved and what is used",
        with_images=True,
    ),
)  # fmt: skip


def knobs_of(run: RunConfig, profile: ModelProfile) -> Sequence[Knob]:
    """The knobs of a resolved run. One with images is traced for every turn, so it has the few that are worth one."""
    if not run.images:
        return KNOBS
    sizes = [_image_size(profile, by) for by in (2, 0.5)]
    counts = [_images(profile, turn) for turn in (lambda count: 2 * count, lambda count: count // 2)]
    turns = (("image_size", sizes, "twice or half the pixels"), ("images", counts, ""))
    own = [Knob(name=name, turn=turn, note=note) for name, each, note in turns for turn in each]
    return *own, *(knob for knob in KNOBS if knob.with_images)


def _image_size(profile: ModelProfile, by: float) -> Callable[[RunConfig], dict[str, Any] | None]:
    """Images of so many times the pixels and as wide for their height, where they are other tokens to the model."""

    def turn(run: RunConfig) -> dict[str, Any] | None:
        if run.image_pixels is None:
            return None
        width, height = (max(1, 8 * round(side * sqrt(by) / 8)) for side in run.image_pixels)
        return _shown(profile, run, {"image_size": f"{width}x{height}", "image_tokens": None})

    return turn


def _images(profile: ModelProfile, turn: Callable[[int], int]) -> Callable[[RunConfig], dict[str, Any] | None]:
    """Another number of images in each sequence."""

    def turned(run: RunConfig) -> dict[str, Any] | None:
        count = turn(run.images or 0)
        return _shown(profile, run, {"images": count}) if count else None

    return turned


def _shown(profile: ModelProfile, run: RunConfig, change: dict[str, Any]) -> dict[str, Any] | None:
    """The change, with a longer sequence where the images would not fit beside as much text; None where the model sees
    what it saw before."""
    now, then = (_image_tokens(profile, each) for each in (run, run.with_(**change)))
    if now == then:
        return None
    return change if then <= run.seq_len else {**change, "seq_len": run.seq_len + then - now}


def _image_tokens(profile: ModelProfile, run: RunConfig) -> int:
    """What the images take of a sequence."""
    return (run.images or 0) * picture_of(profile.model_type, profile.dims, run).all_tokens
