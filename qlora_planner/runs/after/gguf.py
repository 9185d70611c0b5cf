"""GGUF files by llama.cpp's own converters, where the user has them: found by name, never fetched."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from qlora_planner.errors import InputError, MissingError, RunError
from qlora_planner.text import plain, short

FOLDER_VARIABLE = "LLAMA_CPP_DIR"
# What is converted -> llama.cpp's script for it.
CONVERTERS = {"model": "convert_hf_to_gguf.py", "adapter": "convert_lora_to_gguf.py"}
OUTTYPES = {"bfloat16": "bf16", "float16": "f16"}


def find_converter(kind: str) -> list[str]:
    """The command that converts a "model" or an "adapter": from the folder that LLAMA_CPP_DIR names, else on PATH.

    Raises MissingError where it is in neither, and says what to do.
    """
    name = CONVERTERS[kind]
    folder = os.environ.get(FOLDER_VARIABLE)
    if folder:
        script = Path(folder).expanduser() / name
        if not script.is_file():
            raise MissingError(f"{FOLDER_VARIABLE}: {plain(folder)} holds no {name}; name a checkout of llama.cpp")
        return [sys.executable, str(script)]
    program = shutil.which(name)
    if program is None:
        raise MissingError(
            f"--gguf: llama.cpp's {name} is not on PATH; clone github.com/ggml-org/llama.cpp, `pip install gguf`, and"
            f" set {FOLDER_VARIABLE} to its folder"
        )
    return [program]


def check_gguf_target(target: Path, *, force: bool) -> None:
    """Raises InputError where `target` cannot be written."""
    shown = plain(target)
    if not target.absolute().parent.is_dir():
        raise InputError(f"{shown}: there is no folder {plain(target.absolute().parent)} to put it in")
    if os.path.lexists(target) and (not force or not target.is_file() or target.is_symlink()):
        raise InputError(f"{shown}: is there already" + ("" if force else "; --force writes over it"))


def convert(
    converter: Sequence[str],
    source: Path,
    target: Path,
    outtype: str,
    *,
    base: Path | None,
    hear: Callable[[str], None],
) -> int:
    """Run it: `source` becomes the GGUF file `target`, whole or not at all. Gives its bytes.

    `base` is the base of an adapter. Raises RunError with its last line where it fails.
    """
    partial = target.with_name(target.name + ".partial")
    options = ["--outfile", str(partial), "--outtype", outtype]
    options += [] if base is None else ["--base", str(base)]
    last = ""
    try:
        with subprocess.Popen(
            [*converter, str(source), *options], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace",
        ) as child:  # fmt: skip
            assert child.stdout is not None
            for line in child.stdout:
                if line.strip():
                    last = short(line.strip(), 240)
                    hear(last)
        if child.returncode != 0 or not partial.is_file():
            raise RunError(f"{Path(converter[-1]).name} failed (exit code {child.returncode}): {last or 'no word'}")
        partial.replace(target)
    except OSError as error:
        raise RunError(f"{plain(converter[-1])} cannot be run: {error.strerror or error}") from None
    finally:
        partial.unlink(missing_ok=True)
    return target.stat().st_size
