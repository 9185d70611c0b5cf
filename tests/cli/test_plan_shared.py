"""What `plan` writes to be handed on: files that are whole, or a line that says why there is none."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from tests.cli.conftest import Invoke, Process

ASKED = ("qwen2.5-0.5b", "--gpu", "8GB", "--compare", "l4")


def test_writes_every_file(invoke: Invoke, tmp_path: Path) -> None:
    names = {"--report": "a.html", "--csv": "b.csv", "--parquet": "c.parquet"}
    pytest.importorskip("pyarrow")
    given = [part for option, name in names.items() for part in (option, str(tmp_path / name))]
    done = invoke(*ASKED, *given)
    assert done.exit_code == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names.values())
    assert (tmp_path / "a.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    with (tmp_path / "b.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["table"] for row in rows} == {"plan", "compared", "prices"}
    import pandas

    assert len(pandas.read_parquet(tmp_path / "c.parquet")) == len(rows)
    again = invoke("plan", *ASKED, "--report", str(tmp_path / "a.html"))
    assert again.exit_code == 2 and "--force" in again.stderr
    assert invoke("plan", *ASKED, "--report", str(tmp_path / "a.html"), "--force").exit_code == 0


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (("--report", "plan.pdf"), ".md or .html"),
        (("--report", "none/such/plan.md"), "there is no folder"),
        (("--csv", "x.csv", "--parquet", "x.csv"), "a file each"),
    ],
)
def test_bad_files(
    invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: tuple[str, ...], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = invoke("plan", *ASKED, *given)
    assert done.exit_code == 2 and says in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_parquet_without_pyarrow(invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "pyarrow" else found(name, *rest)
    )
    done = invoke("plan", *ASKED, "--parquet", str(tmp_path / "x.parquet"))
    assert done.exit_code == 3 and "pyarrow" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_report_needs_no_pandas(python: Process, tmp_path: Path) -> None:
    text = (
        "import sys\nfrom qlora_planner.cli.main import cli\n"
        f"try:\n cli.main({['plan', *ASKED, '--report', str(tmp_path / 'x.md'), '--quiet']!r})\n"
        "except SystemExit as done:\n print('CODE', done.code, file=sys.stderr)\n"
        "print('pandas' in sys.modules, 'torch' in sys.modules, file=sys.stderr)\n"
    )
    assert python(text).stderr.splitlines()[-2:] == ["CODE 0", "False False"]
