"""The page: the package answers there as here, from a file of what it needs, with NumPy's stand-in too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from qlora_planner import Session
from qlora_planner.errors import MissingError
from tools.console import ROOT
from tools.page import PYODIDE_FILES, WEB, build, contents

QUESTION = {"model": "llama-3.1-8b", "gpu": "rtx-4090", "options": {"batch_size": 2}}
# As the worker does: the package out of an archive beside its data, NumPy from its stand-in.
ASKED = """
import shutil, sys
sys.path[:0] = [sys.argv[1], f"{sys.argv[1]}/web", f"{sys.argv[1]}/web/stand_in"]
import numpy, page
assert "stand_in" in numpy.__file__
needed = page.needs(sys.argv[2])
shutil.copy(f"{sys.argv[4]}/{needed}", page.FAMILIES / needed)
assert page.needs(sys.argv[2]) == ""
print(page.estimate(sys.argv[2]))
print(page.longest_batch(sys.argv[3]))
"""


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(WEB))
    import page as module  # type: ignore[import-not-found]

    yield module
    del sys.modules["page"]


def test_the_page_says_what_the_command_line_says(page: Any) -> None:
    here = Session().on("rtx-4090").estimate("llama-3.1-8b", batch_size=2).to_dict()
    there = json.loads(page.estimate(json.dumps(QUESTION)))
    assert there["peak"] == here["peak"]
    assert there["phases"] == here["phases"]
    assert there["verdict"] == here["fit"]["verdict"]
    assert "unit" in json.loads(page.estimate(json.dumps(QUESTION | {"gpu": "8"})))["error"]


def test_without_numpy_the_archive_alone_answers_alike(tmp_path: Path) -> None:
    for path, name in contents():
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    longest = {**QUESTION, "options": {}, "seq_len": 4096}
    done = subprocess.run(
        [sys.executable, "-I", "-c", ASKED, str(tmp_path), json.dumps(QUESTION), json.dumps(longest),
         str(ROOT / "profiles" / "families")],
        env={**os.environ, "QLORA_PLANNER_TRACE": "never", "XDG_DATA_HOME": str(tmp_path / "home")},
        capture_output=True, text=True, check=True, cwd=tmp_path,
    )  # fmt: skip
    answered, batch = done.stdout.splitlines()
    bench = Session().on("rtx-4090")
    here, there = bench.estimate("llama-3.1-8b", batch_size=2).to_dict(), json.loads(answered)
    assert there["verdict"] == here["fit"]["verdict"]
    assert there["peak"] == here["peak"]
    assert there["speed"]["tokens_per_s"] == pytest.approx(here["speed"]["tokens_per_s"], rel=1e-12)
    size = json.loads(batch)["batch_size"]
    fits = [bench.estimate("llama-3.1-8b", seq_len=4096, batch_size=count).verdict for count in (size, size + 1)]
    assert (fits[0] in ("fits", "tight"), fits[1]) == (True, "does-not-fit")


def test_what_cannot_be_vendored_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"lacks pyodide\.mjs"):
        build(tmp_path / "page", tmp_path, tmp_path)
    for name in PYODIDE_FILES:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(MissingError, match="lacks wheels of msgspec, platformdirs"):
        build(tmp_path / "page", tmp_path, tmp_path)
    assert not (tmp_path / "page").exists()


def test_the_page_works_in_a_browser() -> None:
    folder = ROOT / "build" / "page"
    pytest.importorskip("playwright")
    if not (folder / "pyodide" / PYODIDE_FILES[0]).is_file():
        pytest.skip("no build/page: `make page` asks the npm registry for Pyodide")
    from tools.page_check import check

    assert check(folder, slowest_s=float("inf"))["faults"] == []
