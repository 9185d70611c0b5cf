"""How fast a run is on a card: a roofline over every kernel of a step, and the host that launches them.

    card = half FLOPs / (rate x product fraction) + float32 FLOPs / (float32 rate x product fraction)
         + int8 FLOPs / (2 x rate x product fraction) + attention FLOPs / (rate x attention fraction)
         + bytes / (bandwidth x bandwidth fraction)
    host = launches x launch_s + engine launches x engine_launch_s
    step = micro-steps x (card^3 + host^3)^(1/3) + optimizer (bytes, and tensors x tensor_s) + step_s

FLOPs, bytes and launches are derived (`speed_model`). The card works off what the host has launched, so a micro-step
takes about as long as the slower of both; the sum of cubes rounds the corner, where each waits for the other at times
(of the powers 1.5 to 10, the third was nearest to an H200's runs when each was left out of the fit). What is measured
of a card, or assumed of one that was not, is `evidence.efficiency.KernelEfficiency` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from qlora_planner.evidence.calibration import Calibration, card_slug
from qlora_planner.evidence.efficiency import ASSUMED, KernelEfficiency
from qlora_planner.memory.options.resolve import Resolution
from qlora_planner.memory.records import Basis, Speed
from qlora_planner.record import record
from qlora_planner.spec.machine import GpuSpec
from qlora_planner.spec.model import ModelProfile
from qlora_planner.spec.run import RunConfig
from qlora_planner.speed.layers import LayerWork
from qlora_planner.speed.step import StepWork, step_work
from qlora_planner.speed.work import Vector, Work, evaluator, values


@record
class Rates:
    """What a card's data sheet says: operations and bytes per second."""

    half: float
    float32: float
    bandwidth: float

    @classmethod
    def of(cls, gpu: GpuSpec, compute_dtype: str | None) -> Rates | None:
        """The rates for a dtype; None where the catalogue lacks one that every run needs.

        torch multiplies float32 on the plain units unless told otherwise (`torch.backends.cuda.matmul.allow_tf32` is
        off), so their rate counts. A card without stated half-precision rate multiplies halves at its float32 rate.
        """
        half = gpu.fp16_flops if compute_dtype == "float16" else gpu.bf16_flops
        half = half or gpu.fp16_flops or gpu.fp32_flops
        if not half or not gpu.bandwidth_bytes_per_s:
            return None
        return cls(half=half, float32=gpu.fp32_flops or half / 16, bandwidth=gpu.bandwidth_bytes_per_s)


@record
class SpeedModel:
    """Seconds of one option set of one model on one card, for any batch, sequence and rank."""

    work: StepWork
    rates: Rates
    traits: KernelEfficiency
    basis: Basis

    def step_s(self, batch: Any, seq: Any, rank: Any) -> Any:
        """Seconds per optimizer step; sizes are numbers, or arrays of one shape for as many answers.

        An array gives bit for bit what its elements give.
        """
        card, host, per_step = self._compiled()
        rows = batch * self.work.sequences_per_row
        if self.work.end_to_end:  # one mask of all tokens by all
            rows, seq = 1, rows * seq
        sizes = values(rows, seq, rank, self.work.head_tile_tokens, self.work.experts)
        on_card, on_host = card[0](sizes), host[0](sizes)
        for (window, _), more_card, more_host in zip(self.work.masked, card[1:], host[1:], strict=True):
            beyond = (seq >= window) * 1.0
            on_card, on_host = on_card + beyond * more_card(sizes), on_host + beyond * more_host(sizes)
        micro = np.cbrt(on_card * on_card * on_card + on_host * on_host * on_host)
        return self.work.micro_steps * micro + per_step[0] + per_step[1] * rank

    def tokens_per_s(self, batch: Any, seq: Any, rank: Any) -> Any:
        """Tokens per second, padding counted."""
        return batch * self.work.sequences_per_row * seq * self.work.micro_steps / self.step_s(batch, seq, rank)

    def _compiled(self) -> tuple[list[Callable[..., Any]], list[Callable[..., Any]], tuple[float, float]]:
        parts = [self.work.micro, *(extra for _, extra in self.work.masked)]
        card = [evaluator(card_seconds(part, self.rates, self.traits)) for part in parts]
        host = [evaluator(host_seconds(part, self.traits)) for part in parts]
        return card, host, optimizer_seconds(self.work, self.rates, self.traits)


def card_seconds(work: Work, rates: Rates, traits: KernelEfficiency) -> Vector:
    """Seconds on the card, as a polynomial in the sizes."""
    product = traits.product_fraction
    return (
        work.half_flops / (rates.half * product)
        + work.float_flops / (rates.float32 * product)
        + work.int8_flops / (2 * rates.half * product)
        + work.attention_flops / (rates.half * traits.attention_fraction)
        + work.traffic / (rates.bandwidth * traits.bandwidth_fraction)
    )


def host_seconds(work: Work, traits: KernelEfficiency) -> Vector:
    """Seconds on the host that launches."""
    return work.launches * traits.launch_s + work.engine_launches * traits.engine_launch_s


def optimizer_seconds(work: StepWork, rates: Rates, traits: KernelEfficiency) -> tuple[float, float]:
    """Seconds of the optimizer's step and of the trainer around it: fixed ones, and per rank."""
    moved = rates.bandwidth * traits.bandwidth_fraction
    fixed = traits.step_s + work.optimizer_fixed / moved
    return fixed + work.tensor_steps * traits.tensor_s, work.optimizer_per_rank / moved


def efficiency_of(gpu: GpuSpec, calibration: Calibration | None) -> tuple[KernelEfficiency, Basis]:
    """What is known of a card, and its basis: calibrated where it was measured, else assumed."""
    for name in (gpu.name, card_slug(gpu.label)):
        if calibration is not None and name in calibration.speed:
            return calibration.speed[name], Basis.CALIBRATED
    return ASSUMED, Basis.ASSUMED


def speed_model(
    profile: ModelProfile,
    resolution: Resolution,
    gpu: GpuSpec,
    calibration: Calibration | None = None,
    layers: tuple[LayerWork, ...] | None = None,
    stepped: tuple[float, float, float] | None = None,
) -> SpeedModel | None:
    """The speed of a resolved run's options on a card; None where the card's rates are unknown.

    `layers` and `stepped` are as in `step_work`.
    Raises InputError when target modules or modules_to_save match nothing.
    """
    rates = Rates.of(gpu, resolution.run.compute_dtype)
    if rates is None:
        return None
    traits, basis = efficiency_of(gpu, calibration)
    work = step_work(profile, resolution, layers, stepped)
    return SpeedModel(work=work, rates=rates, traits=traits, basis=basis)


def speed_of(
    profile: ModelProfile,
    run: RunConfig,
    gpu: GpuSpec | None,
    calibration: Calibration | None = None,
    stack: Mapping[str, str] | None = None,
) -> Speed:
    """Tokens per second and seconds per step of a resolved run; all None without a card whose rates are known, and for
    a run that generates or whose trainer brings kernels of its own: how long those take is not modelled."""
    resolution = Resolution.resolved(run, dict(stack or {**profile.counted, **run.stack}))
    model = (
        None
        if gpu is None or resolution.trainer.generation is not None or not resolution.trainer.closed_forms
        else speed_model(profile, resolution, gpu, calibration)
    )
    if model is None:
        return Speed()
    seconds = float(model.step_s(run.batch_size, run.seq_len, run.rank))
    tokens = run.tokens * model.work.sequences_per_row * run.grad_accum
    return Speed(tokens_per_s=tokens / seconds, step_s=seconds, basis=model.basis)


@record
class Cost:
    """What a run costs on a rented card, in US dollars and hours; None where price, speed or data are unknown."""

    usd_per_million_tokens: float | None = None
    epoch_hours: float | None = None
    usd_per_epoch: float | None = None


def cost_of(speed: Speed, gpu: GpuSpec | None, epoch_tokens: int | None = None, *, cards: int = 1) -> Cost:
    """Hours times the catalogue's price for an hour of so many cards; `epoch_tokens` are the tokens trained in an
    epoch, padded."""
    if not speed.tokens_per_s:
        return Cost()
    price = gpu.rent_usd_per_hour if gpu else None
    price = None if price is None else price * cards
    hours = None if epoch_tokens is None else epoch_tokens / speed.tokens_per_s / 3600
    return Cost(
        usd_per_million_tokens=None if price is None else price * 1e6 / speed.tokens_per_s / 3600,
        epoch_hours=hours,
        usd_per_epoch=None if price is None or hours is None else price * hours,
    )
