"""RunConfig: one training run, in the names that the command line, plan files and JSON share."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import field, fields
from functools import cache
from operator import attrgetter
from typing import Any

from qlora_planner.errors import InputError, one_line
from qlora_planner.record import complete, record
from qlora_planner.text import listed, quoted

METHODS = ("qlora", "lora", "full")
QUANTS = ("nf4", "fp4", "int8", "none")
COMPUTE_DTYPES = ("bfloat16", "float16", "float32")
LOAD_DTYPES = ("bfloat16", "float16")
SCALE_REWARDS = ("group", "batch", "none")
VLLM_MODES = ("none", "server", "colocate")
TRAINERS = (
    "trl-sft", "hf-trainer", "loop", "trl-dpo", "trl-kto", "trl-orpo", "trl-reward", "trl-grpo", "trl-rloo", "unsloth",
)  # fmt: skip
TASKS = ("classification",)
EXPERT_QUANTS = ("none", "nf4")
LOSS_KERNELS = ("full", "chunked", "cut-cross-entropy", "liger-fused")
STRATEGIES = ("ddp", "fsdp2", "fsdp1", "zero2", "zero3", "pipeline")  # of several cards
BACKENDS = ("nccl", "gloo")  # of torch's process groups
STORAGE_DTYPES = ("uint8", "bfloat16", "float16", "float32")
PLACES = ("cpu", "gpu", "meta")

# What documents say beside a run's options: what its batch counts, which the trainer decides.
BATCH_UNIT = "batch_unit"

SIZE = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4})")  # width by height


def _choice(*allowed: str) -> dict[str, Any]:
    return {"choices": allowed}


def _between(minimum: float, maximum: float) -> dict[str, Any]:
    return {"minimum": minimum, "maximum": maximum}


@record
class RunConfig:
    """A run as asked for or as resolved. `None` in an option marked auto means: choose what runs.

    Raises InputError listing every value that is out of range.
    """

    method: str = field(default="qlora", metadata=_choice(*METHODS))
    quant: str | None = field(default=None, metadata=_choice(*QUANTS))  # auto: nf4 for qlora, none otherwise
    double_quant: bool = True
    compute_dtype: str | None = field(default=None, metadata=_choice(*COMPUTE_DTYPES))  # auto: bf16 if the card has it
    # Auto: bf16 if the card has it, whatever is computed in, because checkpoints are published so.
    load_dtype: str | None = field(default=None, metadata=_choice(*LOAD_DTYPES))
    seq_len: int = field(default=2048, metadata=_between(1, 1 << 24))
    batch_size: int = field(default=1, metadata=_between(1, 1 << 16))
    grad_accum: int = field(default=1, metadata=_between(1, 1 << 16))
    rank: int = field(default=16, metadata=_between(1, 1 << 14))
    alpha: int | None = field(default=None, metadata=_between(1, 1 << 20))  # auto: 2 x rank
    target_modules: str | None = None  # auto: all-linear where the stack accepts it; names joined by commas
    lora_dropout: float | None = field(default=None, metadata=_between(0.0, 0.999))  # auto: 0.05, 0 where refused
    dora: bool = False
    rslora: bool = False
    modules_to_save: str | None = None  # names joined by commas; None: none
    gradient_checkpointing: bool = True
    use_reentrant: bool = False
    attention: str | None = None  # auto: sdpa where the class has it
    optimizer: str = "paged_adamw_8bit"
    trainer: str | None = field(default=None, metadata=_choice(*TRAINERS))  # auto: trl-sft where it works
    upcast: bool | None = None  # auto: what the trainer itself would do
    liger: bool = False
    activation_offloading: bool = False
    checkpoint_every: int | None = field(default=None, metadata=_between(1, 1 << 12))  # auto: every layer
    checkpoint_offload: bool = False
    expert_quant: str | None = field(default=None, metadata=_choice(*EXPERT_QUANTS))  # auto: what the stack does
    loss_kernel: str | None = field(default=None, metadata=_choice(*LOSS_KERNELS))  # auto: what the trainer does
    alloc_conf: str | None = None
    packing: bool = False
    padding: bool | None = None  # auto: off for batch 1 or packing, else on
    eval_batch_size: int | None = field(default=None, metadata=_between(1, 1 << 16))  # None: no evaluation
    task: str | None = field(default=None, metadata=_choice(*TASKS))  # None: to go on with text
    num_labels: int | None = field(default=None, metadata=_between(1, 1 << 20))  # auto, with a task: transformers' 2
    # Preferences, in trl's words. Tokens of a row's prompt and of one completion, its end counted; None: see `seq_len`.
    prompt_len: int | None = field(default=None, metadata=_between(1, 1 << 24))
    completion_len: int | None = field(default=None, metadata=_between(1, 1 << 24))
    max_length: int | None = field(default=None, metadata=_between(1, 1 << 24))  # longer sequences are cut to it
    loss_type: str | None = None  # None: the trainer's own first one
    beta: float | None = field(default=None, metadata=_between(0.0, 1e6))  # None: the trainer's own
    precompute_ref_log_probs: bool | None = None  # None: a pass of the reference in every step
    # Completions that the trainer generates, in trl's words. None: the trainer's own.
    num_generations: int | None = field(default=None, metadata=_between(1, 1 << 16))  # completions of a prompt
    num_iterations: int | None = field(default=None, metadata=_between(1, 1 << 16))  # updates with the same completions
    # Micro-batches whose completions are generated together; auto: those of one optimizer step.
    steps_per_generation: int | None = field(default=None, metadata=_between(1, 1 << 16))
    scale_rewards: str | None = field(default=None, metadata=_choice(*SCALE_REWARDS))
    vllm: str | None = field(default=None, metadata=_choice(*VLLM_MODES))  # where vLLM generates; None: nowhere
    vllm_gpu_memory_utilization: float | None = field(default=None, metadata=_between(0.01, 1.0))  # auto: trl's 0.3
    vllm_enable_sleep_mode: bool | None = None  # None: its share is held while the trainer trains
    # Of runs on several cards alone. None: one card, or what the cards and the strategy call for.
    parallel: str | None = field(default=None, metadata=_choice(*STRATEGIES))
    quant_storage: str | None = field(default=None, metadata=_choice(*STORAGE_DTYPES))
    reshard_after_forward: bool | None = None
    load_on: str | None = field(default=None, metadata=_choice(*PLACES))
    image_size: str | None = field(default=None, metadata={"pattern": SIZE})  # pixels of every image, as 1280x720
    images: int | None = field(default=None, metadata=_between(0, 4096))  # of each sequence; 0: the tower stays idle
    # Tokens that stand for one image, where its size is not given; auto: as the model's own processor counts them.
    image_tokens: int | None = field(default=None, metadata=_between(1, 1 << 20))
    exclude_modules: str | None = None  # modules without adapters: names joined by commas, or one regular expression
    ddp_backend: str | None = field(
        default=None, metadata=_choice(*BACKENDS)
    )  # what several ranks talk over; None: nccl
    stack: Mapping[str, str] = field(default_factory=dict)  # package -> version, where it differs from the profile's

    def __post_init__(self) -> None:
        faults = [fault for spec in fields(self) if (fault := _fault(spec, getattr(self, spec.name)))]
        if faults:
            raise InputError(one_line(faults, "run options"))

    @property
    def tokens(self) -> int:
        """Tokens in one micro-batch, padding counted."""
        return self.batch_size * self.seq_len

    @property
    def shows_images(self) -> bool:
        """Whether the run is of a model with the tower that reads images, be there images in it or not."""
        return not (self.images is None and self.image_size is None and self.image_tokens is None)

    @property
    def image_pixels(self) -> tuple[int, int] | None:
        """Width and height of every image; None where none is given."""
        match = SIZE.fullmatch(self.image_size or "")
        return None if match is None else (int(match[1]), int(match[2]))

    def with_(self, **changes: Any) -> RunConfig:
        """A copy with some options changed; raises InputError for a bad value or an unknown option.

        Only what changed is looked at again: a sweep makes a hundred thousand copies.
        """
        doubtful = [name for name, value in changes.items() if name == "stack" or not _is_sound(name, value)]
        faults = [f"unknown option {name}" for name in doubtful if name not in _SPECS]
        faults += [fault for name in doubtful if name in _SPECS and (fault := _fault(_SPECS[name], changes[name]))]
        if faults:
            raise InputError(one_line(faults, "run options"))
        changed: RunConfig = self.__copy__()  # type: ignore[attr-defined]
        complete(changed, **changes)
        return changed

    def to_dict(self) -> dict[str, Any]:
        """Every option under its public name, JSON-ready."""
        return {spec.name: _plain(getattr(self, spec.name)) for spec in fields(self)}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], location: str = "run") -> RunConfig:
        """Read options back; raises InputError naming unknown options and bad values together."""
        unknown = sorted(set(raw) - {*RUN_FIELDS, BATCH_UNIT})
        if unknown:
            raise InputError(f"{location}: unknown option {listed(unknown)}; known: {', '.join(RUN_FIELDS)}")
        return cls(**{name: value for name, value in raw.items() if name != BATCH_UNIT})


_SPECS = {spec.name: spec for spec in fields(RunConfig)}
RUN_FIELDS: tuple[str, ...] = tuple(_SPECS)


def options_without(*names: str) -> Callable[[RunConfig], tuple[Any, ...]]:
    """What gives a run's options but these, as one value that can be the key of what they alone decide."""
    kept = attrgetter(*(name for name in RUN_FIELDS if name not in (*names, "stack")))
    if "stack" in names:
        return kept
    return lambda run: (*kept(run), *sorted(run.stack.items()))


_TYPES: dict[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "float": (int, float), "bool": (bool,)}


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else value


# Values that were found to be in range, with their types: a search gives the same ones again and again.
_SOUND: set[tuple[str, type, Any]] = set()
_MOST_SOUND = 4096


def _is_sound(name: str, value: Any) -> bool:
    """Whether the option has this value rightly; False too where it is a value that cannot be kept."""
    try:
        key = name, value.__class__, value
        if key in _SOUND:
            return True
    except TypeError:
        return False
    if name not in _SPECS or _fault(_SPECS[name], value):
        return False
    if len(_SOUND) < _MOST_SOUND:
        _SOUND.add(key)
    return True


def _fault(spec: Any, value: Any) -> str | None:
    """Why `value` cannot stand in this option, or None."""
    kinds, optional, choices, minimum, maximum = _rule(spec.name)
    pattern = spec.metadata.get("pattern")
    if spec.name == "stack":
        good = isinstance(value, Mapping) and all(isinstance(k, str) and isinstance(v, str) for k, v in value.items())
        return None if good else f"{_option(spec)} must map package names to versions"
    if value is None and optional:
        return None
    if not isinstance(value, kinds) or (value.__class__ is bool and bool not in kinds):
        return f"{_option(spec)} must be {spec.type.partition(' | ')[0]}, not {quoted(value)}"
    if pattern is not None and not pattern.fullmatch(value):
        return f"{_option(spec)} must be WIDTHxHEIGHT in pixels, as 1280x720, not {quoted(value)}"
    if choices and value not in choices:
        return f"{_option(spec)} must be one of {', '.join(choices)}, not {quoted(value)}"
    if minimum is not None and not minimum <= value <= maximum:
        return f"{_option(spec)} must be from {minimum} to {maximum}, not {quoted(value)}"
    return None


def _option(spec: Any) -> str:
    name: str = spec.name
    return "--" + name.replace("_", "-")


@cache
def _rule(name: str) -> tuple[tuple[type, ...], bool, tuple[str, ...], Any, Any]:
    """Types, whether None may stand, choices and bounds of an option, taken apart once."""
    spec = _SPECS[name]
    kind, _, optional = spec.type.partition(" | ")
    bounds = spec.metadata
    return _TYPES.get(kind, ()), bool(optional), bounds.get("choices", ()), bounds.get("minimum"), bounds.get("maximum")
