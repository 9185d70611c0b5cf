"""What ranks tell, brought together: the rank that ended a run is named, and not one that ended for want of it."""

from __future__ import annotations

from typing import Any

import pytest

from qlora_planner.measure import ranks
from qlora_planner.measure.children import Progress
from qlora_planner.measure.ranks import Gathered

LOST_PEER = {"outcome": "error", "message": "RuntimeError: Connection closed by peer"}


def gathered(*events: tuple[str, dict[str, Any]]) -> Gathered:
    """Two ranks, processes 100 and 101, that told this."""
    told = Gathered(2)
    for rank in (0, 1):
        told.take(Progress(event="rank", elapsed_s=0.0, facts={"rank": rank, "pid": 100 + rank}))
    for name, facts in events:
        assert told.take(Progress(event=name, elapsed_s=0.0, facts=facts))
    return told


def result(rank: int, outcome: str = "ok", **facts: Any) -> tuple[str, dict[str, Any]]:
    return "result", {"rank": rank, "outcome": outcome, **facts}


def test_all_that_ended_well_is_the_first_ranks_with_the_others_beside_it() -> None:
    told = gathered(result(1, steps=4), result(0, steps=4, trainable_params=7))
    facts = told.facts()
    assert facts["outcome"] == "ok" and facts["trainable_params"] == 7 and not told.over
    assert [rank["rank"] for rank in facts["ranks"]] == [0, 1]


@pytest.mark.parametrize(
    ("events", "outcome", "message"),
    [
        (  # the other rank notices before the launcher does
            [result(0, **LOST_PEER), ("lost", {"pid": 101, "code": -9})],
            "killed",
            "rank 1 of 2 was ended by SIGKILL (the system ends processes so when host memory runs out); the other was"
            " ended with it",
        ),
        (
            [result(1, "out-of-memory", message="CUDA out of memory", phase="training"), result(0, **LOST_PEER)],
            "out-of-memory",
            "rank 1 of 2: CUDA out of memory",
        ),
        (  # the launcher ends what is left, and that is no cause
            [result(0, "error", message="ValueError: bad"), ("lost", {"pid": 100, "code": 4}),
             ("lost", {"pid": 101, "code": -15})],
            "error",
            "rank 0 of 2: ValueError: bad",
        ),
        (
            [("lost", {"pid": 101, "code": 3})],
            "error",
            "rank 1 of 2 ended with code 3; its last words are in log.txt; the other was ended with it",
        ),
    ],
)  # fmt: skip
def test_the_rank_that_was_the_cause_is_named(
    events: list[tuple[str, dict[str, Any]]], outcome: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks, "_SETTLE_S", 0.0)
    told = gathered(*events)
    facts = told.facts()
    assert (facts["outcome"], facts["message"]) == (outcome, message)
    assert told.over  # nobody waits for a rank that waits for another


def test_a_tool_that_the_launcher_asked_in_vain_is_no_rank() -> None:
    told = gathered(("lost", {"pid": 4711, "code": 127}), result(0), result(1))
    assert told.facts()["outcome"] == "ok" and not told.over
