"""The measurement's JSON: what is written comes back, everything else is refused in one line."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlora_planner.errors import InputError
from qlora_planner.evidence import MEASURED_PHASES, CardReading, HostReading, Measurement, NvmlReading, PhaseReading
from qlora_planner.evidence.checks import MEASUREMENT
from qlora_planner.spec.run import RunConfig

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def full_measurement() -> Measurement:
    """Every field filled, each figure different."""
    return Measurement(
        created="2026-02-03T04:05:06Z",
        model="org/model",
        config_sha256="ab" * 32,
        run=RunConfig(quant="nf4", seq_len=512, trainer="loop"),
        outcome="out-of-memory",
        config={"model_type": "llama", "rope_scaling": None},
        toy=True,
        params=100,
        trainable_params=7,
        stack={"torch": "2.11.0", "driver": "580.1"},
        gpu=CardReading(name="NVIDIA H200", capacity_bytes=10**11, compute_capability="9.0"),
        cap_bytes=8 << 30,
        failed_phase="backward",
        error="OutOfMemoryError: no",
        requested_bytes=1 << 20,
        phases={
            name: PhaseReading(allocated_bytes=10 + index, reserved_bytes=20 + index, live_bytes=None)
            for index, name in enumerate(MEASURED_PHASES)
        },
        nvml=NvmlReading(
            context_bytes=1, process_peak_bytes=5, process_end_bytes=4, device_peak_bytes=9, others_bytes=0,
            source="nvml",
        ),
        host=HostReading(rss_peak_bytes=3, paged_bytes=2),
        components={"quantized_weights": 6, "unattributed": 1},
        step_s=(2.5, 0.5),
        tokens_per_s=1024.0,
        predicted={"peak": {"device_bytes": 5}},
        role="holdout",
        notes=("others were on the card",),
    )  # fmt: skip


def test_what_is_written_comes_back() -> None:
    written = full_measurement().to_dict()
    assert set(written) == {spec.name for spec in fields(Measurement)} | {"schema"}
    assert written["schema"] == "qlora-plan/measurement/1"
    assert Measurement.from_dict(json.loads(json.dumps(written))) == full_measurement()


def test_the_least_that_can_be_known() -> None:
    least = Measurement(created="2026-01-01", model="m", config_sha256=None, run=RunConfig(), outcome="error")
    assert Measurement.from_dict(least.to_dict()) == least
    assert set(least.figures().values()) == {None}
    assert least.timing_valid is None


def test_figures_go_by_the_names_of_the_measured_rows() -> None:
    figures = full_measurement().figures()
    assert figures["train_peak"] == 10 + MEASURED_PHASES.index("training")
    assert figures["train_reserved"] == 20 + MEASURED_PHASES.index("training")
    assert figures["load_peak"] == 10 + MEASURED_PHASES.index("load")
    assert figures["prepare_peak"] == 10 + MEASURED_PHASES.index("prepare")
    assert (figures["nvml_context"], figures["nvml_peak"], figures["nvml_end"]) == (1, 5, 4)
    assert figures["load_alloc"] is None


WRONG: dict[str, Any] = {
    "created": "yesterday",
    "model": "",
    "config_sha256": 5,
    "config": [],
    "toy": 1,
    "tied_stored": 1,
    "device": "tpu",
    "params": -1,
    "trainable_params": 1.5,
    "run": {"seq_len": 0},
    "stack": {"torch": 2},
    "gpu": {"capacity_bytes": 1},
    "cap_bytes": True,
    "outcome": "fine",
    "failed_phase": "",
    "error": "",
    "requested_bytes": "1",
    "phases": {"training": {"allocated_bytes": -5}},
    "nvml": {"source": "guess"},
    "host": {"rss": 5},
    "components": {"adapters": 0.5},
    "step_s": [-1.0],
    "tokens_per_s": float("nan"),
    "predicted": "much",
    "role": "training",
    "notes": "none",
}


def test_every_field_is_checked() -> None:
    assert set(WRONG) == set(MEASUREMENT) - {"schema"}


@pytest.mark.parametrize("field", WRONG)
def test_a_wrong_field_is_named_with_its_file(field: str) -> None:
    raw = full_measurement().to_dict() | {field: WRONG[field]}
    with pytest.raises(InputError) as caught:
        Measurement.from_dict(raw, "rows.jsonl:3")
    named = {"run": "--seq-len"}.get(field, field)
    assert str(caught.value).startswith("rows.jsonl:3: ") and named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_faults_are_told_together() -> None:
    raw = full_measurement().to_dict() | {"device": "tpu", "surprise": 1, "phases": {"dreaming": {}}}
    del raw["outcome"]
    with pytest.raises(InputError, match=r"lacks outcome.*device.*dreaming|device.*lacks outcome") as caught:
        Measurement.from_dict(raw)
    assert "surprise" in str(caught.value)


def test_another_schema_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="qlora-plan/measurement/1, not 'qlora-plan/estimate/1'"):
        Measurement.from_dict(full_measurement().to_dict() | {"schema": "qlora-plan/estimate/1"})


@given(JSON, st.sampled_from(sorted(MEASUREMENT)))
@settings(max_examples=150, deadline=None)
def test_garbage_is_refused_and_nothing_else_happens(value: Any, field: str) -> None:
    for raw in (value, full_measurement().to_dict() | {field: value}):
        try:
            read = Measurement.from_dict(raw)
        except InputError as error:
            assert str(error).isprintable()
        else:
            assert Measurement.from_dict(read.to_dict()) == read
