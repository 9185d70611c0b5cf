"""Whose memory it was: a container hides torch's own process id, and the sums tell which of the named ones it is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlora_planner.diagnose.oom import explain
from qlora_planner.diagnose.oom.records import OomReport
from qlora_planner.report.parts.oom_words import advice, facts
from qlora_planner.units import GIB


def message(
    capacity: float, free: float, allocated: float, idle: float, *processes: tuple[int, float], own: float | None = None
) -> str:
    named = "".join(f"Process {pid} has {size:.2f} GiB memory in use. " for pid, size in processes)
    mine = "" if own is None else f"Including non-PyTorch memory, this process has {own:.2f} GiB memory in use. "
    return (
        f"torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 5.88 GiB. GPU 0 has a total capacity of"
        f" {capacity:.2f} GiB of which {free:.2f} GiB is free. {named}{mine}Of the allocated memory {allocated:.2f} GiB"
        f" is allocated by PyTorch, and {idle:.2f} GiB is reserved by PyTorch but unallocated."
    )


def test_in_a_container_the_named_process_is_this_one() -> None:
    report = explain(message(22.06, 5.61, 15.90, 0.29, (31877, 16.44)))
    assert (report.own_pid, report.processes, report.others_bytes) == (31877, None, 0)
    assert report.process_bytes == pytest.approx(16.44 * GIB, abs=1)
    assert not [one for one in advice(report) if "--reserve" in one or "nvidia-smi" in one]
    assert dict(facts(report))["others"].startswith("none")


def test_beside_a_neighbour_the_nearest_above_what_torch_held_is_this_one() -> None:
    report = explain(message(39.39, 0.40, 20.00, 1.00, (7, 17.40), (8, 21.55)))
    assert (report.own_pid, list(report.processes or {})) == (8, [7])
    assert report.others_bytes == pytest.approx((39.39 - 0.40 - 21.55) * GIB, abs=64)


def test_a_neighbour_alone_stays_a_neighbour_where_the_rest_of_the_card_has_room_for_this_run() -> None:
    report = explain(message(79.15, 2.00, 30.00, 1.00, (99, 45.50)))
    assert (report.own_pid, list(report.processes or {})) == (None, [99])
    assert report.others_bytes == pytest.approx(45.50 * GIB, abs=64)
    assert any("--reserve" in one for one in advice(report))


def test_a_card_that_somebody_else_filled_before_the_first_tensor() -> None:
    report = explain(message(23.52, 0.02, 0.0, 0.0, (4711, 23.05)))
    assert report.own_pid is None
    assert report.others_bytes == pytest.approx(23.05 * GIB, abs=64)


def test_the_own_process_that_torch_knows_is_never_looked_for() -> None:
    report = explain(message(23.52, 1.02, 8.80, 1.05, (4711, 12.10), own=10.30))
    assert (report.own_pid, list(report.processes or {})) == (None, [4711])
    assert report.process_bytes == pytest.approx(10.30 * GIB, abs=1)


def test_what_the_old_wording_cannot_part_is_said_as_one_figure() -> None:
    report = explain(
        "RuntimeError: CUDA out of memory. Tried to allocate 2.00 GiB (GPU 0; 8.00 GiB total capacity; 4.50 GiB already"
        " allocated; 1.00 GiB free; 5.00 GiB reserved in total by PyTorch)"
    )
    assert report.others_bytes is None
    assert report.unexplained_bytes == 2 * GIB
    assert "does not part" in dict(facts(report))["rest"]


SIZES = st.floats(min_value=0, max_value=300)


@given(
    SIZES, SIZES, SIZES, SIZES, st.lists(st.tuples(st.integers(1, 9999), SIZES), max_size=4), st.none() | SIZES
)  # fmt: skip
def test_held_others_and_free_never_exceed_the_card(
    capacity: float, free: float, allocated: float, idle: float, named: list[tuple[int, float]], own: float | None
) -> None:
    report: OomReport = explain(message(capacity, free, allocated, idle, *named, own=own))
    assert report.capacity_bytes is not None and report.free_bytes is not None and report.reserved_bytes is not None
    held = max(report.process_bytes or 0, report.reserved_bytes)
    if held + report.free_bytes <= report.capacity_bytes:
        assert held + (report.others_bytes or 0) + report.free_bytes <= report.capacity_bytes
    else:
        assert not report.others_bytes
