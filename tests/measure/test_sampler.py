"""The sampling thread, with an invented card behind it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from qlora_planner.errors import MissingError
from qlora_planner.measure.meters import sampler
from qlora_planner.measure.nvml import CardSample

Card = dict[str, object]


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    """What the invented card answers; a test changes it while the sampler runs."""
    now: Card = {"used": 1000, "processes": {7: 400}, "reads": 0}

    @contextmanager
    def watched(_index: int) -> Iterator[Callable[[], CardSample]]:
        def read() -> CardSample:
            now["reads"] = int(str(now["reads"])) + 1
            fault = now.get("fault")
            if isinstance(fault, Exception):
                raise fault
            return CardSample(used_bytes=now["used"], processes=now["processes"])  # type: ignore[arg-type]

        yield read

    monkeypatch.setattr(sampler, "watched_card", watched)
    return now


def wait_for_reads(card: Card, more: int = 3) -> None:
    target = int(str(card["reads"])) + more
    deadline = time.monotonic() + 5
    while int(str(card["reads"])) < target and time.monotonic() < deadline:
        time.sleep(0.002)


def test_peaks_of_the_process_the_card_and_the_others(card: Card) -> None:
    with sampler.Sampler(0, interval_s=0.001) as watched:
        card.update(used=1600, processes={7: 400, os.getpid(): 600})
        watched.context_made()
        card.update(used=9000, processes={7: 500, os.getpid(): 8000})
        wait_for_reads(card)
        card.update(used=3000, processes={7: 400, os.getpid(): 2500})
        watched.last_step_done()
    reading = watched.reading
    assert (reading.context_bytes, reading.process_peak_bytes, reading.process_end_bytes) == (600, 8000, 2500)
    assert (reading.device_peak_bytes, reading.others_bytes, reading.source) == (9000, 500, "nvml")
    assert watched.notes == []


def test_other_process_ids_than_the_driver_has_ours_is_the_newcomer(card: Card) -> None:
    with sampler.Sampler(0, interval_s=0.001) as watched:
        card.update(processes={7: 400, 4_000_002: 612})
        watched.context_made()
    assert (watched.reading.context_bytes, watched.reading.source) == (612, "nvml")


def test_no_figure_per_process_falls_back_and_says_so(card: Card) -> None:
    card["processes"] = None
    with sampler.Sampler(0, interval_s=0.001) as watched:
        card["used"] = 1700
        watched.context_made()
    assert (watched.reading.context_bytes, watched.reading.source) == (700, "device-difference")
    assert watched.reading.others_bytes is None
    assert watched.notes == [sampler.NO_PROCESS_FIGURE]


def test_two_newcomers_are_not_guessed_between(card: Card) -> None:
    with sampler.Sampler(0, interval_s=0.001) as watched:
        card.update(used=2200, processes={7: 400, 4_000_002: 600, 4_000_003: 600})
        watched.context_made()
    assert watched.reading.source == "device-difference"


def test_missing_readings_are_none(card: Card) -> None:
    card.update(used=None, processes=None)
    with sampler.Sampler(0, interval_s=0.001) as watched:
        watched.context_made()
        watched.last_step_done()
    assert (watched.reading.process_peak_bytes, watched.reading.device_peak_bytes) == (None, None)
    assert watched.reading.source is None


def test_no_driver_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def absent(_index: int) -> Iterator[Callable[[], CardSample]]:
        raise MissingError("NVML: no driver")
        yield

    monkeypatch.setattr(sampler, "watched_card", absent)
    with sampler.Sampler(0) as watched:
        watched.context_made()
    assert watched.notes == ["NVML: no driver"]
    assert watched.reading.device_peak_bytes is None


def test_a_fault_in_the_thread_is_raised(card: Card) -> None:
    with pytest.raises(RuntimeError, match="lost"), sampler.Sampler(0, interval_s=0.001):
        card["fault"] = RuntimeError("lost")
        time.sleep(0.05)
