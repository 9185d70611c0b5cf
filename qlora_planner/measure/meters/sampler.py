"""A thread that reads the card through NVML every 20 ms while a run executes."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from types import TracebackType

from qlora_planner.errors import MissingError
from qlora_planner.evidence import NvmlReading
from qlora_planner.measure.nvml import CardSample, watched_card

INTERVAL_S = 0.020
NO_PROCESS_FIGURE = (
    "this driver gives no figure per process (container, WSL or MIG): the process is the card's use less what was in "
    "use before, which counts whatever others took meanwhile"
)

Heard = Callable[[int | None, int | None], None]


class Sampler:
    """Context manager: samples from entering to leaving; `reading` then holds the peaks.

    The process is found by its id; where the driver shows other ids (a container), it is the one newcomer since
    `before_context`, and where it shows none, the card's use less what was in use then. `heard` is called with
    (process bytes, device bytes) after each sample. Without a driver there are no readings and `notes` says why.
    """

    def __init__(self, index: int, *, heard: Heard | None = None, interval_s: float = INTERVAL_S) -> None:
        self._index, self._heard, self._interval_s = index, heard, interval_s
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._read: Callable[[], CardSample] | None = None
        self._before: CardSample | None = None
        self._pid: int | None = None
        self._source: str | None = None
        self._process_peak: int | None = None
        self._device_peak: int | None = None
        self._others_peak: int | None = None
        self._context: int | None = None
        self._end: int | None = None
        self._fault: BaseException | None = None
        self._lock = threading.Lock()
        self.notes: list[str] = []

    def __enter__(self) -> Sampler:
        """Before the process has touched the card: what is in use now is others'."""
        self._card_context = watched_card(self._index)
        try:
            self._read = self._card_context.__enter__()
        except MissingError as error:
            self.notes.append(str(error))
            return self
        self._before = self._read()
        self._thread = threading.Thread(target=self._run, name="nvml-sampler", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if self._read is not None:
            self._card_context.__exit__(None, None, None)
        if self._fault is not None and error is None:
            raise self._fault

    def context_made(self) -> None:
        """The first tensor is on the card: what the process holds now is its context."""
        if self._read is not None:
            with self._lock:
                self._identify(self._read())
            self._context = self._sample()
            if self._source == "device-difference":
                self.notes.append(NO_PROCESS_FIGURE)

    def look(self) -> None:
        """Read once more, now: what a short phase reserved is still there at its end."""
        if self._read is not None:
            self._sample()

    def last_step_done(self) -> None:
        """What the process holds now is its figure at the end."""
        if self._read is not None:
            self._end = self._sample()

    @property
    def reading(self) -> NvmlReading:
        """The peaks so far; None for what could not be read."""
        return NvmlReading(
            context_bytes=self._context,
            process_peak_bytes=self._process_peak,
            process_end_bytes=self._end,
            device_peak_bytes=self._device_peak,
            others_bytes=self._others_peak,
            source=self._source,
        )

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                started = time.monotonic()
                process = self._sample()
                if self._heard is not None:
                    self._heard(process, self._device_now)
                self._stop.wait(max(0.0, self._interval_s - (time.monotonic() - started)))
        except BaseException as error:  # a thread's exception would be printed and lost: it is raised on leaving
            self._fault = error

    def _identify(self, now: CardSample) -> None:
        """Which of the listed processes is this one."""
        listed = now.processes
        before = (self._before.processes if self._before else None) or {}
        if listed is not None:
            newcomers = [pid for pid in listed if pid not in before]
            own = os.getpid() if os.getpid() in listed else newcomers[0] if len(newcomers) == 1 else None
            if own is not None and listed[own] is not None:
                self._pid, self._source = own, "nvml"
                return
        if now.used_bytes is not None and self._before is not None and self._before.used_bytes is not None:
            self._source = "device-difference"

    def _sample(self) -> int | None:
        """Read once, keep the peaks; the process's bytes now."""
        assert self._read is not None
        with self._lock:
            now = self._read()
            process = self._process_bytes(now)
            others = self._others_bytes(now)
            self._device_now = now.used_bytes
            self._process_peak = larger(self._process_peak, process)
            self._device_peak = larger(self._device_peak, now.used_bytes)
            self._others_peak = larger(self._others_peak, others)
            return process

    def _process_bytes(self, now: CardSample) -> int | None:
        if self._source == "nvml" and self._pid is not None:
            return (now.processes or {}).get(self._pid)
        if self._source == "device-difference" and now.used_bytes is not None and self._before is not None:
            return max(0, now.used_bytes - (self._before.used_bytes or 0))
        return None

    def _others_bytes(self, now: CardSample) -> int | None:
        """Bytes of every other process; where they are not told apart, what was in use before."""
        if self._source == "nvml" and now.processes is not None:
            others = [size for pid, size in now.processes.items() if pid != self._pid]
            return None if any(size is None for size in others) else sum(size or 0 for size in others)
        return None

    _device_now: int | None = None


def larger(first: int | None, second: int | None) -> int | None:
    """The larger of two readings, where either was taken."""
    return max((value for value in (first, second) if value is not None), default=None)
