"""A plan's comparisons as one table for other programs: the run, the other cards, and the prices of the knobs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qlora_planner.errors import MissingError
from qlora_planner.report.parts.labels import change

COLUMNS = (
    "table", "model", "gpu", "label", "verdict", "usable_bytes", "floor_bytes", "bytes", "tokens_per_s", "speed",
    "usd_per_million_tokens", "knob", "change", "fits", "note", "refused",
)  # fmt: skip

_TYPES = {
    **dict.fromkeys(COLUMNS, "string"),
    **dict.fromkeys(("usable_bytes", "floor_bytes", "bytes"), "Int64"),
    **dict.fromkeys(("tokens_per_s", "speed", "usd_per_million_tokens"), "Float64"),
    "fits": "boolean",
}


def comparison_rows(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of `table` plan (one), compared (a card each) and prices (a knob each), from a plan's document.

    `bytes` is a price: what turning the knob adds to the floor. `speed` is a ratio. An unknown is None.
    """
    answer, fit = document["estimate"], document["estimate"]["fit"] or {}
    common = {"model": document["model"]["id"]}
    rows = [
        {
            **common, "table": "plan", "gpu": document["gpu"]["name"], "label": document["gpu"]["label"],
            "verdict": fit.get("verdict"), "usable_bytes": fit.get("usable_bytes"),
            "floor_bytes": answer["floor_bytes"], "tokens_per_s": answer["speed"]["tokens_per_s"],
            "usd_per_million_tokens": document["cost"].get("usd_per_million_tokens"),
            "change": change(document["options"]),
        }
    ]  # fmt: skip
    for name in ("compared", "prices"):
        for row in document[name]:
            fields = {key: row[key] for key in COLUMNS if key in row and key != "change"}
            here = {"gpu": document["gpu"]["name"]} if name == "prices" else {}
            rows.append({**common, **here, "table": name, **fields, "change": change(row["change"] or {})})
    return rows


def comparison_frame(document: Mapping[str, Any]) -> Any:
    """The same as a pandas frame, with types that keep integers and unknowns apart."""
    import pandas

    # The types do not hang on which rows are there.
    return pandas.DataFrame(comparison_rows(document), columns=list(COLUMNS)).astype(_TYPES)


def check_parquet() -> None:
    """Raises MissingError where pyarrow, which writes parquet, is not installed."""
    from importlib.util import find_spec

    if find_spec("pyarrow") is None:
        from qlora_planner.installing import install_line

        raise MissingError(f"--parquet needs pyarrow: {install_line('data')}; or use --csv")


def to_csv(document: Mapping[str, Any]) -> bytes:
    """CSV with a header."""
    text: str = comparison_frame(document).to_csv(index=False, lineterminator="\n")
    return text.encode()


def to_parquet(document: Mapping[str, Any]) -> bytes:
    """A parquet file."""
    from io import BytesIO

    out = BytesIO()
    comparison_frame(document).to_parquet(out, index=False)
    return out.getvalue()
