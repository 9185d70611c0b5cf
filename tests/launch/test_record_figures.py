"""What summary.json holds beside a measured run: figures predicted for the rows that it had."""

from pathlib import Path

import pytest

from qlora_planner import session
from qlora_planner.runs.directory import RunDirectory
from qlora_planner.runs.record import mean_tokens, summary
from qlora_planner.runs.supervise import Attempt
from qlora_planner.session.measuring.this_card import ThisCard
from qlora_planner.session.training.predictions import Predictions
from qlora_planner.spec.run import RunConfig

# A run of Llama-3.1-8B's size on an H200: rows up to 4,001 tokens long, 414 at the mean.
RUN = RunConfig(batch_size=1, grad_accum=4, seq_len=4001)
MEASURED_ALLOCATED_BYTES, MEAN_TOKENS = 8_348_113_408, 414


def test_rows_are_as_long_as_the_tokens_say() -> None:
    steps = [{"kind": "step", "tokens": 4 * width} for width in (100, 300)]
    assert mean_tokens([*steps, {"kind": "evaluation"}], RUN) == 200
    assert mean_tokens([{"kind": "step", "tokens": None}], RUN) is None


def test_figures_stand_beside_those_that_were_measured(tmp_path: Path) -> None:
    profile, gpu = session.load_model("meta-llama/Llama-3.1-8B"), session.load_gpu("h200")
    here = ThisCard(gpu=gpu, others_bytes=0, cap_bytes=None, processes=())
    predictions = Predictions(session.Session(), profile, here)
    attempt = Attempt(number=1, run=RUN, outcome="ok", facts={}, from_step=0, says="finished", checkpoint=None)
    document = summary(
        {"model": {}, "settings": {}, "data": {}, "device": "cuda", "versions": {}}, [attempt], [],
        session.estimate(profile, RUN, gpu).to_dict(), speed=predictions.speed(RUN, MEAN_TOKENS), wall_s=1.0,
        folder=RunDirectory(tmp_path), notes=[],
    )  # fmt: skip
    # The most is allocated in another phase than that in which the device's peak lies.
    assert document["memory"]["predicted"]["allocated_bytes"] == pytest.approx(MEASURED_ALLOCATED_BYTES, rel=1e-3)
    whole = predictions.speed(RUN, 4001)
    assert whole is not None
    told = document["speed"]["predicted"]
    assert told["step_s"] < whole["step_s"] and told["tokens_per_s"] < whole["tokens_per_s"]
