"""Compile the allocator and the replay of traces: by hatchling, for a wheel, or in place by `python hatch_build.py`.

Without a compiler the package works all the same, a plan seven times slower: its Python twin answers.
"""

from __future__ import annotations

import runpy
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent
FOLDER = "qlora_planner/memory/allocator/native"

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # compiling in place needs setuptools alone
    BuildHookInterface = object


def _digest(folder: Path) -> str:
    """Of the C that is compiled, as the package works it out when it imports the result."""
    return str(runpy.run_path(str(folder / "sources.py"))["digest"](folder))


def compile_in_place(root: Path) -> None:
    """Write FOLDER/_native.abi3.so (.pyd on Windows), one for all Pythons from 3.11.

    Raises what setuptools does where there is no compiler or it fails.
    """
    from setuptools import Distribution, Extension

    sources = [
        f"{FOLDER}/{name}"
        for name in (
            "arena.c",
            "free_blocks.c",
            "expandable.c",
            "replay.c",
            "script.c",
            "moments.c",
            "functions.c",
            "module.c",
        )
    ]
    optimised = [] if sys.platform == "win32" else ["-O2"]
    extension = Extension(
        FOLDER.replace("/", ".") + "._native",
        [str(root / source) for source in sources],
        depends=[str(header) for header in (root / FOLDER).glob("*.h")],
        py_limited_api=True,
        define_macros=[("SOURCES", f'"{_digest(root / FOLDER)}"')],
        extra_compile_args=optimised,
    )
    command: Any = Distribution({"ext_modules": [extension]}).get_command_obj("build_ext")
    with tempfile.TemporaryDirectory() as folder:
        command.build_temp, command.build_lib = folder, str(root)
        command.ensure_finalized()
        command.run()


class CustomBuildHook(BuildHookInterface):  # type: ignore[misc, valid-type]
    """What hatchling calls before it packs a wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and mark the wheel as one for this platform; or say why it is one without compiled parts."""
        if self.target_name != "wheel":
            return
        try:
            compile_in_place(Path(self.root))
        # Whatever stops a compiler (there is none, no headers, a flag it does not know) leaves a package that works.
        except Exception as error:
            self.app.display_warning(f"qlora-planner: nothing compiled, plans take seven times as long: {error}")
            return
        build_data["artifacts"] += [f"{FOLDER}/*.so", f"{FOLDER}/*.pyd"]
        build_data["pure_python"] = False
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"cp311-abi3-{platform}"


if __name__ == "__main__":
    compile_in_place(ROOT)
