"""The line that installs a part of this package from where it stands: a clone, an archive, a repository or an index."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

DISTRIBUTION = "qlora-planner"
# Imported under another name than pip knows, or part of no extra.
_OWN_LINES = {
    "liger_kernel": "liger-kernel",
    "cut_cross_entropy": "cut-cross-entropy",
    "deepspeed": "deepspeed",
    "kernels": "kernels",
    "vllm": "'trl[vllm]'",  # which pins the releases that it works with
    "flash_attn": "flash-attn --no-build-isolation",
}


# Packages that work with older libraries than [train]; the extra that names those is called by the first word.
_APART = ("unsloth_zoo",)


def install_line(extra: str) -> str:
    """The pip line for `qlora-planner[extra]` that works here, by what pip wrote down when this was installed."""
    what = _requirement(extra, _direct_url())
    parts = Path(sys.prefix).parts
    if "pipx" in parts:
        return f"pipx runpip {Path(sys.prefix).name} install {what}"
    return f"pip install {what}"


def install_packages(missing: Iterable[str]) -> str:
    """The line, or lines joined by `and`, that install these modules: all of [train] but for what no extra has.

    What works with other versions than [train] is installed into an environment of its own, by the line that makes it.
    """
    names = list(missing)
    for name in _APART:
        if name in names:
            return environment_line(name.partition("_")[0])
    lines = [f"pip install {_OWN_LINES[name]}" for name in names if name in _OWN_LINES]
    if len(lines) < len(names):
        lines.insert(0, install_line("train"))
    return " and ".join(lines)


def environment_line(extra: str) -> str:
    """The line that makes an environment with this package and an extra that cannot share one with [train]."""
    folder = f"{extra}-env"
    pip = f"{folder}\\Scripts\\pip" if sys.platform == "win32" else f"{folder}/bin/pip"
    what = _requirement(extra, _direct_url())
    return f"in an environment of its own: python3 -m venv {folder} && {pip} install {what}"


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of those packages that are installed, by their metadata, without importing any."""
    from importlib import metadata

    versions = {}
    for package in packages:
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


def _requirement(extra: str, direct: dict[str, Any] | None) -> str:
    """What pip takes for this package with an extra, quoted for a shell."""
    url = direct.get("url") if direct else None
    if not isinstance(url, str):
        return _local(Path(__file__).resolve().parents[1], extra, editable=True) or f"'{DISTRIBUTION}[{extra}]'"
    if isinstance(vcs := (direct or {}).get("vcs_info"), dict):
        revision = f"@{vcs['commit_id']}" if vcs.get("commit_id") else ""
        return _quoted(f"{DISTRIBUTION}[{extra}] @ {vcs.get('vcs', 'git')}+{url}{revision}")
    if not url.startswith("file://"):
        return _quoted(f"{DISTRIBUTION}[{extra}] @ {url}")
    editable = bool((direct or {}).get("dir_info", {}).get("editable"))
    path = _path_of(url)
    if path.is_file():
        return _quoted(f"{path}[{extra}]")
    return _local(path, extra, editable=editable) or f"'.[{extra}]'   (in a clone of {DISTRIBUTION})"


def _local(folder: Path, extra: str, *, editable: bool) -> str | None:
    """A clone that is still there: `.` where the user stands in it."""
    if not (folder / "pyproject.toml").is_file():
        return None
    path = "." if folder.resolve() == Path.cwd().resolve() else str(folder)
    return ("-e " if editable else "") + _quoted(f"{path}[{extra}]")


def _quoted(text: str) -> str:
    """In quotes whatever it holds: brackets are patterns to some shells."""
    return f"'{text}'" if "'" not in text else shlex.quote(text)


def _path_of(url: str) -> Path:
    from urllib.parse import urlparse
    from urllib.request import url2pathname

    return Path(url2pathname(urlparse(url).path))


def _direct_url() -> dict[str, Any] | None:
    """pip's record of where this package came from (PEP 610); None where it came from an index, or is not installed."""
    import json
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        text = distribution(DISTRIBUTION).read_text("direct_url.json")
        document = json.loads(text) if text else None
    except (PackageNotFoundError, ValueError):
        return None
    return document if isinstance(document, dict) else None
