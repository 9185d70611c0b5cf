"""`make tables`: write the README's copies of the tables between their markers."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from qlora_planner.errors import InputError
from qlora_planner.report.parts.table import markdown_advice, markdown_cards, markdown_memory
from qlora_planner.session import Session


def sections() -> dict[str, str]:
    """Marker -> what stands between it and its end, by the code and the profiles of now."""
    tables = Session().table().tables
    return {
        "memory": f"{markdown_memory(tables)}\n\n{markdown_advice(tables)}",
        "cards": markdown_cards(tables),
    }


def regenerated(text: str, found: dict[str, str]) -> str:
    """`text` with every section replaced. Raises InputError naming a marker that is not there once."""
    for name, body in found.items():
        start, end = f"<!-- table:{name} -->", f"<!-- /table:{name} -->"
        pattern = re.compile(f"{re.escape(start)}\n.*?{re.escape(end)}", re.DOTALL)
        if len(pattern.findall(text)) != 1:
            raise InputError(f"README.md: {start} and {end} must be there once, on lines of their own")
        text = pattern.sub(lambda _, whole=f"{start}\n{body}\n{end}": whole, text)  # type: ignore[misc]
    return text


def main(path: Path) -> int:
    """Rewrite `path`; says whether anything changed."""
    old = path.read_text(encoding="utf-8")
    new = regenerated(old, sections())
    path.write_text(new, encoding="utf-8")
    print("rewritten" if new != old else "as it was")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "README.md")))
