"""The memory of one option set of one model over many batches and lengths at once, for a search.

Where a trace holds, allocated bytes are those of its moments; elsewhere closed forms stand in. Both become the floor
that an estimate has, and whether that fits is asked of the same law.
"""

from __future__ import annotations

from dataclasses import field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qlora_planner.catalog import find_optimizer
from qlora_planner.catalog.cuda import ContextRow
from qlora_planner.evidence.calibration import TRACED
from qlora_planner.memory.allocator.expandable import is_expandable
from qlora_planner.memory.budget import Budget
from qlora_planner.memory.closed_form import activations
from qlora_planner.memory.closed_form.estimate import RESERVED_OVER_ALLOCATED_EXPANDABLE, allocated_levels
from qlora_planner.memory.closed_form.static_peaks import MemoryTerms, StaticPeaks, memory_terms, static_peaks_of
from qlora_planner.memory.options.resolve import Resolution, resolve
from qlora_planner.memory.sweep.polynomials import FixedBytes
from qlora_planner.memory.sweep.validity import accumulates_apart, trace_key
from qlora_planner.memory.weights.loading import PhasePeak
from qlora_planner.memory.weights.placement import UNBILLED, Placement, billed_by_trainer
from qlora_planner.memory.weights.static import static_memory
from qlora_planner.memory.weights.targets import as_traced
from qlora_planner.memory.weights.trainable import training_state
from qlora_planner.planner.survey.played import PlayedRuns
from qlora_planner.planner.sweeps import PINNED_OVER_ALLOCATED, Sweep, TapeSweep, fixed_of
from qlora_planner.record import record, replaced
from qlora_planner.spec.machine import GpuSpec
from qlora_planner.spec.model import ModelProfile
from qlora_planner.spec.run import RunConfig, options_without
from qlora_planner.speed.layers import LayerWork
from qlora_planner.speed.roofline import Rates, SpeedModel, speed_model
from qlora_planner.speed.step import layer_works, optimizer_work

Ints = NDArray[np.int64]
_PAST_ALL_CARDS = 1 << 60  # bytes; what is more, an array of 64 bits might not hold
# What decides loading, preparing and adding adapters, but for the rank.
_loading_options = options_without("rank", *UNBILLED)
_OF_NO_LAYER = (
    "batch_size", "seq_len", "grad_accum", "optimizer", "alloc_conf", "eval_batch_size", "rank", "alpha", "packing",
    "activation_offloading",
)  # fmt: skip
# What decides what layers and head compute, and what a layer does whether or not backward does it again.
_layer_options = options_without(*_OF_NO_LAYER)
_kernel_options = options_without(*_OF_NO_LAYER, "gradient_checkpointing", "checkpoint_every")


@record
class Scale:
    """What playing one run took over its rank, by which others are scaled that are ranked in the same way as it."""

    traced: float = 1.0
    closed: float = 1.0

    @classmethod
    def of(cls, ranked_bytes: int, traced: bool, played_bytes: int) -> Scale:
        """Of a run that was ranked at `ranked_bytes`, by a trace or by closed forms."""
        ratio = played_bytes / ranked_bytes
        return cls(traced=ratio) if traced else cls(closed=ratio)

    def on(self, floor_bytes: int, traced: bool) -> int:
        """A ranked floor, scaled."""
        return int(floor_bytes * (self.traced if traced else self.closed))


AS_RANKED = Scale()


@record
class CandidateMemory:
    """One option set; batch and sequence of `run` stand for any."""

    run: RunConfig
    parts: MemoryTerms
    shape: activations.ModelShape
    variants: tuple[str, str]  # of the run alone, and of one that accumulates gradients
    sweep: Sweep | None
    fixed: FixedBytes
    budget: Budget
    context: ContextRow
    scale: Scale = AS_RANKED

    @property
    def method(self) -> str:
        """The method of runs outside every trace."""
        return self.parts.method

    @property
    def _over(self) -> float:
        """Segments in use over allocated bytes, for a traced run."""
        expandable = is_expandable(self.run.alloc_conf)
        return self.scale.traced * (RESERVED_OVER_ALLOCATED_EXPANDABLE if expandable else PINNED_OVER_ALLOCATED)

    def largest_floors(self, chance: float | None = None) -> tuple[int, int]:
        """The largest floors that fit, of runs that are traced and of the others: see `Budget.largest_floor`."""
        most = self.budget.fits_at_most if chance is None else chance
        traced, closed = (self.budget.largest_floor(method, self.context, most) for method in (TRACED, self.method))
        return traced, closed

    def fits(self, floor_bytes: int, *, traced: bool, chance: float | None = None) -> bool:
        """Whether a run of these options that works from so many bytes on fits; `traced` is how that was had."""
        return floor_bytes <= self.largest_floors(chance)[0 if traced else 1]

    def verdict(self, floor_bytes: int, *, traced: bool) -> str:
        """fits, tight or does-not-fit."""
        if self.fits(floor_bytes, traced=traced):
            return "fits"
        return "tight" if self.fits(floor_bytes, traced=traced, chance=self.budget.risk) else "does-not-fit"

    def floors(
        self, batch: Ints, seq: Ints, accumulated: NDArray[np.bool_] | bool | None = None
    ) -> tuple[Ints, NDArray[np.bool_]]:
        """Device bytes of each run's floor, and whether a trace holds for it; arrays of shape (runs,).

        Where gradients are `accumulated` (None: as in `run`), those of earlier micro-batches count too.
        """
        earlier = self.run.grad_accum > 1 if accumulated is None else accumulated
        beside = self.context.total_bytes
        before = self.least_bytes - beside
        floors, traced = self._traced(batch, seq, earlier)
        floors = np.maximum(floors, before)
        if not traced.all():
            left = ~traced
            closed = self._closed(batch[left], seq[left], earlier if isinstance(earlier, bool) else earlier[left])
            over = RESERVED_OVER_ALLOCATED_EXPANDABLE * self.scale.closed
            before_closed = int(before * RESERVED_OVER_ALLOCATED_EXPANDABLE)
            floors[left] = np.maximum(np.asarray(closed * over, dtype=np.int64), before_closed)
        return floors + beside, traced

    @property
    def least_bytes(self) -> int:
        """Device bytes before the first step: weights and adapters, which every trace adds to."""
        loading = (self.parts.load, self.parts.prepare, self.parts.adapters)
        return max(peak.allocated for peak in loading if peak) + self.context.total_bytes

    def fitting(
        self, batch: Ints, seq: Ints, accumulated: NDArray[np.bool_] | bool | None = None
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Which of these runs fit, and for which a trace holds; as `floors`."""
        floors, traced = self.floors(batch, seq, accumulated)
        return floors <= np.where(traced, *self.largest_floors()), traced

    def at(self, batch_size: int, seq_len: int) -> int:
        """The floor of one run."""
        floors, _ = self.floors(np.array([batch_size], dtype=np.int64), np.array([seq_len], dtype=np.int64))
        return int(floors[0])

    def traced_at(self, batch_size: int, seq_len: int) -> bool:
        """Whether a trace says what one run takes."""
        return bool(self.floors(np.array([batch_size], dtype=np.int64), np.array([seq_len], dtype=np.int64))[1][0])

    def _traced(self, batch: Ints, seq: Ints, accumulated: NDArray[np.bool_] | bool) -> tuple[Ints, NDArray[np.bool_]]:
        floors, traced = np.zeros(batch.shape, dtype=np.int64), np.zeros(batch.shape, dtype=bool)
        if self.sweep is None:
            return floors, traced
        for accumulates, variant in enumerate(self.variants):
            wanted = accumulated == bool(accumulates)
            if not (wanted if isinstance(wanted, bool) else wanted.any()):
                continue
            of_kind = (batch, seq) if isinstance(wanted, bool) else (batch[wanted], seq[wanted])
            for part in self.sweep.parts_of(variant, *of_kind):
                inside = part.region.inside(batch, seq) & wanted & ~traced
                if not np.count_nonzero(inside):
                    continue
                gradients = self.parts.state.gradients if accumulates else 0  # kept side by side: no slack among them
                level = part.moments.on(self.budget.workspace_bytes).highest(
                    batch[inside], seq[inside], self.run.rank, self.fixed, bool(accumulates), gradients
                )
                floors[inside] = ((level - gradients) * self._over).astype(np.int64) + gradients
                traced |= inside
        return floors, traced

    def _closed(self, batch: Ints, seq: Ints, accumulated: NDArray[np.bool_] | bool) -> Ints:
        # Arrays cost more than the figures of one run do.
        tokens, lengths = (batch * seq, seq) if len(batch) > 1 else (int(batch[0]) * int(seq[0]), int(seq[0]))
        acts = activations.activations(
            self.shape, self.run, self.parts.trainer, self.parts.loss, tokens=tokens, seq_len=lengths
        )
        parts = replaced(self.parts, acts=acts)
        if not isinstance(accumulated, bool) and (accumulated == accumulated[0]).all():
            accumulated = bool(accumulated[0])
        if isinstance(accumulated, bool):
            levels = self._highest(parts, accumulated)
        else:
            levels = np.where(accumulated, self._highest(parts, True), self._highest(parts, False))
        return np.broadcast_to(levels, batch.shape)

    def _highest(self, parts: MemoryTerms, accumulates: bool) -> Ints:
        run = self.run.with_(grad_accum=1 + accumulates)
        level = activations.most(*allocated_levels(run, parts).values())
        return np.asarray(min(level, _PAST_ALL_CARDS) if isinstance(level, int) else level, dtype=np.int64)


@record
class CandidateFactory:
    """Makes the candidates of a model within a budget; what loading takes is played once for all that load alike."""

    profile: ModelProfile
    budget: Budget
    sweep: Sweep | None
    played: PlayedRuns | None
    _loaded: dict[tuple[Any, ...], tuple[int, StaticPeaks]] = field(default_factory=dict)
    _grounds: dict[tuple[Any, ...], StaticPeaks] = field(default_factory=dict)
    _paces: dict[tuple[Any, ...], SpeedModel | None] = field(default_factory=dict)
    _steps: dict[tuple[Any, ...], tuple[float, float, float]] = field(default_factory=dict)
    _layers: dict[tuple[Any, ...], tuple[LayerWork, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, profile: ModelProfile, budget: Budget, sweep: Sweep | None = None) -> CandidateFactory:
        """For one model on the card of a budget."""
        played = sweep.played(budget.workspace_bytes) if isinstance(sweep, TapeSweep) else None
        return cls(profile=profile, budget=budget, sweep=sweep, played=played)

    @property
    def gpu(self) -> GpuSpec:
        """The card."""
        return self.budget.card

    def limit_beside_context(self, typed: RunConfig) -> int:
        """The largest floor of a usual run that fits, without the context that its options as typed have."""
        budget, resolved = self.budget, resolve(self.profile, typed, self.gpu).run
        largest = budget.largest_floor(TRACED, budget.context_for(resolved), budget.fits_at_most)
        return largest - budget.context_for(typed).total_bytes

    def make(self, resolution: Resolution, scale: Scale = AS_RANKED) -> CandidateMemory:
        """The memory of a resolved run's options. Raises InputError when target modules match nothing."""
        run = resolution.run
        ground = self.ground(resolution)
        traced = as_traced(self.profile, run)
        return candidate_memory_of(ground, resolution, self.budget, self.sweep, fixed_of(ground, run), scale, traced)

    def pace(self, resolution: Resolution, on: GpuSpec) -> SpeedModel | None:
        """The speed of a resolved run's options on a card; None where the card's rates are unknown.

        Layers and head are worked out once for all runs that differ in sizes, optimizer or the allocator alone.
        Raises InputError when target modules match nothing.
        """
        run = resolution.run
        key = _layer_options(run), on.name
        if key not in self._paces:
            self._paces[key] = self._speed(resolution, on)
        model = self._paces[key]
        if model is None:
            return None
        fixed, per_rank, tensors = self._stepped(resolution)
        work = replaced(
            model.work, micro_steps=run.grad_accum, optimizer_fixed=fixed, optimizer_per_rank=per_rank,
            tensor_steps=tensors,
        )  # fmt: skip
        return replaced(model, work=work)

    def _speed(self, resolution: Resolution, on: GpuSpec) -> SpeedModel | None:
        if Rates.of(on, resolution.run.compute_dtype) is None:
            return None
        alike = _kernel_options(resolution.run)
        if alike not in self._layers:
            self._layers[alike] = layer_works(self.profile, resolution)
        layers, stepped = self._layers[alike], self._stepped(resolution)
        return speed_model(self.profile, resolution, on, self.budget.calibration, layers, stepped)

    def _stepped(self, resolution: Resolution) -> tuple[float, float, float]:
        run = resolution.run
        cased = (run.optimizer, run.rank, run.quant, run.method, run.target_modules, run.trainer, run.modules_to_save)
        if cased not in self._steps:
            self._steps[cased] = optimizer_work(self.profile, run, resolution.trainer)
        return self._steps[cased]

    def ground(self, resolution: Resolution) -> StaticPeaks:
        """SimulatedRun once for all that load alike; another rank is the played one with other adapters."""
        run = resolution.run
        key = _loading_options(run), *billed_by_trainer(run)
        exact = key, run.rank, run.optimizer, run.trainer
        if exact not in self._grounds:
            self._grounds[exact] = self._lay(key, resolution)
        return self._grounds[exact]

    def _lay(self, key: tuple[Any, ...], resolution: Resolution) -> StaticPeaks:
        run = resolution.run
        if key not in self._loaded:
            self._loaded[key] = run.rank, static_peaks_of(self.profile, resolution, self.budget.workspace_bytes)
        rank, peaks = self._loaded[key]
        if rank != run.rank:
            placement = Placement(self.profile, run)
            static = static_memory(placement)
            more = static.adapters - peaks.static.adapters
            at = peaks.adapters
            adapters = PhasePeak(live=at.live + more, allocated=at.allocated + more, reserved=at.reserved + more)
            peaks = replaced(peaks, static=static, adapters=adapters, shape=activations.model_shape(placement))
        optimizer = find_optimizer(run.optimizer)
        assert optimizer is not None
        return replaced(peaks, state=training_state(peaks.static.trainable, run, resolution.trainer, optimizer))


def candidate_memory_of(
    ground: StaticPeaks,
    resolution: Resolution,
    budget: Budget,
    sweep: Sweep | None,
    fixed: FixedBytes,
    scale: Scale = AS_RANKED,
    traced: RunConfig | None = None,
) -> CandidateMemory:
    """From a model's static peaks; `traced` is the run as it is traced, where that is another (see `as_traced`)."""
    run = resolution.run
    traced = traced or run
    context = budget.context_for(run)
    # What is generated at a time, and whether it is scored, hangs on the steps that are accumulated.
    generates = resolution.trainer.generation is not None
    alone, several = (traced if generates else traced.with_(grad_accum=steps) for steps in (1, 2))
    once = trace_key(alone, resolution.stack, budget.card)
    apart = not generates and accumulates_apart(several)
    again = trace_key(several, resolution.stack, budget.card) if apart else once
    return CandidateMemory(
        run=run,
        parts=memory_terms(ground, resolution, context),
        shape=ground.shape,
        variants=(once, again),
        sweep=sweep,
        fixed=fixed,
        budget=budget,
        context=context,
        scale=scale,
    )
