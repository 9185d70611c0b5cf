"""How long sequences with images may be: each run with images is traced by itself, so a few are, along a line."""

from __future__ import annotations

from qlora_planner.errors import InputError
from qlora_planner.evidence.calibration import TRACED
from qlora_planner.memory.records import MemoryEstimate
from qlora_planner.planner.around.partial import judged_by
from qlora_planner.planner.candidate_memory import Scale
from qlora_planner.planner.knobs import at_batch, of_length
from qlora_planner.planner.neighbours import PlayedOf, frontier
from qlora_planner.planner.planner import Planner
from qlora_planner.planner.records import FrontierPoint
from qlora_planner.planner.sweeps import MAX_SEQ_LEN, SEQ_STEP
from qlora_planner.spec.run import RunConfig

# Batches that are worth their traces, and traces of each: floors are near a line in the tokens of a batch.
BATCHES = (1, 2, 4)
_MOST_TRACES = 3


def frontier_around(
    planner: Planner, here: MemoryEstimate, scale: Scale, played_of: PlayedOf
) -> tuple[FrontierPoint, ...]:
    """The longest sequence of each batch: see `frontier`. With images, of which `here` is the run's own estimate, the
    longest found for some batches that fits by its own estimate, with as many images in each; a batch of which none was
    found is left out."""
    run, model_limit, budget = here.run, planner.model_limit, planner.budget
    if not run.shows_images:
        return frontier(planner.factory, run, model_limit, scale, judged_by(planner, planner.roughly))
    limit_bytes = budget.largest_floor(TRACED, budget.context_for(run), budget.fits_at_most)
    slope = 0.0
    for seq_len in (run.seq_len // 2 // SEQ_STEP * SEQ_STEP, 2 * run.seq_len):
        other = None if slope else _estimated(run, run.batch_size, seq_len, played_of)
        if other is not None:
            slope = (other.floor_bytes - here.floor_bytes) / (other.run.tokens - here.run.tokens)
    if slope <= 0:  # loading needs more than any of these, or none is traced
        return ()
    most = min(model_limit or MAX_SEQ_LEN, MAX_SEQ_LEN)
    start = here.run.tokens + (limit_bytes - here.floor_bytes) / slope
    points = []
    for batch in sorted({*BATCHES, run.batch_size}):
        longest, sure = _longest(run, batch, start / batch, slope * batch, limit_bytes, most, played_of)
        if batch == run.batch_size and here.verdict == "fits":
            longest = max(longest or 0, run.seq_len)
        if longest is not None and sure:
            points.append(FrontierPoint(batch_size=batch, seq_len=longest, played=True))
    return tuple(points)


def _longest(
    run: RunConfig, batch: int, start: float, slope: float, limit_bytes: int, most: int, played_of: PlayedOf
) -> tuple[int | None, bool]:
    """The longest that was found to fit, and whether none is longer for want of a trace."""
    fits: int | None = None
    too_long = most // SEQ_STEP * SEQ_STEP + SEQ_STEP
    tried = int(start) // SEQ_STEP * SEQ_STEP
    for _ in range(_MOST_TRACES):
        tried = min(tried, too_long - SEQ_STEP)
        if tried < SEQ_STEP or tried == fits:
            break
        answer = _estimated(run, batch, tried, played_of)
        if answer is None:
            return fits, False
        if answer.verdict == "fits":
            fits = tried
        else:
            too_long = tried
        along = tried + int((limit_bytes - answer.floor_bytes) / slope // SEQ_STEP) * SEQ_STEP
        if tried == fits and along <= tried:
            break
        if not (fits or 0) < along < too_long:  # floors are on no such line
            along = ((fits or 0) + too_long) // 2 // SEQ_STEP * SEQ_STEP
        tried = along
    return fits, True


def _estimated(run: RunConfig, batch: int, seq_len: int, played_of: PlayedOf) -> MemoryEstimate | None:
    """The estimate of the run with other rows; None where they hold no image, or are not traced."""
    change = {"padding": None, **at_batch(run, batch)} if batch != run.batch_size else {}
    try:
        answer = played_of(of_length(run.with_(**change), seq_len)) if seq_len else None
    except InputError:
        return None
    return answer if answer is not None and answer.method == TRACED and answer.floor_bytes else None
