"""The tape of a run that checkpoints every n-th layer, woven of two: one of the run that checkpoints every layer, and
one of the run that keeps what every layer's backward needs.

A layer's events are those of the one run or of the other, whatever its neighbours do: it frees what the layer before
hands on when it has no more use for that itself. transformers checkpoints the first layer of every n
(modeling_utils.py, `every_n_layers`), so what comes before and after all layers is the checkpointed run's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import field
from fractions import Fraction
from functools import lru_cache
from itertools import groupby
from operator import itemgetter

from qlora_planner.record import record, replaced
from qlora_planner.spec.layers import bridged, kept_positions, represent
from qlora_planner.spec.trace import CompiledTape, Segment, Term, ratio

OUTSIDE = -1
# Stage, step and micro-step.
_Pass = tuple[str, int, int]
# A storage of the woven tape: its number in the tape it comes from, beyond so many for each layer of the woven tape.
_Key = int
_OF_A_LAYER = 1 << 32


class UnlikeError(Exception):
    """Two tapes that no third one can be woven of."""


@record
class _Acts:
    """What a segment does, whatever was born before it. Its own storages are counted from 1.

    `codes`: n > 0 is a birth, of the size with that number counted from 1, n < 0 the death of its own storage -n, and 0
    that of the next one of `freed`.
    """

    codes: list[int]
    born: int  # how many storages are
    left: list[tuple[_Key, int]]  # storages that outlive it, each with its number among its own
    freed: list[_Key]  # storages of other segments that die in it


@record
class _Source:
    """One tape, with where its storages are born and die."""

    tape: CompiledTape
    born: list[Segment] = field(default_factory=list)  # by storage, from 1 on
    size: list[int] = field(default_factory=list)  # the number of its size, alike
    births: list[Sequence[int]] = field(default_factory=list)  # by segment's number, one after the other
    codes: list[int] = field(default_factory=list)  # by its own number, the number of a size in the woven tape
    # By pass, layer and the layer that they end in, the storages that one layer hands to its neighbour, as they come.
    handed: dict[tuple[_Pass, int, int], list[int]] = field(default_factory=lambda: defaultdict(list))

    @classmethod
    def of(cls, tape: CompiledTape) -> _Source:
        source = cls(tape=tape, born=[tape.segments[0]], size=[0])
        handed: list[tuple[int, Segment]] = []
        for segment in tape.segments:
            events = tape.events[segment.start : segment.stop]
            sizes = [code - 1 for code in events if code > 0]
            first = len(source.born)
            source.births.append(range(first, first + len(sizes)))
            source.born.extend([segment] * len(sizes))
            source.size.extend(sizes)
            handed += [(-code, segment) for code in events if -first < code < 0]
        for storage, end in sorted(handed, key=itemgetter(0)):
            layer = source.born[storage].layer
            if OUTSIDE in (layer, end.layer) or layer == end.layer:
                continue
            if abs(layer - end.layer) > 1:
                raise UnlikeError("what a layer leaves lives on through several others")
            source.handed[_pass(source.born[storage]), layer, end.layer].append(storage)
        return source

    def acts(self, segment: int) -> _Acts:
        """What the segment of a number does; nothing where that is -1."""
        births = self.births[segment] if segment >= 0 else range(0)
        before = births[0] - 1 if births else len(self.born)
        events, sizes = self.events(segment), self.codes
        codes = [sizes[code - 1] + 1 if code > 0 else code + before if -code > before else 0 for code in events]
        dead = {-code for code in codes if code < 0}
        return _Acts(
            codes=codes,
            born=len(births),
            left=[(storage, number) for number, storage in enumerate(births, 1) if number not in dead],
            freed=[-code for code in events if -before <= code < 0],
        )

    def events(self, segment: int) -> tuple[int, ...]:
        """The events of the segment of a number; none where that is -1."""
        if segment < 0:
            return ()
        return self.tape.events[self.tape.segments[segment].start : self.tape.segments[segment].stop]

    def terms(self, storage: int) -> tuple[tuple[tuple[int, int, int], int | Fraction], ...]:
        """A storage's size in one form for all tapes."""
        return _canonical(self.tape.sizes[self.size[storage]])


def checkpoints_every(checkpointed: CompiledTape, kept: CompiledTape, every: int) -> CompiledTape:
    """The tape of the run that checkpoints layers 0, `every`, 2 `every` and so on.

    Raises UnlikeError where the two tapes are of other layers, or layers share more than what one hands to the next.
    """
    if (checkpointed.places, checkpointed.kept) != (kept.places, kept.kept):
        raise UnlikeError("the two tapes are of other layers")
    if any((tape.tokens or tape.host_sizes or tape.streamed_sizes) for tape in (checkpointed, kept)):
        raise UnlikeError("generated tokens and offloaded activations are traced run by run")
    return _Weaver(_Pair.of(checkpointed, kept), every).woven()


class _Pair:
    """What the weaving of two tapes shares, whatever the layers that are checkpointed: a search asks for several."""

    def __init__(self, outer: _Source, inner: _Source) -> None:
        self.outer, self.inner = outer, inner
        self.same = {_named(segment): index for index, segment in enumerate(inner.tape.segments)}
        self.twins = self._twins()
        self._acts: dict[tuple[bool, int], _Acts] = {}
        self.sizes: list[tuple[Term, ...]] = []
        workspaces: set[int] = set()
        number_of: dict[object, int] = {}
        for source in (outer, inner):
            for index, terms in enumerate(source.tape.sizes):
                workspace = index in source.tape.workspace_sizes
                number = number_of.setdefault((workspace, _canonical(terms)), len(self.sizes))
                if number == len(self.sizes):
                    self.sizes.append(terms)
                if workspace:
                    workspaces.add(number)
                source.codes.append(number)
        self.workspaces = tuple(sorted(workspaces))

    @classmethod
    @lru_cache(maxsize=8)
    def of(cls, checkpointed: CompiledTape, kept: CompiledTape) -> _Pair:
        """Raises UnlikeError where what is outside the layers differs."""
        return cls(_Source.of(checkpointed), _Source.of(kept))

    def counterpart(self, index: int) -> int:
        """The number of the kept run's segment that is one of the checkpointed run's; -1 where it has none."""
        return self.same.get(_named(self.outer.tape.segments[index]), -1)

    def acts(self, source: _Source, index: int) -> _Acts:
        """What a layer's segment of the checkpointed run does, or the other run's in its place."""
        kept = source is self.inner
        if (kept, index) not in self._acts:
            self._acts[kept, index] = source.acts(self.counterpart(index) if kept else index)
        return self._acts[kept, index]

    def _twins(self) -> dict[int, int]:
        """By storage of the kept run that is born outside the layers, the one of the checkpointed run."""
        twins: dict[int, int] = {}
        for index, segment in enumerate(self.outer.tape.segments):
            if segment.layer != OUTSIDE:
                continue
            ours, theirs = self.outer.births[index], self.inner.births[self.counterpart(index)]
            if not theirs:  # as for the gradient of embeddings, which is wanted for the sake of checkpoints alone
                continue
            if [self.outer.terms(born) for born in ours] != [self.inner.terms(born) for born in theirs]:
                raise UnlikeError(f"{segment.stage} {segment.name} makes other tensors")
            twins |= dict(zip(theirs, ours, strict=True))
        if any(born.layer == OUTSIDE and storage not in twins for storage, born in enumerate(self.inner.born[1:], 1)):
            raise UnlikeError("the two tapes are of other stages")
        return twins


class _Weaver:
    """Goes through the checkpointed run's segments, with the woven tape's layers in place of its own."""

    def __init__(self, pair: _Pair, every: int) -> None:
        self.pair = pair
        outer, inner = self.outer, self.inner = pair.outer, pair.inner
        places = outer.tape.places
        flags = [index % every == 0 for index in range(len(places))]
        numbers: dict[tuple[object, ...], str] = {}
        kinds = []
        for index, part in enumerate(places):
            around = tuple(flags[near] if 0 <= near < len(flags) else None for near in (index - 1, index, index + 1))
            kinds.append(numbers.setdefault((part, around), str(len(numbers))))
        self.kept = bridged(kept_positions(kinds, most=len(kinds)), flags)
        self.places = represent(self.kept, kinds)
        # By layer of the woven tape: the tape that its events are from, and that tape's layer.
        self.sources = [outer if flags[index] else inner for index in self.kept]
        self.parts = [places[index] for index in self.kept]
        # By whose layer plays it and which: the keys of layers, less that of a storage.
        self.layers: dict[tuple[bool, int], list[_Key]] = defaultdict(list)
        for layer, (source, part) in enumerate(zip(self.sources, self.parts, strict=True), 1):
            self.layers[source is inner, part].append(layer * _OF_A_LAYER)

    def woven(self) -> CompiledTape:
        """The third tape."""
        segments: list[tuple[Segment, _Acts]] = []
        numbered = enumerate(self.outer.tape.segments)
        for (in_layers, stage), group in groupby(numbered, key=lambda pair: (pair[1].name == "layer", pair[1].stage)):
            chosen = list(group)
            if not in_layers:
                segments += [(segment, self._outside(index)) for index, segment in chosen]
                continue
            # What a library takes for itself at the first layer that needs it: here before the first of all.
            segments[-1] = segments[-1][0], self._with_lost(segments[-1][1], [index for index, _ in chosen])
            order = range(len(self.kept))
            for layer in reversed(order) if stage == "backward" else order:
                segments += [
                    (_of_layer(segment, layer), self._inside(index, layer))
                    for index, segment in chosen
                    if segment.layer == self.parts[layer]
                ]
        return self._numbered(segments)

    def _with_lost(self, before: _Acts, indices: list[int]) -> _Acts:
        """With the births of workspaces in the checkpointed run's layers whose place a layer of the kept run takes."""
        played = {part for source, part in zip(self.sources, self.parts, strict=True) if source is self.outer}
        outer = self.outer
        lost = [
            storage
            for index in indices
            if outer.tape.segments[index].layer not in played
            for storage in outer.births[index]
            if outer.size[storage] in outer.tape.workspace_sizes
        ]
        return replaced(
            before,
            codes=before.codes + [outer.codes[outer.size[storage]] + 1 for storage in lost],
            born=before.born + len(lost),
            left=before.left + [(storage, number) for number, storage in enumerate(lost, before.born + 1)],
        )

    def _inside(self, index: int, layer: int) -> _Acts:
        """What one layer's segment does."""
        source, part, own = self.sources[layer], self.parts[layer], (layer + 1) * _OF_A_LAYER
        acts = self.pair.acts(source, index)
        return replaced(
            acts,
            left=[(own + storage, number) for storage, number in acts.left],
            freed=[self._freed(source, storage, part, layer) for storage in acts.freed],
        )

    def _freed(self, source: _Source, storage: int, part: int, layer: int) -> _Key:
        """What `layer` frees in place of `storage`, which `part` does."""
        born = source.born[storage].layer
        if born == OUTSIDE:
            return self.pair.twins[storage] if source is self.inner else storage
        return (layer + 1) * _OF_A_LAYER + storage if born == part else self._handed(source, storage, part, layer)

    def _handed(self, source: _Source, storage: int, part: int, layer: int) -> _Key:
        """What the neighbour of `layer` hands to it in place of `storage`, which `part` has of its own neighbour."""
        born = source.born[storage]
        step = born.layer - part
        neighbour = layer + step
        giver, giving = self.sources[neighbour], self.parts[neighbour]
        wanted = source.handed[_pass(born), born.layer, part]
        given = giver.handed[_pass(born), giving, giving - step]
        if [source.terms(each) for each in wanted] != [giver.terms(each) for each in given]:
            raise UnlikeError("layers that keep everything hand on other tensors than those that are checkpointed")
        return (neighbour + 1) * _OF_A_LAYER + given[wanted.index(storage)]

    def _outside(self, index: int) -> _Acts:
        """What a segment outside the layers does."""
        # Deaths of what layers of the kept run leave, by how much is born in this segment before.
        more: dict[int, list[_Key]] = defaultdict(list)
        born = 0
        for code in self.inner.events(self.pair.counterpart(index)):
            born += code > 0
            if code < 0:
                more[born] += self._of_layers(self.inner, -code)
        births = self.outer.births[index]
        codes: list[int] = []
        freed: list[_Key] = []
        born = 0
        for code in self.outer.events(index):
            dead: list[_Key] = []
            if code > 0:
                dead = more[born]
                born += 1
            elif self.outer.born[-code].layer == OUTSIDE:
                dead = [-code]
            else:
                dead = self._of_layers(self.outer, -code)
            freed += dead
            codes += [0] * len(dead) + ([self.outer.codes[code - 1] + 1] if code > 0 else [])
        freed += more[born]
        codes += [0] * len(more[born])
        left = [(storage, number) for number, storage in enumerate(births, 1)]
        return _Acts(codes=codes, born=born, left=left, freed=freed)

    def _of_layers(self, source: _Source, storage: int) -> list[_Key]:
        """A storage of each layer of the woven tape that plays the part in which it is born."""
        return [own + storage for own in self.layers.get((source is self.inner, source.born[storage].layer), ())]

    def _numbered(self, segments: list[tuple[Segment, _Acts]]) -> CompiledTape:
        """The tape of these segments; what is outside the layers dies with the last that frees it."""
        last = {key: at for at, key in enumerate(key for _, acts in segments for key in acts.freed)}
        numbers: dict[_Key, int] = {}
        events: list[int] = []
        placed: list[Segment] = []
        born = done = 0
        for segment, acts in segments:
            start = len(events)
            numbers |= {key: born + number for key, number in acts.left}
            freed = [-numbers[key] if last[key] == at else 0 for at, key in enumerate(acts.freed, done)]
            done += len(freed)
            dead = iter(freed)
            own = [code if code > 0 else code - born if code else next(dead) for code in acts.codes]
            events += own if all(freed) else filter(None, own)
            born += acts.born
            placed.append(segment.at(start, len(events)))
        return replaced(
            self.outer.tape, sizes=tuple(self.pair.sizes), workspace_sizes=self.pair.workspaces, events=tuple(events),
            segments=tuple(placed), places=self.places, kept=self.kept,
        )  # fmt: skip


def _pass(segment: Segment) -> _Pass:
    return segment.stage, segment.step, segment.micro_step


def _named(segment: Segment) -> tuple[str, str, int, int, int]:
    return segment.stage, segment.name, segment.layer, segment.step, segment.micro_step


def _of_layer(segment: Segment, layer: int) -> Segment:
    return replaced(segment, layer=layer)


@lru_cache(maxsize=4096)
def _canonical(terms: tuple[Term, ...]) -> tuple[tuple[tuple[int, int, int], int | Fraction], ...]:
    """Terms of equal polynomials alike."""
    sums: dict[tuple[int, int, int], int | Fraction] = defaultdict(int)
    for numerator, denominator, monomial in terms:
        sums[monomial] += ratio(numerator, denominator)
    return tuple(sorted((monomial, value) for monomial, value in sums.items() if value))
