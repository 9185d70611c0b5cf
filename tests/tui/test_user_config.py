"""The user's own keys: read, used, shown in the help; what cannot be used is said and changes nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from textual.pilot import Pilot

from qlora_planner.cli.main import cli
from qlora_planner.tui.app import Explorer
from qlora_planner.tui.user_config import UserConfig, config_path, read_config
from tests.tui.conftest import explorer, idle, painted, tell


def test_a_key_of_the_users_stands_for_the_action_and_in_the_help(tmp_path: Path) -> None:
    start = replace(explorer(tmp_path / "tui.json")._start, config=UserConfig(keys={"go.data": "z", "data.apply": "w"}))

    async def story(app: Explorer, pilot: Pilot[None]) -> None:
        await pilot.press("6")
        await idle(app, pilot)
        assert app.current_mode == "fit", "the key before is free"
        await pilot.press("z")
        await idle(app, pilot)
        assert app.current_mode == "data"
        await pilot.press("question_mark")
        await idle(app, pilot)
        line = next(line for line in painted(app).splitlines() if "Take the slider" in line)
        assert line.replace("│", " ").split()[0] == "w"

    tell(Explorer(start), story)


@pytest.mark.parametrize(
    ("text", "says"),
    [("keys = 3", "maps names to keys"), ("colour = 1", "'colour' is not known"), ("[keys", "is not used"),
     ("theme = 3", "theme is a name")],
)  # fmt: skip
def test_a_file_that_cannot_be_used_is_said(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "tui.toml"
    assert read_config(path) == (UserConfig(), None)
    path.write_text(text)
    config, note = read_config(path)
    assert config == UserConfig()
    assert says in (note or "")


def test_the_actions_are_listed_with_the_keys_of_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    config_path().parent.mkdir(parents=True)
    config_path().write_text('theme = "textual-light"\n[keys]\n"train.verify" = "w"\n"no.such" = "y"\n')
    done = CliRunner().invoke(cli, ["tui", "--keys"], prog_name="qlora-plan")
    assert done.exit_code == 0
    lines = {line.split()[0]: line.split()[1] for line in done.stdout.splitlines()}
    assert (lines["train.verify"], lines["train.train"], lines["go.fit"]) == ("w", "b", "1")
    assert "no.such: no action of the explorer" in done.stdout
