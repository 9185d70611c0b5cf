"""A card, the memory of a run on it, and the plan for it, as plain records: what `Session` does, in one call each."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from qlora_planner.session import packages
from qlora_planner.session.packages import Warn
from qlora_planner.session.session import Session
from qlora_planner.spec.risk import TIGHT_AT_MOST

if TYPE_CHECKING:
    from qlora_planner.evidence.calibration import Calibration
    from qlora_planner.memory import MemoryEstimate, Unmodelled
    from qlora_planner.planner.plan import Plan
    from qlora_planner.session.cards import PlannedCard
    from qlora_planner.spec.machine import GpuSpec
    from qlora_planner.spec.model import ModelProfile
    from qlora_planner.spec.run import RunConfig


def calibration(profiles: str | os.PathLike[str] | None = None) -> Calibration | None:
    """What measurements say: the user's own and the shipped ones together. None where there are none.

    Raises InputError naming a file that is no calibration.
    """
    return Session(profiles).calibration


def load_gpu(text: str, *, profiles: str | os.PathLike[str] | None = None) -> GpuSpec:
    """The card of `text`: a size such as 24GB or 24564MiB, a catalogue name, or `local` for the one in this machine.

    Raises InputError for what is none of these (with the nearest names) and for several cards, which are given to
    `estimate` and `plan` as they are written (`2xrtx-4090`), MissingError for `local` without a card.
    """
    return Session(profiles).gpu(text)


def ranking_card(gpu: GpuSpec, *, profiles: str | os.PathLike[str] | None = None) -> GpuSpec:
    """The card itself, or for a bare size one of the catalogue that stands in to rank speeds by: see `Session`."""
    return Session(profiles).ranking_card(gpu)


def estimate(
    profile: ModelProfile | str,
    run: RunConfig | None = None,
    gpu: GpuSpec | PlannedCard | str | None = None,
    *,
    reserve_bytes: int = 0,
    cap_bytes: int | None = None,
    risk: str | float = TIGHT_AT_MOST,
    widths: Sequence[Sequence[int]] = (),
    unmodelled: Sequence[Unmodelled] = (),
    profiles: str | os.PathLike[str] | None = None,
    tell: Warn = packages.silent,
) -> MemoryEstimate:
    """The memory of one run, from its trace where that can be had: see `tape_for`.

    `profile` is a model's profile or what `load_model` takes, `gpu` a card or what `load_gpu` takes. Of the card,
    `reserve_bytes` are held by others and `cap_bytes` is torch's own limit; a chance of
    running out up to `risk` ("5%", 5 or 0.05) is taken. `widths` are sequences of those of batches
    that may come before the widest: see `data.batches`. `unmodelled` is what the figures leave out of the run that is
    meant: see `memory.unmodelled.qualified`.

    >>> estimate("qwen2.5-7b", gpu="24GB").verdict
    'fits'

    Raises InputError for options that contradict each other or name modules that are not there, and for a model or a
    card that means nothing; MissingError for a run that would have to be traced where the packages for that are
    missing.
    """
    opened = Session(profiles, tell=tell, risk=risk).open(
        profile, gpu, reserve_bytes=reserve_bytes, cap_bytes=cap_bytes
    )
    return opened.estimate(run, widths, unmodelled)


def plan(
    profile: ModelProfile | str,
    gpu: GpuSpec | PlannedCard | str,
    run: RunConfig | None = None,
    *,
    reserve_bytes: int = 0,
    cap_bytes: int | None = None,
    risk: str | float = TIGHT_AT_MOST,
    profiles: str | os.PathLike[str] | None = None,
    tell: Warn = packages.silent,
    **request: Any,
) -> Plan:
    """The recommended run for a model and a card: see `qlora_planner.planner.plan.plan`.

    `profile`, `gpu`, `reserve_bytes`, `cap_bytes` and `risk` are as for `estimate`; `request` are the other fields of
    `qlora_planner.planner.planner.Request`, such as `objective`, `fixed`, `data`.

    >>> plan("qwen2.5-7b", "24GB").run.method
    'qlora'

    Raises InputError where the stack refuses everything that was left open, and for a model or a card that means
    nothing.
    """
    opened = Session(profiles, tell=tell, risk=risk).open(
        profile, gpu, reserve_bytes=reserve_bytes, cap_bytes=cap_bytes
    )
    return opened.plan(run, **request)
