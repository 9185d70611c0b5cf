"""What is known of attention kernels by version, against the classes of whatever transformers is installed."""

from importlib import metadata
from pathlib import Path

import pytest

from qlora_planner.catalog.attention import sdpa_changed
from qlora_planner.errors import RefusedError
from qlora_planner.memory.options.resolve import resolve
from qlora_planner.sources.catalogue import ModelCatalogue
from qlora_planner.sources.configs import read_config
from qlora_planner.spec.run import RunConfig

PROFILES = Path(__file__).parents[2] / "profiles"
GEMMA = "google/gemma-2-2b"


def test_every_class_that_differs_from_its_profile_is_known() -> None:
    pytest.importorskip("torch")
    from qlora_planner.train.model import model_class, model_config

    installed = {"transformers": metadata.version("transformers")}
    seen = set()
    for profile in ModelCatalogue([PROFILES / "models"]).load_all(print):
        if profile.model_type in seen or not profile.supports.get("sdpa"):
            continue
        seen.add(profile.model_type)
        raw = read_config(PROFILES / "configs" / (profile.id.replace("/", "__") + ".json")).config
        changed = sdpa_changed(profile.model_type, installed)
        expected = True if changed is None else changed[0]
        assert model_class(raw, model_config(raw))._supports_sdpa is expected, profile.id
    assert len(seen) > 20


def test_a_later_transformers_runs_gemma_2_eagerly() -> None:
    profile = ModelCatalogue([PROFILES / "models"]).load(GEMMA)
    assert resolve(profile, RunConfig()).run.attention == "sdpa"
    later = {"transformers": "5.24.0"}
    found = resolve(profile, RunConfig(stack=later))
    assert found.run.attention == "eager"
    assert "5.21" in found.why["attention"]
    (problem,) = [
        one for one in resolve(profile, RunConfig(stack=later, attention="sdpa")).problems
        if one.code == "attention-refused"
    ]  # fmt: skip
    assert problem.blocking and "eager" in (problem.fix or "")


def test_a_class_without_sdpa_is_refused_before_its_weights_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    from qlora_planner.train.model import load_random, model_class, model_config

    raw = read_config(PROFILES / "configs" / (GEMMA.replace("/", "__") + ".json")).config
    monkeypatch.setattr(model_class(raw, model_config(raw)), "_supports_sdpa", False)
    with pytest.raises(RefusedError, match="--attention eager"):
        load_random(raw, RunConfig(attention="sdpa"), "cpu", {})
