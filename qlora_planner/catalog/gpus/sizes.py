"""`--gpu`: an explicit size, a size as sold, or a card; and what of a card a process can use."""

from __future__ import annotations

import re

from qlora_planner.catalog.gpus.catalogue import LONGEST_NAME, GpuCatalogue
from qlora_planner.catalog.gpus.several import refuse_slice, several_of
from qlora_planner.errors import InputError
from qlora_planner.record import record
from qlora_planner.spec.machine import Fact, GpuSpec
from qlora_planner.units import GIB, MIB, format_mib, parse_size

_NUMBER_AND_UNIT = re.compile(r"([+-]?)(\d{1,9}(?:\.\d{1,9})?)\s*([a-z]+)", re.IGNORECASE)
# Units that people write for a size and that are none here; they are never part of a card's name.
_NO_UNITS = frozenset({"b", "k", "kb", "kib", "m", "mb", "g", "t", "tb"})
_FEWEST_GB = 4  # no card that trains has less
_SMALLEST_BYTES, _LARGEST_BYTES = 256 * MIB, 4096 * GIB


@record
class MarketedSize:
    """What `24GB` on a box comes to: `memory_mib` as the driver reports it on `card`.

    `smaller` are cards sold with the same figure that report less: few train on them, or they are far below the rest.
    """

    marketed_gb: int
    card: str
    memory_mib: int
    why: str
    smaller: tuple[str, ...] = ()
    shared_with_host: bool = False


def _row(
    gb: int, card: str, mib: int, why: str, smaller: tuple[str, ...] = (), *, shared_with_host: bool = False
) -> MarketedSize:
    return MarketedSize(
        marketed_gb=gb, card=card, memory_mib=mib, why=why, smaller=smaller, shared_with_host=shared_with_host
    )


# The smallest card sold with each figure, so that an answer holds for all of them. A box's figure is never computed
# with: ECC takes a sixteenth of some cards, and drivers round differently.
MARKETED_SIZES: tuple[MarketedSize, ...] = (
    _row(6, "rtx-a2000", 6138, "the smallest sold as 6GB; GeForce cards have 6,141 or 6,144 MiB"),
    _row(8, "rtx-5060", 8151, "the smallest sold as 8GB; other GeForce cards have 8,188 or 8,192 MiB"),
    _row(10, "rtx-3080-10gb", 10240, "the only one sold as 10GB"),
    _row(11, "rtx-2080-ti", 11264, "the same on every card sold as 11GB"),
    _row(12, "rtx-5070", 12227, "the smallest sold as 12GB; others have 12,282 or 12,288 MiB"),
    _row(
        16, "t4", 15360, "the smallest in wide use sold as 16GB (ECC takes a sixteenth); GeForce cards have 16,303 to"
        " 16,384 MiB", ("a16", "a2"),
    ),
    _row(20, "rtx-a4500", 20470, "the smallest sold as 20GB"),
    _row(
        24, "rtx-4090", 24564, "the smallest NVIDIA desktop card sold as 24GB",
        ("a10", "a10g", "l4", "m40-24gb", "p40", "rtx-5090-laptop", "rtx-pro-4000", "rx-7900-xtx"),
    ),
    _row(32, "rtx-5090", 32607, "the smallest sold as 32GB"),
    _row(40, "a100-40gb", 40960, "the same on every card sold as 40GB"),
    _row(48, "l40s", 46068, "the smallest sold as 48GB (ECC takes a sixteenth); the RTX A6000 has 49,140 MiB"),
    _row(64, "mi210", 65520, "the smallest sold as 64GB"),
    _row(72, "rtx-pro-5000-72gb", 73415, "the only one sold as 72GB"),
    _row(80, "h100", 81559, "the smallest sold as 80GB; the A100 has 81,920 MiB"),
    _row(94, "h100-nvl", 95830, "the only one sold as 94GB"),
    _row(96, "gh200", 97871, "the smallest sold as 96GB; the RTX PRO 6000 has 97,887 MiB"),
    _row(128, "gb10", 122502, "the only one sold as 128GB: the whole machine's memory, the host's too",
         shared_with_host=True),
    _row(141, "h200", 143771, "the same on every card sold as 141GB"),
    _row(180, "b200", 183359, "the only one sold as 180GB"),
    _row(186, "gb200", 189471, "the only one sold as 186GB"),
    _row(192, "b200", 183359, "the B200 was announced with 192GB and has this; the MI300X has 196,592 MiB"),
    _row(256, "mi325x", 262128, "the only one sold as 256GB"),
    _row(288, "b300", 275040, "the smallest sold as 288GB; the MI355X has 294,896 MiB"),
)  # fmt: skip

# What the driver keeps of the total that NVML reports, in MiB: the most seen on any card of up to that size whose two
# totals are both published (cuda_total_mib in the catalogue). It grows in steps rather than with memory, from 439 MiB
# of 8 GB to 926 of 288, so a ratio would be far too much for large cards or too little for small ones.
DRIVER_KEEPS_MIB: tuple[tuple[int, int], ...] = (
    (6144, 338), (12288, 439), (24576, 495), (32768, 505), (49152, 772), (131072, 882), (4096 * 1024, 926),
)  # fmt: skip


def marketed_size(marketed_gb: int) -> MarketedSize:
    """The row for a figure on a box. Raises InputError with the known figures for one that no card is sold with."""
    for row in MARKETED_SIZES:
        if row.marketed_gb == marketed_gb:
            return row
    sold = ", ".join(str(row.marketed_gb) for row in MARKETED_SIZES)
    raise InputError(
        f"--gpu: no card is sold with {marketed_gb}GB; known are {sold} GB, any other size is written in GiB or MiB"
    )


def parse_gpu(text: str, catalogue: GpuCatalogue) -> GpuSpec:
    """The card or bare size that `text` means: `24564MiB` and `24GiB` literally, `24GB` by the table, else a card.

    What a bare size does not tell (rates, bf16, compute capability) is unknown. `local` is the caller's to handle. Of
    several cards, as `2xrtx-3090`, it is one. Raises InputError of one line that names the known sizes or the nearest
    cards.
    """
    given = text.strip()
    if len(given) > LONGEST_NAME:
        raise InputError(f"--gpu: {len(given):,} characters are no size and no card of the catalogue")
    if several := several_of(given):
        return parse_gpu(several.each, catalogue)
    size = _NUMBER_AND_UNIT.fullmatch(given)
    unit = size.group(3).lower() if size else ""
    if size and unit in ("gb", "mib", "gib", "tib"):
        sign, number = size.group(1), size.group(2)
        if sign == "-" or float(number) == 0:
            raise InputError(f"--gpu: {given!r} must be more than zero; write it like 24GB, 24GiB or 24564MiB")
        return _as_sold(given, number) if unit == "gb" else _literal(given, number + unit)
    if size and (unit in _NO_UNITS or (len(size.group(2).partition(".")[0]) <= 3 and unit != "ti")):
        meant = f" ({size.group(2)}GB is as sold, {size.group(2)}GiB exact)" if unit == "g" else ""
        raise InputError(f"--gpu: {given!r} is not a size; write it like 24GB, 24GiB or 24564MiB{meant}")
    if given.isascii() and given.isdigit() and len(given) <= 3:
        if int(given) < _FEWEST_GB:
            raise InputError(
                f"--gpu: {given!r} reads like a device's number or a count of cards; `local` is the card in this"
                " machine, 24GB a size, rtx-4090 a card"
            )
        raise InputError(f"--gpu: {given!r} has no unit; write {given}GB as sold, or {given}GiB exactly")
    refuse_slice(given)
    return catalogue.find(given)


def _as_sold(given: str, number: str) -> GpuSpec:
    if not number.isdigit():
        raise InputError(f"--gpu: no card is sold with {given!r}; write an exact size in GiB or MiB")
    row = marketed_size(int(number))
    smaller = f"; {', '.join(row.smaller)} report less: name the card" if row.smaller else ""
    note = f"{row.marketed_gb}GB is taken as {format_mib(row.memory_mib * MIB)}, as the driver reports on {row.card}"
    return GpuSpec(
        name=given,
        label=f"{row.marketed_gb}GB card",
        memory_bytes=row.memory_mib * MIB,
        marketed_gb=row.marketed_gb,
        shared_with_host=row.shared_with_host,
        facts={"memory_bytes": Fact(source=f"table of sizes as sold: {row.card}, {row.why}", date="2026-11-23")},
        note=f"{note}: {row.why}{smaller}",
    )


def _literal(given: str, size: str) -> GpuSpec:
    memory_bytes = parse_size(size, option="--gpu")
    if not _SMALLEST_BYTES <= memory_bytes <= _LARGEST_BYTES:
        raise InputError(f"--gpu: {given!r} is no card's memory; sizes go from 256MiB to 4096GiB")
    return GpuSpec(name=given, label=f"card of {format_mib(memory_bytes)}", memory_bytes=memory_bytes)


def driver_keeps_bytes(memory_bytes: int) -> int:
    """What a driver is assumed to keep of a card of `memory_bytes`: the most seen on cards up to that size.

    Just above a step it rises with the size instead of jumping, so that a larger card never has less to give.
    """
    below_bytes, kept_below_bytes = 0, 0
    for up_to_mib, kept_mib in DRIVER_KEEPS_MIB:
        if memory_bytes <= up_to_mib * MIB:
            return min(kept_mib * MIB, kept_below_bytes + memory_bytes - below_bytes)
        below_bytes, kept_below_bytes = up_to_mib * MIB, kept_mib * MIB
    return kept_below_bytes


def usable_bytes(spec: GpuSpec, reserve_bytes: int = 0) -> tuple[int, str]:
    """What CUDA can give one process on the card, less `reserve_bytes`, and one line that says why.

    CUDA's own total where it is known, all of a memory that the host shares, else NVML's less what drivers were seen to
    keep. Never below zero. torch's per-process limit is not part of it. Raises InputError for a negative reserve.
    """
    if reserve_bytes < 0:
        raise InputError("--reserve: must not be negative")
    total = format_mib(spec.memory_bytes)
    if spec.shared_with_host:
        usable = spec.memory_bytes
        why = f"CUDA's {total} are the whole machine's memory: what the host and every program hold comes off it"
    elif spec.cuda_total_bytes is not None:
        usable = min(spec.cuda_total_bytes, spec.memory_bytes)
        why = f"CUDA reports {format_mib(usable)} of this card's {total}"
    else:
        kept = driver_keeps_bytes(spec.memory_bytes)
        usable = max(0, spec.memory_bytes - kept)
        why = f"{total} less {format_mib(kept)}, the most that drivers were seen to keep of cards up to this size"
    if reserve_bytes:
        why += f", less {format_mib(reserve_bytes)} held back"
    return max(0, usable - reserve_bytes), why
