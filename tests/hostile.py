"""Folders of data with modules in them, which nobody asked to run."""

from __future__ import annotations

from pathlib import Path

# What libraries import late, and our own names; Python's own `-m` has imported some of its modules by then.
NAMES = (
    "random", "queue", "datasets", "qlora_planner", "torch", "transformers", "tokenizers", "yaml", "numpy", "click",
    "secrets", "statistics", "csv", "tempfile", "bitsandbytes", "peft", "trl", "accelerate", "pyarrow", "pandas",
    "jinja2", "safetensors", "psutil", "pynvml", "huggingface_hub", "rich", "logging", "json", "typing", "pathlib",
    "socket", "ssl", "uuid", "hashlib", "shutil", "sysconfig", "subprocess", "dataclasses", "sitecustomize_not",
)  # fmt: skip


def lay_traps(folder: Path) -> Path:
    """Write the modules, each of which leaves its name in `imported/` and ends the process when it is run."""
    (folder / "imported").mkdir(parents=True)
    for name in NAMES:
        text = f"open({str(folder / 'imported' / name)!r}, 'w').close()\nraise SystemExit('{name} was imported')\n"
        (folder / f"{name}.py").write_text(text)
    return folder


def imported(folder: Path) -> list[str]:
    """The modules that were run."""
    return sorted(path.name for path in (folder / "imported").iterdir())
