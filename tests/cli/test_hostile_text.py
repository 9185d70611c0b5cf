"""Names, files and logs that hold escape sequences: nothing of them reaches the terminal."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from pathlib import Path

import click.testing
import pytest

from qlora_planner.cli import streams
from qlora_planner.cli.main import cli
from qlora_planner.report.parts.theme import Theme
from tests.cli.conftest import Invoke
from tests.test_text import CLIPBOARD, TITLE, is_safe

BAD = f"a{CLIPBOARD}{TITLE}\u202e\u200b\x9b2J\u2028\rz[/red]"


@pytest.mark.parametrize(
    "args",
    [
        ["plan", BAD, "--gpu", "24GB"],
        [BAD],
        ["estimate", "llama-3.1-8b", "--gpu", BAD],
        ["estimate", "llama-3.1-8b", "--stack", f"{BAD}=1"],
        ["estimate", "llama-3.1-8b", "--target-modules", BAD, "--gpu", "24GB"],
        ["estimate", "llama-3.1-8b", f"--{BAD}"],
        ["estimate", "llama-3.1-8b", "--gpu", "24GB", "--reserve", BAD],
        ["plan", "llama-3.1-8b", "--gpu", "24GB", "--data", BAD],
        ["gpus", "--profiles", BAD],
        ["explain-oom", BAD],
        ["doctor", BAD],
        ["check", BAD, "--gpu", "24GB"],
        ["models", BAD],
    ],
    ids=range(13),
)
def test_hostile_arguments(invoke: Invoke, args: list[str]) -> None:
    result = invoke(*args)
    assert "bug" not in result.stderr
    assert is_safe(result.stderr), ascii(result.stderr)
    assert is_safe(result.stdout), ascii(result.stdout)


@pytest.mark.parametrize(
    ("name", "verb"),
    [("config.json", "plan"), ("axolotl.yaml", "check"), ("log.txt", "explain-oom"), ("rows.jsonl", "plan")],
)
@pytest.mark.fault(
    "a config, a log or rows full of escape sequences",
    does="what is quoted of them is printable",
    exit="0 to 3",
    part="outside",
)
def test_hostile_files(invoke: Invoke, tmp_path: Path, name: str, verb: str) -> None:
    file = tmp_path / name
    if name == "config.json":
        text = json.dumps({"model_type": BAD, "architectures": [BAD], BAD: BAD})
    elif name == "axolotl.yaml":
        text = json.dumps({"base_model": BAD, "adapter": BAD, BAD: [BAD], "datasets": [{"path": BAD, "type": BAD}]})
    elif name == "rows.jsonl":
        text = json.dumps({BAD: BAD, "messages": [{"role": BAD, "content": BAD}]}) + "\n"
    else:
        text = (
            f'  File "/x/{BAD}.py", line 3, in {BAD}\ntorch.OutOfMemoryError: CUDA out of memory. Tried to allocate'
            f" 2.00 GiB. GPU 0 has a total capacity of 23.99 GiB of which 1.00 GiB is free. {BAD} Process {BAD} has\n"
        )
    file.write_text(text, encoding="utf-8")
    args = [verb, *(["llama-3.1-8b", "--data"] if name == "rows.jsonl" else []), str(file)]
    result = invoke(*args, *([] if verb == "explain-oom" else ["--gpu", "24GB"]))
    assert "bug" not in result.stderr
    assert is_safe(result.stderr), ascii(result.stderr)
    assert is_safe(result.stdout), ascii(result.stdout)


@pytest.mark.filterwarnings("default")  # a library's warning is shown, not raised
@pytest.mark.fault(
    "warnings and logs of libraries that quote such names",
    does="cleaned on their way to stderr",
    exit="-",
    part="outside",
)
def test_what_libraries_warn_and_log_is_cleaned_and_stderr_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def talk(*args: object, **options: object) -> None:
        logging.getLogger("somebody").addHandler(logging.StreamHandler())
        logging.getLogger("somebody").error(BAD)
        warnings.warn(BAD, stacklevel=1)
        print(BAD, file=sys.stderr)
        sys.stderr.writelines([BAD])

    monkeypatch.setattr("qlora_planner.cli.main.dispatch", talk)
    monkeypatch.setattr(warnings, "showwarning", lambda message, *_: sys.stderr.write(f"{message}\n"))
    before = sys.stderr
    result = click.testing.CliRunner().invoke(cli, ["x"], prog_name="qlora-plan")
    assert result.stderr.count("?]52") >= 3
    assert is_safe(result.stderr.replace("\n", "")), ascii(result.stderr)
    assert sys.stderr is before


@pytest.mark.parametrize("color", [False, True])
def test_a_coloured_screen_holds_no_sequence_but_its_own(color: bool) -> None:
    shown = Theme(color=color, unicode=True).render([[(BAD, "bold red")], [("\x1b[31mred", "")]])
    assert ("\x1b" in shown) == color
    assert is_safe(shown.replace("\x1b[1;31m", "").replace("\x1b[0m", ""))


def test_json_keeps_data_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    streams.answer_json({"name": BAD})
    out = capsys.readouterr().out
    assert json.loads(out) == {"name": BAD}
    assert out.isascii()
    assert is_safe(out)


def test_the_live_views_draw_clean_text(tmp_path: Path) -> None:
    from qlora_planner.cli.train_live import draw
    from qlora_planner.runs.directory import RunDirectory
    from qlora_planner.runs.record import Metrics
    from qlora_planner.runs.watch import Watch

    lines: list[str] = []
    folder = RunDirectory(tmp_path)
    watch = Watch(
        BAD, metrics=Metrics(folder.metrics), folder=folder, whole_bytes=None, predicted=None, card=None,
        out=lines.append,
    )  # fmt: skip
    watch.line(BAD)
    watch.phase = BAD
    assert is_safe(lines[0])
    assert is_safe(folder.log.read_text())
    assert is_safe(draw(watch, Theme(color=True, unicode=True)).plain)
    assert os.linesep not in lines[0]
