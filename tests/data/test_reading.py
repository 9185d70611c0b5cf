"""Files of every kind to lengths, and what cannot be used told in one line."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from qlora_planner.data import rows, summarise
from qlora_planner.data.shapes import ALPACA, ALPACA_WITH_INPUT
from qlora_planner.errors import InputError, MissingError
from tests.data.conftest import Write, write_tokenizer

TEXTS = ["the fox", "a dog, it sleeps", "until noon\nand\u2028then", "line\r\nends", '"quoted", twice']


def guessed(path: Path | str, **options: Any) -> list[int]:
    return summarise(path, chars_per_token=1, **options).lengths.tolist()


WANTED = [len(text) + 1 for text in TEXTS]


def test_every_kind_of_file_holds_the_same(tmp_path: Path) -> None:
    import csv

    records = [{"id": index, "text": text} for index, text in enumerate(TEXTS)]
    (tmp_path / "a.jsonl").write_text("\n\n".join(json.dumps(row, ensure_ascii=False) for row in records))
    (tmp_path / "b.json").write_text(json.dumps(records, indent=2))
    (tmp_path / "c.json").write_bytes(b"\xef\xbb\xbf" + "\n".join(map(json.dumps, records)).encode())
    for name, delimiter in (("d.csv", ","), ("e.tsv", "\t")):
        with (tmp_path / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, ["id", "text"], delimiter=delimiter)
            writer.writeheader()
            writer.writerows(records)
    names = ["a.jsonl", "b.json", "c.json", "d.csv", "e.tsv"]
    for name in names:
        assert guessed(tmp_path / name) == WANTED, name
    assert guessed(tmp_path) == WANTED * len(names)
    found = summarise(f"{tmp_path}/[ab].json*", chars_per_token=1)
    assert (found.rows, found.format) == (2 * len(TEXTS), "jsonl+json")


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    chats = [
        [{"role": "user", "content": "the fox"}],
        [{"role": "user", "content": "x"}, {"role": "assistant", "content": None, "name": "y"}],
    ]
    path = tmp_path / "train.parquet"
    parquet.write_table(pyarrow.table({"messages": chats}), path)
    assert guessed(path) == [5 + 7, 5 + 1 + 5]
    # A field that only another row has is not there.
    assert next(iter(rows(path))) == {"messages": [{"role": "user", "content": "the fox"}]}


def test_elements_of_an_array_are_placed_and_read_across_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qlora_planner.data.readers._CHUNK", 7)
    path = tmp_path / "train.json"
    path.write_text('[\n {"text": "naïve"},\n\n {"text":\n "the [fox] \\" ü"}\n]\n')
    found = summarise(path, chars_per_token=1)
    assert found.lengths.tolist() == [6, 14]
    assert found.longest.line == 4


def test_rows_in_trls_formats(write: Write) -> None:
    path = write("alpaca.jsonl", [
        {"instruction": "Say {this}", "input": "", "output": "this"},
        {"instruction": "Add", "input": "1, 2", "output": "3"},
    ])  # fmt: skip
    assert list(rows(path)) == [
        {"prompt": ALPACA.replace("{instruction}", "Say {this}"), "completion": "this"},
        {
            "prompt": ALPACA_WITH_INPUT.replace("{instruction}", "Add").replace("{input}", "1, 2"),
            "completion": "3",
        },
    ]
    turns = [{"from": "system", "value": "s"}, {"from": "human", "value": "h"}, {"from": "gpt", "value": "g"}]
    path = write("sharegpt.jsonl", [{"conversations": turns, "tools": [{"name": "f"}]}])
    roles = ["system", "user", "assistant"]
    messages = [{"content": turn["value"], "role": role} for turn, role in zip(turns, roles, strict=True)]
    assert list(rows(path)) == [{"messages": messages, "tools": [{"name": "f"}]}]


BAD = [
    ('{"text": "cut off', "is not JSON"),
    ("[1]", "is not a JSON object"),
    ('{"txt": "x"}', "has no text"),
    ('{"text": 3}', "text must be text, not 3"),
    ('{"text": ""}', "has no tokens"),
    ("[" * 100_000, "is nested too deeply"),
]


@pytest.mark.parametrize(("bad", "why"), BAD)
def test_a_row_that_cannot_be_used(bad: str, why: str, write: Write) -> None:
    path = write("train.jsonl", [{"text": "one"}, bad, {"text": "three"}, bad])
    with pytest.raises(InputError) as told:
        guessed(path)
    assert f"2 of 4 rows cannot be used: line 2 {why}" in str(told.value)
    assert str(told.value).endswith("and line 4; mend them, or leave them out with --bad-rows skip")
    with pytest.raises(InputError, match="line 2"):
        list(rows(path))
    said: list[str] = []
    found = summarise(path, chars_per_token=1, bad_rows="skip", warn=said.append)
    assert (found.rows, found.bad_rows, [row.line for row in found.first_bad]) == (2, 2, [2, 4])
    assert len(said) == 1
    assert "2 of 4 rows cannot be used" in said[0]
    assert [row["text"] for row in rows(path, bad_rows="skip")] == ["one", "three"]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"messages": []}, "messages is empty"),
        ({"messages": [{"role": "user", "content": 5}]}, "content of a message must be text"),
        ({"messages": "hello"}, "messages must be a list"),
        ({"prompt": "x", "completion": [{"role": "assistant", "content": "y"}]}, "must both be text or both be lists"),
        ({"prompt": "", "completion": ""}, "has no tokens"),
        ({"input_ids": []}, "has no tokens"),
        ({"input_ids": [1, 2.5]}, "must be a list of whole numbers"),
        ({"input_ids": [1], "labels": [1, 2]}, "as long as input_ids"),
        ({"instruction": "", "input": "", "output": ""}, "has no tokens"),
    ],
)
def test_a_row_of_another_shape_that_cannot_be_used(row: dict[str, Any], why: str, write: Write) -> None:
    with pytest.raises(InputError, match=why):
        guessed(write("train.jsonl", [row]))


def test_what_the_chat_template_refuses_is_a_bad_row(write: Write, tokenizer: Path) -> None:
    good = {"messages": [{"role": "user", "content": "the fox"}]}
    odd = {"messages": [{"role": "ghost", "content": "boo"}]}
    path = write("train.jsonl", [good, odd, good])
    with pytest.raises(InputError, match=r"line 2 is refused by the chat template \(no such role: ghost\)"):
        summarise(path, tokenizer=str(tokenizer))
    assert summarise(path, tokenizer=str(tokenizer), bad_rows="skip").rows == 2


def test_half_a_surrogate_pair_spoils_only_its_row(write: Write, tokenizer: Path) -> None:
    path = write("train.jsonl", [{"text": "the fox"}, '{"text": "\\ud83d"}', {"text": "the dog"}])
    found = summarise(path, tokenizer=str(tokenizer), bad_rows="skip")
    assert (found.rows, found.first_bad[0].line) == (2, 2)


def test_csv_rows_that_are_broken(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_bytes(b'id,text\n1,good\n2,too,many\n3\n4,"shut"in\n5,\xff\n6,"over\ntwo lines"\n7,"open\n')
    found = summarise(path, chars_per_token=1, bad_rows="skip")
    assert found.lengths.tolist() == [5, 15]
    assert [row.line for row in found.first_bad] == [3, 4, 5, 6, 9]


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("a.jsonl", b"", "is empty"),
        ("a.jsonl", b"\n \n", "is empty"),
        ("a.jsonl.gz", b"\x1f\x8b\x08", "unpack it first"),
        ("a.jsonl", b"\x1f\x8b\x08\x00", "is compressed with gzip; unpack it first"),
        ("a.jsonl", '{"text": "x"}'.encode("utf-16"), "UTF-16 text; save it as UTF-8"),
        ("a.jsonl", b'{"body": "x", "title": "y"}', "its columns are body, title; what is understood: text;"),
        ("a.jsonl", b"\x00\x01\x02\n\x03", "holds no row that can be read"),
        ("a.txt", b"hello", ".jsonl, .json, .csv, .tsv and .parquet are"),
        ("a.json", b'[{"text": "x"}, {"text": ]', "at line 1 is not JSON"),
        ("a.json", b'[{"text": "x"}\n{"text": "y"}]', "at line 2 where a comma"),
        ("a.json", b'[{"text": "x"}', "the file ends"),
        ("a.csv", b"text,text\n1,2\n", "names a column twice"),
        ("a.parquet", b"PAR1 and nothing more", "is no parquet file"),
    ],
)
def test_a_file_that_cannot_be_used(name: str, content: bytes, why: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError) as told:
        guessed(path)
    assert why in str(told.value)
    assert str(path) in str(told.value)
    assert "\n" not in str(told.value)


def test_what_is_not_there(tmp_path: Path) -> None:
    for path, why in ((tmp_path / "no.jsonl", "no such file"), (tmp_path / "*.jsonl", "no file matches")):
        with pytest.raises(InputError, match=why):
            guessed(path)
    (tmp_path / "train.jsonl.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(InputError, match=r"it holds train.jsonl.gz; unpack them first"):
        guessed(tmp_path)


@pytest.mark.parametrize("ratio", [0, -1, float("nan"), 1e9])
def test_a_guess_that_makes_no_sense(ratio: float, write: Write) -> None:
    with pytest.raises(InputError, match="--chars-per-token must be from"):
        summarise(write("train.jsonl", [{"text": "x"}]), chars_per_token=ratio)


def test_a_tokenizer_that_is_not_there(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, empty = write("train.jsonl", [{"text": "x"}]), tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(MissingError, match="--tokenizer, or guess with --chars-per-token"):
        summarise(path)
    with pytest.raises(MissingError, match=r"holds no tokenizer .*--tokenizer DIR"):
        summarise(path, tokenizer=str(empty))
    with pytest.raises(InputError, match="no such folder"):
        summarise(path, tokenizer=str(tmp_path / "nowhere"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(MissingError, match="HF_HUB_OFFLINE forbids asking"):
        summarise(path, tokenizer="org/never-published")
    damaged = write_tokenizer(tmp_path / "damaged", merges=True)
    (damaged / "tokenizer.json").write_text('{"model": 1}')
    with pytest.raises(MissingError, match=r"its tokenizer cannot be loaded"):
        summarise(path, tokenizer=str(damaged))


def test_chats_need_a_template(write: Write, tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path / "base", template=None)
    path = write("train.jsonl", [{"messages": [{"role": "user", "content": "the fox"}]}])
    with pytest.raises(MissingError, match="has no chat template"):
        summarise(path, tokenizer=str(folder))


def test_tokenised_rows_need_no_tokenizer(write: Write) -> None:
    path = write("train.jsonl", [
        {"input_ids": [5, 6, 7]},
        {"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8]},
        {"input_ids": [5], "labels": [-100]},
    ])  # fmt: skip
    found = summarise(path)
    assert (found.lengths.tolist(), found.basis, found.tokenizer) == ([3, 4, 1], "counted", None)
    assert found.masked is not None
    assert found.masked.tolist() == [0, 2, 1]


def test_a_row_longer_than_everything_else_is_named(write: Write) -> None:
    texts = [{"text": "x" * (10 + index % 7)} for index in range(300)]
    texts[123]["text"] = "y" * 900
    found = summarise(write("train.jsonl", texts), chars_per_token=1)
    assert (found.longest.line, found.longest.tokens) == (124, 901)
    assert [(row.line, row.tokens) for row in found.outliers] == [(124, 901)]
    assert (found.basis, found.to_dict()["chars_per_token"]) == ("assumed", 1)


def test_progress_goes_up_to_the_whole(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.csv", "c.json"):
        lines = [json.dumps({"text": "the fox"})] * 3000
        if name == "b.csv":
            lines = ["text", *["the fox"] * 3000]
        (tmp_path / name).write_text("[" + ",\n".join(lines) + "]" if name == "c.json" else "\n".join(lines))
    told: list[tuple[int, int, int]] = []
    summarise(tmp_path, chars_per_token=4, moved=lambda *now: told.append(now))
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert told[-1] == (size, size, 9000)
    assert all(before <= after for before, after in pairwise(told))
    assert all(whole == size for _, whole, _ in told)


def test_without_the_packages(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without transformers tokenizer.json is read with a note; without tokenizers the fix is named."""
    path = write("train.jsonl", [{"text": "the fox"}])
    folder = write_tokenizer(tmp_path / "llama", tokenizer_class="LlamaTokenizer")
    missing = {"transformers"}
    monkeypatch.setattr("qlora_planner.data.tokenizers.find_spec", lambda name: None if name in missing else True)
    said: list[str] = []
    assert summarise(path, tokenizer=str(folder), warn=said.append).lengths.tolist() == [4]
    assert said == [f"{folder}: read from its tokenizer.json; transformers, which may change it, is not installed"]
    missing.add("tokenizers")
    with pytest.raises(MissingError, match=r"pip install .*\[data\]'?, or guess with --chars-per-token 4"):
        summarise(path, tokenizer=str(folder))
