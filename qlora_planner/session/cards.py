"""The card that is planned for, as it was asked for: what others hold of it, and torch's own limit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qlora_planner.errors import InputError, MissingError
from qlora_planner.record import record
from qlora_planner.spec.risk import TIGHT_AT_MOST
from qlora_planner.units import format_mib, parse_memory

if TYPE_CHECKING:
    from qlora_planner.catalog.gpus import GpuCatalogue
    from qlora_planner.catalog.gpus.several import Several
    from qlora_planner.evidence.calibration import Calibration
    from qlora_planner.memory.budget import Budget
    from qlora_planner.session.session import Session
    from qlora_planner.spec.machine import GpuSpec

LOCAL = "local"


@record
class PlannedCard:
    """A card that answers are for. Sizes are bytes.

    `asked` is the card as it can be typed again, `several` the cards that were asked for, of which this is one; `note`
    says where a card comes from that nobody named; `risk` is the highest chance of running out on it that is taken.
    """

    gpu: GpuSpec
    asked: str
    reserve_bytes: int = 0
    cap_bytes: int | None = None
    several: Several | None = None
    note: str = ""
    risk: float = TIGHT_AT_MOST

    def budget(self, calibration: Calibration | None) -> Budget:
        """What a process may use of it, by what measurements say."""
        from qlora_planner.memory.budget import Budget

        return Budget.of(
            self.gpu, reserve_bytes=self.reserve_bytes, cap_bytes=self.cap_bytes, calibration=calibration,
            risk=self.risk,
        )  # fmt: skip


def is_local(text: str) -> bool:
    """Whether the card in this machine is asked for."""
    return text.strip().lower() in (LOCAL, "auto")


def card_of(
    session: Session,
    card: str | GpuSpec | PlannedCard,
    *,
    reserve_bytes: int | None = None,
    cap_bytes: int | None = None,
    prefix: str = "",
) -> PlannedCard:
    """The card of a size, a name or `local`, or a record already.

    Of `local` without `reserve_bytes` that is what other processes hold now. `prefix` stands before the names of sizes
    in messages. Raises InputError for a card, a reserve or a cap that means nothing, MissingError for `local` without a
    card.
    """
    if isinstance(card, PlannedCard):
        return card
    if not isinstance(card, str):
        return _checked(card, card.name, reserve_bytes or 0, cap_bytes, None, prefix, session.risk)
    if is_local(card):
        from qlora_planner.measure.nvml import local_gpu

        local = local_gpu()
        held_bytes = local.reserve_bytes if reserve_bytes is None else reserve_bytes
        return _checked(local.spec, LOCAL, held_bytes, cap_bytes, None, prefix, session.risk)
    from qlora_planner.catalog.gpus.several import several_of

    gpu, several = session.gpu(card), several_of(card)
    typed = several.each if several else card.strip()
    many = several if several is not None and several.count > 1 else None
    return _checked(gpu, typed, reserve_bytes or 0, cap_bytes, many, prefix, session.risk)


def card_typed(
    session: Session, text: str | None, *, reserve_bytes: int | None = None, cap_bytes: int | None = None
) -> PlannedCard:
    """The card of `--gpu`, for None the one in this machine; `session.tell` hears what was taken for it.

    Raises InputError and MissingError as `card_of` does, InputError where no card was named and none is here.
    """
    try:
        card = card_of(
            session, LOCAL if text is None else text, reserve_bytes=reserve_bytes, cap_bytes=cap_bytes, prefix="--"
        )
    except MissingError as error:
        if text is not None:
            raise
        # The user did not ask for this machine's card, so its absence is no missing part but a missing option.
        raise InputError("no card given and none found here; add --gpu, as --gpu 24GB or --gpu rtx-4090") from error
    if text is None:
        session.tell(f"no --gpu given: taking the card in this machine, {card.gpu.label}")
    elif card.several is not None:
        session.tell(f"--gpu {text.strip()}: {card.several.note}")
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


def _checked(
    gpu: GpuSpec,
    typed: str,
    reserve_bytes: int,
    cap_bytes: int | None,
    several: Several | None,
    prefix: str,
    risk: float,
) -> PlannedCard:
    """Raises InputError for a reserve or a cap that leaves nothing of the card, or is more than it has."""
    total = gpu.memory_bytes
    if reserve_bytes >= total:
        raise InputError(f"{prefix}reserve: {format_mib(reserve_bytes)} is all of the card's {format_mib(total)}")
    if cap_bytes is not None and cap_bytes > total:
        raise InputError(f"{prefix}cap: {format_mib(cap_bytes)} is more than the card's {format_mib(total)}")
    return PlannedCard(
        gpu=gpu, asked=typed, reserve_bytes=reserve_bytes, cap_bytes=cap_bytes, several=several, risk=risk
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
