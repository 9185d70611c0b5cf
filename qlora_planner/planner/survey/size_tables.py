"""The two tables that everyone copies: memory by size of model and method, and the largest model per card.

Every figure is an estimate of one stated recipe: played from a trace where one is stored, else by closed forms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from qlora_planner.errors import InputError
from qlora_planner.evidence.calibration import Calibration
from qlora_planner.memory.budget import Budget
from qlora_planner.memory.estimate import estimate_within
from qlora_planner.memory.records import MemoryEstimate
from qlora_planner.planner.candidate_memory import CandidateMemory
from qlora_planner.planner.gpus.others import fitting_on
from qlora_planner.planner.neighbours import longest
from qlora_planner.planner.survey.size_rows import (
    METHODS,
    CardRow,
    Figure,
    Largest,
    MemoryRow,
    Method,
    SixGb,
    Tables,
    basis_of,
)
from qlora_planner.planner.survey.survey import Candidate, candidate_memory_for
from qlora_planner.planner.sweeps import SEQ_STEP
from qlora_planner.spec.machine import GpuSpec
from qlora_planner.spec.model import ModelProfile
from qlora_planner.spec.risk import verdict_of
from qlora_planner.spec.run import RunConfig
from qlora_planner.spec.trace import Tape

TapeOf = Callable[[ModelProfile, RunConfig], Tape | None]
CandidateOf = Callable[[ModelProfile, RunConfig], Candidate]
# Well-known models by size; the last two have experts.
MODELS = (
    "Qwen/Qwen2.5-0.5B", "meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-3B", "meta-llama/Llama-2-7b-hf",
    "Qwen/Qwen2.5-7B", "meta-llama/Llama-3.1-8B", "meta-llama/Llama-2-13b-hf", "Qwen/Qwen2.5-14B", "Qwen/Qwen3-32B",
    "meta-llama/Llama-3.1-70B", "meta-llama/Llama-3.1-405B", "Qwen/Qwen3-30B-A3B", "mistralai/Mixtral-8x7B-v0.1",
)  # fmt: skip
CARD_SIZES_GB = (8, 10, 11, 12, 16, 24, 32, 40, 48, 64, 80, 96, 141)
_SEVEN_B = (6.5e9, 8e9)
# A chance of running out up to this is shown as perhaps.
PERHAPS = 0.5
# Bytes of a weight that a run needs at the least: itself, and in full fine-tuning its gradient and two states.
_LEAST_BYTES = {"full": 8.0, "lora": 2.0, "qlora-8bit": 1.0, "qlora-4bit": 0.5}


@dataclass(slots=True, kw_only=True)
class _Estimates:
    """Estimates and candidates of one recipe, each made once."""

    run: RunConfig
    tape_of: TapeOf
    candidate_of: CandidateOf
    nowhere: Budget  # no card, with what is measured
    forms: dict[tuple[str, str], MemoryEstimate] = field(default_factory=dict)
    candidates: dict[tuple[str, str], Candidate] = field(default_factory=dict)
    budgets: dict[str, Budget] = field(default_factory=dict)

    def form(self, profile: ModelProfile, method: Method) -> MemoryEstimate:
        """The estimate by closed forms."""
        key = profile.id, method.name
        if key not in self.forms:
            run = self.run.with_(**method.options)
            self.forms[key] = estimate_within(self.nowhere, profile, run)
        return self.forms[key]

    def best(self, profile: ModelProfile, method: Method) -> MemoryEstimate:
        """The estimate from the stored trace of the run where there is one."""
        return self._played(profile, self.run.with_(**method.options)) or self.form(profile, method)

    def _played(self, profile: ModelProfile, run: RunConfig) -> MemoryEstimate | None:
        tape = self.tape_of(profile, run)
        return None if tape is None else estimate_within(self.nowhere, profile, run, tape=tape)

    def fits_played(self, profile: ModelProfile, card: GpuSpec, seq_len: int) -> bool:
        """Whether the 4-bit run fits at a length, batch 1."""
        run = self.run.with_(**METHODS[-1].options, batch_size=1, seq_len=seq_len)
        answer = self._played(profile, run) or estimate_within(self.nowhere, profile, run)
        return self.verdict(answer, card) == "fits"

    def candidate(self, profile: ModelProfile, method: Method) -> Candidate:
        """What a survey ranks the run by, from its trace where one is stored."""
        key = profile.id, method.name
        if key not in self.candidates:
            self.candidates[key] = self.candidate_of(profile, self.run.with_(**method.options))
        return self.candidates[key]

    def memory(self, profile: ModelProfile, card: GpuSpec, method: Method) -> CandidateMemory:
        """The memory of the run on a card."""
        candidate = self.candidate(profile, method)
        padded = candidate.resolution.run.batch_size > 1
        return candidate_memory_for(candidate, candidate.resolution.run, self.budget(card), padded=padded)

    def budget(self, card: GpuSpec) -> Budget:
        """All of a card."""
        if card.name not in self.budgets:
            self.budgets[card.name] = self.nowhere.on(card)
        return self.budgets[card.name]

    def verdict(self, answer: MemoryEstimate, card: GpuSpec) -> str:
        """How a run that was estimated without a card does on one."""
        return verdict_of(fitting_on(answer, self.nowhere, card), self.nowhere.risk)


def positions(profile: ModelProfile) -> int:
    """Tokens per sequence that a model can look positions up for; as many as any run has where it computes them."""
    return int(profile.dims.get("position_rows") or 1 << 24)


def make_tables(
    shown: Sequence[ModelProfile],
    catalogue: Sequence[ModelProfile],
    cards: Sequence[GpuSpec],
    *,
    run: RunConfig,
    tape_of: TapeOf,
    candidate_of: CandidateOf,
    calibration: Calibration | None = None,
    common_card: GpuSpec | None = None,
    methods: Sequence[Method] = METHODS,
) -> Tables:
    """Both tables: of the `shown` models, and the largest of `catalogue` on each of `cards` that is counted whole.

    `tape_of` gives the trace of a run where one is stored, `candidate_of` what a survey ranks a model's 4-bit run by.
    `methods` are those that models have figures of. `common_card` is the one that a 7B model is said to need.
    Raises InputError for a length that a model of `shown` has no positions for.
    """
    estimates = _Estimates(
        run=run, tape_of=tape_of, candidate_of=candidate_of,
        nowhere=Budget.of(None, calibration=calibration, risk=PERHAPS),
    )  # fmt: skip
    for profile in shown:
        if (limit := positions(profile)) < run.seq_len:
            raise InputError(f"--seq-len {run.seq_len}: {profile.id} has positions for {limit:,} tokens")
    largest_first = sorted(
        (each for each in catalogue if positions(each) >= run.seq_len and each.text_part_of is None),
        key=lambda profile: (-profile.params, profile.id),
    )
    sevens = [profile for profile in shown if _SEVEN_B[0] <= profile.params <= _SEVEN_B[1]]
    return Tables(
        run=run,
        memory=tuple(_memory_row(profile, estimates, methods) for profile in shown),
        cards=tuple(_card_row(largest_first, card, estimates) for card in cards),
        six_gb=() if common_card is None else tuple(_six_gb(profile, common_card, estimates) for profile in sevens),
    )


def _memory_row(profile: ModelProfile, estimates: _Estimates, methods: Sequence[Method]) -> MemoryRow:
    lora, nf4 = METHODS[1], METHODS[-1]
    now = estimates.form(profile, nf4)
    flat, upcast = (
        estimate_within(estimates.nowhere, profile, estimates.run.with_(**nf4.options, **change))
        for change in ({"double_quant": False}, {"upcast": True})
    )
    refused = Figure.of(upcast).refused
    return MemoryRow(
        model_id=profile.id,
        params=profile.params,
        figures={method.name: Figure.of(estimates.best(profile, method)) for method in methods},
        double_quant_saves_bytes=flat.static.after_load - now.static.after_load,
        upcast_costs_bytes=None if refused else upcast.peak.device_bytes - now.peak.device_bytes,
        upcast_weights_bytes=upcast.static.after_prepare - now.static.after_prepare,
        weights_16bit_bytes=estimates.form(profile, lora).static.after_load,
        weights_4bit_bytes=now.static.after_load,
    )


def _card_row(models: Sequence[ModelProfile], card: GpuSpec, estimates: _Estimates) -> CardRow:
    largest = {method.name: _largest(models, card, method, estimates) for method in METHODS}
    return CardRow(
        card=card,
        usable_bytes=estimates.budget(card).usable_bytes,
        largest={name: fits for name, (fits, _) in largest.items()},
        perhaps={name: tight for name, (_, tight) in largest.items()},
    )


def _largest(
    models: Sequence[ModelProfile], card: GpuSpec, method: Method, estimates: _Estimates
) -> tuple[Largest | None, Largest | None]:
    """The largest model that fits, and a larger one by closed forms that is tight."""
    usable = estimates.budget(card).usable_bytes
    tight = None
    for profile in models:
        if profile.params * _LEAST_BYTES[method.name] > usable:
            continue
        standing = _standing(profile, card, method, estimates)
        if standing.verdict == "fits":
            return standing, tight
        if standing.verdict == "tight" and standing.basis == "closed-form" and tight is None:
            tight = standing
    return None, tight


def _standing(profile: ModelProfile, card: GpuSpec, method: Method, estimates: _Estimates) -> Largest:
    memory, run = estimates.memory(profile, card, method), estimates.run
    refused = any(problem.blocking for problem in estimates.candidate(profile, method).resolution.problems)
    floors, traced = memory.floors(np.array([run.batch_size], np.int64), np.array([run.seq_len], np.int64))
    device = int(floors[0])
    return Largest(
        model_id=profile.id, params=profile.params, device_bytes=device,
        basis="swept" if traced[0] else "closed-form",
        verdict="will-not-run" if refused else memory.verdict(device, traced=bool(traced[0])),
    )  # fmt: skip


def _six_gb(profile: ModelProfile, card: GpuSpec, estimates: _Estimates) -> SixGb:
    answer = estimates.best(profile, METHODS[-1])
    # Ranked first, then played: a step or two settle it.
    memory = estimates.memory(profile, card, METHODS[-1])
    steps = (longest(memory, 1, positions(profile)) or 0) // SEQ_STEP
    while steps and not estimates.fits_played(profile, card, steps * SEQ_STEP):
        steps -= 1
    while estimates.fits_played(profile, card, (steps + 1) * SEQ_STEP):
        steps += 1
    return SixGb(
        model_id=profile.id, device_bytes=answer.peak.device_bytes, basis=basis_of(answer),
        longest_seq_len=steps * SEQ_STEP or None,
    )  # fmt: skip
