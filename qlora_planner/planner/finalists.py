"""A search's finalists, played: what `plan` shows as an answer is played wherever a stored tape holds for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from qlora_planner.catalog.cuda import cublas_workspace_bytes
from qlora_planner.hardware import GpuSpec
from qlora_planner.memory.played import play_run
from qlora_planner.memory.resolve import resolve
from qlora_planner.planner.limits import SEQ_STEP, Bench, largest_batch, longest_seq_len
from qlora_planner.profile import ModelProfile
from qlora_planner.profile.tape import Tape
from qlora_planner.run import RunConfig

TapeOf = Callable[[RunConfig], Tape | None]
# A figure that plays and fits is not searched on for less than this part of it.
_WORTH_ANOTHER = 0.02
_MOST_PLAYS = 3
_MOST_SHRINKS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Finalist:
    """What a search found; `played` says that the run was played and fits."""

    value: int | None
    played: bool = False
    device_bytes: int | None = None


@dataclass(slots=True, kw_only=True)
class Referee:
    """Plays finalists, and ranks on with what the last one played took over its allocated bytes."""

    profile: ModelProfile
    gpu: GpuSpec
    asked: RunConfig
    bench: Bench
    tape_of: TapeOf

    def longest(self, batch_size: int, model_limit: int | None) -> Finalist:
        """Tokens per sequence, a multiple of 64."""
        return self._settle(
            lambda bench: longest_seq_len(bench, batch_size, model_limit),
            lambda seq_len: self.asked.with_(batch_size=batch_size, seq_len=seq_len),
            SEQ_STEP,
        )

    def batch(self, seq_len: int) -> Finalist:
        """Sequences per device and step."""
        return self._settle(
            lambda bench: largest_batch(bench, seq_len),
            lambda batch_size: self.asked.with_(batch_size=batch_size, seq_len=seq_len),
            1,
        )

    def play(self, run: RunConfig) -> Finalist | None:
        """Play a run from a stored tape; None where none holds.

        It counts as fitting when what segments in use come to does: an estimate's floor is at most that.
        """
        tape = self.tape_of(run)
        if tape is None:
            return None
        resolution = resolve(self.profile, run, self.gpu)
        played = play_run(self.profile, resolution, tape, cublas_workspace_bytes(self.gpu.compute_capability))
        resolved, floor = resolution.run, max(played.pinned, played.allocated)
        ratio = self.bench.ratio_of(floor, resolved.seq_len, resolved.batch_size)
        if ratio is not None:  # rank on with what this run took over its allocated bytes
            self.bench = replace(self.bench, over_allocated=ratio)
        return Finalist(
            value=None,
            played=self.bench.fits_at(floor, resolved) and not any(p.blocking for p in resolution.problems),
            device_bytes=played.reserved + self.bench.beside(resolved),
        )

    def _settle(self, search: Callable[[Bench], int | None], run_of: Callable[[int], RunConfig], step: int) -> Finalist:
        best = Finalist(value=None)
        over: list[int] = []  # figures that were played and do not fit
        for _ in range(_MOST_PLAYS):
            figure = search(self.bench)
            if figure is None:
                return best
            if over:
                figure = min(figure, min(over) - step)
            if best.value is not None and figure - best.value < max(step, _WORTH_ANOTHER * best.value):
                return best
            answer = self.play(run_of(figure))
            if answer is None:
                return best if best.played else Finalist(value=figure)
            if answer.played:
                best = replace(answer, value=figure)
            else:
                over.append(figure)
        return best if best.played else self._shrunk(min(over), run_of, step)

    def _shrunk(self, figure: int, run_of: Callable[[int], RunConfig], step: int) -> Finalist:
        """Ever less of a figure that did not fit, until it does."""
        for _ in range(_MOST_SHRINKS):
            figure = min(figure - step, int(figure * 0.95) // step * step)
            if figure < step:
                break
            answer = self.play(run_of(figure))
            if answer is not None and answer.played:
                return replace(answer, value=figure)
        return Finalist(value=None)
