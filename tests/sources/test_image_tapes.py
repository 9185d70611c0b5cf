"""Runs with images that a base install answers: which tape stands for which image. No torch."""

from __future__ import annotations

from pathlib import Path

import pytest

from qlora_planner.catalog.images import image_letters, picture_of
from qlora_planner.evidence.calibration import TRACED
from qlora_planner.memory.options.resolve import resolve
from qlora_planner.memory.sweep.validity import trace_key
from qlora_planner.record import replaced
from qlora_planner.session import Session, packages
from qlora_planner.sources.catalogue import ModelCatalogue
from qlora_planner.sources.traces.image_tapes import OF_IMAGES, shown_in
from qlora_planner.spec.run import RunConfig
from qlora_planner.spec.trace import CompiledTape, Segment
from qlora_planner.spec.weaving.windows import WindowLoop, window_lengths, window_letters, windowed

PROFILES = Path(__file__).parents[2] / "profiles"
WHOLES = ModelCatalogue([PROFILES / "whole"])
SHIPPED = sorted(
    path.name.removesuffix(".jsonl.gz").replace("__", "/") for path in (PROFILES / "tapes" / OF_IMAGES).iterdir()
)


@pytest.fixture
def no_torch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As where nothing but this package is installed."""
    monkeypatch.setattr(packages, "missing_packages", lambda *_: ["torch"])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.mark.usefixtures("no_torch")
@pytest.mark.parametrize("model", SHIPPED)
def test_a_run_with_an_image_is_answered_without_torch(model: str) -> None:
    run = RunConfig(image_size="1000x700", seq_len=3500)
    small, large = (
        Session().on("80GB").estimate(model, run.with_(image_size=size)) for size in ("800x600", "1100x900")
    )
    assert small.estimate.method == large.estimate.method == TRACED
    assert small.verdict == large.verdict == "fits"
    assert small.peak.allocated_bytes <= large.peak.allocated_bytes


@pytest.mark.usefixtures("no_torch")
def test_a_plan_with_an_image_says_everywhere_what_estimate_says() -> None:
    bench, shown = Session().on("24GB"), RunConfig(image_size="1024x768", images=1)
    plan = bench.plan("qwen2.5-vl-7b", shown).plan
    assert plan.estimate.verdict == "fits" and plan.run.images == 1
    here = bench.estimate("qwen2.5-vl-7b", RunConfig(**plan.options)).estimate
    assert here.floor_bytes == plan.estimate.floor_bytes
    priced = [row for row in plan.prices if row.bytes is not None]
    assert {row.knob for row in priced} >= {"seq_len", "rank", "image_size"}
    for row in priced:
        change = {"image_tokens": None, "padding": None, "alpha": None, **row.change}
        there = bench.estimate("qwen2.5-vl-7b", plan.run.with_(**change)).estimate
        assert (row.bytes, row.fits) == (there.floor_bytes - here.floor_bytes, there.verdict == "fits"), row.change
    for point in plan.frontier:
        there = bench.estimate(
            "qwen2.5-vl-7b", plan.run.with_(batch_size=point.batch_size, seq_len=point.seq_len)
        ).estimate
        assert there.verdict == "fits"


@pytest.mark.usefixtures("no_torch")
def test_a_plan_whose_peak_is_loading_looks_for_no_length_along_a_line() -> None:
    plan = Session().on("16GB").plan("gemma3:12b", images=1).plan
    assert plan.estimate.verdict == "fits" and plan.frontier == ()
    assert next(row.bytes for row in plan.prices if row.change == {"seq_len": 1024}) == 0


@pytest.mark.usefixtures("no_torch")
def test_a_run_that_shows_no_images_has_a_verdict_with_the_tower() -> None:
    bench = Session().on("24GB")
    text, whole = bench.estimate("qwen2.5-vl-7b"), bench.estimate("qwen2.5-vl-7b", images=0)
    assert (text.verdict, whole.verdict) == ("cannot-say", "fits")
    # The tower and its adapters are there, and nothing goes through them.
    assert 0 < whole.peak.allocated_bytes - text.peak.allocated_bytes < 1 << 30


@pytest.mark.usefixtures("no_torch")
@pytest.mark.parametrize("size", ["28x28", "6000x4000"])
def test_an_image_larger_or_smaller_than_any_that_was_traced_is_not_answered(size: str) -> None:
    seq_len = 32768 if size == "6000x4000" else 2048
    answer = Session(stored_only=True).on("h200").estimate("qwen2.5-vl-7b", image_size=size, seq_len=seq_len)
    assert answer.verdict == "cannot-say" and answer.estimate.method != TRACED


def test_a_variant_is_told_apart_by_the_number_of_images_and_not_by_their_size() -> None:
    profile = WHOLES.load("Qwen/Qwen2.5-VL-7B-Instruct")

    def key(run: RunConfig) -> str:
        resolution = resolve(profile, run, None)
        told = shown_in(trace_key(resolution.run, resolution.stack, None))
        assert told is not None and told[1].images == run.images
        return told[0]

    sizes = [RunConfig(images=1, image_size=size) for size in ("504x504", "1280x720")]
    assert len({key(run) for run in sizes}) == 1
    assert key(sizes[0]) != key(RunConfig(images=2, image_size="504x504")) != key(RunConfig(images=0))
    assert shown_in("sm90 qlora nf4") is None


def test_letters_are_what_the_processor_makes_of_an_image() -> None:
    profile = WHOLES.load("Qwen/Qwen2.5-VL-7B-Instruct")
    picture = picture_of("qwen2_5_vl", profile.dims, RunConfig(image_size="1024x768"))
    letters = image_letters(picture)
    assert (letters["image_tokens"], letters["image_rows"], letters["image_columns"]) == (27 * 37, 54, 74)


def test_windows_at_the_edge_of_a_grid_are_smaller() -> None:
    assert window_lengths(16, 24, 8) == (64,) * 6
    # 54 x 74 patches, as Qwen2.5-VL takes 1024 x 768 pixels: seven rows of ten windows.
    lengths = window_lengths(54, 74, 8)
    assert len(lengths) == 70 and sum(lengths) == 54 * 74
    assert (lengths[0], lengths[9], lengths[-10], lengths[-1]) == (64, 16, 48, 12)
    # A grid that whole windows fill has one row and column of them more in its table.
    assert window_letters(16, 24, 8) == {"image_windows": 6, "image_filled_windows": 12}


def test_a_tape_of_three_windows_is_played_with_as_many_as_an_image_has() -> None:
    """Three turns that each make two blocks and free the first; what is left is freed from the last on."""
    events = (3, 1, 2, -2, 1, 2, -4, 1, 2, -6, 3, -7, -5, -3)
    segment = Segment(stage="forward", name="embedding", layer=-1, step=0, micro_step=0, start=0, stop=len(events))
    tape = CompiledTape(
        variant="", sizes=tuple(((size, 1, (0, 0, 0)),) for size in (64, 8, 5)), workspace_sizes=(), events=events,
        segments=(segment,), places=(0,), kept=(0,),
    )  # fmt: skip
    small = replaced(tape, sizes=(((16, 1, (0, 0, 0)),), *tape.sizes[1:]))
    loops = [WindowLoop.of(1, 3, 3, 0), WindowLoop.of(11, 1, 3, 1)]
    played = windowed({64: tape, 16: small}, loops, (64, 64, 64, 64, 16)).at(1, 1, 1)
    assert [size for _, size in played.events if size] == [5, 64, 8, 64, 8, 64, 8, 64, 8, 16, 8, 5]
    dead = {number for number, size in played.events if not size}
    assert {number for number, size in played.events if size} - dead == {1, 12}
    assert played.segments[0].stop == len(played.events) == 1 + 15 + 1 + 5
