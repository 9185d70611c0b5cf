"""The table of a card: grouped, folded, and ending in one command."""

from __future__ import annotations

from qlora_planner.report.parts.row_selection import fold_text, pick
from qlora_planner.report.parts.theme import Theme
from qlora_planner.report.survey import CSV_HEADS, csv_row, render_survey
from qlora_planner.spec.run import RunConfig
from tests.report.records import CARD, make_row

THEME = Theme(unicode=True)
MANY = [
    *(make_row(f"meta-llama/Llama-{version}-{size}B", size) for version in ("2", "3", "3.1") for size in (1, 3, 8, 13)),
    *(make_row(f"someone/Llama-3.1-tuned-{size}B", size) for size in (1, 8)),
    *(make_row(f"Qwen/Qwen3-{size}B", size, family="qwen3") for size in (1, 4, 8, 14)),
    *(make_row(f"EleutherAI/pythia-{size}b", size, family="gpt_neox") for size in (1, 2, 3, 7, 12)),
    *(make_row(f"maker{index}/model-{index}", 2 + index / 10, family=f"family{index}") for index in range(20)),
]


def survey(rows: list, every: bool = False, run: RunConfig | None = None, asked: str = "24GB") -> str:
    return render_survey(rows, CARD, run or RunConfig(), THEME, card=asked, every=every)


def test_folding_shows_the_makers_newest_of_each_size_and_tells_the_rest() -> None:
    shown = [row.model_id for row in pick(MANY, 6, MANY)]
    assert "meta-llama/Llama-3.1-13B" in shown
    assert "meta-llama/Llama-3.1-8B" in shown
    assert "Qwen/Qwen3-14B" in shown
    assert not any("someone" in name or "Llama-2" in name for name in shown)
    assert len(shown) <= 6
    assert pick(MANY[:3], 6, MANY) == MANY[:3]


def test_nearest_misses_come_first() -> None:
    rows = [make_row(f"a/b-{size}B", size, "does-not-fit", family=f"f{size}") for size in (400, 70, 30, 120)]
    assert [row.params // 10**9 for row in pick(rows, 2, rows, nearest=True)] == [30, 70]
    assert [row.params // 10**9 for row in pick(rows, 9, rows, nearest=True)] == [30, 70, 120, 400]


def test_a_folded_line_counts_what_it_hides() -> None:
    text = fold_text(MANY, "…", names=2)
    assert text.startswith(f"… and {len(MANY)} more: 14 llama, 5 gpt_neox, ")
    assert text.endswith("24 in 21 other families (--all)")
    assert "3 others" in fold_text([make_row(f"a/{x}", 1, family=x) for x in "abcd"], "…", names=1)


def test_models_that_are_larger_than_those_shown_are_counted() -> None:
    many = [make_row(f"meta-llama/Llama-3.1-{size}B", size) for size in (1, 3, 8, 13)]
    many += [make_row(f"someone/Llama-tuned-{size}B", size) for size in (40, 50, 60)]
    many += [make_row(f"maker{index}/model-{index}", 2 + index / 10, family=f"family{index}") for index in range(30)]
    text = " ".join(survey(many).split())
    assert "more, 3 larger than these: " in text
    assert "(the plan of the largest one shown; 3 larger fit too, --all shows them)" in text
    every = " ".join(survey(many, every=True).split())
    assert "larger" not in every
    assert "(the plan of the largest one shown)" not in every or "Llama-tuned-60B" in every


def test_groups_columns_and_the_last_line() -> None:
    rows = [
        *MANY,
        make_row("big/Model-34B", 22, "tight", family="big", longest_seq_len=512),
        make_row("huge/Model-70B", 70, "does-not-fit", family="huge", limiting="unquantized_weights"),
        make_row(
            "odd/Model-1B",
            1,
            "will-not-run",
            family="odd",
            note="PEFT refuses every layer of it, sadly so, for good",
        ),
    ]
    text = survey(rows)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert any(
        line.startswith("  longest ") and "2,048 that fit" in line for line in lines[lines.index("≈ tight (1)") :]
    )
    assert f"✓ fits ({len(MANY)})" in lines
    assert "≈ tight (1)" in lines
    assert "✗ does not fit (1)" in lines
    assert "⊘ will not run (1)" in lines
    assert any("70.0 over" in line and "16-bit rest" in line for line in lines)
    assert any("PEFT refuses" in line for line in lines)
    assert len([line for line in lines if line.startswith("next: ")]) == 1
    assert "next: qlora-plan Qwen/Qwen3-14B --gpu 24GB" in lines
    assert len(lines) < len(survey(rows, every=True).splitlines())
    assert all(row.model_id.partition("/")[2] in survey(rows, every=True) for row in rows)


def test_nothing_fits() -> None:
    none = [make_row("huge/Model-70B", 70, "does-not-fit")]
    assert "next: qlora-plan gpus" in survey(none)
    shorter = [make_row("huge/Model-70B", 70, "does-not-fit", longest_seq_len=512)]
    assert "next: qlora-plan huge/Model-70B --gpu 24GB --seq-len 512" in survey(shorter)


def test_the_card_in_the_last_line_can_be_pasted() -> None:
    assert "--gpu 'rtx 4090'" in survey(MANY, asked="rtx 4090")


def test_models_that_need_another_recipe_are_counted() -> None:
    rows = [*MANY, make_row("x/y", 1, run=RunConfig(trainer="hf-trainer", quant="nf4"))]
    assert "1 models need another" in " ".join(survey(rows).split())


def test_csv_has_every_field() -> None:
    row = csv_row(MANY[0])
    assert len(row) == len(CSV_HEADS)
    assert row[0] == "meta-llama/Llama-2-1B"
