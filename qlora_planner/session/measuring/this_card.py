"""Where a verification can run: packages, the card, who else is on it, the limit that stands for another card."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from qlora_planner.catalog.parallel import communication_row
from qlora_planner.errors import InputError, MissingError
from qlora_planner.hub_address import check_endpoint
from qlora_planner.installing import install_packages
from qlora_planner.record import record
from qlora_planner.session.cards import is_local
from qlora_planner.session.packages import Warn, missing_for
from qlora_planner.spec.run import RunConfig
from qlora_planner.units import format_mib

if TYPE_CHECKING:
    from qlora_planner.memory import MemoryEstimate
    from qlora_planner.session.cards import PlannedCard
    from qlora_planner.session.session import Session
    from qlora_planner.spec.machine import GpuSpec

# Less than this may be the driver's own.
_NOTICED_BYTES = 256 << 20


@record
class ThisCard:
    """The card in this machine, which runs execute on: what `processes` hold of it, and torch's limit, in bytes.

    Of several, `cards` of them, it is the smallest with the most that others hold.
    """

    gpu: GpuSpec
    others_bytes: int
    cap_bytes: int | None
    processes: tuple[int, ...]
    cards: int = 1


def check_packages(run: RunConfig) -> None:
    """Raises MissingError with the line that installs what this run imports."""
    check_endpoint()  # before transformers imports the Hub library
    missing = missing_for(run)
    if missing:
        raise MissingError(f"missing here: {', '.join(missing)}; {install_packages(missing)}")


def this_card_as(session: Session, card: PlannedCard | None = None, cap_bytes: int | None = None) -> ThisCard:
    """This machine's card, or as many as `card` says, and the limit that makes each behave like it, which leaves its
    reserve to others.

    `cap_bytes` limits torch where no card is named. Raises MissingError where there are not so many, and for one that
    is smaller than the one asked for.
    """
    from qlora_planner.catalog.gpus import usable_bytes
    from qlora_planner.memory.budget import context_of

    cards = 1 if card is None else card.count
    here = these_cards(cards)
    gpu = here.gpu
    if card is not None:
        cap_bytes = card.cap_bytes
    if card is not None and not is_local(card.asked):
        smaller = card.gpu
        if smaller.memory_bytes > gpu.memory_bytes:
            raise MissingError(
                f"{smaller.label} has {format_mib(smaller.memory_bytes)}, the card here only"
                f" {format_mib(gpu.memory_bytes)}: {gpu.label} can stand for smaller cards alone"
            )
        beside = context_of(gpu, session.calibration).total_bytes + _communication_bytes(gpu, cards)
        left = usable_bytes(smaller, card.reserve_bytes)[0] - beside
        if left <= 0:
            raise InputError(f"--gpu: {smaller.label} leaves nothing beside a context of this card")
        cap_bytes = left if cap_bytes is None else min(cap_bytes, left)
        session.tell(f"torch is limited to {format_mib(cap_bytes)}, what {smaller.label} leaves after the context")
    if cap_bytes is not None and cap_bytes > gpu.memory_bytes:
        raise InputError(f"--cap: {format_mib(cap_bytes)} is more than the card's {format_mib(gpu.memory_bytes)}")
    return replace(here, cap_bytes=cap_bytes)


def these_cards(count: int) -> ThisCard:
    """The first `count` cards of this machine. Raises MissingError where it has fewer."""
    from qlora_planner.measure.nvml import local_gpu, visible_devices

    there = 1 if count == 1 else len(visible_devices())
    if there < count:
        raise MissingError(f"this run is on {count} cards, and {there} of this machine can be seen; see nvidia-smi -L")
    local = [local_gpu(index) for index in range(count)]
    smallest = min((card.spec for card in local), key=lambda spec: spec.memory_bytes)
    return ThisCard(
        gpu=_catalogued(smallest),
        others_bytes=max(card.reserve_bytes for card in local),
        cap_bytes=None,
        processes=tuple(process.pid for card in local for process in card.reading.processes or ()),
        cards=count,
    )


def _communication_bytes(gpu: GpuSpec, cards: int) -> int:
    """What talking to the others takes of each of several cards, outside of torch."""
    return 0 if cards == 1 else communication_row(gpu.name, cards, nodes=1).first_bytes


def _catalogued(spec: GpuSpec) -> GpuSpec:
    """The catalogue's card of that name, which knows CUDA's own total, where it has the same memory."""
    from qlora_planner import session

    try:
        listed = session.load_gpu(spec.name)
    except InputError:
        return spec
    return listed if listed.memory_bytes == spec.memory_bytes else spec


def check_room(here: ThisCard, predicted: MemoryEstimate, tell: Warn) -> None:
    """Raises MissingError where the run cannot even load, or where others hold what it needs."""
    from qlora_planner.catalog.gpus import usable_bytes

    whole = usable_bytes(here.gpu)[0]
    if predicted.static.after_load > whole:
        raise MissingError(
            f"{here.gpu.label} is too small: the weights alone take {format_mib(predicted.static.after_load)}"
            f" of {format_mib(whole)}"
        )
    if here.others_bytes and predicted.floor_bytes <= whole < predicted.floor_bytes + here.others_bytes:
        who = f" (processes {', '.join(map(str, here.processes[:4]))})" if here.processes else ""
        raise MissingError(
            f"{here.gpu.label} is in use by others{who}: they hold {format_mib(here.others_bytes)}, and this run"
            f" needs {format_mib(predicted.floor_bytes)} of {format_mib(whole)}"
        )
    if here.processes or here.others_bytes >= _NOTICED_BYTES:
        tell(f"others hold {format_mib(here.others_bytes)} of the card: step times do not count")
    if predicted.verdict == "does-not-fit":
        tell(f"predicted to run out of memory: it needs {format_mib(predicted.floor_bytes)}")
