"""Shared fixtures: profiles of the measured models are built once per test session."""

from __future__ import annotations

import os

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Tracing takes ten seconds a run: tests of screens and options do without; tests/tracing calls the tracer itself.
os.environ.setdefault("QLORA_PLANNER_TRACE", "never")

from qlora_planner.profile import ModelProfile


@pytest.fixture(scope="session")
def measured_profiles() -> dict[str, ModelProfile]:
    """Profiles of all models in the truth rows, built from their configs."""
    pytest.importorskip("torch")
    from qlora_planner.profiling.build import build_profile
    from qlora_planner.sources.configs import read_config
    from tests.truth import config_path, rows

    return {model: build_profile(read_config(config_path(model))) for model in sorted({row.model for row in rows()})}
