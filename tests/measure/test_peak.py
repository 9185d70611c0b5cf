"""The peak phase and its components, by an invented run whose loader warms up the allocator with one large block."""

from __future__ import annotations

import pytest

from qlora_planner.evidence import NvmlReading, PhaseReading
from qlora_planner.measure.events import OOM, SEGMENT
from qlora_planner.measure.meters.peak import peak_components, peak_phase
from tests.measure.test_attribution import WORKSPACE, Story

CONTEXT, KERNELS = 600, 150


def story() -> Story:
    """900 bytes of warm-up, a model of 1,000, adapters of 50 in a segment of their own, and a step of 100 more."""
    told = Story()
    told.stage("load")
    told.event(SEGMENT, 0, 900)
    told.alloc(1, 900)
    told.event(SEGMENT, 900, 1000)
    told.alloc(2, 1000)
    told.free(1)
    told.own({2: "quantized_weights"})
    told.stage("adapters")
    told.event(SEGMENT, 1900, 64)
    told.alloc(3, 50)
    told.own({2: "quantized_weights", 3: "adapters"})
    told.stage("forward")
    told.stage("layer")
    told.stage("head")
    told.alloc(4, 100)
    told.free(4)
    told.stage("eval")
    told.alloc(5, 20)
    told.free(5)
    return told


def readings(**reserved: int) -> dict[str, PhaseReading]:
    return {phase: PhaseReading(reserved_bytes=size) for phase, size in reserved.items()}


def nvml(peak: int, end: int) -> NvmlReading:
    return NvmlReading(context_bytes=CONTEXT, process_peak_bytes=peak, process_end_bytes=end, source="nvml")


def components(phases: dict[str, PhaseReading], card: NvmlReading | None, *, failed: bool = False) -> dict[str, int]:
    told = story()
    if failed:
        told.event(OOM, 0, 10_000)
    found = peak_components(
        told.events, told.timeline, phases, card, failed=failed, checkpoint_every=1, workspace_bytes=WORKSPACE
    )
    assert found is not None
    return found


def test_what_loading_alone_needed_is_slack_once_adapters_are_the_peak() -> None:
    found = components(
        readings(load=1900, adapters=1964, training=1200), nvml(1964 + CONTEXT, 1200 + CONTEXT + KERNELS)
    )
    assert found == {
        "quantized_weights": 1000, "adapters": 50, "allocator_slack": 914, "cuda_context": CONTEXT,
    }  # fmt: skip
    assert sum(found.values()) == 1964 + CONTEXT


def test_nothing_has_adapters_while_loading_is_the_peak() -> None:
    found = components(
        readings(load=1900, adapters=1900, training=1200), nvml(1900 + CONTEXT, 1200 + CONTEXT + KERNELS)
    )
    assert found == {"quantized_weights": 1000, "workspace": 900, "allocator_slack": 0, "cuda_context": CONTEXT}


def test_kernels_make_a_step_the_peak() -> None:
    end = 1800 + CONTEXT + KERNELS
    found = components(readings(load=1900, adapters=1900, training=1800), nvml(end, end))
    assert found == {
        "quantized_weights": 1000, "adapters": 50, "logits_and_loss": 100, "allocator_slack": 650,
        "cuda_context": CONTEXT + KERNELS,
    }  # fmt: skip
    assert sum(found.values()) == end


def test_an_evaluation_can_be_the_peak() -> None:
    found = components(readings(load=1900, training=1900, eval=2500), nvml(3300, 1900 + CONTEXT + KERNELS))
    assert found["allocator_slack"] == 2500 - 1070 and found["cuda_context"] == 800
    assert "logits_and_loss" not in found


def test_a_run_that_ran_out_is_told_at_its_request() -> None:
    found = components(readings(load=1900, adapters=1964), nvml(1964 + CONTEXT, 0), failed=True)
    assert (found["quantized_weights"], found["adapters"]) == (1000, 50)


@pytest.mark.parametrize("card", [None, NvmlReading(context_bytes=CONTEXT), nvml(5000, 1899)])
def test_without_kernels_torchs_counter_decides(card: NvmlReading | None) -> None:
    assert peak_phase(readings(load=1900, training=1899), card) == "load"
    assert peak_phase(readings(load=1900, training=1901), card) == "training"


def test_no_counter_of_reserved_bytes_names_no_phase() -> None:
    assert peak_phase({"load": PhaseReading(allocated_bytes=5)}, None) is None
    found = peak_components(
        story().events, story().timeline, {}, None, failed=False, checkpoint_every=1, workspace_bytes=WORKSPACE
    )
    assert found is not None and found["workspace"] == 900  # most was allocated while loading
