"""A run said to fit gets through when it is played under the card's own limit."""

import pytest

from qlora_planner import Session
from qlora_planner.catalog.cuda import cublas_workspace_bytes
from qlora_planner.memory.options.resolve import resolve
from qlora_planner.memory.replay.simulate import stage_of
from qlora_planner.session.traces import tape_for
from qlora_planner.spec.run import RunConfig
from qlora_planner.units import MIB

CAP_BYTES = 14_792_261_632


@pytest.mark.parametrize(("length", "verdict"), [(464, "does-not-fit"), (256, "fits")])
def test_a_cache_cut_up_by_whole_logits_is_not_taken_for_room(length: int, verdict: str) -> None:
    """On an H200 under this limit on torch, 4 pairs of 464 + 464 tokens ran out of memory on logits of 3.54 GiB."""
    model = Session().on("h200", cap=f"{CAP_BYTES // 2**20}MiB").open("meta-llama/Llama-3.2-1B")
    answer = model.estimate(RunConfig(trainer="trl-orpo", batch_size=4, prompt_len=length, completion_len=length))
    assert answer.method == "traced"
    assert answer.verdict == verdict
    assert answer.floor_bytes <= (answer.peak.device_bytes or 0)


def test_what_is_reserved_under_a_limit_is_reserved_under_every_lower_one_that_holds_it() -> None:
    """So the search for a floor plays none of these: logits of long rows are freed where the limit asks for it."""
    bench = Session().on("t4")
    profile = bench.open("meta-llama/Llama-3.1-8B").profile
    resolution = resolve(profile, RunConfig(seq_len=4096, trainer="hf-trainer"), bench.gpu)
    tape = tape_for(profile, resolution.run, bench.gpu, stored_only=True)
    assert tape is not None
    stage = stage_of(profile, resolution, tape, cublas_workspace_bytes(bench.gpu.compute_capability))
    freely = stage.play(None).reserved
    limit = 16_176 * MIB
    held = stage.reserved_within(limit)
    assert held is not None
    assert held < limit - 400 * MIB < freely
    assert {stage.reserved_within(held + more * MIB) for more in (0, 24, 212)} == {held}
    assert stage.reserved_within(held - 40 * MIB) is None
