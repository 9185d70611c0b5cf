"""A verification and a calibration as screens: the finding first, every figure beside its prediction."""

from __future__ import annotations

from dataclasses import replace

from qlora_planner.evidence import RANDOM_WEIGHTS, NvmlReading, PhaseReading
from qlora_planner.evidence.calibration import calibrate
from qlora_planner.report.calibration import render_calibration
from qlora_planner.report.comparison import compared_phases, compared_process, to_document
from qlora_planner.report.parts.theme import Theme
from qlora_planner.report.verify import render_verification
from qlora_planner.units import GIB, MIB
from tests.evidence.made import measured
from tests.evidence.test_calibration import TEN
from tests.report.records import make_estimate

THEME = Theme(unicode=True)
PREDICTED = make_estimate(peak=10 * GIB).to_dict()


def flat(text: str) -> str:
    return " ".join(text.split())


def test_torch_s_figures_beside_a_colocated_vllm_are_of_both_and_the_process_holds_its_part() -> None:
    run = {"trainer": "trl-grpo", "vllm": "colocate"}
    one = measured(predicted=PREDICTED | {"fit": {"vllm_bytes": 7 << 30}})
    plain = {row.name: row for row in compared_process(one)}["process"]
    assert plain.predicted == PREDICTED["peak"]["device_bytes"] + (7 << 30)
    beside = replace(one, run=one.run.with_(**run))
    assert any(row.predicted for row in compared_phases(one, "allocated_bytes"))
    assert not any(row.predicted for row in compared_phases(beside, "allocated_bytes"))


def test_predicted_beside_measured() -> None:
    one = measured(reserved=10 * GIB, allocated=9 * GIB, predicted=PREDICTED)
    text = render_verification(one, THEME, kept="/somewhere/evidence.jsonl")
    assert text.splitlines()[0].startswith("✓ ran: org/model-7b on GeForce RTX 4090: peak 10.00 GiB predicted")
    assert "10.63 GiB measured (+6.35 %)" in flat(text)
    assert "all training 10,240 9,216 -10.00 % 10,240 10,240 +0.00 %" in flat(text)
    assert "whole card - 11,190 -" in flat(text)
    assert "context" in text
    assert "650" in text
    assert "2,048 tokens/s" in text
    assert "/somewhere/evidence.jsonl" in flat(text)
    assert max(map(len, text.splitlines())) <= 80
    assert render_verification(one, Theme()).isascii()


def test_running_out_of_memory_is_a_finding() -> None:
    phases = {"load": PhaseReading(allocated_bytes=5 * GIB), "training": PhaseReading(allocated_bytes=9 * GIB)}
    one = measured(
        outcome="out-of-memory", failed_phase="backward", error="out of memory", requested_bytes=2 * GIB,
        cap_bytes=10 * GIB, phases=phases, predicted=PREDICTED, components={"activations": 3 * GIB, "unattributed": 7},
    )  # fmt: skip
    text = flat(render_verification(one, THEME))
    assert text.startswith("✗ out of memory: org/model-7b on GeForce RTX 4090, in backward, asking for 2.00 GiB")
    assert "under a limit of 10,240 MiB" in text
    assert "short by 1.00 GiB" in text
    assert "it needs at least 9.00 GiB" in text
    assert "when it ran out, MiB" in text
    assert "activations 853 3,072 +2,218.7" in text


def test_a_failed_run_says_where_and_why() -> None:
    one = measured(
        outcome="error", failed_phase="prepare", error="ValueError: no such thing", phases={}, predicted=None
    )
    assert flat(render_verification(one, THEME)).startswith(
        "✗ failed in preparing: org/model-7b on GeForce RTX 4090: ValueError: no such thing"
    )


def test_times_on_a_shared_card_do_not_count() -> None:
    one = measured()
    shared = replace(one, nvml=replace(one.nvml, others_bytes=2 * GIB))
    assert "the card was shared (2.00 GiB by others), so times do not count" in flat(render_verification(shared, THEME))
    assert "shared" not in render_verification(one, THEME)


def test_a_cpu_is_compared_in_what_it_has_in_common_with_a_card() -> None:
    phases = {"load": PhaseReading(allocated_bytes=900, live_bytes=300), "training": PhaseReading(allocated_bytes=2000)}
    one = measured(device="cpu", toy=True, gpu=None, phases=phases, predicted=PREDICTED)
    assert all(row.predicted is None for row in compared_phases(one, "allocated_bytes"))
    assert all(row.predicted is None for row in compared_process(one))
    static = to_document(one)["static"]
    assert [(row["name"], row["predicted_bytes"], row["measured_bytes"]) for row in static] == [
        ("after loading", 1, 300)
    ]


def test_a_calibration_is_told_with_how_residuals_judge_each_other() -> None:
    rows = [measured(reserved=10 * GIB + n * 20 * MIB) for n in range(30)]
    text = render_calibration(calibrate([(row, TEN) for row in rows], "2026-11-24"), 30, 44, "/here/user.json", THEME)
    assert text.splitlines()[0].startswith("✓ calibrated from 30 of 44 verifications")
    assert "rtx-4090 500 MiB 650 MiB 650 - 650 MiB 30" in flat(text)
    assert "traced runs reserved 30 2.83 % +5.7 %" in flat(text)
    assert "/30" in text
    assert "/here/user.json" in flat(text)
    assert max(map(len, text.splitlines())) <= 80


def test_of_a_rank_of_two_cards_like_is_set_beside_like() -> None:
    """An 8B under FSDP2 on two H200s: NCCL is part of both contexts, and what is alive unwrapped is no training."""
    phases = {
        "wrap": PhaseReading(allocated_bytes=8_628_484_096, reserved_bytes=8_665_432_064),
        "training": PhaseReading(allocated_bytes=5_872_232_448, reserved_bytes=9_879_683_072),
        "forward": PhaseReading(allocated_bytes=5_212_020_736, reserved_bytes=9_877_585_920),
        "backward": PhaseReading(allocated_bytes=5_265_009_152, reserved_bytes=9_879_683_072),
    }
    peak = {"device_bytes": 11_559_501_824, "reserved_bytes": 9_879_683_072}
    one = measured(
        phases=phases, nvml=NvmlReading(process_peak_bytes=11_559_501_824, process_end_bytes=11_559_501_824),
        predicted=PREDICTED | {"peak": peak, "host": {"load_peak_bytes": 19_495_657_472}}, notes=(RANDOM_WEIGHTS,),
    )  # fmt: skip
    rows = {row.name: row for row in compared_process(one)}
    assert rows["process"].residual == rows["context"].residual == 0
    assert rows["context"].measured == 1_679_818_752
    assert (rows["host memory"].predicted, rows["host memory"].measured) == (None, one.host.rss_peak_bytes)
    assert "random weights share one buffer" in flat(render_verification(one, THEME))
    training = {row.name: row for row in compared_phases(one, "allocated_bytes")}["training"]
    assert training.measured == 5_265_009_152
