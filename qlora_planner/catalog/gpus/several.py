"""What people write after `--gpu` that is neither a size nor a card: several cards, slices of cards, device numbers."""

from __future__ import annotations

import re
import shlex

from qlora_planner.errors import InputError
from qlora_planner.record import record

_COUNT_FIRST = re.compile(r"(\d{1,3})\s*[x×*]\s*(?=\S)(.+)", re.IGNORECASE)
_COUNT_LAST = re.compile(r"(.*\d.*?)\s*(?:\s[x×*]|[x×*](?=\s)|(?<=\d)[x×*])\s*(\d{1,3})", re.IGNORECASE)
_MOST_CARDS = 1024
_OPTIONS = re.compile(r"\s--(nodes|node-network)[\s=]")
_LONGEST = 200  # characters: no card is called more, and a pattern takes time with the square of them

# A virtual card is named after the physical one, with its profile's size and kind: A10-24Q, GRID T4-16C, A100-4-20C.
_VIRTUAL = re.compile(r"(?:(?:nvidia|grid)[\s-]*)*[a-z]+[\s-]?\w*?(?:[\s-]\d{1,2})?-\d{1,3}[abcq]", re.IGNORECASE)
# A slice of a card by its compute and memory, as `nvidia-smi mig` names it.
_SLICE = re.compile(r".*?\b\d{1,2}g\.\d{1,3}gb.*", re.IGNORECASE)
_HOW_LARGE = "nvidia-smi --query-gpu=memory.total --format=csv"


@record
class Several:
    """A number of cards of one kind, as `2xrtx-3090` asks for them."""

    count: int
    each: str


def several_of(text: str) -> Several | None:
    """The cards of `2xrtx-3090`, `4 x T4`, `2x24GB` or `T4 x2`; None for what is no number of cards.

    Raises InputError for a number that no machine has.
    """
    given = text.strip()
    if len(given) > _LONGEST:
        return None
    if first := _COUNT_FIRST.fullmatch(given):
        count, each = int(first[1]), first[2].strip()
    elif last := _COUNT_LAST.fullmatch(given):
        count, each = int(last[2]), last[1].strip()
    else:
        return None
    if not 1 <= count <= _MOST_CARDS:
        raise InputError(f"--gpu: {count} cards are no machine; write one card, as --gpu {each[:60]!r}")
    return Several(count=count, each=each)


@record
class Nodes:
    """A card, or a number of them, in each of some nodes: `8xh200 --nodes 2 --node-network 8x400Gb`."""

    each: str
    nodes: int = 1
    network: str | None = None

    @property
    def typed(self) -> str:
        """As it is read."""
        nodes = f" --nodes {self.nodes}" if self.nodes > 1 else ""
        return f"{self.each}{nodes}{f' --node-network {self.network}' if self.network else ''}"

    @property
    def words(self) -> list[str]:
        """The options of a command line that ask for it."""
        nodes = ["--nodes", str(self.nodes)] if self.nodes > 1 else []
        return ["--gpu", self.each, *nodes, *(["--node-network", self.network] if self.network else [])]


def nodes_of(text: str) -> Nodes:
    """A card with the options that may follow it. Raises InputError for one that is given twice or means nothing."""
    options: dict[str, str] = {}
    card, *words = _OPTIONS.split(text[:_LONGEST])
    for name, value in zip(words[::2], words[1::2], strict=True):
        if name in options or not value.strip():
            raise InputError(f"--{name}: is given {'twice' if name in options else 'nothing'}; write it once")
        options[name] = value.strip()
    nodes = options.get("nodes", "1")
    if not nodes.isdecimal() or len(nodes) > 4:
        raise InputError(f"--nodes {nodes[:20]}: is no number of machines; write --nodes 2")
    each = card.strip() if words else text
    return Nodes(each=each, nodes=int(nodes), network=options.get("node-network"))


def card_words(text: str) -> str:
    """The options of a command line that ask for a card as it was typed, quoted for a shell."""
    return shlex.join(nodes_of(text).words)


def check_count(count: int, nodes: int, typed: str) -> None:
    """Raises InputError for more cards, or nodes, than any machine here has."""
    if nodes < 1:
        raise InputError(f"--nodes {nodes}: at least one node trains; leave it out for one")
    if count * nodes > _MOST_CARDS:
        raise InputError(f"--gpu {typed[:60]} on {nodes} nodes: more than {_MOST_CARDS:,} cards are not planned")


def refuse_slice(text: str) -> None:
    """Raises InputError for a virtual card or a slice of one: its host decides what it has."""
    given = text.strip()[:_LONGEST]
    kind = "a slice of a card (MIG)" if _SLICE.fullmatch(given) else None
    kind = "a virtual card (vGPU)" if kind is None and _VIRTUAL.fullmatch(given) else kind
    if kind is not None:
        raise InputError(
            f"--gpu: {given[:60]!r} is {kind}, of which its host decides the memory; give its size in MiB, as"
            f" --gpu 24000MiB (`{_HOW_LARGE}` shows it), or `local` on that machine"
        )
