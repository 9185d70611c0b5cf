"""Reports to hand on: whole, escaped, and with the figures of the plan."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.dom.minidom import parseString

import pytest

from qlora_planner import session
from qlora_planner.planner.plan import Plan
from qlora_planner.report.pages.document import Code, Paragraph, Table, to_html, to_markdown
from qlora_planner.report.pages.plan_report import command_line, render_share
from qlora_planner.report.pages.svg import Part, bars, curve
from qlora_planner.report.pages.tabular import COLUMNS, comparison_frame
from qlora_planner.spec.run import RunConfig

VOID = ("meta", "br", "link", "img", "hr")


class Balanced(HTMLParser):
    """Every element that opens closes, in order; what could be fetched or run is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.links += [f"{name}={value}" for name, value in attrs if name in ("href", "src", "onclick", "onload")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def parsed(page: str) -> Balanced:
    found = Balanced()
    found.feed(page)
    found.close()
    assert found.open == []
    return found


@pytest.fixture(scope="module")
def made() -> Plan:
    gpu = session.load_gpu("rtx-4090")
    return session.plan(session.load_model("qwen2.5-7b"), gpu, RunConfig(), compare=[session.load_gpu("l4")])


def test_html_is_whole_and_needs_nothing(made: Plan) -> None:
    page = render_share(made, {}, "rtx-4090", html=True)
    found = parsed(page)
    assert found.seen.count("svg") == 3
    assert found.links == [] and "script" not in found.seen
    assert "url(" not in page and "@import" not in page
    assert "prefers-color-scheme: dark" in page
    for drawing in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        parseString(drawing)
    # Every colour that a chart or a table uses is set, for light and for dark.
    used = set(re.findall(r"var\((--\w+)\)", page))
    for part in page.split("@media")[:2]:
        assert used <= set(re.findall(r"(--\w+):", part))


def test_both_forms_hold_the_figures(made: Plan) -> None:
    for html in (True, False):
        text = render_share(made, {}, "rtx-4090", html=html)
        assert made.estimate.run.optimizer in text.replace("\\", "")
        for line in made.estimate.lines:
            assert f"{line.size_bytes:,}" in text
        assert "NVIDIA L4" in text
        assert sum(f"{point.seq_len:,}" in text for point in made.frontier if point.seq_len) >= 3


def test_command_line_is_the_run(made: Plan) -> None:
    from qlora_planner.cli.estimate import command

    first = command_line(made, {"rank": 16}, "rtx-4090").splitlines()[0].split()
    assert first[:3] == ["qlora-plan", "estimate", "Qwen/Qwen2.5-7B"]
    given = command.make_context("estimate", first[2:]).params
    for name in (*made.options, "rank"):
        assert given[name] == getattr(made.run, name)


def test_names_are_escaped(made: Plan) -> None:
    bad = "<script>alert(1)</script>|`x`"
    named = replace(made, model=replace(made.model, id=bad))
    page = render_share(named, {}, "24GB", html=True)
    assert "<script" not in page
    parsed(page)
    text = to_markdown("t", [Paragraph(bad), Table(("a", "b"), (("x|y", "<b>"),)), Code("```\nrm")])
    assert "\\<script\\>" in text and "x\\|y" in text
    assert "````text\n```\nrm\n````" in text
    assert "&lt;b&gt;" in to_html("t", [Table(("a",), (("<b>",),))])


def test_bars_reach_as_far_as_they_say() -> None:
    drawing = bars("t", [("row", [Part(label="a", start=0, length=2, color=0)], "2")], edge=4.0, edge_label="edge")
    width = float(re.findall(r'<rect class="c0"[^>]* width="([\d.]+)"', drawing)[-1])
    edge = float(re.findall(r'<line class="edge" x1="([\d.]+)"', drawing)[0])
    start = float(re.findall(r'<rect class="c0" x="([\d.]+)"', drawing)[-1])
    assert width == pytest.approx((edge - start) / 2)


def test_curves_of_nothing_and_of_much() -> None:
    assert curve("t", [], x_label="x", y_label="y") == ""
    flat = curve("t", [(1, 5.0), (2, 5.0)], x_label="x", y_label="y", log=True)
    long = curve("t", [(step, 1 / step) for step in range(1, 500)], x_label="x", y_label="y", form="{:.2f}".format)
    for drawing in (flat, long):
        parseString(drawing)
        assert "nan" not in drawing
    assert flat.count("<circle") == 2 and "<circle" not in long


def test_frame_keeps_whole_numbers_and_unknowns_apart(made: Plan) -> None:
    document = made.to_dict()
    frame = comparison_frame(document)
    assert list(frame.columns) == list(COLUMNS)
    assert list(frame["table"].value_counts().sort_index()) == [1, 1, len(document["prices"])]
    l4 = frame[frame["gpu"] == "l4"].iloc[0]
    assert int(l4["floor_bytes"]) == document["compared"][0]["floor_bytes"]
    assert str(frame["bytes"].dtype) == "Int64" and str(frame["refused"].dtype) == "string"
    priced = frame[frame["table"] == "prices"]
    whole = [
        None if missing else int(value) for value, missing in zip(priced["bytes"], priced["bytes"].isna(), strict=True)
    ]
    assert whole == [row["bytes"] for row in document["prices"]]
