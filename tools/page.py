"""`make page`: the planner as a static page, build/page, whose Python runs in the browser by Pyodide.

python -m tools.page FOLDER --pyodide DIR --wheels DIR

DIR is npm's package `pyodide`, unpacked; the wheels are msgspec's and platformdirs' for that Pyodide (NumPy's too, if
there is one). None of them is in the repository: `make page` asks npm and pip for them, into build/.
"""

from __future__ import annotations

import argparse
import json
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

from qlora_planner import Session
from qlora_planner.errors import InputError, MissingError
from tools.console import ROOT

WEB = ROOT / "web"
PYODIDE_FILES = ("pyodide.mjs", "pyodide.asm.mjs", "pyodide.asm.wasm", "python_stdlib.zip", "pyodide-lock.json")
WHEELS = ("msgspec", "platformdirs")
SURVEYED = ("8GB", "12GB", "16GB", "24GB", "32GB", "48GB", "80GB")
# What a browser has no use for: the command line, the explorer, and what torch is needed for.
_LEFT_OUT = frozenset({"cli", "tui", "runs", "train", "profiling", "schemas"})
_PROFILES = ("models", "gpus", "calibrations", "tapes")
_INDEXES = ("gpus.index.json", "names.json", "families/index.json")


def build(folder: Path, pyodide: Path, wheels: Path) -> dict[str, int]:
    """Write the page into `folder`; gives bytes by file. Raises MissingError for what is not there to be vendored."""
    lacking = [name for name in PYODIDE_FILES if not (pyodide / name).is_file()]
    if lacking:
        raise MissingError(f"{pyodide}: lacks {', '.join(lacking)}; unpack npm's package pyodide there")
    found = {name: next(iter(sorted(wheels.glob(f"{name}-*.whl"))), None) for name in (*WHEELS, "numpy")}
    lacking = [name for name in WHEELS if found[name] is None]
    if lacking:
        raise MissingError(f"{wheels}: lacks wheels of {', '.join(lacking)}")
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "pyodide").mkdir(parents=True)
    for name in PYODIDE_FILES:
        shutil.copy(pyodide / name, folder / "pyodide" / name)
    for path in (*WEB.glob("*.html"), *WEB.glob("*.css"), *WEB.glob("*.js")):
        shutil.copy(path, folder / path.name)
    with_wheels = [wheel for wheel in found.values() if wheel is not None]
    for wheel in with_wheels:
        shutil.copy(wheel, folder / wheel.name)
    with zipfile.ZipFile(folder / "planner.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for path, name in contents():
            archive.write(path, name)
    # Traces of every other recipe, by class: fetched when a model of the class is asked about.
    shutil.copytree(ROOT / "profiles" / "families", folder / "families")
    archives = [*({"name": wheel.name} for wheel in with_wheels), {"name": "planner.zip", "where": "/app"}]
    (folder / "archives.json").write_text(json.dumps(archives), encoding="utf-8")
    (folder / "survey.json").write_text(json.dumps(surveyed(), separators=(",", ":")), encoding="utf-8")
    return {str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}


def contents() -> Iterator[tuple[Path, str]]:
    """Files of planner.zip with their names there: the package, its data, and what the page asks by."""
    package = ROOT / "qlora_planner"
    for path in sorted(package.rglob("*.py")):
        if path.relative_to(package).parts[0] not in _LEFT_OUT:
            yield path, str(path.relative_to(ROOT))
    profiles = ROOT / "profiles"
    for path in sorted(path for name in _PROFILES for path in (profiles / name).rglob("*") if path.is_file()):
        yield path, f"qlora_planner/_profiles/{path.relative_to(profiles)}"
    for name in _INDEXES:
        yield profiles / name, f"qlora_planner/_profiles/{name}"
    for path in sorted(WEB.rglob("*.py")):
        yield path, str(path.relative_to(ROOT))


def surveyed() -> dict[str, object]:
    """Names of cards and models, and for each of SURVEYED the models that fit: id, parameters, longest, peak."""
    session = Session()
    survey: dict[str, list[list[object]]] = {}
    models: set[str] = set()
    for card in SURVEYED:
        rows = session.on(card).survey().to_dict()["models"]
        models.update(row["model_id"] for row in rows)
        survey[card] = [
            [row["model_id"], row["params"], row["longest_seq_len"], row["peak_bytes"]]
            for row in sorted(rows, key=lambda row: -row["params"])
            if row["verdict"] in ("fits", "tight")
        ]
    return {"cards": [*SURVEYED, *session.gpus.names()], "models": sorted(models), "survey": survey}


def main() -> int:
    """Build it, and say what a visitor fetches."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pyodide", type=Path, required=True)
    parser.add_argument("--wheels", type=Path, required=True)
    given = parser.parse_args()
    try:
        sizes = build(given.folder, given.pyodide, given.wheels)
    except (InputError, MissingError) as error:
        print(error)
        return error.exit_code
    own = sum(size for name, size in sizes.items() if not name.startswith(("pyodide/", "families/")))
    print(
        f"{given.folder}: {own / 1e6:.1f} MB are fetched beside Pyodide, and traces of a class when it is asked about"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
