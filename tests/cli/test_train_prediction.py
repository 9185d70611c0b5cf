"""What decides whether a training starts is the prediction that is recorded of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qlora_planner import session
from qlora_planner.cli import train_run
from qlora_planner.cli.values import output_from
from qlora_planner.errors import RefusedError
from qlora_planner.session.this_card import ThisCard
from qlora_planner.spec.run import RunConfig

LLAMA = session.load_model("meta-llama/Llama-3.1-8B", build="never")
RUN = RunConfig(seq_len=2048, batch_size=2, grad_accum=8, padding=True)
# Between what this run needs when all its batches are as wide as the widest, and what it needs after these.
WIDTHS, CAP_BYTES = (1124, 1748, 1024, 1948), 9_200_000_000


@pytest.mark.parametrize("widths", [(), WIDTHS], ids=["all as wide", "others before the widest"])
def test_a_run_is_refused_by_the_prediction_that_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, widths: tuple[int, ...]
) -> None:
    monkeypatch.setenv("QLORA_PLANNER_TRACE", "never")
    recorded: list[Mapping[str, Any]] = []

    def executed(*given: Any) -> int:
        *_, predict, _, _, _ = given
        recorded.append(predict(RUN))
        return 0

    monkeypatch.setattr(train_run, "_executed", executed)
    place = ThisCard(gpu=session.load_gpu("rtx-4090"), others_bytes=0, cap_bytes=CAP_BYTES, processes=())
    asked: Any = SimpleNamespace(record={}, folder=SimpleNamespace(path=tmp_path))
    spec: Any = SimpleNamespace(run=RUN)
    document = {"data": {"run": {"widths_before": [list(widths)] if widths else []}}}
    monkeypatch.setattr(train_run, "_counted", lambda *_: ())

    def start() -> int:
        return train_run.execute(asked, spec, LLAMA, place, document, {"yes": False}, output_from({"quiet": True}))

    if widths:
        with pytest.raises(RefusedError, match="does not fit"):
            start()
    else:
        assert start() == 0
        assert recorded[0]["fit"]["verdict"] in ("fits", "tight")
