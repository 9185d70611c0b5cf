"""Which C a compiled module was made of: one compiled before the C changed is not what this package calls."""

from __future__ import annotations

import hashlib
from pathlib import Path


def digest(folder: Path) -> str | None:
    """Of all C files in `folder`, 16 hexadecimal digits; None where there are none."""
    files = sorted(path for path in folder.iterdir() if path.suffix in (".c", ".h"))
    text = b"".join(path.name.encode() + path.read_bytes() for path in files)
    return hashlib.sha256(text).hexdigest()[:16] if files else None
