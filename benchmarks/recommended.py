"""Every recommended run is one that the stack takes: what the search ranks first, built and stepped at toy size.

    recommended.py list               the distinct option sets, by model class
    recommended.py run --seconds 600  each on the CPU, --jobs side by side; prints what was taken and what was refused
    recommended.py run --device cuda  each on a card, those that offload activations too

For every model of the catalogue, card size and objective the best run is taken from the search. Runs of one model class
that differ in nothing but sizes are one case: the first model stands for them. A toy has two layers of each kind, so
what is shown is that transformers, bitsandbytes, PEFT and the trainer take the options together, not that it fits.
Offloaded activations need a card: on the CPU those cases are left out, and said to be. Looking for the best runs of all
models, cards and goals takes a core some twenty minutes.
Exits with 1 where one is refused.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from qlora_planner import session
from qlora_planner.catalog.gpus import GpuCatalogue, parse_gpu
from qlora_planner.catalog.gpus.sizes import marketed_size
from qlora_planner.errors import InputError, PlannerError
from qlora_planner.memory.budget import Budget
from qlora_planner.memory.options.resolve import resolve
from qlora_planner.planner.candidate_memory import CandidateFactory
from qlora_planner.planner.objectives import OBJECTIVES
from qlora_planner.planner.search import search
from qlora_planner.planner.search_space import search_space
from qlora_planner.planner.survey.size_tables import CARD_SIZES_GB
from qlora_planner.sources.catalogue import ModelCatalogue
from qlora_planner.sources.locations import gpus_dirs, models_dirs, tapes_dirs
from qlora_planner.sources.tapes import stored_sweep
from qlora_planner.spec.machine import GpuSpec
from qlora_planner.spec.model import ModelProfile
from qlora_planner.spec.run import RunConfig

GOALS = ("throughput", "context", "rank", "quality")
TOY_TOKENS, TOY_RANK, TOY_STEPS = 64, 4, 1
# Options that are sizes, or that only CUDA's allocator reads.
_SIZES = ("seq_len", "batch_size", "grad_accum", "rank", "alpha", "alloc_conf", "stack")


@dataclass(slots=True, kw_only=True)
class Case:
    """One option set of one model class, and how many recommendations it stands for."""

    model_type: str
    model_id: str
    run: RunConfig
    stands_for: int = 0
    asked_by: Counter[str] = field(default_factory=Counter)

    @property
    def options(self) -> str:
        """What tells it from other cases of its class."""
        run = self.run
        parts = [run.method, run.quant or "none", run.optimizer, run.trainer or "", run.target_modules or ""]
        if run.quant == "nf4" and not run.double_quant:
            parts[1] += " flat"
        switches = {
            "checkpointing": run.gradient_checkpointing, "padding": bool(run.padding), "offloading":
            run.activation_offloading, "accumulation": run.grad_accum > 1,
        }  # fmt: skip
        return ", ".join([*parts, *(name for name, on in switches.items() if on)])


def toy_of(run: RunConfig) -> RunConfig:
    """A resolved run at toy size."""
    return run.with_(
        seq_len=TOY_TOKENS, batch_size=min(run.batch_size, 2), grad_accum=min(run.grad_accum, 2), rank=TOY_RANK,
        alpha=2 * TOY_RANK, alloc_conf=None, stack={},
    )  # fmt: skip


def recommended(
    profiles: Iterable[ModelProfile], cards: Sequence[GpuSpec], goals: Sequence[str] = GOALS
) -> Iterator[tuple[ModelProfile, str, RunConfig]]:
    """The first choice of the search for every model, card and goal, resolved, where one fits."""
    known, catalogue = session.calibration(), GpuCatalogue(gpus_dirs())
    default = RunConfig()
    for profile in profiles:
        sweep = stored_sweep(profile, tapes_dirs())
        limit = profile.dims.get("position_rows") or profile.dims.get("max_position_embeddings")
        for card in cards:
            factory = CandidateFactory.of(profile, Budget.of(card, calibration=known), sweep)
            # Speeds of a bare size are ranked on the card that it was taken from.
            pace_on = catalogue.get(marketed_size(card.marketed_gb).card) if card.form == "size" else card
            for name in goals:
                goal = OBJECTIVES[name]
                space = search_space(profile, default, frozenset(), int8=name == "quality", offloading=goal.lengths)
                try:
                    ranking = search(
                        factory, default, space, goal, pace_on=pace_on,
                        model_limit=int(limit) if limit else None,
                    )  # fmt: skip
                except InputError:
                    continue
                choice = next(ranking.best(), None)
                if choice is not None and choice.fits:
                    yield profile, f"{card.name} {name}", resolve(profile, choice.run, card).run


def cases_of(found: Iterable[tuple[ModelProfile, str, RunConfig]]) -> list[Case]:
    """Distinct cases: the one that stands for most of every class, then the second of every class, and so on."""
    cases: dict[str, Case] = {}
    for profile, asked_by, run in found:
        toy = toy_of(run)
        case = cases.setdefault(
            f"{profile.model_type} {toy!r}", Case(model_type=profile.model_type, model_id=profile.id, run=toy)
        )
        case.stands_for += 1
        case.asked_by[asked_by] += 1
    turns: Counter[str] = Counter()
    ordered = []
    for case in sorted(cases.values(), key=lambda case: (-case.stands_for, case.model_type, case.options)):
        ordered.append((turns[case.model_type], case))
        turns[case.model_type] += 1
    return [case for _, case in sorted(ordered, key=lambda pair: pair[0])]


def runs_on(case: Case, device: str) -> bool:
    """trl copies activations between a card and the host: without a card there is nothing to copy."""
    return device == "cuda" or not case.run.activation_offloading


def step(case: Case, device: str) -> str | None:
    """Build and step a case; None where the stack took it, else what it said."""
    from qlora_planner.measure.execution import Execution
    from qlora_planner.measure.spec import ChildSpec

    raw = session.config_of(session.load_model(case.model_id))
    spec = ChildSpec(
        run=case.run,
        model_id=case.model_id,
        config=raw.config,
        device=device,
        steps=TOY_STEPS,
        snapshot=False,
        toy=True,
    )
    done = Execution(spec, lambda event, facts: None).measure()
    return None if done.outcome == "ok" else f"{done.failed_phase}: {done.error}"


def _quietly(asked: tuple[Case, str]) -> tuple[Case, str | None, float]:
    started = time.monotonic()
    with open(os.devnull, "w") as nowhere:
        for stream in (1, 2):
            os.dup2(nowhere.fileno(), stream)
        try:
            said = step(*asked)
        except PlannerError as error:
            said = str(error)
        return asked[0], said, time.monotonic() - started


def _found(asked: tuple[ModelProfile, Sequence[GpuSpec], Sequence[str]]) -> list[tuple[ModelProfile, str, RunConfig]]:
    profile, cards, goals = asked
    return list(recommended([profile], cards, goals))


def _cards() -> list[GpuSpec]:
    catalogue = GpuCatalogue(gpus_dirs())
    return [parse_gpu(f"{size}GB", catalogue) for size in CARD_SIZES_GB]


def main(argv: Sequence[str]) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("list", "run"))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--sizes", type=int, nargs="*", help="card sizes in GB")
    parser.add_argument("--goals", nargs="*", default=list(GOALS), choices=GOALS)
    parser.add_argument("--types", nargs="*", help="model types")
    parser.add_argument("--jobs", type=int, default=1)
    asked = parser.parse_args(argv)
    profiles = [
        one for one in ModelCatalogue(models_dirs()).load_all(print) if not asked.types or one.model_type in asked.types
    ]
    cards = [card for card in _cards() if not asked.sizes or card.marketed_gb in asked.sizes]
    with ProcessPoolExecutor(asked.jobs, mp_context=get_context("spawn")) as pool:
        parts = pool.map(_found, [(profile, cards, asked.goals) for profile in profiles])
        cases = cases_of(one for part in parts for one in part)
    total = sum(case.stands_for for case in cases)
    print(
        f"{total:,} recommendations, {len(cases)} distinct over {len({case.model_type for case in cases})} model types"
    )
    if asked.what == "list":
        for case in cases:
            print(f"{case.stands_for:5}  {case.model_type:16} {case.options}")
        return 0
    away = [case for case in cases if not runs_on(case, asked.device)]
    if away:
        print(
            f"{len(away)} offload activations (stand for {sum(case.stands_for for case in away):,}): a card is needed"
        )
    return _run([case for case in cases if case not in away], asked.device, asked.seconds, asked.jobs)


def _run(cases: Sequence[Case], device: str, seconds: float, jobs: int) -> int:
    started = time.monotonic()
    taken: list[Case] = []
    refused: list[Case] = []
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), max_tasks_per_child=40) as pool:
        waiting = [pool.submit(_quietly, (case, device)) for case in cases]
        for number, done in enumerate(as_completed(waiting)):
            case, refusal, took = done.result()
            (refused if refusal else taken).append(case)
            said = f"refused: {refusal}" if refusal else "taken"
            print(
                f"{number:4} {case.stands_for:5}  {case.model_type:16} {case.options} ({case.model_id}): {said}"
                f" ({took:.1f} s)",
                flush=True,
            )
            if time.monotonic() - started > seconds:
                pool.shutdown(wait=False, cancel_futures=True)
                break
    stands = [sum(case.stands_for for case in group) for group in (taken, refused)]
    print(
        f"taken {len(taken)} (stand for {stands[0]:,}), refused {len(refused)} (stand for {stands[1]:,}),"
        f" not tried {len(cases) - len(taken) - len(refused)}"
    )
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
