"""What of a one-card tape a rank under FSDP2 does not make: float32 copies of the inputs of float32 adapters.

PEFT's `lora.Linear.forward` (0.21, tuners/lora/layer.py) puts its input in the dtype of `lora_A` and drops out of it
there, and autocast narrows the result again. Under FSDP2 adapters are gathered in the dtype that is computed in: the
input stays as it is, and what dropout gives out is multiplied itself. bitsandbytes' layers leave inputs to autocast.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qlora_planner.memory.replay.events import BIRTH, DEATH, DEATH_ELSEWHERE, Act
from qlora_planner.memory.replay.player import GRADIENTS
from qlora_planner.record import record

_DEATHS = (DEATH, DEATH_ELSEWHERE)


@record
class _Narrowed:
    """How the gradient of an adapter's input comes back: `narrow`, widened, through dropout if there is any, and
    narrowed to `result`."""

    narrow: Act
    wide: int
    dropped: int | None
    result: Act


def in_one_dtype(events: Sequence[Act], casts: frozenset[int], sizes: Mapping[int, int]) -> list[Act]:
    """A layer's events without those copies; `casts` are the sizes of adapters as they are gathered, `sizes` those of
    storages that were born elsewhere."""
    born = {storage: size for kind, storage, size, _ in events if kind == BIRTH}
    gone = _wide_inputs(events, casts)
    late: dict[int, _Narrowed] = {}  # by what dropout's backward gives out: it reads what came in until then
    for way in _ways_back(events, {**sizes, **born}):
        gone.add(way.wide)
        if way.dropped is not None:
            late[way.dropped] = way
    waits = {way.narrow for way in late.values()}
    results = {way.result for way in late.values()}
    kept: list[Act] = []
    for act in events:
        kind, storage, _, _ = act
        if storage in late:
            if kind == BIRTH:
                kept += [late[storage].result, late[storage].narrow]
        elif storage not in gone and act not in waits and act not in results:
            kept.append(act)
    return kept


def _wide_inputs(events: Sequence[Act], casts: frozenset[int]) -> set[int]:
    """Copies before each adapter's first product: the input's, and what dropout made of it, which a mask of a byte an
    element stands between."""
    gone: set[int] = set()
    births = [(storage, size) for kind, storage, size, _ in events if kind == BIRTH]
    for at in range(1, len(births) - 1):
        if births[at][1] not in casts:
            continue
        narrow = births[at + 1][1]
        sizes = [size for _, size in births[max(0, at - 3) : at]]
        if sizes == [2 * narrow, narrow // 2, 2 * narrow]:
            gone |= {births[at - 3][0], births[at - 1][0]}
        elif sizes[-1] == 2 * narrow:
            gone.add(births[at - 1][0])
    return gone


def _ways_back(events: Sequence[Act], sizes: Mapping[int, int]) -> list[_Narrowed]:
    """Of every adapter's input; the adapter's own gradient is born between, which tells it from a norm's."""
    ways = []
    for at, (kind, wide, size, component) in enumerate(events[:-1]):
        narrow = events[at + 1]
        if kind != BIRTH or component == GRADIENTS or narrow[0] not in _DEATHS:
            continue
        if 2 * sizes.get(narrow[1], 0) != size:
            continue
        end = next((later for later in range(at + 2, len(events)) if events[later][1] == wide), len(events))
        between = [act for act in events[at + 2 : end] if act[0] == BIRTH]
        large = [act for act in between if act[3] != GRADIENTS and act[2] >= size // 2]
        if len(large) != 1 or not any(act[3] == GRADIENTS for act in between):
            continue
        if 2 * large[0][2] == size:
            ways.append(_Narrowed(narrow=narrow, wide=wide, dropped=None, result=large[0]))
        elif large[0][2] == size:
            result = next((act for act in events[end + 1 :] if act[0] == BIRTH), None)
            if result is not None and 2 * result[2] == size:
                ways.append(_Narrowed(narrow=narrow, wide=wide, dropped=large[0][1], result=result))
    return ways
