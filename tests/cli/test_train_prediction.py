"""What decides whether a training starts is the prediction that is recorded of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qlora_planner import session
from qlora_planner.errors import RefusedError
from qlora_planner.session.measuring.this_card import ThisCard
from qlora_planner.session.training import execute, predictions
from qlora_planner.session.training.onlooker import Onlooker
from qlora_planner.session.training.prepare import Prepared
from qlora_planner.session.training.request import TrainOptions
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
    recorded: list[Mapping[str, Any] | None] = []

    def run(execution: Any) -> None:
        recorded.append(execution.predictions.document(RUN))

    monkeypatch.setattr(execute._Execution, "run", run)
    here = ThisCard(gpu=session.load_gpu("rtx-4090"), others_bytes=0, cap_bytes=CAP_BYTES, processes=())
    request: Any = SimpleNamespace(record={}, folder=SimpleNamespace(path=tmp_path), options=TrainOptions())
    document = {"data": {"run": {"widths_before": [list(widths)] if widths else []}}}
    monkeypatch.setattr(predictions, "counted_widths", lambda *_: ())
    spec: Any = SimpleNamespace(run=RUN)
    prepared = Prepared(request=request, spec=spec, profile=LLAMA, here=here, document=document)

    def start() -> None:
        execute.execute(session.Session(), prepared, Onlooker(lambda _: None))

    if widths:
        with pytest.raises(RefusedError, match="does not fit"):
            start()
    else:
        start()
        assert recorded[0] is not None and recorded[0]["fit"]["verdict"] in ("fits", "tight")
