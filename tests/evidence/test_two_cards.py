"""Ranks that were measured on two H200s, beside what is predicted for them by what ships."""

from __future__ import annotations

from typing import Any

import pytest

from qlora_planner.memory import MemoryEstimate
from qlora_planner.memory.parallel.ring import ring_bytes
from qlora_planner.session import Session
from tools.two_cards import allocated, bounded, inside, predict, read_rows, reserved

ROWS = read_rows()


@pytest.fixture(scope="module")
def answers() -> list[tuple[dict[str, Any], MemoryEstimate]]:
    """Runs with a shipped trace; of ranks that share sequences only the tensors are planned, not the ring's."""
    plain = [row for row in ROWS if not bounded(row) and "context_parallel" not in row and row["rank"] == 0]
    predicted = [(row, predict(row, stored_only=True)) for row in plain]
    return [(row, answer) for row, answer in predicted if answer.method == "traced"]


def test_the_campaign_has_37_configurations_with_both_ranks() -> None:
    assert len({row["case"] for row in ROWS}) == 37
    assert len(ROWS) == 74


def test_phases_are_the_measured_ones(answers: list[tuple[dict[str, Any], MemoryEstimate]]) -> None:
    """0.2 % in the mean, and no phase more than 0.7 % under."""
    errors = {
        (row["case"], name): ours / theirs - 1
        for row, answer in answers
        for name, ours, theirs in allocated(row, answer)
    }
    assert len(answers) >= 15 and len(errors) >= 60
    assert sum(map(abs, errors.values())) / len(errors) < 0.002
    assert min(errors.values()) > -0.007, min(errors, key=errors.__getitem__)


def test_reserved_and_device_are_the_measured_ones(answers: list[tuple[dict[str, Any], MemoryEstimate]]) -> None:
    """2 % in the mean, and none more than 4 % under."""
    pool = {row["case"]: ours / theirs - 1 for row, answer in answers for ours, theirs in [reserved(row, answer)]}
    device = {row["case"]: answer.peak.device_bytes / row["nvml_peak"] - 1 for row, answer in answers}
    for errors in (pool, device):
        assert sum(map(abs, errors.values())) / len(errors) < 0.02
        assert min(errors.values()) > -0.04, min(errors, key=errors.__getitem__)


@pytest.mark.parametrize("row", [row for row in ROWS if bounded(row)], ids=lambda row: f"{row['case']}-{row['rank']}")
def test_an_interval_holds_the_card(row: dict[str, Any]) -> None:
    assert inside(row, predict(row, stored_only=True))


@pytest.mark.parametrize(
    "row", [row for row in ROWS if "context_parallel" in row], ids=lambda row: f"{row['case']}-{row['rank']}"
)
def test_what_two_cards_take_more_to_share_a_sequence_is_within_its_bound(row: dict[str, Any]) -> None:
    """446 MiB of it are a second communicator's."""
    answer = predict(row)
    run = answer.run
    model = Session(stored_only=True).model(row["model"])
    bound = ring_bytes(model, run, row["context_parallel"])
    assert bound is not None
    tensors = [theirs - ours for _, ours, theirs in allocated(row, answer)]
    ours, theirs = reserved(row, answer)
    assert max(tensors) <= bound and theirs - ours <= bound
    assert row["nvml_peak"] - answer.peak.device_bytes - (446 << 20) <= bound < answer.peak.device_bytes


def test_sequences_that_two_cards_share_are_those_of_half_the_tokens() -> None:
    row = next(row for row in ROWS if row["case"] == "cp2-8b-s32768")
    for name, ours, theirs in allocated(row, predict(row, stored_only=True)):
        assert ours == pytest.approx(theirs, rel=0.0005), name
