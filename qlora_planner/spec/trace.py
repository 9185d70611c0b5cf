"""Tapes: what a training step allocates and frees, in order, for a model cut down to a few layers of each kind.

A `CompiledTape` holds sizes as polynomials in batch, sequence and rank; `at` fills in numbers and gives a `Tape`.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate
from typing import Any

from qlora_planner.record import record

# Powers of (batch, sequence, rank) that a size may be made of.
Monomial = tuple[int, int, int]
# Terms of one size: numerator, denominator, monomial. Sizes are whole at the points where they are used.
Term = tuple[int, int, Monomial]

# Stages of a step that generates completions before it trains on them: the prompts' pass, single tokens one after the
# other (of which some are traced), and passes over whole completions without gradients.
PREFILL, SCORE = "generate", "score"
TOKENS = ("token-1", "token-2", "token-3")
ROLLOUT = (PREFILL, *TOKENS, SCORE)

_SMALL_WORKSPACE_BYTES = 1 << 20


@record
class Segment:
    """A stretch of events `[start, stop)`: one stage of one traced layer, or of what surrounds the layers.

    `stage`: prepare, forward, backward, after, optimizer, zero_grad or one of ROLLOUT. `name`: layer, embedding, head
    or all.
    `layer` is the position among the traced layers, -1 outside them.
    """

    stage: str
    name: str
    layer: int
    step: int
    micro_step: int
    start: int
    stop: int

    def at(self, start: int, stop: int) -> Segment:
        """The same stretch of a longer list of events."""
        return Segment(
            stage=self.stage, name=self.name, layer=self.layer, step=self.step, micro_step=self.micro_step,
            start=start, stop=stop,
        )  # fmt: skip


@record
class Tape:
    """Events of one run: a storage's birth is `(number, bytes)`, its death `(number, 0)`. Bytes are unrounded."""

    events: tuple[tuple[int, int], ...]
    segments: tuple[Segment, ...]
    places: tuple[int, ...]  # for each layer of the whole model, the traced layer that stands for it
    kept: tuple[int, ...]  # position in the whole model of each traced layer
    workspaces: frozenset[int]  # storages that libraries keep for themselves
    on_host: frozenset[int] = frozenset()  # storages in the host's memory, where activations are offloaded to
    streamed: frozenset[int] = frozenset()  # storages that a second stream allocated, from a cache of its own
    tokens: int = 0  # tokens that are generated one at a time; the last of TOKENS stands for all that follow it
    # Sizes, at the last token, of storages born in the segments of the last of TOKENS: they grow with each token.
    last_sizes: tuple[tuple[int, int], ...] = ()

    def alike(self, other: Tape) -> bool:
        """Whether both hold the same births and deaths in the same order, whatever their sizes."""
        same = (self.segments, self.places, self.kept, self.workspaces, self.on_host, self.streamed, self.tokens) == (
            other.segments, other.places, other.kept, other.workspaces, other.on_host, other.streamed, other.tokens,
        )  # fmt: skip
        return same and [(storage, size > 0) for storage, size in self.events] == [
            (storage, size > 0) for storage, size in other.events
        ]


@record
class CompiledTape:
    """A tape whose sizes are polynomials. `events`: n > 0 is a birth of size `sizes[n - 1]`, n < 0 the death of the
    storage born as number -n (counted from 1)."""

    variant: str
    sizes: tuple[tuple[Term, ...], ...]
    workspace_sizes: tuple[int, ...]  # indices into `sizes` that are library workspaces
    events: tuple[int, ...]
    segments: tuple[Segment, ...]
    places: tuple[int, ...]
    kept: tuple[int, ...]
    host_sizes: tuple[int, ...] = ()  # indices into `sizes` of storages in the host's memory
    streamed_sizes: tuple[int, ...] = ()  # indices into `sizes` of storages that a second stream allocated
    tokens: int = 0  # as in Tape
    last_sizes: tuple[tuple[int, int], ...] = ()  # as in Tape; the storage born as that number, an index into `sizes`

    def at(self, batch_size: int, seq_len: int, rank: int, workspace_bytes: int | None = None) -> Tape:
        """The tape of a run with these numbers; sizes that are not whole there are rounded up.

        `workspace_bytes` is what one cuBLAS handle takes on the card in question, if not on the one traced for.
        """
        values = [_value(terms, batch_size, seq_len, rank) for terms in self.sizes]
        if workspace_bytes is not None:
            for index in self.workspace_sizes:
                # The large buffer is a cuBLAS handle's; the small one of fused bias kernels is the same everywhere.
                values[index] = workspace_bytes if values[index] > _SMALL_WORKSPACE_BYTES else values[index]
        storages, numbers, births = storages_and_sizes(self.events)

        def of(indices: Sequence[int]) -> frozenset[int]:
            numbered = {index + 1 for index in indices}
            if not numbered:
                return frozenset()
            return frozenset(storage for storage, number in enumerate(births, 1) if number in numbered)

        return Tape(
            events=tuple(zip(storages, map([0, *values].__getitem__, numbers), strict=True)),
            segments=self.segments, places=self.places, kept=self.kept, workspaces=of(self.workspace_sizes),
            on_host=of(self.host_sizes), streamed=of(self.streamed_sizes),
            tokens=self.tokens, last_sizes=tuple((number, values[index]) for number, index in self.last_sizes),
        )  # fmt: skip

    @classmethod
    def of(cls, tape: Tape, variant: str) -> CompiledTape:
        """One tape as it is: every size a constant, so that it holds for its own run alone."""
        kinds = ((tape.workspaces, "workspace"), (tape.on_host, "host"), (tape.streamed, "streamed"))
        special = {storage: kind for storages, kind in kinds for storage in storages}
        sizes: dict[tuple[int, str], int] = {}
        number: dict[int, int] = {}
        events: list[int] = []
        for storage, size in tape.events:
            if size:
                number[storage] = len(number) + 1
                events.append(sizes.setdefault((size, special.get(storage, "")), len(sizes)) + 1)
            else:
                events.append(-number[storage])
        last_sizes = tuple(
            (number[storage], sizes.setdefault((size, ""), len(sizes))) for storage, size in tape.last_sizes
        )
        return cls(
            variant=variant,
            sizes=tuple(((size, 1, (0, 0, 0)),) for size, _ in sizes),
            workspace_sizes=tuple(index for index, (_, kind) in enumerate(sizes) if kind == "workspace"),
            events=tuple(events),
            segments=tape.segments,
            places=tape.places,
            kept=tape.kept,
            host_sizes=tuple(index for index, (_, kind) in enumerate(sizes) if kind == "host"),
            streamed_sizes=tuple(index for index, (_, kind) in enumerate(sizes) if kind == "streamed"),
            tokens=tape.tokens,
            last_sizes=last_sizes,
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, compact."""
        return {
            "variant": self.variant,
            "sizes": [[[n, d, *m] for n, d, m in terms] for terms in self.sizes],
            "workspace_sizes": list(self.workspace_sizes),
            "events": list(self.events),
            "segments": [[s.stage, s.name, s.layer, s.step, s.micro_step, s.start, s.stop] for s in self.segments],
            "places": _runs(self.places),
            "kept": list(self.kept),
            **({"host_sizes": list(self.host_sizes)} if self.host_sizes else {}),
            **({"streamed_sizes": list(self.streamed_sizes)} if self.streamed_sizes else {}),
            **({"tokens": self.tokens, "last_sizes": [list(pair) for pair in self.last_sizes]} if self.tokens else {}),
        }

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> CompiledTape:
        """Read back what `to_dict` wrote."""
        return cls(
            variant=raw["variant"],
            sizes=tuple(tuple((n, d, (b, s, r)) for n, d, b, s, r in terms) for terms in raw["sizes"]),
            workspace_sizes=tuple(raw["workspace_sizes"]),
            events=tuple(raw["events"]),
            segments=tuple(
                Segment(stage=s[0], name=s[1], layer=s[2], step=s[3], micro_step=s[4], start=s[5], stop=s[6])
                for s in raw["segments"]
            ),
            places=tuple(traced_layer for traced_layer, length in raw["places"] for _ in range(length)),
            kept=tuple(raw["kept"]),
            host_sizes=tuple(raw.get("host_sizes", ())),
            streamed_sizes=tuple(raw.get("streamed_sizes", ())),
            tokens=raw.get("tokens", 0),
            last_sizes=tuple((number, index) for number, index in raw.get("last_sizes", ())),
        )


@lru_cache(maxsize=64)
def storages_and_sizes(events: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Of a compiled tape's events: which storage each is about, and the number of the size that is born, counted from
    1; 0 for a death. And such a number of each storage, in the order of their births."""
    births = accumulate(code > 0 for code in events)
    storages = tuple([birth if code > 0 else -code for code, birth in zip(events, births, strict=True)])
    return storages, tuple([code if code > 0 else 0 for code in events]), births_of(events)


def births_of(events: tuple[int, ...]) -> tuple[int, ...]:
    """Of a compiled tape's storages the numbers of their sizes, counted from 1."""
    return tuple([code for code in events if code > 0])


def ratio(numerator: int, denominator: int) -> int | Fraction:
    """The exact quotient: an int where it is whole, which takes a tenth of a fraction's time."""
    return Fraction(numerator, denominator) if numerator % denominator else numerator // denominator


def _value(terms: Sequence[Term], batch: int, seq: int, rank: int) -> int:
    total, denominator = 0, 1
    for n, d, (b, s, r) in terms:
        value = n * batch**b * seq**s * rank**r
        total, denominator = total * d + value * denominator, denominator * d
    return -(-total // denominator)


def _runs(values: Sequence[int]) -> list[list[int]]:
    runs: list[list[int]] = []
    for value in values:
        if runs and runs[-1][0] == value:
            runs[-1][1] += 1
        else:
            runs.append([value, 1])
    return runs
