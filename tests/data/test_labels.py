"""Labelled text: which labels there are, which are wrong, and how long its rows are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from qlora_planner.data import labels_in, rows, summarise
from qlora_planner.errors import InputError


def write(folder: Path, labels: Sequence[Any], name: str = "label") -> Path:
    path = folder / "labelled.jsonl"
    path.write_text("".join(json.dumps({"text": "some text", name: label}) + "\n" for label in labels))
    return path


@pytest.mark.parametrize(
    ("labels", "wanted", "count", "names"),
    [
        ([0, 2, 1], None, 3, None),
        ([0, 2, 1], 5, 5, None),
        (["1", "0"], None, 2, None),  # as csv files have numbers
        ([True, False], None, 2, None),
        ([0.0, 1.0], None, 2, None),
        (["neg", "pos", "neg"], None, 2, ("neg", "pos")),
        (["b", "a", "c"], 4, 4, ("a", "b", "c")),
        (["1", "two"], None, 2, ("1", "two")),
    ],
)
def test_labels_are_numbers_or_words_in_their_order(
    tmp_path: Path, labels: list[Any], wanted: int | None, count: int, names: tuple[str, ...] | None
) -> None:
    found = labels_in(write(tmp_path, labels), wanted)
    assert (found.count, found.names) == (count, names)
    numbers = [found.number(row["label"]) for row in rows(write(tmp_path, labels), task="classification")]
    assert numbers == ([names.index(label) for label in labels] if names else [int(label) for label in labels])


@pytest.mark.parametrize(
    ("labels", "wanted", "says"),
    [
        ([0, 1, 5], 4, r"labelled\.jsonl: line 3 has label 5, and 4 labels are 0 to 3"),
        ([0, -1], None, "line 2 has label -1, and labels are counted from 0"),
        (["a", "b", "c"], 2, r"labelled\.jsonl: has 3 labels \(a, b, c\), and --num-labels says 2"),
        ([0, "pos"], None, "line 2 has label 'pos', and .*line 1 has 0: labels are numbers in every row"),
        (["a", "a"], None, "every row has the label a: nothing is told apart"),
        ([3, 3], None, "every row has the label 3"),
        ([0, [1]], None, r"1 of 2 rows cannot be used: line 2 label must be a whole number or a word, not \[1\]"),
        ([0, None], None, "line 2 has no label"),
        ([0, 0.5], None, "line 2 label must be a whole number or a word, not 0.5"),
    ],
)
def test_wrong_labels_are_refused_in_one_line_with_their_place(
    tmp_path: Path, labels: list[Any], wanted: int | None, says: str
) -> None:
    with pytest.raises(InputError, match=says) as error:
        labels_in(write(tmp_path, labels), wanted)
    assert "\n" not in str(error.value)


def test_rows_without_a_label_are_left_out_where_that_is_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path, [0, None, 1])
    assert labels_in(path, None, bad_rows="skip").count == 2
    assert len(list(rows(path, task="classification", bad_rows="skip"))) == 2


def test_data_without_labels_is_no_data_for_a_classifier(tmp_path: Path) -> None:
    path = tmp_path / "text.jsonl"
    path.write_text('{"text": "x", "source": "y"}\n')
    with pytest.raises(InputError, match="its columns are source, text; --task classification learns from text and"):
        summarise(path, chars_per_token=1, task="classification")


def test_a_text_with_a_label_is_text_for_a_run_that_writes(tmp_path: Path) -> None:
    path = write(tmp_path, [0, 1], "labels")
    assert summarise(path, chars_per_token=1).shape == "text"
    assert summarise(path, chars_per_token=1, task="classification").shape == "labelled"
    assert [set(row) for row in rows(path)] == [{"text"}, {"text"}]


def test_a_classifiers_text_gets_no_end_of_its_own(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    from tokenizers import Tokenizer, models, pre_tokenizers

    from qlora_planner.data.counting import Tokenised

    words = Tokenizer(models.WordLevel({"some": 0, "text": 1, "</s>": 2}, unk_token="</s>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    counter = Tokenised(words, " </s>", None, "toy")
    assert counter.count([{"text": "some text", "label": 0}, {"text": "some text"}]) == [(2, 0), (3, 0)]
