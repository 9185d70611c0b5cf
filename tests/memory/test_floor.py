"""A run said to fit gets through when it is played under the card's own limit."""

import pytest

from qlora_planner import Session
from qlora_planner.spec.run import RunConfig

CAP_BYTES = 14_792_261_632


@pytest.mark.parametrize(("length", "verdict"), [(464, "does-not-fit"), (256, "fits")])
def test_a_cache_cut_up_by_whole_logits_is_not_taken_for_room(length: int, verdict: str) -> None:
    """On an H200 under this limit on torch, 4 pairs of 464 + 464 tokens ran out of memory on logits of 3.54 GiB."""
    model = Session().on("h200", cap=f"{CAP_BYTES // 2**20}MiB").open("meta-llama/Llama-3.2-1B")
    answer = model.estimate(RunConfig(trainer="trl-orpo", batch_size=4, prompt_len=length, completion_len=length))
    assert answer.method == "traced"
    assert answer.verdict == verdict
    assert answer.floor_bytes <= (answer.peak.device_bytes or 0)
