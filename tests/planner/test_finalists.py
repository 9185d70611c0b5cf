"""What `plan` answers with is played; what a search ranks by holds in its region alone."""

from dataclasses import replace
from pathlib import Path

import pytest

from qlora_planner import api
from qlora_planner.catalog.cuda import cublas_workspace_bytes
from qlora_planner.hardware import GpuCatalogue, GpuSpec, parse_gpu
from qlora_planner.memory.estimate import estimate
from qlora_planner.memory.groundwork import build_groundwork
from qlora_planner.memory.resolve import resolve
from qlora_planner.planner import plan
from qlora_planner.planner.finalists import Referee
from qlora_planner.planner.limits import Bench, Sweep, fixed_of, usable_on
from qlora_planner.profile.tape import Tape
from qlora_planner.run import RunConfig
from qlora_planner.sources.catalogue import ModelCatalogue
from qlora_planner.sources.tapes import stored_sweep

PROFILES = Path(__file__).parents[2] / "profiles"
TAPES = [PROFILES / "tapes"]
PROFILE = ModelCatalogue([PROFILES / "models"]).load("meta-llama/Llama-3.1-8B")
CARD = parse_gpu("24GB", GpuCatalogue([PROFILES / "gpus"]))
SWEEP = stored_sweep(PROFILE, TAPES)


def stored(run: RunConfig) -> Tape | None:
    return api.tape_for(PROFILE, run, CARD, stored_only=True)


def verdict(run: RunConfig) -> str:
    return estimate(PROFILE, run, CARD, tape=stored(run)).verdict


def bench(sweep: Sweep | None, gpu: GpuSpec = CARD) -> Bench:
    resolution = resolve(PROFILE, RunConfig(), gpu)
    ground = build_groundwork(PROFILE, resolution, cublas_workspace_bytes(gpu.compute_capability))
    return Bench(
        ground=ground, run=resolution.run, stack=resolution.stack, gpu=gpu, usable_bytes=usable_on(gpu, 0, None),
        auto_padding=True, sweep=sweep, fixed=fixed_of(ground, resolution.run),
    )  # fmt: skip


def referee(over_allocated: float) -> Referee:
    return Referee(
        profile=PROFILE, gpu=CARD, asked=RunConfig(), bench=replace(bench(SWEEP), over_allocated=over_allocated),
        tape_of=stored,
    )  # fmt: skip


def test_every_played_answer_fits_when_it_is_estimated_on_its_own() -> None:
    found = plan(PROFILE, CARD, sweep=SWEEP, tape_of=stored, stored_of=stored)
    assert [point["played"] for point in found.frontier] == [True] * 6
    for point in (found.frontier[0], found.frontier[3]):
        run = RunConfig(batch_size=int(point["batch_size"] or 0), seq_len=int(point["seq_len"] or 0))
        assert verdict(run) == "fits"
        assert verdict(run.with_(seq_len=int(run.seq_len * 1.1))) != "fits"


@pytest.mark.parametrize("over_allocated", [0.9, 1.3])
def test_a_ranking_that_is_off_is_set_right_by_playing(over_allocated: float) -> None:
    off, right = referee(over_allocated).longest(1, 131072), referee(1.05).longest(1, 131072)
    assert off.played
    assert right.played
    assert off.value == pytest.approx(right.value, rel=0.03)


def test_without_a_tape_the_ranked_figure_stands_and_says_so() -> None:
    blind = referee(1.05)
    blind.tape_of = lambda _run: None
    found = blind.longest(1, 131072)
    assert found.value is not None
    assert not found.played


def test_moments_are_used_in_their_region_and_nowhere_else() -> None:
    assert SWEEP is not None
    middle = Sweep(parts=tuple(part for part in SWEEP.parts if part.region.holds(1, 2048)))
    narrow, whole, none = bench(middle), bench(SWEEP), bench(None)
    assert narrow.look(4096, 1) == whole.look(4096, 1) != none.look(4096, 1)
    for seq_len in (512, 4097):
        assert narrow.look(seq_len, 1) == none.look(seq_len, 1) != whole.look(seq_len, 1)
    old = parse_gpu("t4", GpuCatalogue([PROFILES / "gpus"]))
    assert bench(SWEEP, old).look(2048, 1) == bench(None, old).look(2048, 1)


def test_before_the_first_step_may_be_the_peak() -> None:
    found = bench(SWEEP)
    ground = replace(found.ground, load=replace(found.ground.load, allocated=1 << 40))
    assert replace(found, ground=ground).look(2048, 1)[3] == "load"
