"""load_model: each kind of MODEL to its profile, and what is said when there is none."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qlora_planner import session
from qlora_planner.errors import InputError, MissingError, PlannerError, UnprofiledError
from qlora_planner.session import packages
from qlora_planner.sources.configs import RawConfig, config_sha256, read_config
from qlora_planner.sources.on_hub import hub
from qlora_planner.spec.model import ModelProfile

from .conftest import VERSIONS, add_profile, make_profile

CONFIG: dict[str, Any] = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 64}
SHA = config_sha256(CONFIG)


@pytest.fixture
def profiles(tmp_path: Path) -> Path:
    """A catalogue of three models, two of which have one name."""
    for model_id in ("org/tiny", "a/Twin-7B", "b/twin-7b"):
        add_profile(tmp_path / "profiles" / "models", model_id)
    return tmp_path / "profiles"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "my-model"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG))
    return path


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[RawConfig]:
    """Stands in for the builder and for installed training packages; lists the configs that were built."""
    configs: list[RawConfig] = []

    def build_profile(raw: RawConfig, *, whole_model: bool = False) -> ModelProfile:
        assert not whole_model
        configs.append(raw)
        return make_profile(raw.id, raw.sha256)

    module = types.ModuleType("qlora_planner.profiling.build")
    module.build_profile = build_profile  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "qlora_planner.profiling.build", module)
    monkeypatch.setattr(packages, "missing_packages", list)
    monkeypatch.setattr("qlora_planner.sources.profile_cache.installed_versions", lambda: VERSIONS)
    return configs


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without the training packages."""
    monkeypatch.setattr(packages, "missing_packages", lambda *_: ["torch", "peft"])
    monkeypatch.setattr("qlora_planner.sources.profile_cache.installed_versions", dict)


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch_config(repo_id: str, *, nearest: tuple[str, ...] = ()) -> RawConfig:
        raise MissingError(f"{repo_id}: no network; nearest: {', '.join(nearest)}")

    monkeypatch.setattr(hub, "fetch_config", fetch_config)


def error_of(text: str, kind: type[PlannerError], **options: Any) -> str:
    with pytest.raises(kind) as caught:
        session.load_model(text, **options)
    assert type(caught.value) is kind, caught.value
    assert str(caught.value).isprintable()
    return str(caught.value)


def test_a_catalogue_name_needs_nothing_else(profiles: Path, built: list[RawConfig]) -> None:
    for text in ("org/tiny", "tiny", " Tiny "):
        assert session.load_model(text, profiles=profiles).source == "catalogue"
    assert built == []


def test_a_name_of_several_models_lists_them(profiles: Path) -> None:
    assert "a/Twin-7B, b/twin-7b" in error_of("twin-7b", InputError, profiles=profiles)


def test_a_folder_is_built_once_and_then_cached(folder: Path, built: list[RawConfig], own_home: Path) -> None:
    first = session.load_model(str(folder))
    assert (first.id, first.source, len(built)) == ("my-model", "built", 1)
    second = session.load_model(f"{folder}/config.json")
    assert (second.id, second.source, len(built)) == ("my-model", "cache", 1)
    assert list((own_home / "cache" / "qlora-planner" / "profiles").glob(f"{SHA}-*.json"))
    third = session.load_model(str(folder.rename(folder.with_name("renamed"))))
    assert (third.id, third.source, len(built)) == ("renamed", "cache", 1)
    assert session.load_model(str(folder.with_name("renamed")), build="always").source == "built"
    assert len(built) == 2


def test_a_damaged_cache_is_told_once_and_built_again(folder: Path, built: list[RawConfig], own_home: Path) -> None:
    session.load_model(str(folder))
    (path,) = (own_home / "cache" / "qlora-planner" / "profiles").iterdir()
    path.write_text("{")
    told: list[str] = []
    assert session.load_model(str(folder), warn=told.append).source == "built"
    assert len(told) == 1 and "will be built again" in told[0]
    assert session.load_model(str(folder), warn=told.append).source == "cache"
    assert (len(told), len(built)) == (1, 2)


def test_a_config_that_the_catalogue_knows_is_not_built(folder: Path, profiles: Path, built: list[RawConfig]) -> None:
    add_profile(profiles / "models", "org/known", SHA)
    profile = session.load_model(str(folder), profiles=profiles)
    assert (profile.id, profile.source, built) == ("org/known", "catalogue", [])


def test_without_the_packages_the_command_is_named(folder: Path, bare: None) -> None:
    message = error_of(str(folder), UnprofiledError)
    assert f"run `qlora-plan profile {folder}` after `pip install " in message
    assert "[train]'`" in message
    assert "missing here: torch, peft" in message


def test_without_the_packages_a_cached_profile_will_do(
    folder: Path, built: list[RawConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    session.load_model(str(folder))
    monkeypatch.setattr(packages, "missing_packages", lambda *_: ["torch"])
    monkeypatch.setattr("qlora_planner.sources.profile_cache.installed_versions", dict)
    assert session.load_model(str(folder)).source == "cache"


def test_never_building_is_respected(folder: Path, built: list[RawConfig]) -> None:
    message = error_of(str(folder), UnprofiledError, build="never")
    why = "head_dim 1 is no multiple of 2"  # a toy
    assert message == f"{folder} is not profiled: {why}; run `qlora-plan profile {folder}`"
    assert built == []


@pytest.mark.parametrize(
    ("kind", "said", "helps"),
    [
        ("mimo", "is no language model of transformers 5.17.0 or 5.24.0", False),  # of a repository's own code
        ("lfm3", "is a class of transformers from 5.24.0 on", True),
        ("kimi_linear", "is no class that is known without torch", True),
    ],
)
def test_a_class_without_a_law_is_told_by_the_releases_that_have_it(
    tmp_path: Path, kind: str, said: str, helps: bool
) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": kind, "hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 99}))
    message = error_of(str(path), UnprofiledError, build="never")
    assert said in message
    assert ("run `qlora-plan profile" in message) is helps


def test_a_broken_torch_is_missing_not_a_traceback(
    folder: Path, built: list[RawConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "qlora_planner.profiling.build", None)
    assert "cannot be profiled" in error_of(str(folder), MissingError)


def test_a_hub_id_is_fetched_and_built(
    profiles: Path, folder: Path, built: list[RawConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch_config(repo_id: str, *, nearest: tuple[str, ...] = ()) -> RawConfig:
        return read_config(folder, model_id=repo_id, origin="hub")

    monkeypatch.setattr(hub, "fetch_config", fetch_config)
    assert session.load_model("new/model", profiles=profiles).id == "new/model"
    assert built[0].origin == "hub"
    # `profile` of a catalogue model has to start from its config, which the catalogue does not hold.
    assert session.load_model("tiny", profiles=profiles, build="always").id == "org/tiny"


def test_a_hub_that_cannot_be_asked_gets_the_nearest_names(profiles: Path) -> None:
    assert error_of("orga/tiny", MissingError, profiles=profiles).startswith("orga/tiny: no network; nearest: org/tiny")


def test_a_mistyped_path_is_told_from_a_hub_id(profiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    assert "in the folder models there is no such file either" in error_of("models/x", MissingError, profiles=profiles)
    assert error_of("models/x.json", InputError, profiles=profiles) == "models/x.json: no such file"
    assert error_of("./models/x", InputError, profiles=profiles) == "models/x: no such file or folder"
    assert error_of("models/x/y", InputError, profiles=profiles).startswith("'models/x/y' is no catalogue name, no Hub")


def test_a_folder_called_like_a_model_is_mentioned(
    profiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, built: list[RawConfig]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("tiny", "my-model"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(CONFIG))
    told: list[str] = []
    assert session.load_model("tiny", profiles=profiles, warn=told.append).id == "org/tiny"
    assert told == ["tiny: taken as the catalogue's org/tiny; write ./tiny for the file or folder"]
    assert session.load_model("./tiny", profiles=profiles, warn=told.append).id == "tiny"
    assert session.load_model("my-model", profiles=profiles).id == "my-model"
    with pytest.warns(UserWarning, match="taken as the catalogue's"):
        session.load_model("tiny", profiles=profiles)


@pytest.mark.parametrize("text", ["", "  ", "\n"])
def test_nothing_is_refused(text: str) -> None:
    assert "MODEL is empty" in error_of(text, InputError)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=30))
def test_any_text_ends_in_a_profile_or_one_line(profiles: Path, bare: None, text: str) -> None:
    try:
        session.load_model(text, profiles=profiles)
    except PlannerError as error:
        assert str(error).isprintable()


def test_a_catalogue_model_loads_without_anything_heavy(profiles: Path) -> None:
    program = (
        "import sys\n"
        "from qlora_planner import load_model\n"
        f"load_model('org/tiny', profiles={str(profiles)!r})\n"
        "heavy = ('torch', 'transformers', 'pandas', 'textual', 'huggingface_hub', 'httpx', 'numpy', 'rich')\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
