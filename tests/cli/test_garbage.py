"""Whatever is typed: an answer or one line, never a traceback, never an unforeseen code."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import click.testing
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qlora_planner.cli.main import VERBS, cli
from qlora_planner.cli.options import flags_and_values
from qlora_planner.errors import MissingError
from qlora_planner.sources import locations

_FLAGS, _VALUES = flags_and_values()
_TEXT = st.text(max_size=12)
_SIZES = st.from_regex(r"\A-?[0-9]{1,3}(\.[0-9])?(GB|GiB|MiB|kb|)\Z")
_VALUE = st.one_of(
    _TEXT, _SIZES, st.integers(-(10**20), 10**20).map(str), st.floats().map(str),
    st.sampled_from(["nf4", "int8", "full", "lora", "bfloat16", "float16", "loop", "hf-trainer", "eager", "q_proj",
                     "attention", "adamw_torch", "trl=1.0", "rtx-4090", "t4", "24GB", "expandable_segments:True"]),
)  # fmt: skip
_WORD = st.one_of(
    st.sampled_from([*VERBS, "llama-3.1-8b", "falcon-7b", "Llama", "./x.json", "--", "-", "--json="]), _TEXT
)
_OPTION = st.one_of(
    st.sampled_from(sorted(_FLAGS)).map(lambda flag: [flag]),
    st.tuples(st.sampled_from(sorted(_VALUES)), _VALUE).map(list),
    st.tuples(st.sampled_from(sorted(_VALUES)), _VALUE).map(lambda pair: ["=".join(pair)]),
    _WORD.map(lambda word: [word]),
)


@pytest.fixture(scope="module")
def small_catalogue(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two models and two cards, so that a survey takes no time; no Hub, no building, no torch."""
    repository = Path(locations.__file__).resolve().parent.parent.parent / "profiles"
    root = tmp_path_factory.mktemp("profiles")
    for kind, names in (
        ("models", ("meta-llama__Llama-3.1-8B.json", "tiiuae__falcon-7b.json")),
        ("gpus", ("t4.toml", "rtx-4090.toml")),
    ):
        (root / kind).mkdir()
        for name in names:
            shutil.copy(repository / kind / name, root / kind / name)

    def refuse(*args: object, **options: object) -> None:
        raise MissingError("not in a test")

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QLORA_PLANNER_PROFILES", str(root))
        patch.setattr("qlora_planner.sources.locations._repository", lambda: ())
        patch.setattr("qlora_planner.sources.on_hub.hub.fetch_config", refuse)
        patch.setattr("qlora_planner.session.models.built_from", refuse)
        patch.setattr("qlora_planner.diagnose.doctor.examine", refuse)
        yield root


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=st.lists(_OPTION, max_size=6))
def test_any_arguments(small_catalogue: Path, parts: list[list[str]]) -> None:
    args = [arg for part in parts for arg in part]
    result = click.testing.CliRunner().invoke(cli, args, prog_name="qlora-plan")
    assert result.exit_code in (0, 1, 2, 3), (args, result.stderr)
    assert "Traceback" not in result.stderr
    assert "Traceback" not in result.stdout
    if result.exit_code in (2, 3):
        assert result.stdout == ""
        assert result.stderr.startswith("qlora-plan: ")


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    options=st.lists(st.tuples(st.sampled_from(sorted(_VALUES - {"--profiles"})), _VALUE), max_size=3),
    switches=st.sets(st.sampled_from(sorted(_FLAGS - {"--help"})), max_size=4),
)
def test_any_options_of_an_estimate(small_catalogue: Path, options: list[tuple[str, str]], switches: set[str]) -> None:
    args = ["estimate", "llama-3.1-8b", *switches, *(part for pair in options for part in pair)]
    result = click.testing.CliRunner().invoke(cli, args, prog_name="qlora-plan")
    assert result.exit_code in (0, 1, 2, 3), (args, result.stderr)
    if result.exit_code in (0, 1):
        assert result.stdout
        assert max(map(len, result.stdout.splitlines())) <= 80 or "--json" in switches
