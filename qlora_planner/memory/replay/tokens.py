"""Tokens that are generated one after the other, of which a tape holds the first and the sizes of the last."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from qlora_planner.memory.replay.events import BIRTH, Act, PreparedTrace
from qlora_planner.record import record
from qlora_planner.spec.trace import TOKENS, Segment, Tape

# Of so many tokens that are played one is played with everything that comes and goes in it.
WHOLE = 64
# Longer completions are not played token by token: from so many tokens on, what a run can do with is no smooth function
# of their number. 64 tokens more or fewer move it by up to 5 % either way, and leaving tokens out by no more.
EACH = 4096
_MOST_PLAYED = 1024


@record
class Growth:
    """How tokens after the traced ones differ from the last traced one.

    `before`: the storage of the token before that plays the part of one of this token. `sizes`: what a storage takes
    at the last traced token, how much it grew to there since the token before, and what it takes at the last of all.
    """

    tokens: int
    before: Mapping[int, int]
    sizes: Mapping[int, tuple[int, int, int]]

    def size(self, storage: int, size: int, token: int) -> int:
        """Bytes of a storage at a token, counted from 1: each adds as much as the traced ones, up to the last's size.

        Where that does not reach the last's size, as in masks that grow by more than one token at a time, sizes
        between are in proportion.
        """
        if storage not in self.sizes:
            return size
        first, step, last = self.sizes[storage]
        done, all_of_them = token - len(TOKENS), self.tokens - len(TOKENS)
        if step > 0 and first + step * all_of_them >= last:
            return min(first + step * done, last)
        return first + (last - first) * done // all_of_them


def growth_of(tape: Tape) -> Growth:
    """What follows from the traced tokens of `tape`."""
    traced = [
        [
            event
            for segment in tape.segments
            if segment.stage == stage
            for event in tape.events[segment.start : segment.stop]
            if event[1]
        ]
        for stage in TOKENS
    ]
    last = dict(tape.last_sizes)
    before: dict[int, int] = {}
    sizes = {}
    for former, latter in pairwise(traced):
        for (old, old_size), (new, new_size) in zip(former, latter, strict=True):
            before[new] = old
            if new in last:
                sizes[new] = (new_size, new_size - old_size, last[new])
    return Growth(tokens=tape.tokens, before=before, sizes=sizes)


def acts_at(script: PreparedTrace, growth: Growth, token: int) -> dict[Segment, tuple[Act, ...]]:
    """What happens in each segment of the last traced token, as at `token`.

    Most tokens without what comes and goes inside a layer at the same size as in the token before: it falls into the
    gaps that it left. Every WHOLE-th that is played and the last are whole.
    """
    whole = token % (WHOLE * stride(growth.tokens)) == 0 or token == growth.tokens
    return {
        segment: tuple(
            (kind, storage, growth.size(storage, size, token) if kind == BIRTH else size, component)
            for kind, storage, size, component in (acts if whole else outlined(script, growth, acts))
        )
        for segment, acts in script.acts.items()
        if segment.stage == TOKENS[-1]
    }


def outlined(script: PreparedTrace, growth: Growth, acts: Sequence[Act]) -> list[Act]:
    """The acts of what grows, or outlives its segment."""
    kept = {*growth.sizes, *script.origins}
    return [act for act in acts if act[1] in kept]


def stride(tokens: int) -> int:
    """Of so many tokens one is played, where there are `tokens` in all."""
    return 1 if tokens <= EACH else 1 << (-(-tokens // _MOST_PLAYED) - 1).bit_length()


def later_tokens(tape: Tape) -> Iterator[int]:
    """Tokens after the traced ones that are played, counted from 1."""
    every, last = stride(tape.tokens), tape.tokens
    return (token for token in range(len(TOKENS) + 1, last + 1) if token % every == 0 or token == last)
