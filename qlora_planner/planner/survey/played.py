"""What the usual runs of the catalogue's models need, played beforehand: by these figures a plan and a survey choose.

A floor is that of `estimate` without what the context takes, so it holds on every card with as large a cuBLAS
workspace. `make played` writes them; a test plays some anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from typing import Any

from qlora_planner.planner.knobs import SOME_LAYERS
from qlora_planner.planner.search_space import EFFECTIVE_BATCH, WEIGHT_STORAGES
from qlora_planner.record import record
from qlora_planner.spec.run import RunConfig

SCHEMA = "qlora-plan/played/1"
BATCHES = tuple(size for size in range(1, EFFECTIVE_BATCH + 1) if EFFECTIVE_BATCH % size == 0)
SEGMENTS = (None, "expandable_segments:True")
# Of so many layers one is checkpointed; 0: of none. Each recomputes less than the one before.
EVERY = (1, *SOME_LAYERS, 0)
# Those of which traces ship, by what they make of `quant`.
STORAGES = {
    str(base.options["quant"]): base.options
    for base in WEIGHT_STORAGES
    if base.options["quant"] == "none" or base.options.get("double_quant")
}
# More than any card has: larger batches are not played.
LARGEST_BYTES = 300 << 30
_DEFAULT = RunConfig()
_VARIED = (
    "method", "quant", "double_quant", "gradient_checkpointing", "checkpoint_every", "alloc_conf", "batch_size",
    "grad_accum",
)  # fmt: skip

Key = tuple[str, int, str | None]  # storage, layers of which one is checkpointed, segments
Floors = tuple[int | None, ...]  # by batch; None: no trace of it ships, or no card holds it


def keys() -> Iterator[Key]:
    """The option sets that are played, in the order in which they are kept."""
    return ((storage, every, segments) for storage in STORAGES for every in EVERY for segments in SEGMENTS)


def options_of(key: Key) -> dict[str, Any]:
    """An option set as it would be typed."""
    storage, every, segments = key
    return {**STORAGES[storage], **layers_checkpointed(every), "alloc_conf": segments}


def layers_checkpointed(every: int) -> dict[str, Any]:
    """The options of a run that checkpoints one layer in `every`; none where that is 0."""
    return {"gradient_checkpointing": every > 0, "checkpoint_every": every if every > 1 else None}


def run_of(key: Key, batch: int, seq_len: int) -> RunConfig:
    """One of the usual runs, as typed."""
    return _DEFAULT.with_(**options_of(key), batch_size=batch, grad_accum=EFFECTIVE_BATCH // batch, seq_len=seq_len)


def key_of(typed: RunConfig, seq_len: int) -> Key | None:
    """The option set of a run whose sequences are of `seq_len` tokens; None for one that is not played."""
    if typed.with_(**{name: getattr(_DEFAULT, name) for name in _VARIED}) != _DEFAULT.with_(seq_len=seq_len):
        return None
    every = (typed.checkpoint_every or 1) if typed.gradient_checkpointing else 0
    storage = str(typed.quant)
    usual = STORAGES.get(storage)
    played = usual is not None and all(getattr(typed, name) == value for name, value in usual.items())
    return (storage, every, typed.alloc_conf) if played and every in EVERY and typed.alloc_conf in SEGMENTS else None


@record
class PlayedRuns:
    """The floors of one model's usual runs at one length, without the context; bytes."""

    seq_len: int
    floors: Mapping[Key, Floors] = field(repr=False)

    @classmethod
    def of(cls, row: Mapping[str, Any], workspace_bytes: int) -> PlayedRuns | None:
        """From a row of played.json; None for a workspace that nothing was played with."""
        floors: Sequence[Sequence[int | None]] | None = row["floors"].get(str(workspace_bytes))
        if floors is None:
            return None
        return cls(seq_len=row["seq_len"], floors=dict(zip(keys(), map(tuple, floors), strict=True)))

    def row(self, key: Key) -> Mapping[int, int | None]:
        """The floor of each batch."""
        return dict(zip(BATCHES, self.floors[key], strict=True))

    def worth(self, key: Key, limit: int) -> list[int]:
        """The batches at which so many layers should be checkpointed, where runs of up to `limit` bytes fit.

        All of them where every layer is or none; else those at which this leaves out more layers than any other number
        of which runs fit.
        """
        return list(BATCHES) if key[1] not in SOME_LAYERS else self.fitting(key, limit)

    def fitting(self, key: Key, limit: int) -> list[int]:
        """Those batches of which `worth` runs of up to `limit` bytes are."""
        storage, every, segments = key
        others = EVERY[EVERY.index(every) + 1 :] if every in SOME_LAYERS else ()
        rows = [self.floors[storage, each, segments] for each in (every, *others)]
        return [
            batch
            for batch, (floor, *fewer) in zip(BATCHES, zip(*rows, strict=True), strict=True)
            if floor is not None and floor <= limit and not any(less is not None and less <= limit for less in fewer)
        ]
