"""A screen as a picture to show to others: the lines that the terminal got, drawn as SVG, or as PNG by cairosvg."""

from __future__ import annotations

import re
from io import StringIO
from pathlib import PurePath

from qlora_planner.errors import InputError, MissingError
from qlora_planner.report.parts.theme import Theme
from qlora_planner.text import plain

KINDS = (".svg", ".png")
# Lines are cut into cells of one width: what is drawn is what a terminal of a hundred columns has.
THEME = Theme(color=True, unicode=True, width=100)
_PNG_SCALE = 2.0  # sharp on a screen of twice the density


def check_card(option: str, path: str) -> None:
    """Raises InputError for another kind than .svg and .png, MissingError for .png without cairosvg."""
    kind = PurePath(path).suffix.lower()
    if kind not in KINDS:
        raise InputError(f"{option}: {plain(path)} must end in .svg or .png, which says what is drawn")
    if kind == ".png":
        from importlib.util import find_spec

        if find_spec("cairosvg") is None:
            raise MissingError(f"{option}: a .png needs cairosvg: pip install cairosvg; or name a .svg")


def draw_card(screen: str, title: str, path: str) -> bytes:
    """`screen`, rendered by `THEME`, under `title`, as the kind that `path` ends in."""
    svg = card_svg(screen, title)
    if PurePath(path).suffix.lower() == ".svg":
        return svg.encode()
    import cairosvg

    png: bytes = cairosvg.svg2png(bytestring=svg.encode(), scale=_PNG_SCALE)
    return png


def card_svg(screen: str, title: str) -> str:
    """The same as SVG. It asks no other host for anything: fonts are those of whoever looks at it."""
    from rich._export_format import CONSOLE_SVG_FORMAT
    from rich.console import Console
    from rich.text import Text

    console = Console(
        file=StringIO(), record=True, width=THEME.width, force_terminal=True, no_color=False, color_system="standard",
        highlight=False, legacy_windows=False,
    )  # fmt: skip
    console.print(Text.from_ansi(screen), soft_wrap=True)
    alone = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    # cairo takes a list of fonts for the name of one, and then a font whose columns do not stand below each other.
    alone = alone.replace("Fira Code, monospace", "monospace")
    return console.export_svg(title=plain(title), code_format=alone, unique_id="card")
