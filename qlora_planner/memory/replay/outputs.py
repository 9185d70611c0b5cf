"""What a wrapper around the model does to its outputs."""

from __future__ import annotations

from dataclasses import replace

from qlora_planner.memory.replay.events import BIRTH, DEATH, Act, PreparedTrace

_CLONE = -2  # no traced storage has this number


def with_cloned_outputs(script: PreparedTrace, row_bytes: int) -> PreparedTrace:
    """The script where whole logits that the model gives out are cloned on their way, of `row_bytes` a token.

    DistributedDataParallel that looks for unused parameters passes every output that needs a gradient through
    `_DDPSink`, which clones it (torch nn/parallel/distributed.py). Logits are given out where they are the last to die
    of the head's forward.
    """
    acts = {
        segment: _cloned(events, row_bytes) if (segment.stage, segment.name) == ("forward", "head") else events
        for segment, events in script.acts.items()
    }
    return replace(script, acts=acts)


def _cloned(events: tuple[Act, ...], row_bytes: int) -> tuple[Act, ...]:
    born = {storage: (size, part) for kind, storage, size, part in events if kind == BIRTH}
    last = max((at for at, act in enumerate(events) if act[0] == DEATH), default=None)
    if last is None or events[last][1] not in born:
        return events
    size, part = born[events[last][1]]
    if size % row_bytes:
        return events
    clone: tuple[Act, ...] = ((BIRTH, _CLONE, size, part), events[last], (DEATH, _CLONE, 0, 0))
    return (*events[:last], *clone, *events[last + 1 :])
