"""What loading takes of a node's host memory: mapped files once, and what each rank holds of its own."""

from __future__ import annotations

from qlora_planner import load_model
from qlora_planner.session import Session

MODEL = "llama-3.1-8b"
# The total_size of its model.safetensors.index.json, as published.
CHECKPOINT_BYTES = 16_060_522_496


def test_the_checkpoint_is_mapped_once_and_each_rank_has_its_own() -> None:
    on_card = Session().on("2xh200").estimate(MODEL, parallel="fsdp2", load_on="gpu").host
    on_host = Session().on("2xh200").estimate(MODEL, parallel="fsdp2", load_on="cpu").host
    assert on_card.load_file_bytes == on_host.load_file_bytes == CHECKPOINT_BYTES
    eight = Session().on("8xh200").estimate(MODEL, parallel="fsdp2", load_on="gpu").host
    assert eight.load_file_bytes == CHECKPOINT_BYTES
    own = on_card.load_peak_bytes - CHECKPOINT_BYTES
    assert eight.load_peak_bytes - CHECKPOINT_BYTES == 4 * own
    # A rank's high-water mark beside the files, read on two H200s: 0.6 to 1.6 GiB; at least 5.0 more on the CPU.
    assert 2 * 0.6 < own / (1 << 30) < 2 * 1.7
    assert (on_host.load_peak_bytes - on_card.load_peak_bytes) / (1 << 30) > 2 * 5.0


def test_of_one_card_nothing_is_said() -> None:
    host = Session().on("24GB").estimate(MODEL).host
    assert (host.load_peak_bytes, host.load_file_bytes) == (None, None)
    assert load_model(MODEL).params * 2 == CHECKPOINT_BYTES
