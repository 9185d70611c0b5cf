"""A training asked for from Python: the same files and figures as the command line leaves, and nothing printed."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from qlora_planner import Session
from qlora_planner.errors import InputError
from tests.launch.conftest import Home


@pytest.fixture
def here(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the test's own, with nobody's home."""
    for name, value in home.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_plan_is_trained_and_gone_on_with(home: Home, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    home.model("llama")
    capfd.readouterr()  # of the making
    told: list[str] = []
    session = Session(tell=told.append)
    asked = {"data": home.data, "output": here / "out", "device": "cpu", "save_steps": 2, "learning_rate": 5e-3}
    trained = session.train(home.plan("llama"), max_steps=3, **asked)
    assert (trained.outcome, trained.summary["steps"]) == ("ok", 3)
    assert trained.to_dict() == json.loads((here / "out" / "summary.json").read_text())
    assert trained.folder == here / "out" and (here / "out" / "adapter").is_dir()
    assert "trained: " in str(trained).splitlines()[0]
    assert ElementTree.fromstring(trained._repr_html_()) is not None
    frame = trained.to_frame()
    assert list(frame[frame["kind"] == "step"]["step"]) == [1, 2, 3]
    assert any(line.startswith("step 3/3") for line in told)
    again = session.train(here / "out", resume=True)
    assert again.trained.finished_before and again.to_dict() == trained.to_dict()
    assert capfd.readouterr() == ("", "")


def test_what_cannot_be_trained_is_one_line(home: Home, here: Path) -> None:
    plan = home.plan("llama")
    for refused, said in (
        ({}, "--data is missing"),
        ({"data": home.data, "device": "tpu"}, "device must be cuda or cpu"),
        ({"data": home.data, "max_steps": 0}, "--max-steps must be a whole number"),
        ({"data": home.data, "ranks": 8}, "unknown option ranks"),
        ({"resume": True, "output": here / "none"}, "holds no run"),
    ):
        with pytest.raises(InputError, match=said) as caught:
            Session().train(plan, **refused)
        assert "\n" not in str(caught.value)
    assert not (here / "runs").exists()
