"""What is predicted of a training on the card in this machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlora_planner.errors import InputError, MissingError
from qlora_planner.memory.unmodelled.left_out import guessed
from qlora_planner.session.cards import PlannedCard
from qlora_planner.spec.risk import TIGHT_AT_MOST
from qlora_planner.spec.run import RunConfig

if TYPE_CHECKING:
    from qlora_planner.memory import MemoryEstimate
    from qlora_planner.session.measuring.this_card import ThisCard
    from qlora_planner.session.session import Session
    from qlora_planner.session.training.onlooker import Onlooker
    from qlora_planner.session.training.prepare import Prepared
    from qlora_planner.session.training.request import TrainRequest
    from qlora_planner.spec.machine import Machine
    from qlora_planner.spec.model import ModelProfile

Widths = tuple[tuple[int, ...], ...]
_COUNTED_BYTES = 16 << 20  # what takes some four seconds to tokenise


class Predictions:
    """Estimates of runs, each made once: what decides whether a run starts is what is recorded of it.

    None on the CPU, for which nothing is planned. `widths` are those of batches that may come before the widest,
    `risk` the chance of running out that is taken.
    """

    def __init__(
        self,
        session: Session,
        profile: ModelProfile | None,
        here: ThisCard | None,
        widths: Widths = (),
        risk: float = TIGHT_AT_MOST,
    ) -> None:
        self._session, self._profile, self._here, self._widths = session, profile, here, widths
        self._opened = None
        self._machine: Machine | None = None
        if profile is not None and here is not None:
            card = PlannedCard(
                gpu=here.gpu,
                asked=here.gpu.name,
                reserve_bytes=here.others_bytes,
                cap_bytes=here.cap_bytes,
                risk=risk,
                count=here.cards,
            )
            self._opened = session.open(profile, card)
            self._machine = card.machine

    def estimate(self, run: RunConfig) -> MemoryEstimate | None:
        """The memory of a run, in bytes."""
        return None if self._opened is None else self._opened.estimate(run, self._widths)

    def document(self, run: RunConfig) -> Mapping[str, Any] | None:
        """The same estimate as it is recorded; None for a guess: see `guessed`."""
        estimate = self.estimate(run)
        return None if estimate is None or self._guess(estimate) else estimate.to_dict()

    def lacking(self, run: RunConfig) -> str | None:
        """A note for a run of which nothing is predicted though there is a card, with the reason."""
        estimate = self.estimate(run)
        why = None if estimate is None else self._guess(estimate)
        return None if why is None else f"nothing is predicted for this run: {why}"

    def _guess(self, estimate: MemoryEstimate) -> str | None:
        return None if self._profile is None else guessed(estimate, self._profile)

    def speed(self, run: RunConfig, tokens: int | None) -> Mapping[str, Any] | None:
        """The speed predicted for rows of `tokens`, which is what the steps that were timed had."""
        if self._opened is None or self._profile is None or self._here is None or not tokens:
            return None
        from qlora_planner.memory.options.resolve import resolve
        from qlora_planner.speed.several import speed_on

        profile, gpu = self._profile, self._here.gpu
        resolution = resolve(profile, run.with_(seq_len=min(tokens, run.seq_len)), gpu)
        speed = speed_on(self._machine, profile, resolution.run, gpu, self._session.calibration, resolution.stack)
        basis = None if speed.basis is None else speed.basis.value
        return {"tokens_per_s": speed.tokens_per_s, "step_s": speed.step_s, "basis": basis}


def measured_widths(session: Session, prepared: Prepared, onlooker: Onlooker) -> Widths:
    """Widths of batches that a plan counted in its data, else those of data that is soon counted; none on the CPU."""
    planned = _widths(prepared.document)
    if planned or prepared.here is None:
        return planned
    return counted_widths(session, prepared.request, prepared.spec.run, onlooker)


def _widths(plan: Mapping[str, Any]) -> Widths:
    data = plan.get("data")
    return tuple(tuple(order) for order in data["run"].get("widths_before", ())) if data else ()


def counted_widths(session: Session, request: TrainRequest, run: RunConfig, onlooker: Onlooker) -> Widths:
    """Of data that is counted in seconds; none of larger ones.

    Data that cannot be read is no matter here: the run reads it too, and says what is wrong with it.
    """
    from qlora_planner.data.batches.widths import widths_before
    from qlora_planner.data.files import find_files
    from qlora_planner.session.training.prepare import counted

    try:
        sizes = (file.size_bytes for file in find_files(request.data)) if Path(request.data).exists() else ()
        size_bytes = sum(sizes)
        if not size_bytes or size_bytes > _COUNTED_BYTES:
            return ()
        summary = counted(session, request, onlooker)
    except (InputError, MissingError):
        return ()
    return widths_before(summary, run.batch_size, run.seq_len, run.packing)
