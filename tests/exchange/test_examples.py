"""Files as the tools' examples combine their keys: each is answered on 80 GB, or the key that forbids it is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from qlora_planner import Session
from qlora_planner.session.packages import TRACE_VARIABLE
from tests.exchange.example_configs import CUT, EXAMPLES, axolotl


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_answered_or_names_the_key_that_forbids_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TRACE_VARIABLE, "never")  # as where no training package is installed
    config, keys = EXAMPLES[name]
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    answer = Session().on("a100-80gb").check(file)
    fit = answer.estimate.fit
    assert fit is not None and not answer.reading.unknown
    assert fit.verdict == ("cannot-say" if keys else "fits"), fit.reasons
    assert all(any(key in reason for reason in fit.reasons) for key in keys), fit.reasons


def test_most_examples_are_answered() -> None:
    answered = sum(not keys for _, keys in EXAMPLES.values())
    assert (answered, len(EXAMPLES) - answered) == (20, 8)


@pytest.mark.parametrize(("asks", "named"), [({}, True), ({"embeddings_skip_upcast": True}, False)])
def test_a_cast_while_preparing_counts_where_it_is_higher_than_all_that_follows(
    asks: dict[str, Any], named: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Embeddings and head of Llama-3.1-8B in float32 come to 8.4 GB for a moment, and a short run to less."""
    monkeypatch.setenv(TRACE_VARIABLE, "never")
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(axolotl("meta-llama/Llama-3.1-8B", 512, 1, plugins=[CUT], **asks)))
    things = {thing.key: thing for thing in Session().on("24GB").check(file).estimate.unmodelled}
    assert ("preparing" in things) == named
    if named:
        assert things["preparing"].direction == "up" and 0.05 < (things["preparing"].at_most or 0) < 0.5
