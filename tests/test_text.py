"""What a terminal would obey, or show in another order than it was written, is shown as question marks."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlora_planner.text import LONGEST_LINE, chatter, listed, plain, quoted, screen, short

CLIPBOARD = "\x1b]52;c;cm0gLXJmIH4=\x07"
TITLE = "\x1b]0;mine\x07"
HOSTILE = [
    CLIPBOARD, TITLE, "\x1b[2J", "\x9b31m", "\x9d0;t\x9c", "\x7f", "\x08", "\r", "\x00", "\u202e", "\u2066", "\u200b",
    "\u200f", "\ufeff", "\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\ud800", "\U000e0041", "\u2060", "\u061c",
]  # fmt: skip


def is_safe(text: str, also: str = "\n\t") -> bool:
    """By Unicode's own categories: no control, format or surrogate character and no line or paragraph separator."""
    return not any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in text if c not in also)


@pytest.mark.parametrize("bad", HOSTILE, ids=ascii)
@pytest.mark.fault(
    "control characters, escapes that write the clipboard or a title, marks of direction in anything from outside",
    does="each becomes a `?`, on stdout and stderr",
    exit="-",
    part="outside",
)
def test_no_control_and_no_mark_of_direction_passes(bad: str) -> None:
    text = f"meta-llama/{bad}Llama"
    assert is_safe(plain(text), "")
    assert is_safe(quoted(text), "")
    assert is_safe(screen(text))
    assert is_safe(screen(text, colour=True))
    assert is_safe(chatter(text))


@given(st.text(alphabet=st.characters(min_codepoint=0, max_codepoint=0x10FFFF, exclude_categories=[])))
def test_whatever_is_written_is_safe_and_keeps_its_columns(text: str) -> None:
    assert is_safe(screen(text))
    assert len(screen(text)) == len(text)
    assert is_safe(chatter(text).strip("\r"))


def test_lines_tabs_scripts_and_emoji_stay() -> None:
    text = "größer\n\t模型 ✓ نموذج 🤗\u3000\xa0ok"
    assert screen(text) == text


def test_joiners_stay_in_what_a_model_says() -> None:
    assert screen("می\u200cشود 👩\u200d💻\x1b[m", joiners=True) == "می\u200cشود 👩\u200d💻?[m"
    assert screen("a\u200db") == "a?b"


def test_colours_pass_alone_where_they_are_ours() -> None:
    assert screen("\x1b[1;32mfits\x1b[0m\x1b[2J", colour=True) == "\x1b[1;32mfits\x1b[0m?[2J"
    assert screen("\x1b[32mfits") == "?[32mfits"


def test_a_progress_bar_still_goes_back_to_its_start_but_not_from_the_middle() -> None:
    assert chatter("\r 10%|#") == "\r 10%|#"
    assert chatter("load\rqlora-plan: it fits") == "load?qlora-plan: it fits"


def test_a_line_of_a_megabyte_is_cut() -> None:
    assert len(short("x" * 1_000_000)) < 4200
    assert "characters" in short("x" * 1_000_000)


def test_a_fault_of_a_megabyte_is_cut() -> None:
    from qlora_planner.errors import InputError
    from qlora_planner.spec.faults import refuse

    with pytest.raises(InputError) as caught:
        refuse(["x" * 1_000_000], "rows.csv")
    assert len(str(caught.value)) < 1_200


@pytest.mark.fault(
    "a message that would quote a megabyte of a file",
    said="characters ...",
    does="cut in the middle at 4,096 characters; lists of names at twelve",
    exit="2 or 3",
    part="outside",
)
def test_whatever_a_fault_quotes_it_is_no_longer_than_a_line() -> None:
    from qlora_planner.errors import InputError, MissingError

    for fault in (InputError("x" * 1_000_000), MissingError(f"rows.csv: {plain('y' * 1_000_000)}")):
        assert len(str(fault)) <= LONGEST_LINE
        assert "characters ..." in str(fault)


def test_names_are_listed_shortened_and_counted() -> None:
    assert listed(["q_proj", "\x1b[2Jv"]) == "q_proj, ?[2Jv"
    assert listed(f"key_{number}" for number in range(5000)).endswith("key_10, key_11 and 4,988 more")
    assert len(listed(["x" * 1_000_000] * 5000)) < 2_000
