"""The knobs of a run: what each can be set to, and the run after a turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from qlora_planner.catalog.trainers import trainer_named
from qlora_planner.errors import InputError
from qlora_planner.record import record
from qlora_planner.spec.run import COMPUTE_DTYPES, LOAD_DTYPES, SCALE_REWARDS, SIZE, TASKS, TRAINERS, RunConfig

if TYPE_CHECKING:
    from qlora_planner.spec.model import ModelProfile

Choice = Mapping[str, Any]
_LENGTHS = tuple(sorted({size << power for power in range(18) for size in (128, 192)}))
_PARTS = tuple(size for size in _LENGTHS if size <= 1 << 16)
_SIZES = tuple(1 << power for power in range(9))
_RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@record
class Knob:
    """One line of the knobs: `choices` in their order, each as the options that it sets; `says` is its help.

    `read` makes the option's value of what was typed and raises InputError; None: it cannot be typed.
    """

    name: str
    label: str
    says: str
    choices: Callable[[ModelProfile], Sequence[Choice]]
    show: Callable[[RunConfig], str]
    read: Callable[[str], Any] | None = None
    of_task: bool = False  # an option that some trainers alone have


def _whole(text: str) -> int:
    """`4096`, `4,096` or `4k`."""
    bare = text.strip().lower().replace(",", "").replace("_", "")
    factor = 1024 if bare.endswith("k") else 1
    if not bare.removesuffix("k").isdecimal():
        raise InputError(f"{text!r} is no whole number, as 3072 or 3k")
    return int(bare.removesuffix("k")) * factor


def _maybe_whole(text: str) -> int | None:
    return None if text.strip().lower() in ("", "auto", "none") else _whole(text)


def _maybe_share(text: str) -> float | None:
    if text.strip().lower() in ("", "auto"):
        return None
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{text!r} is no number, as 0.05") from None


def _maybe_names(text: str) -> str | None:
    bare = ",".join(part.strip() for part in text.split(",") if part.strip())
    return None if bare.lower() in ("", "auto", "none") else bare


def _versions(text: str) -> dict[str, str]:
    """`trl=1.13,transformers=5.17`; empty for the versions that the profile holds for."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    pairs = [part.partition("=") for part in parts]
    if any(not equals or not version.strip() for _, equals, version in pairs):
        raise InputError(f"{text!r} is not PACKAGE=VERSION, as trl=1.13")
    return {name.strip().lower(): version.strip().lstrip("=") for name, _, version in pairs}


def _numbers(name: str, label: str, values: Sequence[int | None], says: str, limit: bool = False) -> Knob:
    def choices(profile: ModelProfile) -> Sequence[Choice]:
        trained_length = (
            profile.dims.get("position_rows") or profile.dims.get("max_position_embeddings") if limit else None
        )
        allowed = [value for value in values if trained_length is None or value is None or value <= trained_length]
        if trained_length is not None and trained_length not in allowed:
            allowed.append(int(trained_length))
        return [{name: value} for value in allowed]

    def show(run: RunConfig) -> str:
        value = getattr(run, name)
        return ("auto" if name == "alpha" else "none") if value is None else f"{value:,}"

    read = _maybe_whole if None in values else _whole
    return Knob(name=name, label=label, says=f"{says}; Enter types it", choices=choices, show=show, read=read)


def _words(
    name: str, label: str, values: Sequence[Any], says: str, read: Callable[[str], Any] | None = None,
    nothing: str = "auto",
) -> Knob:  # fmt: skip
    return Knob(
        name=name, label=label, says=says, choices=lambda _: [{name: value} for value in values],
        show=lambda run: _word(getattr(run, name), nothing), read=read,
    )  # fmt: skip


def _word(value: Any, nothing: str = "auto") -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return nothing if value is None else str(value)


def _stack(run: RunConfig) -> str:
    return ",".join(f"{name}={version}" for name, version in run.stack.items()) or "installed"


def _targets(profile: ModelProfile) -> Sequence[Choice]:
    names = [None, "all-linear", "attention", *(name for name in profile.adapters)]
    return [{"target_modules": name} for name in dict.fromkeys(names)]


def _optimizers(_profile: ModelProfile) -> Sequence[Choice]:
    from qlora_planner.catalog.optimizers import OPTIMIZERS

    return [{"optimizer": name} for name in OPTIMIZERS]


_STORAGES: Mapping[str, Choice] = {
    "4-bit nf4 double": {"method": "qlora", "quant": "nf4", "double_quant": True},
    "4-bit nf4": {"method": "qlora", "quant": "nf4", "double_quant": False},
    "4-bit fp4": {"method": "qlora", "quant": "fp4", "double_quant": True},
    "8-bit": {"method": "qlora", "quant": "int8", "double_quant": True},
    "16-bit LoRA": {"method": "lora", "quant": "none", "double_quant": True},
    "full": {"method": "full", "quant": "none", "double_quant": True},
}


def _storage(run: RunConfig) -> str:
    now = _settings(run, ("method", "quant", "double_quant"))
    return next((name for name, choice in _STORAGES.items() if choice == now), f"{run.method} {now['quant']}")


_CHECKPOINTING: Mapping[str, Choice] = {
    "on": {"gradient_checkpointing": True, "checkpoint_every": None},
    **{f"1 layer in {n}": {"gradient_checkpointing": True, "checkpoint_every": n} for n in (2, 3, 4, 8)},
    "off": {"gradient_checkpointing": False, "checkpoint_every": None},
}


def _checkpointing(run: RunConfig) -> str:
    if not run.gradient_checkpointing or (run.checkpoint_every or 1) == 1:
        return _word(run.gradient_checkpointing)
    return f"1 layer in {run.checkpoint_every}"


_OF_ALL = (
    _numbers("seq_len", "sequence", _LENGTHS, "tokens per sequence", limit=True),
    _numbers("batch_size", "batch", _SIZES, "sequences per micro-batch"),
    _numbers("grad_accum", "accumulation", _SIZES, "micro-batches per optimizer step"),
    _numbers("rank", "rank", _RANKS, "LoRA rank"),
    Knob(
        name="target_modules", label="targets", says="what gets adapters; Enter types names", choices=_targets,
        show=lambda run: _word(run.target_modules), read=_maybe_names,
    ),
    Knob(
        name="quant", label="weights", says="how the base is stored, and what is trained",
        choices=lambda _: list(_STORAGES.values()), show=_storage,
    ),
    Knob(
        name="gradient_checkpointing", label="checkpointing", says="keep layer inputs only, compute the rest again",
        choices=lambda _: list(_CHECKPOINTING.values()), show=_checkpointing,
    ),
    Knob(
        name="optimizer", label="optimizer", says="whose states are held", choices=_optimizers,
        show=lambda run: run.optimizer,
    ),
    _words("attention", "attention", (None, "sdpa", "eager", "flash_attention_2"), "the attention kernel"),
    _words("trainer", "trainer", (None, *TRAINERS), "who runs the steps"),
    _words("packing", "packing", (False, True), "several samples in a row, no padding"),
    _words("compute_dtype", "compute dtype", (None, *COMPUTE_DTYPES), "arithmetic of the 4-bit layers"),
    _words("load_dtype", "load dtype", (None, *LOAD_DTYPES), "of what is not quantised"),
    _words("upcast", "upcast", (None, True, False), "PEFT's cast of 16-bit weights to float32"),
    _words("liger", "liger", (False, True), "Liger's fused kernels"),
    _words("activation_offloading", "offloading", (False, True), "checkpoints in host memory"),
    Knob(
        name="alloc_conf", label="allocator", says="torch's allocator settings",
        choices=lambda _: [{"alloc_conf": None}, {"alloc_conf": "expandable_segments:True"}],
        show=lambda run: (run.alloc_conf or "default").removesuffix(":True"),
    ),
    _numbers("eval_batch_size", "eval batch", (None, *_SIZES), "evaluate with batches of so many"),
    _words("dora", "DoRA", (False, True), "weight-decomposed LoRA"),
    _numbers("alpha", "alpha", (None, *_RANKS, 512), "LoRA alpha, 2 x rank where auto; costs no memory"),
    _words("lora_dropout", "dropout", (None, 0.0, 0.05, 0.1), "before the adapters; Enter types it", _maybe_share),
    _words("rslora", "rsLoRA", (False, True), "rank-stabilised scaling; costs no memory"),
    _words(
        "modules_to_save", "save whole", (None, "lm_head", "embed_tokens", "embed_tokens,lm_head"),
        "modules trained whole beside the adapters; Enter types names", _maybe_names, nothing="none",
    ),
    _words("padding", "padding", (None, False, True), "whether rows of a batch are of unequal length"),
    _words("use_reentrant", "reentrant", (False, True), "the old kind of checkpointing"),
    _words("task", "task", (None, *TASKS), "what is learnt, where it is not text", nothing="text"),
    _numbers("num_labels", "labels", (None, 2, 3, 4, 5, 8, 16, 32, 64, 128), "of a classifier"),
    _words(
        "exclude_modules", "no adapters on", (None,), "modules without adapters; Enter types names", _maybe_names,
        nothing="none",
    ),
    Knob(
        name="stack", label="versions", says="plan for other versions; Enter types them, as trl=1.13",
        choices=lambda _: [{"stack": {}}], show=_stack, read=_versions,
    ),
)  # fmt: skip


# Options of trainers of preferences, and of those that generate; each is there where the run's trainer has it.
_OF_TASKS = (
    _numbers("prompt_len", "prompt", (None, *_PARTS), "tokens of a prompt"),
    _numbers("completion_len", "completion", (None, *_PARTS), "tokens of a completion"),
    _numbers("max_length", "cut at", (None, *_PARTS), "where the trainer cuts prompt and completion"),
    _numbers("num_generations", "generations", (None, 2, 4, 8, 16, 32, 64), "completions of each prompt"),
    _numbers("steps_per_generation", "steps each", (None, *_SIZES), "micro-batches that are generated together"),
    _numbers("num_iterations", "iterations", (None, 1, 2, 4, 8), "how often completions are learnt from"),
    _words("loss_type", "loss", (None,), "the trainer's loss; Enter types its name", _maybe_names),
    _words("beta", "beta", (None, 0.0, 0.05, 0.1, 0.2, 0.5), "how near to the reference; Enter types it", _maybe_share),
    _words("precompute_ref_log_probs", "reference 1st", (None, True), "asks the reference once, before training"),
    _words("scale_rewards", "scale rewards", (None, *SCALE_REWARDS), "by whose spread rewards are divided"),
)
_IMAGE_SIZES = (
    None, "224x224", "336x336", "448x448", "640x480", "768x576", "1024x768", "1280x960", "1600x1200", "2048x1536",
)  # fmt: skip
_OF_IMAGES = (
    _words(
        "image_size", "image size", _IMAGE_SIZES, "pixels of every image; Enter types them, as 1280x720", _maybe_names,
        nothing="no images",
    ),
    _numbers("images", "images", (None, 1, 2, 3, 4, 6, 8, 12, 16), "images in each sequence"),
)  # fmt: skip
KNOBS: tuple[Knob, ...] = (
    *_OF_ALL,
    *(replace(knob, of_task=True) for knob in _OF_TASKS),
    *_OF_IMAGES,
)


def knobs_of(run: RunConfig | None, *, reads_images: bool = False) -> tuple[Knob, ...]:
    """The knobs of a run: of those of tasks, what its trainer has, and those of images where its model reads some, the
    number of them once there are any."""
    own = () if run is None else trainer_named(run.trainer).own_options
    shows = run is not None and run.shows_images
    of_images = {"image_size": reads_images, "images": reads_images and shows}
    return tuple(knob for knob in KNOBS if of_images.get(knob.name, not knob.of_task or knob.name in own))


def turned(knob: Knob, profile: ModelProfile, run: RunConfig, by: int) -> RunConfig | None:
    """The run with a knob one place on (`by` 1) or back (-1); None at its end."""
    choices = list(knob.choices(profile))
    now = _settings(run, tuple(choices[0]))
    if now in choices:
        at = choices.index(now) + by
        return _set(run, choices[at]) if 0 <= at < len(choices) else None
    sizes = {size: choice for choice in choices if (size := _extent(choice.get(knob.name))) is not None}
    value = _extent(now.get(knob.name))
    if value is not None and sizes:
        beyond = [size for size in sizes if (size > value if by > 0 else size < value)]
        return _set(run, sizes[min(beyond) if by > 0 else max(beyond)]) if beyond else None
    return _set(run, choices[0 if by > 0 else -1])


def _extent(value: Any) -> int | None:
    """How large a value is, by which it lies between others: a number, or the pixels of a size."""
    if isinstance(value, str) and (sides := SIZE.fullmatch(value)) is not None:
        return int(sides[1]) * int(sides[2])
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def typed(knob: Knob, run: RunConfig, text: str) -> RunConfig:
    """The run with what was typed for a knob. Raises InputError for what is no value of it."""
    assert knob.read is not None, "the knob can be typed"
    return _set(run, {knob.name: knob.read(text)})


def changed(run: RunConfig, change: Mapping[str, Any]) -> RunConfig:
    """The run with options set; dropout is open again where it hangs on what was changed."""
    return _set(run, change)


def _settings(run: RunConfig, names: tuple[str, ...]) -> dict[str, Any]:
    settings = {name: getattr(run, name) for name in names}
    if "quant" in settings and settings["quant"] is None:
        settings["quant"] = "nf4" if run.method == "qlora" else "none"
    return settings


def _set(run: RunConfig, change: Choice) -> RunConfig:
    opened: dict[str, Any] = {}
    if change.keys() & {"target_modules", "quant", "trainer"} and "lora_dropout" not in change:
        opened["lora_dropout"] = None
    if "image_size" in change:  # as many tokens as an image of this size is; without one, no images
        opened |= {"image_tokens": None, **({"images": None} if change["image_size"] is None else {})}
    if "trainer" in change:  # what the other trainer does not have
        others = trainer_named(change["trainer"]).without_others()
        opened |= {name: value for name, value in others.items() if value is None}
    return run.with_(**{**opened, **change})
