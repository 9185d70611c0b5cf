"""Where a traced row goes chunk by chunk: loops are found by what repeats, tapes brought to one number of chunks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from qlora_planner.spec.scans import ScanLoop, longer, place_after, rescanned
from qlora_planner.spec.trace import CompiledTape, Tape
from tools.compiling import NotPolynomialError

CHUNKS = 12  # of the tape that ships
# torch_chunk_gated_delta_rule of transformers' modeling_qwen3_next.py, qwen3_5 and olmo_hybrid: its `chunk_size`.
DELTA_CHUNK = 64
_EVENTS = range(8, 300)  # of one iteration: a chunk's forward has 23 or 32, its backward 73
# A scan of n chunks repeats itself n - 3 to n times: the first and last chunks do otherwise in its backward.
_MOST_APART = 3


def delta_chunk(config: Mapping[str, Any]) -> int | None:
    """How many tokens a class takes at a time in a loop of its own code; None where it has none."""
    linear = "linear_attention" in (config.get("layer_types") or ())
    return DELTA_CHUNK if linear and "linear_num_value_heads" in config else None


def few_chunks_of(config: Mapping[str, Any], tape: Tape, seq_len: int) -> tuple[Tape, tuple[ScanLoop, ...]]:
    """A toy's tape with CHUNKS chunks, and the loops over them, where its class goes chunk by chunk."""
    chunk = delta_chunk(config)
    return (tape, ()) if chunk is None else at_chunks(tape, -(-seq_len // chunk))


def at_chunks(tape: Tape, chunks: int) -> tuple[Tape, tuple[ScanLoop, ...]]:
    """A tape of a row of so many chunks as it is of one of CHUNKS, and its loops.

    Raises NotPolynomialError where it is not the same that comes back from there.
    """
    compiled = CompiledTape.of(tape, "toy")
    found = loops_of(compiled, chunks)
    few = _at(compiled, found, CHUNKS - chunks)
    loops = longer(found, CHUNKS - chunks)
    if _at(few, loops, chunks - CHUNKS) != compiled:
        raise NotPolynomialError(f"loops over {chunks} chunks do not all do the same")
    return few.at(1, 1, 1), loops


def _at(tape: CompiledTape, loops: Sequence[ScanLoop], more: int) -> CompiledTape:
    segments = tuple(
        each.at(place_after(each.start, loops, more), place_after(each.stop, loops, more)) for each in tape.segments
    )
    return replace(tape, events=rescanned(tape.events, loops, more), segments=segments)


def loops_of(tape: CompiledTape, chunks: int) -> tuple[ScanLoop, ...]:
    """The loops of a tape of a row of so many chunks: stretches of events that are the same so many events later, by
    the bytes of what is made or freed, almost as often as there are chunks."""
    sizes: list[int] = []
    marks = []
    for code in tape.events:
        if code > 0:
            sizes.append(code)
        marks.append(code if code > 0 else -sizes[-code - 1])
    told = np.array(marks)
    taken = np.zeros(len(told), dtype=bool)
    found: list[ScanLoop] = []
    for length in _EVENTS:
        same = np.concatenate([[0], (told[:-length] == told[length:]).astype(int), [0]])
        edges = np.diff(same)
        for start, stop in zip(np.nonzero(edges == 1)[0], np.nonzero(edges == -1)[0], strict=True):
            times = int(stop - start) // length + 1
            loop = ScanLoop.of(int(start), length, times)
            apart = chunks - times
            if not 0 <= apart <= _MOST_APART or taken[loop.start : loop.stop].any():
                continue
            taken[loop.start : loop.stop] = True
            found.append(loop)
    return tuple(sorted(found, key=lambda loop: loop.start))
