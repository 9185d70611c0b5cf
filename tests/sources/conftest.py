"""Catalogues made of small profiles, and a home of its own for every test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from qlora_planner.sources.catalogue import file_name
from qlora_planner.sources.profile_cache import PROFILE_PACKAGES
from qlora_planner.spec.codec import profile_to_json
from qlora_planner.spec.model import AdapterTensor, LayerKind, ModelProfile, TensorGroup

VERSIONS = dict.fromkeys(PROFILE_PACKAGES, "1.0")


def make_profile(model_id: str = "org/tiny", config_sha256: str = "ab" * 32) -> ModelProfile:
    """A profile of one layer kind."""
    return ModelProfile(
        id=model_id, model_type="llama", class_name="LlamaForCausalLM", config_sha256=config_sha256, params=4096,
        versions=VERSIONS, dims={"hidden_size": 32}, supports={"sdpa": True},
        layer_kinds=(LayerKind(name="layer", class_name="LlamaDecoderLayer", count=2),), layer_order=((0, 2),),
        tensors=(
            TensorGroup(
                name="model.layers.*.mlp.up_proj.weight", layer_kind="layer", count=2, shape=(64, 32), dtype="bfloat16",
                dtype_float16="float16", role="linear", module_class="Linear", quantized=True,
            ),
        ),
        adapters={
            "all-linear": (
                AdapterTensor(
                    module="model.layers.*.mlp.up_proj", name="lora_A", layer_kind="layer", count=2,
                    dims=((0, 1), (32, 0)), dtype="float32",
                ),
            )
        },
    )  # fmt: skip


def add_profile(folder: Path, model_id: str, config_sha256: str = "ab" * 32) -> Path:
    """Write a profile where a catalogue finds it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / file_name(model_id)
    path.write_text(profile_to_json(make_profile(model_id, config_sha256)))
    return path


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """No test sees, or writes, what the user has."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_DATA_HOME", str(home / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    for variable in ("QLORA_PLANNER_PROFILES", "QLORA_PLANNER_HUB_TIMEOUT", "HF_ENDPOINT"):
        monkeypatch.delenv(variable, raising=False)
    yield home
