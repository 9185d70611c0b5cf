"""A dataset under the run that is explored, without a terminal: counted, and what a length makes of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from qlora_planner.errors import MissingError, PlannerError
from qlora_planner.record import record
from qlora_planner.session.data import DataSource, summary_of
from qlora_planner.spec.run import RunConfig
from qlora_planner.tui.core import Subject

if TYPE_CHECKING:
    from qlora_planner.data.batches.epochs import DataPlan
    from qlora_planner.data.batches.summary import DataSummary
    from qlora_planner.data.scan import Moved
    from qlora_planner.memory import MemoryEstimate


class NoTokenizerError(MissingError):
    """Nothing counts the dataset's tokens yet: another tokenizer is to be named."""


def count(source: DataSource, model: str | None, *, moved: Moved, warn: Callable[[str], None]) -> DataSummary:
    """The lengths of every row. Raises what `session.data.summary_of` does, and NoTokenizerError where that asks for
    options of a command line."""
    from qlora_planner.data.tokenizers import INSTEAD

    try:
        return summary_of(source, model, tell=warn, moved=moved)
    except PlannerError as error:
        words = str(error)
        if words.endswith(INSTEAD) or words.startswith("--tokenizer: "):
            cause = words.removesuffix(INSTEAD).removesuffix(", or ").removesuffix("; ")
            raise NoTokenizerError(cause.removeprefix("--tokenizer: ")) from None
        raise


@record
class DataView:
    """A dataset under one run at one length: `plan` as a plan document has it, and the peaks of the run in bytes at
    that length and at the one that cuts nothing."""

    plan: DataPlan
    run: RunConfig
    uncut: int
    peak_bytes: int
    uncut_peak_bytes: int
    verdict: str

    @classmethod
    def of(cls, subject: Subject, run: RunConfig, data: DataSummary, cut: int | None) -> DataView:
        """`cut` tokens at most, None for the run's own length. Raises InputError for a run that has no estimate."""
        from qlora_planner.data.batches.epochs import plan_data
        from qlora_planner.data.batches.summary import seq_len_for
        from qlora_planner.data.batches.widths import widths_before
        from qlora_planner.memory.unmodelled.qualified import qualified

        def estimated(length: int | None) -> MemoryEstimate:
            at = run if length is None else run.with_(seq_len=length)
            estimate = subject.estimate(at, widths_before(data, at.batch_size, at.seq_len, at.packing))
            return qualified(estimate, data.unmodelled)

        uncut = seq_len_for(data, subject.model_limit)
        at, whole = estimated(cut), estimated(uncut)
        plan = plan_data(
            data, seq_len=at.run.seq_len, batch_size=at.run.batch_size, grad_accum=at.run.grad_accum,
            packing=at.run.packing, tokens_per_s=at.speed.tokens_per_s, limit=subject.model_limit,
            peak_bytes=lambda length: estimated(length).peak.device_bytes,
        )  # fmt: skip
        return cls(
            plan=plan, run=at.run, uncut=uncut, peak_bytes=at.peak.device_bytes,
            uncut_peak_bytes=whole.peak.device_bytes, verdict=at.verdict or "",
        )  # fmt: skip

    @property
    def saved_bytes(self) -> int:
        """What cutting here frees against cutting nothing."""
        return self.uncut_peak_bytes - self.peak_bytes


def stops(data: DataSummary, limit: int | None) -> tuple[int, ...]:
    """Where the slider stops: every 64 tokens up to 1,024, then every eighth of a power of two, to the longest row."""
    from qlora_planner.data.batches.summary import SEQ_UNIT, seq_len_for

    last = seq_len_for(data, limit)
    lengths, at = [], SEQ_UNIT
    while at < last:
        lengths.append(at)
        at += max(SEQ_UNIT, (1 << at.bit_length() - 1) // 8)
    return (*lengths, last)
