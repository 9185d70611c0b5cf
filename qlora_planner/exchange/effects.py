"""What a key of another tool does to memory that is not in the estimate: the rows of every tool's table.

A row says why, in which direction, and by how much at the most: `memory.unmodelled.qualified` decides from
that what becomes of the verdict. A bound is a part of the device peak, taken generously; where nothing
is known there is none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from qlora_planner.record import record

# Nothing that an interval would show.
SLIGHT = 0.02


@record
class Effect:
    """Why a key is not in the estimate. `direction` and `at_most` as in `memory.Unmodelled`.

    `off` are values besides the empty ones by which the key asks for nothing.
    """

    why: str
    direction: str = "both"
    at_most: float | None = None
    off: tuple[Any, ...] = ()

    def asked(self, value: Any) -> bool:
        """Whether a key of this value asks for it at all."""
        if value is None or value is False or value == "" or value == [] or value == {}:
            return False
        return not (isinstance(value, int | float) and not isinstance(value, bool) and value == 0) and not any(
            value == off and isinstance(value, bool) == isinstance(off, bool) for off in self.off
        )


def either(why: str, at_most: float | None = None, off: tuple[Any, ...] = ()) -> Effect:
    """It may take more or less."""
    return Effect(why=why, at_most=at_most, off=off)


def more(why: str, at_most: float | None = None, off: tuple[Any, ...] = ()) -> Effect:
    """It takes more than is said."""
    return Effect(why=why, direction="up", at_most=at_most, off=off)


def less(why: str, at_most: float | None = None, off: tuple[Any, ...] = ()) -> Effect:
    """It takes less than is said."""
    return Effect(why=why, direction="down", at_most=at_most, off=off)


def rows(table: Iterable[tuple[str, Effect]]) -> Mapping[str, Effect]:
    """A table with one row for each of the keys that are joined by spaces."""
    return dict(_apart(table))


def _apart(table: Iterable[tuple[str, Effect]]) -> Iterator[tuple[str, Effect]]:
    for keys, effect in table:
        for key in keys.split():
            yield key, effect


# transformers' optimizers whose states nothing here counts, and axolotl's own.
_OPTIMIZERS = """
adalomo adamw_anyprecision adamw_torch_npu_fused adamw_torch_xla adopt_adamw apollo_adamw apollo_adamw_layerwise
came_pytorch dion flash_adam flash_adamw flash_lion flash_sgd flash_sgdw galore_adafactor galore_adafactor_layerwise
galore_adamw galore_adamw_8bit galore_adamw_8bit_layerwise galore_adamw_layerwise grokadamw lomo muon optimi_adamw
q_galore_adamw8bit schedule_free_adamw schedule_free_radam schedule_free_sgd sinkgd stable_adamw
"""
OPTIMIZERS = frozenset(_OPTIMIZERS.split())
OPTIMIZER = either("its states and its step are not known here; taken as adamw_torch_fused")
