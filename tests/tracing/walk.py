"""One class of the causal-LM mapping, traced with a CPU's semantics, against real CPU allocator events.

Twice: a toy of one layer per kind, traced as it is; and a deep one, compiled from traces of a few kept layers at other
batches, lengths and ranks, and played at its whole depth. Both must give the real run's bytes exactly.
"""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qlora_planner.catalog import OPTIMIZERS, TRAINER_ROWS
from qlora_planner.memory.allocator.caching import Block
from qlora_planner.memory.allocator.caching import Segment as Cached
from qlora_planner.memory.replay.events import prepare_trace
from qlora_planner.memory.replay.player import COMPONENTS, TraceReplayer
from qlora_planner.profiling.adapters import linear_leaves
from qlora_planner.profiling.refusals import words_of
from qlora_planner.profiling.tracing import build, engine
from qlora_planner.profiling.tracing.spec import TraceSpec
from qlora_planner.spec.run import RunConfig
from qlora_planner.spec.trace import Tape
from tests.tracing import real_cpu
from tests.tracing.real_cpu import PHASES
from tests.tracing.specs import spec_of
from tests.tracing.toys import toy_of
from tools.compiling import NotPolynomialError, compile_tapes

Point = tuple[int, int, int]  # batch, sequence, rank
Targets = str | list[str]
_LIBRARIES = ("transformers", "peft", "accelerate")
SHALLOW: Point = (2, 40, 8)
DEPTH = 6
DEEP: Point = (5, 64, 12)
COMPILED_FROM: tuple[Point, ...] = ((2, 40, 8), (3, 56, 20), (4, 72, 24), (3, 88, 40), (2, 104, 56))
CHECKED_AT: Point = (4, 48, 16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """`status`: same, differs, refused (by the libraries, in the trace as in the real run) or failed."""

    status: str
    words: str = ""


class ExactMemory:
    """An allocator without rounding, segments or cache, with what `TraceReplayer` asks of one."""

    def __init__(self) -> None:
        self.allocated = self.peak_allocated = 0
        self.peak_reserved = self.peak_non_releasable_bytes = 0

    def malloc(self, size: int, _streamed: bool = False) -> Block:
        self.allocated += size
        self.peak_allocated = max(self.peak_allocated, self.allocated)
        return Block(0, size, 0, Cached(size))

    def free(self, block: Block) -> None:
        self.allocated -= block.size

    def reset_peaks(self) -> None:
        self.peak_allocated = self.allocated

    def empty_cache(self) -> None:
        """Nothing is cached."""


def lora_spec(point: Point, targets: Targets, checkpointing: bool) -> TraceSpec:
    """Plain LoRA in a plain loop, as `real_cpu` trains."""
    batch_size, seq_len, rank = point
    return spec_of(
        method="lora", quant="none", trainer="loop", upcast=False, lora_dropout=0.0, attention="eager", on_cpu=True,
        batch_size=batch_size, seq_len=seq_len, rank=rank, gradient_checkpointing=checkpointing, optimizer="sgd",
        target_modules=targets if isinstance(targets, str) else tuple(targets),
    )  # fmt: skip


def bytes_of(tape: Tape) -> tuple[dict[str, int], dict[str, int]]:
    """The highest of each phase and what is alive when it ends."""
    peaks, ends = dict.fromkeys(PHASES, 0), dict.fromkeys(PHASES, 0)
    alive: dict[int, int] = {}
    live = 0
    for segment in tape.segments:
        name = f"{segment.stage} {segment.step}"
        for storage, size in tape.events[segment.start : segment.stop]:
            live += size or -alive.pop(storage)
            if size:
                alive[storage] = size
            if name in peaks:
                peaks[name] = max(peaks[name], live)
        if name in ends:
            ends[name] = live
    return peaks, ends


def played(tape: Tape, checkpointing: bool) -> tuple[int, int]:
    """Peaks of forward and of backward over the steps, at the whole model's depth."""
    memory: Any = ExactMemory()
    player = TraceReplayer(memory, prepare_trace(tape, checkpointing), [0] * len(COMPONENTS))
    player.play([], RunConfig(trainer="loop"), TRAINER_ROWS["loop"], OPTIMIZERS["sgd"])
    phases = {name: phase.peak.allocated for name, phase in player.phases.items()}
    assert player.lost == 0, f"{player.lost} storages lost"
    return max(phases["forward"], phases["loss"]), phases["backward"]


def fitting_targets(raw: dict[str, Any], checkpointing: bool) -> tuple[Targets, list[Any]]:
    """all-linear, or the plain linear modules that PEFT takes where the real step breaks with that; and its events.

    Raises the first exception where the class runs with neither.
    """
    try:
        return "all-linear", real_step(raw, SHALLOW, "all-linear", checkpointing)
    except Exception as error:  # whatever a library raises: what follows asks whether that is the targets' doing
        first = error
    with build.quiet():
        leaves = linear_leaves(build.skeleton(raw, "eager"), plain=True)  # type: ignore[arg-type]
    targets = [leaf for leaf in leaves if f"'{leaf}'" not in str(first)]
    try:
        return targets, real_step(raw, SHALLOW, targets, checkpointing)
    except Exception:
        raise first from None


def real_step(raw: dict[str, Any], point: Point, targets: Targets, checkpointing: bool) -> list[Any]:
    """Real allocator events of this toy."""
    batch_size, seq_len, rank = point
    return real_cpu.profiled(real_cpu.real_model(raw, targets, rank, checkpointing), batch_size, seq_len)


def shallow(model_type: str, checkpointing: bool) -> tuple[Targets | None, Outcome]:
    """One layer of each kind, traced at the real step's own sizes; with the targets that worked."""
    try:
        raw = toy_of(model_type)
    except Exception as error:  # config classes raise what they like
        return None, Outcome(status="refused", words=words_of(error))

    def trace(targets: Targets) -> Tape:
        return engine.trace(raw, lora_spec(SHALLOW, targets, checkpointing))

    try:
        targets, events = fitting_targets(raw, checkpointing)
    except Exception as error:  # any library may refuse; tracing must then break in the same way
        return None, _refused_alike(error, lambda: trace("all-linear"))
    finally:
        gc.collect()
    real = real_cpu.read(events)
    try:
        peaks, ends = bytes_of(trace(targets))
    except Exception as error:  # any model code may fail on fake tensors: that is a finding
        return targets, Outcome(status="failed", words=words_of(error))
    if peaks == real.peaks and ends == real.ends:
        return targets, Outcome(status="same", words=f"{max(peaks.values())} bytes")
    off = [f"{name} {peaks[name]} for {real.peaks[name]}" for name in PHASES if peaks[name] != real.peaks[name]]
    off += [f"after {name} {ends[name]} for {real.ends[name]}" for name in PHASES if ends[name] != real.ends[name]]
    return targets, Outcome(status="differs", words="; ".join(off))


def _refused_alike(error: Exception, trace: Callable[[], Tape]) -> Outcome:
    try:
        trace()
    except Exception as traced:  # compared, not hidden
        if type(traced) is type(error) and _place(traced) == _place(error):
            return Outcome(status="refused", words=words_of(error))
        return Outcome(status="failed", words=f"{words_of(traced)} where the real run says {words_of(error)}")
    return Outcome(status="differs", words=f"traced, where the real run says {words_of(error)}")


def _place(error: Exception) -> tuple[str, str] | None:
    """The innermost function of a library, below torch, that an exception passed through."""
    frames = [(frame.filename, frame.name) for frame in traceback.extract_tb(error.__traceback__)]
    return next((frame for frame in reversed(frames) if any(f"/{name}/" in frame[0] for name in _LIBRARIES)), None)


def deep(model_type: str, targets: Targets, checkpointing: bool) -> Outcome:
    """Several layers of each kind, compiled at other sizes and played at the whole depth."""
    raw = toy_of(model_type, DEPTH)

    def trace(point: Point) -> Tape:
        return engine.trace(raw, lora_spec(point, targets, checkpointing))

    words = ""
    try:
        step = real_cpu.read(real_step(raw, DEEP, targets, checkpointing))
        try:
            tape = compile_tapes(trace, COMPILED_FROM, CHECKED_AT, "toy").at(*DEEP)
        except NotPolynomialError as error:
            words = f"not compiled: {words_of(error)}"
            tape = trace(DEEP)
        found = played(tape, checkpointing)
    except Exception as error:  # any model code may fail on fake tensors: that is a finding
        return Outcome(status="failed", words=words_of(error))
    finally:
        gc.collect()
    real = tuple(max(step.peaks[f"{stage} {number}"] for number in (0, 1)) for stage in ("forward", "backward"))
    if found == real:
        return Outcome(status="same", words=words or f"{max(real)} bytes")
    return Outcome(status="differs", words=f"forward and backward {found} for {real}; {words}")
