"""Anything may be given to explain-oom and doctor: a report or one line of refusal, never a traceback, never a hang.

QLORA_PLANNER_FUZZ_SECONDS=600 looks for that long, beside the short search that always runs.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from qlora_planner.diagnose.oom import explain
from qlora_planner.diagnose.oom.snapshot import read_snapshot
from qlora_planner.diagnose.symptom_search import explain_symptom, unknown_symptom
from qlora_planner.errors import InputError
from qlora_planner.report.oom import render_oom
from qlora_planner.report.parts.theme import Theme
from qlora_planner.session.after.post_mortem import OomAnswer
from tests.evidence.test_oom_bounds import PLAIN
from tests.evidence.test_oom_tracebacks import BAR, COLAB, JUPYTER, OOM, RANKS, RICH
from tests.evidence.test_oom_wordings import LINES
from tests.measure.test_symptoms import LINES as PASTED

SECONDS = float(os.environ.get("QLORA_PLANNER_FUZZ_SECONDS", "0"))
SLOWEST_S = 5.0
PIECES = st.sampled_from(
    [COLAB, JUPYTER, RANKS, RICH, OOM, BAR.format(9, "#", 3, 9), *LINES, *PASTED, "\n",
     "\r", "\x1b[31m", "\x1b]0;", "│",
     "Traceback (most recent call last)", 'File "', "----> ", "Process 1 has", "[rank0]: ",
     "99999999999999999999 GiB", "0 B"],
)  # fmt: skip
TEXTS = st.builds(
    lambda pieces, cut, times: ("".join(pieces)[cut:] * times)[:20_000],
    st.lists(PIECES | st.text(max_size=30), max_size=12),
    st.integers(0, 40),
    st.sampled_from([1, 1, 1, 300]),
)
SNAPSHOTS = st.builds(
    lambda segments, traces: {"segments": segments, "device_traces": traces},
    st.lists(st.dictionaries(st.sampled_from(["device", "total_size", "allocated_size"]), PLAIN), max_size=3) | PLAIN,
    st.lists(
        st.lists(
            st.dictionaries(
                st.sampled_from(["action", "size", "device", "device_free", "frames"]), PLAIN | st.just("oom")
            ),
            max_size=3,
        ),
        max_size=3,
    )
    | PLAIN,
)
CODES = b"hjKMJ\x8a\x8cX\x8d}](us\x65a)\x85\x86\x87tN\x88\x89Gqr\x94\x95\x80.0123"


def check_text(text: str) -> None:
    before = time.process_time()
    try:
        report = explain(text)
    except InputError:
        pass
    else:
        json.dumps(OomAnswer(report=report).to_dict())
        assert render_oom(report, Theme(color=False, width=80))
        held = max(report.process_bytes or 0, report.reserved_bytes or 0)
        if report.capacity_bytes is not None and report.free_bytes is not None and report.others_bytes:
            assert held + report.free_bytes + report.others_bytes <= report.capacity_bytes
    assert all(one.fix and one.message for one in explain_symptom(text))
    assert "\n" not in unknown_symptom(text)
    assert time.process_time() - before < SLOWEST_S


def check_snapshot(content: bytes) -> None:
    before = time.process_time()
    try:
        report = read_snapshot(content, "x")
    except InputError as error:
        assert "\n" not in str(error)
    else:
        json.dumps(OomAnswer(report=report).to_dict())
        assert render_oom(report, Theme(color=False, width=80))
    assert time.process_time() - before < SLOWEST_S


def damaged(content: bytes, random_: random.Random) -> bytes:
    """Some bytes changed, cut out, doubled or put in, instructions more often than others."""
    data = bytearray(content)
    for _ in range(random_.randint(0, 6)):
        at = random_.randrange(len(data) + 1)
        what = random_.randrange(4)
        if what == 0 and at < len(data):
            data[at] = random_.choice(CODES)
        elif what == 1:
            del data[at : at + random_.randint(1, 4)]
        elif what == 2:
            data[at:at] = data[at : at + random_.randint(1, 40)] * random_.choice([1, 2, 50])
        else:
            data[at:at] = bytes(random_.choices(CODES, k=random_.randint(1, 5)))
    return bytes(data)


FILES = (
    st.builds(
        lambda document, protocol, random_: b"\x80" + damaged(pickle.dumps(document, protocol=protocol)[1:], random_),
        SNAPSHOTS,
        st.integers(2, 5),
        st.randoms(use_true_random=False),
    )
    | st.binary(max_size=60).map(lambda body: b"\x80\x04" + body)
    | st.binary(max_size=60).map(lambda body: b'{"segments":' + body)
)
CHECKS: dict[str, tuple[Callable[[Any], None], st.SearchStrategy[Any]]] = {
    "text": (check_text, TEXTS),
    "snapshot": (check_snapshot, FILES),
}


def search(name: str, examples: int, number: int) -> None:
    check, given_by = CHECKS[name]

    @seed(number)
    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(given_by)
    def over(value: Any) -> None:
        check(value)

    over()


@pytest.mark.parametrize("name", CHECKS)
def test_whatever_is_given_is_answered(name: str) -> None:
    search(name, 60, 0)


@pytest.mark.skipif(not SECONDS, reason="QLORA_PLANNER_FUZZ_SECONDS is not set")
@pytest.mark.parametrize("name", CHECKS)
def test_for_as_long_as_is_asked(name: str) -> None:
    import resource

    ends_s, number = time.monotonic() + SECONDS / len(CHECKS), 1
    held_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    while time.monotonic() < ends_s:
        search(name, 500, number)
        number += 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - held_kib < 300 << 10
