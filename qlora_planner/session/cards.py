"""The card that is planned for, as it was asked for: what others hold of it, and torch's own limit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from qlora_planner.errors import InputError, MissingError
from qlora_planner.record import record
from qlora_planner.spec.risk import TIGHT_AT_MOST
from qlora_planner.units import format_mib, parse_memory

if TYPE_CHECKING:
    from qlora_planner.catalog.gpus import GpuCatalogue
    from qlora_planner.evidence.calibration import Calibration
    from qlora_planner.memory.budget import Budget
    from qlora_planner.session.session import Session
    from qlora_planner.spec.machine import GpuSpec, Machine, Network

LOCAL = "local"


@record
class PlannedCard:
    """A card that answers are for. Sizes are bytes.

    `asked` is the card as it can be typed again, `count` of them are in each of `nodes`; `note` says where a card comes
    from that nobody named; `risk` is the highest chance of running out on it that is taken. `played_alone`: one rank is
    played on it without the others, so that nothing is sent and NCCL takes nothing. `network` is what nodes talk over,
    where somebody named it. `communicators`: NCCL's of each card, before what a strategy has more.
    """

    gpu: GpuSpec
    asked: str
    reserve_bytes: int = 0
    cap_bytes: int | None = None
    note: str = ""
    risk: float = TIGHT_AT_MOST
    count: int = 1
    nodes: int = 1
    played_alone: bool = False
    network: Network | None = None
    communicators: int = 1

    @property
    def world(self) -> int:
        """How many cards there are in all."""
        return self.count * self.nodes

    @property
    def machine(self) -> Machine:
        """The cards with what they talk over."""
        from qlora_planner.catalog.links import machine_of

        return machine_of(self.gpu, self.count, self.nodes, self.network)

    def budget(self, calibration: Calibration | None) -> Budget:
        """What a process may use of it, by what measurements say."""
        from qlora_planner.memory.budget import Budget

        return Budget.of(
            self.gpu, reserve_bytes=self.reserve_bytes, cap_bytes=self.cap_bytes, calibration=calibration,
            risk=self.risk, machine=self.machine, communicates=not self.played_alone,
            communicators=self.communicators,
        )  # fmt: skip


def card_of_plan(gpu: Mapping[str, Any]) -> tuple[str, int]:
    """The card that a plan file names as it can be typed, with their number, and how many nodes have as many."""
    count, nodes = number_of_plan(gpu)
    return f"{count}x{gpu['name']}" if count > 1 else str(gpu["name"]), nodes


def network_of_plan(gpu: Mapping[str, Any]) -> str | None:
    """What the nodes of a plan file talk over, where it was named."""
    network = gpu.get("node_network")
    return network if isinstance(network, str) else None


def number_of_plan(gpu: Mapping[str, Any]) -> tuple[int, int]:
    """How many cards a plan file has in each node, and how many nodes."""
    count, nodes = (value if isinstance(value := gpu.get(name), int) else 1 for name in ("count", "nodes"))
    return count, nodes


def is_local(text: str) -> bool:
    """Whether the card in this machine is asked for."""
    return text.strip().lower() in (LOCAL, "auto")


def card_of(
    session: Session,
    card: str | GpuSpec | PlannedCard,
    *,
    reserve_bytes: int | None = None,
    cap_bytes: int | None = None,
    nodes: int = 1,
    node_network: str | None = None,
    prefix: str = "",
) -> PlannedCard:
    """The card of a size, a name, a number of them (`2xrtx-4090`, on each of `nodes`) or `local`, or a record already.

    `node_network` is what each node reaches others over, as `8x400Gb`; both may follow in the text as they do on the
    command line, `8xh200 --nodes 2`. Of `local` without `reserve_bytes` that is what other processes hold now. `prefix`
    stands before the names of sizes in messages. Raises InputError for a card, a number of them, a network, a reserve
    or a cap that means nothing, MissingError for `local` without a card.
    """
    if isinstance(card, PlannedCard):
        return card
    from qlora_planner.catalog.gpus.several import Nodes, nodes_of

    if isinstance(card, str):
        typed = nodes_of(card)
        card, nodes, node_network = typed.each, max(nodes, typed.nodes), node_network or typed.network
    network = None if node_network is None else _network(node_network, nodes, prefix)
    planned = _card_of(session, card, reserve_bytes, cap_bytes, nodes, prefix)
    if nodes == 1:
        return planned
    several_nodes = Nodes(each=planned.asked, nodes=nodes, network=None if network is None else network.kind)
    return replace(planned, network=network, asked=several_nodes.typed)


def _card_of(
    session: Session, card: str | GpuSpec, reserve_bytes: int | None, cap_bytes: int | None, nodes: int, prefix: str
) -> PlannedCard:
    if not isinstance(card, str):
        return _checked(card, card.name, reserve_bytes or 0, cap_bytes, (1, nodes), prefix, session.risk)
    if is_local(card):
        from qlora_planner.measure.nvml import local_gpu

        local = local_gpu()
        held_bytes = local.reserve_bytes if reserve_bytes is None else reserve_bytes
        return _checked(local.spec, LOCAL, held_bytes, cap_bytes, (1, nodes), prefix, session.risk)
    from qlora_planner.catalog.gpus.several import several_of

    several = several_of(card)
    gpu = session.gpu(several.each if several else card)
    count = several.count if several else 1
    typed = several.each if several and count == 1 else f"{count}x{several.each}" if several else card.strip()
    return _checked(gpu, typed, reserve_bytes or 0, cap_bytes, (count, nodes), prefix, session.risk)


def card_typed(
    session: Session,
    text: str | None,
    *,
    reserve_bytes: int | None = None,
    cap_bytes: int | None = None,
    nodes: int = 1,
    node_network: str | None = None,
) -> PlannedCard:
    """The card of `--gpu`, for None the one in this machine; `session.tell` hears what was taken for it.

    Raises InputError and MissingError as `card_of` does, InputError where no card was named and none is here.
    """
    try:
        card = card_of(
            session, LOCAL if text is None else text, reserve_bytes=reserve_bytes, cap_bytes=cap_bytes, nodes=nodes,
            node_network=node_network, prefix="--",
        )  # fmt: skip
    except MissingError as error:
        if text is not None:
            raise
        # The user did not ask for this machine's card, so its absence is no missing part but a missing option.
        raise InputError("no card given and none found here; add --gpu, as --gpu 24GB or --gpu rtx-4090") from error
    if text is None:
        session.tell(f"no --gpu given: taking the card in this machine, {card.gpu.label}")
    if (text is None or is_local(text)) and reserve_bytes is None and card.reserve_bytes:
        session.tell(f"other processes hold {format_mib(card.reserve_bytes)} of it now; --reserve says otherwise")
    return card


def size_bytes(size: str | int, name: str) -> int:
    """A number of bytes, or a size such as 800MiB. Raises InputError naming it where it is neither."""
    if isinstance(size, str):
        return parse_memory(size, name, zero=name.endswith("reserve"))
    if isinstance(size, bool) or not isinstance(size, int) or size < (not name.endswith("reserve")):
        raise InputError(f"{name}: {size!r} is no number of bytes; write 838860800 or '800MiB'")
    return size


def _network(text: str, nodes: int, prefix: str) -> Network:
    """Raises InputError for what is no rate, and for a network of one node."""
    from qlora_planner.catalog.links import parse_network

    name = f"{prefix}node-network" if prefix else "node_network"
    if nodes < 2:
        raise InputError(f"{name}: is what nodes talk over, and there is one; add {prefix}nodes 2")
    return parse_network(text, name)


def _checked(
    gpu: GpuSpec,
    typed: str,
    reserve_bytes: int,
    cap_bytes: int | None,
    number: tuple[int, int],
    prefix: str,
    risk: float,
) -> PlannedCard:
    """Raises InputError for more cards than are planned, and for a reserve or a cap that leaves nothing of one, or is
    more than it has. `number` is how many of them a node has, and how many nodes there are."""
    from qlora_planner.catalog.gpus.several import check_count

    count, nodes = number
    check_count(count, nodes, typed)
    total = gpu.memory_bytes
    if reserve_bytes >= total:
        raise InputError(f"{prefix}reserve: {format_mib(reserve_bytes)} is all of the card's {format_mib(total)}")
    if cap_bytes is not None and cap_bytes > total:
        raise InputError(f"{prefix}cap: {format_mib(cap_bytes)} is more than the card's {format_mib(total)}")
    return PlannedCard(
        gpu=gpu, asked=typed, reserve_bytes=reserve_bytes, cap_bytes=cap_bytes, risk=risk, count=count, nodes=nodes
    )


def standing_card(gpu: GpuSpec, catalogue: GpuCatalogue) -> GpuSpec:
    """See `Session.ranking_card`."""
    from qlora_planner.catalog.gpus.sizes import MARKETED_SIZES, marketed_size

    if gpu.bandwidth_bytes_per_s and (gpu.bf16_flops or gpu.fp16_flops or gpu.fp32_flops):
        return gpu
    if gpu.form == "size" and gpu.marketed_gb:
        named = catalogue.get(marketed_size(gpu.marketed_gb).card)
        if named.bandwidth_bytes_per_s and (named.bf16_flops or named.fp16_flops):
            return named
    rated = [card for card in catalogue.all() if card.bandwidth_bytes_per_s and card.bf16_flops]
    # Of cards with the same memory the one that stands for its size: the others are rarer, and some far slower.
    standard = {row.card for row in MARKETED_SIZES}

    def order(card: GpuSpec) -> tuple[bool, int, bool, str]:
        return card.memory_bytes < gpu.memory_bytes, card.memory_bytes, card.name not in standard, card.name

    return min(rated, key=order)
