"""The highest moments of a model's default recipe out of its family, where no trace of its own ships."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

from qlora_planner.errors import PlannerError
from qlora_planner.memory.options.resolve import resolve
from qlora_planner.memory.sweep.polynomials import PeakPolynomials
from qlora_planner.memory.sweep.validity import LEAST_TOKENS, ValidityRange, trace_key, validity_ranges
from qlora_planner.planner.sweeps import KeptSweep, SweptRange
from qlora_planner.record import replaced
from qlora_planner.sources.families import family_tape
from qlora_planner.sources.tapes import stored_sweep
from qlora_planner.spec.machine import GpuSpec
from qlora_planner.spec.model import ModelProfile
from qlora_planner.spec.run import RunConfig
from tools.peaks import peak_polynomials_of

# One of each kind of kernels, which is one of each dtype too.
_CARDS = tuple(
    GpuSpec(name="any", label="any card", memory_bytes=1, bf16=bf16, compute_capability=capability)
    for bf16, capability in ((True, "8.0"), (False, "7.5"))
)
# Sizes that are tried in each range, the usual first: one of them lies inside.
_ROWS = [(1, seq) for seq in (2048, 384, 6144, 768, 1024, 3072, 5120, 12288, 40960)]
_CHUNK = 64
# Rows that fill the blocks of every state space, and one that does not.
_FILLED, _NOT_FILLED = (512, 1024, 2048, 4096, 8192, 16384), 2000
_BATCHES = [(8, 384), (8, 2048), (2, 1024), (4, 768), (4, 4096), (2, 6144), (4, 6144)]


def full_sweep(profile: ModelProfile, root: Path) -> KeptSweep | None:
    """What a search ranks a model by: its own traces, and its family's for ranges that these leave out; None where
    there is neither."""
    own = stored_sweep(profile, [root / "tapes"])
    parts = () if own is None else own.parts
    # What rows of one length take of their blocks says nothing of others: moments hold at their own length alone.
    by_blocks = _by_blocks(profile, root)
    for card, batched in product(_CARDS, (False, True)):
        covered = [
            part.region
            for part in (parts if card.bf16 else ())  # own traces are of cards that have it
            if isinstance(part.region, ValidityRange) and part.region.batched == batched
        ]
        more = _of_lengths if by_blocks else _parts
        parts += tuple(more(profile, root, card, batched, covered))
    return KeptSweep(parts=parts) if parts else None


def _asked(profile: ModelProfile, card: GpuSpec, batched: bool) -> tuple[RunConfig, str] | None:
    """The default run on a card and its variant; None where it is refused."""
    try:
        resolution = resolve(profile, RunConfig(batch_size=8) if batched else RunConfig(), card)
    except PlannerError:
        return None
    return resolution.run, trace_key(resolution.run, resolution.stack, card)


def _by_blocks(profile: ModelProfile, root: Path) -> bool:
    """Whether a tape holds for rows of as many blocks alone; wide heads, which round a length by little, are none."""
    asked = _asked(profile, _CARDS[0], False)
    if asked is None:
        return False
    filled, part = (family_tape(profile, asked[1], [root / "families"], 1, seq) for seq in (_FILLED[2], _NOT_FILLED))
    narrow = filled is not None and filled.region.high - filled.region.low < LEAST_TOKENS
    return narrow and (part is None or part.region.high - part.region.low > 1)


def _of_lengths(
    profile: ModelProfile, root: Path, card: GpuSpec, batched: bool, covered: Sequence[ValidityRange]
) -> Iterator[SweptRange[PeakPolynomials]]:
    """Moments of the usual lengths, each for itself."""
    asked = _asked(profile, card, batched)
    for seq_len, region in product(_FILLED, validity_ranges(profile, batched) if asked else ()):
        rows = next((rows for rows in ((2, 4, 8, 16) if batched else (1,)) if region.holds(rows, seq_len)), None)
        run, variant = asked or (RunConfig(), "")
        tape = None if rows is None else family_tape(profile, variant, [root / "families"], rows, seq_len)
        alone = replaced(region, low=seq_len - 1, high=seq_len)
        if tape is not None and not _overlaps(alone, covered):
            moments = peak_polynomials_of(tape.tape, run, alone, peaks_only=True)
            yield SweptRange(variant=variant, region=alone, moments=moments)


def _overlaps(region: ValidityRange, others: Sequence[ValidityRange]) -> bool:
    return any(
        max(region.low, other.low) < min(region.high, other.high)
        and max(region.tokens, other.tokens) < min(region.most_tokens, other.most_tokens)
        for other in others
    )


def _parts(
    profile: ModelProfile, root: Path, card: GpuSpec, batched: bool, covered: Sequence[ValidityRange]
) -> Iterator[SweptRange[PeakPolynomials]]:
    asked = _asked(profile, card, batched)
    if asked is None:
        return
    run, variant = asked
    for region in validity_ranges(profile, batched):
        if _overlaps(region, covered):
            continue
        held = [
            tape
            for batch_size, seq_len in (_BATCHES if batched else _ROWS)
            if region.holds(batch_size, seq_len)
            and (tape := family_tape(profile, variant, [root / "families"], batch_size, seq_len)) is not None
        ]
        # A row that goes chunk by chunk has more events the longer it is: no moments are those of a whole range.
        looped = len({len(each.tape.events) for each in held if each.region.high - each.region.low <= _CHUNK}) > 1
        for stored in () if looped else held[:1]:
            moments = peak_polynomials_of(stored.tape, run, region, peaks_only=True)
            yield SweptRange(variant=variant, region=region, moments=moments)
