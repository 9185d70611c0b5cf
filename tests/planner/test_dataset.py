"""What lengths mean for a run, against every batch that there can be and against transformers' own sampler."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from math import ceil
from typing import Any

import numpy as np
import pytest

from qlora_planner.data.batches.epochs import BFD, GROUPED, RANDOM, WRAPPED, plan_data, steps_per_epoch, truncations
from qlora_planner.data.batches.packing import packed_bfd
from qlora_planner.data.batches.padding import expected_longest, padded_by_length, padded_by_random
from qlora_planner.data.batches.summary import DataSummary, RowRef, outliers_of, seq_len_for
from qlora_planner.data.batches.widths import widths_before


def made(lengths: Sequence[int], masked: Sequence[int] | None = None, **changes: Any) -> DataSummary:
    array = np.array(lengths, dtype=np.int32)
    at = int(np.argmax(array))
    fields: dict[str, Any] = {
        "paths": ("train.jsonl",), "format": "jsonl", "shape": "text", "size_bytes": 1000, "basis": "counted",
        "tokenizer": "org/model", "chars_per_token": None, "outliers": (), "outlier_rows": 0, "bad_rows": 0,
        "first_bad": (), "longest": RowRef(path="train.jsonl", line=at + 1, tokens=int(array[at])), "lengths": array,
        "masked": None if masked is None else np.array(masked, dtype=np.int32),
    }  # fmt: skip
    return DataSummary(**{**fields, **changes})


LENGTHS = [3, 7, 7, 1, 20, 5, 5, 5, 12]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 9])
def test_the_expected_longest_row_is_the_mean_over_all_batches(batch_size: int) -> None:
    every = [max(batch) for batch in combinations(LENGTHS, batch_size)]
    assert expected_longest(np.array(LENGTHS), batch_size) == pytest.approx(sum(every) / len(every))


def test_padding_of_a_shuffled_epoch_is_the_mean_over_orders() -> None:
    drawn, total = np.random.default_rng(3), 0
    lengths = np.array(LENGTHS)
    for _ in range(20_000):
        order = drawn.permutation(lengths)
        total += sum(len(order[at : at + 4]) * int(order[at : at + 4].max()) for at in range(0, 9, 4))
    assert padded_by_random(lengths, 4) == pytest.approx(total / 20_000, rel=0.005)


@pytest.mark.parametrize(("rows", "batch_size", "grad_accum"), [(37, 4, 1), (1003, 8, 2), (5000, 3, 4)])
def test_padding_by_length_is_that_of_transformers_sampler(rows: int, batch_size: int, grad_accum: int) -> None:
    torch = pytest.importorskip("torch")
    from transformers.trainer_pt_utils import get_length_grouped_indices

    lengths = np.random.default_rng(rows).lognormal(5, 1, rows).astype(int)
    found = []
    for seed in range(30):
        order = get_length_grouped_indices(
            lengths.tolist(), batch_size * grad_accum, generator=torch.Generator().manual_seed(seed)
        )
        batches = [lengths[order[at : at + batch_size]] for at in range(0, rows, batch_size)]
        found.append(sum(len(batch) * int(batch.max()) for batch in batches))
    ours, draws = padded_by_length(lengths, batch_size, grad_accum)
    assert draws == 20
    spread = np.std(found) * (1 / 30 + 1 / 20) ** 0.5
    assert abs(ours - np.mean(found)) < 4 * spread


def test_packing_never_needs_less_than_the_tokens_and_never_splits_a_row() -> None:
    drawn = np.random.default_rng(0)
    for _ in range(50):
        lengths = drawn.integers(1, 300, drawn.integers(1, 400))
        bins = packed_bfd(lengths, 256)
        assert bins.sum() == np.minimum(lengths, 256).sum()
        assert bins.max() <= 256
        # Best fit decreasing opens a bin only when no open one takes the row: no two half-empty ones.
        assert np.count_nonzero(bins <= 128) <= 1


def test_the_longest_row_sets_the_sequence_length_and_the_model_caps_it() -> None:
    summary = made([10, 130, 50])
    assert seq_len_for(summary) == 192
    assert seq_len_for(summary, 150) == 150
    assert seq_len_for(made([128])) == 128


def test_the_worst_batch_is_the_batch_times_its_longest_row() -> None:
    plan = plan_data(made(LENGTHS), seq_len=64, batch_size=4)
    assert plan.epoch.worst_tokens == 4 * 20
    assert plan_data(made(LENGTHS), seq_len=16, batch_size=4).epoch.worst_tokens == 4 * 16
    # Fewer rows than a batch takes.
    assert plan_data(made(LENGTHS), seq_len=64, batch_size=99).epoch.worst_tokens == len(LENGTHS) * 20


def test_packed_batches_are_one_flat_row() -> None:
    epochs = plan_data(made([10, 10, 10, 4]), seq_len=20, batch_size=2, packing=True).epochs
    assert (epochs[BFD].rows, epochs[BFD].worst_tokens, epochs[BFD].padded_tokens) == (2, 34, 34)
    assert epochs[BFD].waste == 0
    assert epochs[BFD].fill == pytest.approx(34 / 40)
    # Wrapped rows are padded: 20 and 14 tokens to two rows of 20.
    assert (epochs[WRAPPED].rows, epochs[WRAPPED].padded_tokens) == (2, 40)
    assert epochs[WRAPPED].waste == pytest.approx(6 / 40)


def test_truncation_tells_rows_and_tokens() -> None:
    summary = made([10] * 90 + [100] * 9 + [1000])
    found = {row.percentile: row for row in truncations(summary, peak_bytes=lambda seq_len: seq_len * 10)}
    assert [(row.seq_len, row.rows_cut, row.tokens_lost) for row in found.values()] == [
        (64, 10, 9 * 36 + 936), (128, 1, 872), (1024, 0, 0),
    ]  # fmt: skip
    assert list(found) == [90.0, 99.0, 100.0]
    assert found[99.0].rows_cut_share == pytest.approx(0.01)
    assert found[99.0].tokens_lost_share == pytest.approx(872 / (900 + 900 + 1000))
    assert [row.peak_bytes for row in found.values()] == [640, 1280, 10240]
    capped = truncations(summary, 512)
    assert (capped[-1].seq_len, capped[-1].rows_cut, capped[-1].peak_bytes) == (512, 1, None)


def test_rows_that_lose_all_that_is_learned_are_dropped_unless_packed() -> None:
    summary = made([20, 50, 50], masked=[5, 10, 32])
    cut = plan_data(summary, seq_len=32, batch_size=1)
    assert (cut.cut.rows_cut, cut.cut.rows_dropped, cut.cut.tokens_lost) == (2, 1, 18 + 50)
    assert (cut.epoch.rows, cut.epoch.tokens, cut.epoch.tokens_lost) == (2, 52, 68)
    packed = plan_data(summary, seq_len=32, batch_size=1, packing=True)
    assert (packed.cut.rows_dropped, packed.cut.tokens_lost, packed.epoch.tokens) == (0, 36, 84)


def test_all_rows_can_be_dropped() -> None:
    plan = plan_data(made([20, 20], masked=[15, 15]), seq_len=10, batch_size=2)
    assert (plan.epoch.rows, plan.epoch.steps, plan.epoch.hours) == (0, 0, None)
    assert plan.to_dict()["run"]["cut"]["rows_dropped"] == 2


@pytest.mark.parametrize(("rows", "batch", "accum"), [(10, 4, 2), (9, 4, 2), (8, 4, 2), (1, 4, 8), (1000, 3, 7)])
def test_steps_are_those_of_the_trainer(rows: int, batch: int, accum: int) -> None:
    batches = ceil(rows / batch)  # len(DataLoader) without drop_last
    assert steps_per_epoch(rows, batch, accum) == max(batches // accum + int(batches % accum > 0), 1)


def test_hours_are_those_of_what_is_computed_and_unknown_without_a_speed() -> None:
    plan = plan_data(made([50, 100]), seq_len=128, batch_size=2, tokens_per_s=2.0)
    assert plan.epoch.hours == pytest.approx(200 / 2.0 / 3600)
    assert plan_data(made([50, 100]), seq_len=128, batch_size=2).epoch.hours is None


def test_summary_as_json() -> None:
    found = made([1, 2, 3, 4, 100]).to_dict()
    assert found["length_percentiles"] == {"50": 3, "75": 4, "90": 100, "95": 100, "99": 100, "99.9": 100, "100": 100}
    assert found["histogram"] == {"edges": [1, 2, 4, 8, 16, 32, 64, 128], "rows": [1, 2, 1, 0, 0, 0, 1]}
    assert (found["rows"], found["tokens"]) == (5, 110)
    assert sum(made([64, 128, 128]).histogram()[1]) == 3


def test_outliers_are_far_above_the_99th_percentile() -> None:
    lengths = np.array([10] * 500 + [40, 41, 900], dtype=np.int32)
    assert lengths[outliers_of(lengths)].tolist() == [900, 41]
    assert not len(outliers_of(np.array([5], dtype=np.int32)))


def test_batching_by_name() -> None:
    names = [row["name"] for row in plan_data(made(LENGTHS), seq_len=64, batch_size=2).to_dict()["batching"]]
    assert names == [RANDOM, GROUPED, BFD, WRAPPED]


@pytest.mark.parametrize("batch_size", [1, 4])
def test_widths_before_the_widest_are_those_of_random_batches(batch_size: int) -> None:
    drawn = np.random.default_rng(5)
    lengths = drawn.lognormal(5.6, 0.9, 4000).astype(np.int32)
    orders = widths_before(made(lengths.tolist()), batch_size, 1000, packing=False)
    found = [width for order in orders for width in order]
    assert set(found) <= set(lengths.tolist()) and max(found) < 1000
    below = lengths[lengths < 1000]
    many = [drawn.choice(below, batch_size).max() for _ in range(4000)]
    assert np.quantile(many, 0.25) < np.median(found) < np.quantile(many, 0.75)
    assert len(set(orders)) == len(orders) > 1


def test_rows_of_one_length_have_no_width_before_the_widest() -> None:
    assert widths_before(made([7] * 50), 2, 64, packing=False) == ()
    assert widths_before(made([100] * 50), 2, 64, packing=False) == ()


def test_packed_rows_are_nearly_all_of_the_segments_of_full_ones() -> None:
    """What `widths_before` says of packed rows: a segment is a multiple of 2 MiB, a row of an 8B's MLP 28 KiB."""
    lengths = np.random.default_rng(0).lognormal(5.6, 0.9, 1600).astype(np.int32).clip(16, 4000)
    segments = np.ceil(packed_bfd(lengths, 4096) * 28 * 1024 / (2 << 20))
    assert widths_before(made(lengths.tolist()), 1, 4096, packing=True) == ()
    assert (segments < segments.max()).mean() < 0.02
