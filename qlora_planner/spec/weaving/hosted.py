"""The tape of a run whose checkpointed layers keep their inputs in the host's memory, made of two that ship: of the run
that keeps them on the card, and of the one that checkpoints nothing.

transformers wraps torch's `save_on_cpu` around each checkpointed layer (modeling_utils.py, `offload`). The input is
copied to the host before the layer begins and leaves the card with the layer's end. In backward a copy comes back
before the layer is computed again. It lives until nothing more of that is needed, which is where a run that
checkpoints nothing lets go of the input: within forward, or where backward has used it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from qlora_planner.spec.trace import CompiledTape, Segment, Term
from qlora_planner.spec.weaving.partial import OUTSIDE, UnlikeError

# A storage by its number in the tape, or what is new: the input of a layer on the host, and its copy on the card, by
# the number of the layer's forward segment.
_Key = tuple[str, int]
_GONE = -1  # in place of a size: the death of a storage
_Act = tuple[_Key, int]
# Births of a layer's backward before the layer is computed again, at the most: gradients that come in.
_MOST_BEFORE = 8


@dataclass(slots=True)
class _Lives:
    """One tape, with where its storages are born and die."""

    tape: CompiledTape
    acts: list[list[_Act]] = field(default_factory=list)  # by segment
    size: dict[int, tuple[Term, ...]] = field(default_factory=dict)  # by storage
    code: dict[int, int] = field(default_factory=dict)  # the number of its size, alike
    born: dict[int, int] = field(default_factory=dict)  # the segment where it is born, alike
    died: dict[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, tape: CompiledTape) -> _Lives:
        lives = cls(tape)
        for at, segment in enumerate(tape.segments):
            acts: list[_Act] = []
            for event in tape.events[segment.start : segment.stop]:
                if event > 0:
                    number = len(lives.born) + 1
                    lives.born[number], lives.code[number] = at, event - 1
                    lives.size[number] = tape.sizes[event - 1]
                    acts.append((("own", number), event - 1))
                else:
                    lives.died[-event] = at
                    acts.append((("own", -event), _GONE))
            lives.acts.append(acts)
        return lives

    def segment(self, stage: str, like: Segment) -> int:
        """The segment of this stage of a layer, in the pass of `like`. Raises UnlikeError where there is none."""
        for at, one in enumerate(self.tape.segments):
            if (one.stage, one.name, one.layer, one.step, one.micro_step) == (
                stage, "layer", like.layer, like.step, like.micro_step,
            ):  # fmt: skip
                return at
        raise UnlikeError(f"a layer has no {stage}")

    def births(self, segment: int) -> list[int]:
        """The tape's own storages that are born in a segment."""
        return [number for (whose, number), code in self.acts[segment] if code != _GONE and whose == "own"]

    def stage_of_death(self, number: int) -> str | None:
        """The stage in which a storage dies; None of one that lives on."""
        at = self.died.get(number)
        return None if at is None else self.tape.segments[at].stage


def inputs_on_host(card: CompiledTape, kept: CompiledTape) -> CompiledTape:
    """The tape of the run that moves the inputs of all layers, from that of the same run which leaves them on the card
    and that of the run that checkpoints nothing.

    Raises UnlikeError where a layer's input cannot be told from what else the layer before it leaves.
    """
    if any(tape.tokens or tape.host_sizes or tape.streamed_sizes for tape in (card, kept)):
        raise UnlikeError("generated tokens and offloaded activations are traced run by run")
    lives, whole = _Lives.of(card), _Lives.of(kept)
    layers = [at for at, segment in enumerate(card.segments) if (segment.stage, segment.name) == ("forward", "layer")]
    inputs = {at: _input_of(lives, at) for at in layers}
    later = next((at for at, number in inputs.items() if number is not None), None)
    if later is None:
        raise UnlikeError("no layer takes its input from another")
    host_sizes: dict[int, int] = {}
    for at, number in inputs.items():
        back = lives.segment("backward", card.segments[at])
        size = lives.code[inputs[later] or 0] if number is None else lives.code[number]
        if number is None:  # the embeddings' output may be narrower than what layers hand on
            lasting = [each for each in lives.births(at - 1) if lives.stage_of_death(each) == "after"]
            size = lives.code[lasting[0]] if len(lasting) == 1 else size
        on_host = host_sizes.setdefault(size, len(card.sizes) + len(host_sizes))
        waits, copy = ("host", at), ("copy", at)
        lives.acts[at - 1].append((waits, on_host))
        own = at if number is not None else later
        begins, again = _computed_again(lives, whole, card.segments[at])
        left = _births_left(lives, whole, own, inputs[own] or 0) if size == lives.code[inputs[own] or 0] else None
        acts = lives.acts[back]
        until = begins + again if left is None else len(lives.births(back)) - left
        if again < _computed_again(lives, whole, card.segments[own])[1]:
            until = len(lives.births(back))  # a first layer that begins in its own way: its copy is taken to stay
        acts.insert(_index_after(acts, until, burst=True), (copy, _GONE))
        acts.insert(_index_after(acts, begins, burst=False), (copy, size))
        if number is None:
            acts.append((waits, _GONE))
            continue
        acts[acts.index((("own", number), _GONE))] = waits, _GONE
        ends = lives.acts[at]
        host_birth = next((i for i, (key, _) in enumerate(ends) if key[0] == "host"), len(ends))
        ends.insert(host_birth, (("own", number), _GONE))
    return _numbered(card, lives, host_sizes)


def _input_of(lives: _Lives, at: int) -> int | None:
    """The storage that waits on the card for the backward of the layer at `at`; None of the first layer, whose input
    lives on for the embeddings' sake."""
    if lives.tape.segments[at - 1].layer == OUTSIDE:
        return None
    back = lives.segment("backward", lives.tape.segments[at])
    held = [number for number in lives.births(at - 1) if lives.died.get(number) == back]
    if len(held) != 1:
        raise UnlikeError("a layer's input cannot be told from what else the layer before it leaves")
    return held[0]


def _computed_again(lives: _Lives, whole: _Lives, layer: Segment) -> tuple[int, int]:
    """How many births of a layer's backward come before it is computed again, and how many that makes: up to the last
    tensor that backward needs."""
    made = [whole.size[number] for number in whole.births(whole.segment("forward", layer))]
    here = [lives.size[number] for number in lives.births(lives.segment("backward", layer))]

    def alike(begins: int) -> int:
        pairs = enumerate(zip(here[begins:], made, strict=False))
        return next((count for count, (one, other) in pairs if one != other), min(len(here) - begins, len(made)))

    begins = max(range(_MOST_BEFORE), key=alike)
    return begins, alike(begins)


def _births_left(lives: _Lives, whole: _Lives, at: int, number: int) -> int | None:
    """How many births of a layer's backward come after it has let go of the layer's input; None where backward does
    not need that.

    Which storage it is of the run that checkpoints nothing, its place at the end of what the layer before makes tells.
    """
    here, forward = lives.births(at - 1), whole.segment("forward", lives.tape.segments[at])
    from_end = len(here) - here.index(number)
    there = whole.births(forward - 1)[-from_end:]
    if [lives.size[each] for each in here[-from_end:]] != [whole.size[each] for each in there]:
        raise UnlikeError("layers that keep everything make other tensors")
    back = whole.segment("backward", lives.tape.segments[at])
    if whole.died.get(there[0]) == forward:
        return None
    if whole.died.get(there[0]) != back:
        raise UnlikeError("a layer's input outlives its backward")
    acts = whole.acts[back]
    return sum(code != _GONE for _, code in acts[acts.index((("own", there[0]), _GONE)) :])


def _index_after(acts: list[_Act], count: int, *, burst: bool) -> int:
    """The index behind so many births, and with `burst` behind what dies with the last of them."""
    born = [index for index, (_, code) in enumerate(acts) if code != _GONE]
    return born[count] if count < len(born) else len(acts) if burst else born[-1] + 1


def _numbered(card: CompiledTape, lives: _Lives, host_sizes: dict[int, int]) -> CompiledTape:
    numbers: dict[_Key, int] = {}
    events: list[int] = []
    segments: list[Segment] = []
    for segment, acts in zip(card.segments, lives.acts, strict=True):
        start = len(events)
        for key, code in acts:
            if code == _GONE:
                events.append(-numbers[key])
            else:
                numbers[key] = len(numbers) + 1
                events.append(code + 1)
        segments.append(segment.at(start, len(events)))
    return replace(
        card, sizes=(*card.sizes, *(card.sizes[size] for size in host_sizes)), events=tuple(events),
        segments=tuple(segments), host_sizes=tuple(host_sizes.values()),
    )  # fmt: skip
