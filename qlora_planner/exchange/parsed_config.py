"""What a training config of another tool says, and what became of each of its keys."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from qlora_planner.catalog import OPTIMIZERS
from qlora_planner.catalog.parallel import DDP
from qlora_planner.errors import InputError
from qlora_planner.exchange.effects import OPTIMIZER, Effect, either
from qlora_planner.exchange.effects import OPTIMIZERS as UNCOUNTED
from qlora_planner.exchange.several_cards.sharing import Beyond, Decision, Sharing
from qlora_planner.memory.records import Unmodelled
from qlora_planner.record import record
from qlora_planner.spec.faults import refuse
from qlora_planner.spec.run import RunConfig
from qlora_planner.text import listed, plain, quoted, short

# No versions: those that figures hold for, and any of the tool itself.
NOTHING: Mapping[str, str] = {}
# torchao's optimizers, whose states are in blocks of 256 too: what is known here and takes as much or more.
STAND_INS: Mapping[str, str] = dict.fromkeys(
    ("adamw_torch_8bit", "adamw_torch_4bit", "ao_adamw_8bit", "ao_adamw_4bit", "ao_adamw_fp8"), "adamw_8bit"
)


@record
class StandIn:
    """A run that takes about as much as another, of which more traces ship, and how far it may be off."""

    changes: Mapping[str, Any]
    unmodelled: tuple[Unmodelled, ...]


@record
class Between:
    """What takes more than a run and at the most as much as the run with these changes."""

    key: str
    what: str
    changes: Mapping[str, Any]


@record
class Reading:
    """A config as a model and a run. Every key of the file is in exactly one of the four kinds.

    `used` decided the run; `ignored` take no memory, or are switched off; `not_modelled` may change memory and are not
    in the estimate, with the reason; `unknown` are no options of that tool, as far as is known here.
    `unmodelled` is what the estimate of `run` must be qualified by: those keys, and what the tool does by itself.
    `notes` are one-line facts about how the file was read. `gpu` is the card that a plan file names.
    `trains_embeddings` and `loss_stands_in` hang on the model: see `exchange.meant`. `stand_in` answers where `run` is
    not traced; `casts_while_preparing` says why 16-bit weights are float32 for a moment before adapters are added.
    `target_pattern` names target modules by a regular expression; `asks` are switches whose effect hangs on the model.
    `beyond` is what takes a size in bytes that no figure has, `between` what lies between the run and another one.
    `stands_for` is the file's own run where `run` is the one that stands in for it.
    `settled` are codes of problems that the file or its tool takes care of.
    `sharing` is what the file says of several cards: see `exchange.several_cards.on_cards`; `stored` is the dtype that
    4-bit weights lie in, with what decided it.
    """

    format: str
    model_id: str
    run: RunConfig
    used: tuple[str, ...]
    ignored: tuple[str, ...]
    not_modelled: Mapping[str, str]
    unknown: tuple[str, ...]
    notes: tuple[str, ...] = ()
    gpu: Mapping[str, Any] | None = None
    unmodelled: tuple[Unmodelled, ...] = ()
    trains_embeddings: bool = False
    loss_stands_in: bool = False
    stand_in: StandIn | None = None
    casts_while_preparing: str | None = None
    sharing: Sharing | None = None
    stored: Decision | None = None
    settled: tuple[str, ...] = ()
    stands_for: RunConfig | None = None
    target_pattern: str | None = None
    asks: frozenset[str] = frozenset()
    beyond: tuple[Beyond, ...] = ()
    between: tuple[Between, ...] = ()

    def keys_to_dict(self) -> dict[str, Any]:
        """The four kinds, JSON-ready."""
        return {
            "used": list(self.used),
            "ignored": list(self.ignored),
            "not_modelled": dict(self.not_modelled),
            "unknown": list(self.unknown),
        }


@dataclass(slots=True)
class Config:
    """One tool's config while it is read: values by key, the keys that were looked at, and every fault."""

    raw: Mapping[str, Any]
    where: str
    seen: dict[str, None] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    not_modelled: dict[str, Unmodelled] = field(default_factory=dict)
    besides: list[Unmodelled] = field(default_factory=list)
    trains_embeddings: bool = False
    loss_stands_in: bool = False
    casts_while_preparing: str | None = None
    sharing: Sharing | None = None
    stored: Decision | None = None
    instead: dict[str, Any] = field(default_factory=dict)
    off_by: list[Unmodelled] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    target_pattern: str | None = None
    asks: set[str] = field(default_factory=set)
    beyond: list[Beyond] = field(default_factory=list)
    between: list[Between] = field(default_factory=list)

    def get(self, key: str) -> Any:
        """The value as it is written; None where it is absent or null, which these tools do not tell apart."""
        if key in self.raw:
            self.seen[key] = None
        return self.raw.get(key)

    def asked(self, key: str) -> Any:
        """The value where it asks for something; a key that is switched off decides nothing."""
        value = self.get(key)
        if not value:
            self.seen.pop(key, None)
        return value or None

    def flag(self, key: str, default: bool = False) -> bool:
        """A switch."""
        value = self.get(key)
        if value is None or isinstance(value, bool):
            return default if value is None else value
        if isinstance(value, str) and value.lower() in ("true", "false"):
            return value.lower() == "true"
        self.faults.append(f"{key} must be true or false, not {quoted(value)}")
        return default

    def integer(self, key: str, default: int | None) -> int | None:
        """A whole number from 1 on."""
        value = self.get(key)
        if value is None:
            return default
        number = _number(value)
        if number is None or number != int(number) or not 1 <= number <= 1 << 24:
            self.faults.append(f"{key} must be a whole number from 1 on, not {quoted(value)}")
            return default
        return int(number)

    def number(self, key: str, default: float) -> float:
        """A number from 0 on."""
        value = self.get(key)
        if value is None:
            return default
        number = _number(value)
        if number is None or number < 0:
            self.faults.append(f"{key} must be a number from 0 on, not {quoted(value)}")
            return default
        return number

    def text(self, key: str, default: str | None = None, allowed: Collection[str] = ()) -> str | None:
        """A word, one of `allowed` where it is given."""
        value = self.get(key)
        if value is None or value == "":
            return default
        if not isinstance(value, str) or (allowed and value not in allowed):
            choices = f"one of {', '.join(allowed)}" if allowed else "a word"
            self.faults.append(f"{key} must be {choices}, not {quoted(value)}")
            return default
        return value

    def names(self, key: str) -> list[str]:
        """A list of names, written as one or joined by commas."""
        value = self.get(key)
        if value is None or value == "":
            return []
        listed = value.split(",") if isinstance(value, str) else value
        if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
            self.faults.append(f"{key} must be a list of names, not {quoted(value)}")
            return []
        return [name.strip() for name in listed if name.strip()]

    def images(self, width: int, height: int) -> dict[str, Any]:
        """Rows that hold images of a size, as options of a run: no tool's file says how many, so one each."""
        self.notes.append(f"rows with images: counted with one of {width}x{height} pixels in each")
        return {"images": 1, "image_size": f"{width}x{height}"}

    def optimizer(self, key: str, default: str) -> str:
        """An optimizer by transformers' name."""
        name = self.text(key, default) or default
        if name in STAND_INS:
            self.leave(key, either(f"keeps its states in torchao's way; taken as {STAND_INS[name]}", 0.02))
            return STAND_INS[name]
        if name in UNCOUNTED:
            self.leave(key, OPTIMIZER)
            return "adamw_torch_fused"
        if name not in OPTIMIZERS:
            names = ", ".join(OPTIMIZERS)
            self.faults.append(f"{key}: the memory of {quoted(name)} is not known here; known: {names}")
            return default
        return name

    def reentrant(self, default: bool) -> bool:
        """`use_reentrant` of gradient_checkpointing_kwargs."""
        kwargs = self.get("gradient_checkpointing_kwargs")
        if kwargs is not None and not isinstance(kwargs, Mapping):
            self.faults.append(f"gradient_checkpointing_kwargs must hold names with values, not {quoted(kwargs)}")
        return bool(kwargs.get("use_reentrant", default)) if isinstance(kwargs, Mapping) else default

    def checkpointed(self, *, offload: bool = True) -> dict[str, Any]:
        """Which layers gradient_checkpointing_kwargs checkpoint, and where their inputs wait, as options of a run."""
        kwargs = self.get("gradient_checkpointing_kwargs")
        if not isinstance(kwargs, Mapping):
            return {}
        modelled = ("use_reentrant", "every_n_layers", *(("offload",) if offload else ()), "preserve_rng_state")
        others = [str(name) for name, value in kwargs.items() if name not in modelled and value]
        if others:
            self.leave("gradient_checkpointing_kwargs", either(f"{listed(others)}: what is kept is not known here"))
        options: dict[str, Any] = {}
        if kwargs.get("every_n_layers") is not None:
            options["checkpoint_every"] = kwargs["every_n_layers"]
        if offload and kwargs.get("offload"):
            options["checkpoint_offload"] = True
        return options

    def model(self, key: str) -> str:
        """The model, which every config must name."""
        name = self.text(key)
        if name is None or not name.strip():
            self.faults.append(f"names no model: {key} is missing")
        return (name or "").strip()

    def leave(self, key: str, effect: Effect) -> None:
        """Say that what `key` asks for is not in the estimate."""
        self.seen[key] = None
        self.not_modelled[key] = _unmodelled(_shown(key, self.raw.get(key)), effect)

    def beside(self, name: str, effect: Effect) -> None:
        """Say that what the tool does by itself, without a key of its own in the file, is not in the estimate."""
        self.besides.append(_unmodelled(name, effect))

    def stand_in(self, name: str, effect: Effect, **changes: Any) -> None:
        """Say which run is near what the tool does, where what it does is not traced, and how far it may be off."""
        self.instead.update(changes)
        self.off_by.append(_unmodelled(name, effect))

    def _settled(self, tool: str) -> tuple[str, ...]:
        """Where nothing looks for unused parameters, which LLaMA-Factory (hparams/parser.py) switches off for LoRA."""
        off = self.raw.get("ddp_find_unused_parameters") is False or tool == "llama-factory"
        return ("ddp-reentrant",) if off else ()

    def finish(
        self,
        tool: str,
        model_id: str,
        options: Mapping[str, Any],
        *,
        used: Collection[str],
        neutral: Collection[str],
        families: tuple[str, ...],
        not_modelled: Mapping[str, Effect],
    ) -> Reading:
        """The run of `options`, and every key in its place.

        A key that decides nothing here, as an adapter's rank without an adapter, is ignored; one that is null,
        false or empty asks for nothing, whatever it could ask for. Raises InputError naming the file and all faults.
        """
        if self.sharing is not None:
            for key in self.sharing.keys:
                self.seen[key] = None
                if self.sharing.strategy != DDP:  # on one card it is the run itself
                    self.leave(key, either(self.sharing.on_one_card))
        ignored: list[str] = []
        unknown: list[str] = []
        for key, value in self.raw.items():
            if key in self.seen:
                continue
            recognised = key in used or key in neutral or key.startswith(families) or key in not_modelled
            if key in not_modelled and not_modelled[key].asked(value):
                self.not_modelled[key] = _unmodelled(_shown(key, value), not_modelled[key])
            else:
                (ignored if recognised else unknown).append(key)
        run = None
        try:
            run = RunConfig(**options)
        except InputError as error:
            self.faults.append(str(error))
        if self.faults or run is None:
            refuse(self.faults, self.where)
        return Reading(
            format=tool,
            model_id=model_id,
            run=run,
            used=tuple(key for key in self.seen if key not in self.not_modelled),
            ignored=tuple(ignored),
            not_modelled={plain(key): thing.what for key, thing in self.not_modelled.items()},
            unknown=tuple(plain(key) for key in unknown),
            notes=tuple(self.notes),
            unmodelled=(*self.not_modelled.values(), *self.besides),
            trains_embeddings=self.trains_embeddings,
            loss_stands_in=self.loss_stands_in,
            stand_in=StandIn(changes=self.instead, unmodelled=tuple(self.off_by)) if self.instead else None,
            casts_while_preparing=self.casts_while_preparing,
            sharing=self.sharing,
            stored=self.stored,
            settled=self._settled(tool),
            target_pattern=self.target_pattern,
            asks=frozenset(self.asks),
            beyond=tuple(self.beyond),
            between=tuple(self.between),
        )


def _unmodelled(key: str, effect: Effect) -> Unmodelled:
    return Unmodelled(key=key, what=effect.why, direction=effect.direction, at_most=effect.at_most)


def _shown(key: str, value: Any) -> str:
    """The key as it stands in the file, with a value that is short enough to be told."""
    if isinstance(value, bool):
        return short(f"{key}: {'true' if value else 'false'}", 120)
    if isinstance(value, int | float) or (isinstance(value, str) and len(value) <= 40):
        return short(f"{key}: {value}", 120)
    return short(key, 120)


def _number(value: Any) -> float | None:
    """A number, also where YAML took it for text, as it does with 2e-4."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if number == number and abs(number) != float("inf") else None
