"""The cards that this process trains on, read while it does: its own, or all of a pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from types import TracebackType
from typing import Any

from qlora_planner.errors import MissingError
from qlora_planner.evidence import PhaseReading
from qlora_planner.measure.card import Card
from qlora_planner.measure.meters.sampler import Sampler
from qlora_planner.runs.child.callbacks import Tell


class Cards:
    """Context manager: `count` cards from visible card `first`, sampled until it is left. `tell` hears of each sample,
    by the card's number where there are several. `card` and `sampler` are the first one's."""

    def __init__(self, first: int, count: int, tell: Tell) -> None:
        self.first, self._tell = first, tell
        self.cards = [Card.find(first + index) for index in range(count)]
        self.samplers = [
            Sampler(card.nvml_index, heard=partial(self._heard, index)) for index, card in enumerate(self.cards)
        ]
        self.card, self.sampler = self.cards[0], self.samplers[0]
        self._watched = ExitStack()

    def __enter__(self) -> Cards:
        """Raises MissingError where torch sees no card."""
        import torch

        if not torch.cuda.is_available():
            raise MissingError("torch sees no CUDA device here; see `qlora-plan doctor`, or use --device cpu")
        for sampler in self.samplers:
            self._watched.enter_context(sampler)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._watched.__exit__(kind, error, traceback)

    def _heard(self, index: int, process_bytes: int | None, device_bytes: int | None) -> None:
        beside = {"rank": index} if len(self.cards) > 1 else {}
        self._tell("memory", {"process_bytes": process_bytes, "device_bytes": device_bytes, **beside})

    def take(self, cap_bytes: int | None) -> None:
        """Make the context on each card, under torch's own limit where there is one."""
        import torch

        for index, sampler in enumerate(self.samplers, self.first):
            if cap_bytes is not None:
                total = torch.cuda.get_device_properties(index).total_memory
                torch.cuda.set_per_process_memory_fraction(min(1.0, cap_bytes / total), index)
            torch.zeros(1, device=f"cuda:{index}")
            sampler.context_made()

    def look(self) -> None:
        """Read every card once more, now."""
        for sampler in self.samplers:
            sampler.look()

    def last_step_done(self) -> None:
        """What the process holds now is its figure at the end."""
        for sampler in self.samplers:
            sampler.last_step_done()

    def each(self, first: PhaseReading | None) -> list[dict[str, Any]]:
        """What each of several cards took at the most, told as ranks tell it of theirs: of the first in training, of
        the others, whose counters nobody sets back, from loading on. Empty for one card."""
        import torch

        def training(index: int) -> Mapping[str, Any]:
            if index == 0:
                return {} if first is None else asdict(first)
            return {
                "allocated_bytes": torch.cuda.max_memory_allocated(self.first + index),
                "reserved_bytes": torch.cuda.max_memory_reserved(self.first + index),
            }

        return [
            {"rank": index, "gpu": asdict(card.reading()), "phases": {"training": training(index)},
             "nvml": asdict(self.samplers[index].reading)}
            for index, card in enumerate(self.cards) if len(self.cards) > 1
        ]  # fmt: skip
