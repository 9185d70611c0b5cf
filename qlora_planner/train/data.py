"""Synthetic rows of exactly the length that a run is about, already tokenised."""

from __future__ import annotations

import random
from typing import Any

from qlora_planner.spec.lengths import lengths_of
from qlora_planner.spec.run import RunConfig

PAD = 0
# Ids that models treat specially (padding, begin, end) are among the first few of every vocabulary.
_FIRST_ID = 3
IGNORED = -100


def row_lengths(run: RunConfig, rows: int) -> list[int]:
    """Tokens of each row.

    All `seq_len`, except: with padding the last row of every batch has half as many, so that every batch is padded;
    with packing every row has half as many, so that two fill one packed row.
    """
    half = max(1, run.seq_len // 2)
    if run.packing:
        return [half] * (2 * rows)
    if run.padding and run.batch_size > 1:
        return [half if (row + 1) % run.batch_size == 0 else run.seq_len for row in range(rows)]
    return [run.seq_len] * rows


def token_rows(run: RunConfig, rows: int, vocabulary: int) -> list[list[int]]:
    """Rows of random token ids, the same in every process."""
    drawn = random.Random(0)
    last = max(_FIRST_ID, vocabulary - 1)
    return [[drawn.randint(_FIRST_ID, last) for _ in range(length)] for length in row_lengths(run, rows)]


def synthetic_rows(run: RunConfig, steps: int, vocabulary: int) -> list[list[int]]:
    """Random rows of the run's length for `steps` optimizer steps."""
    return token_rows(run, run.batch_size * run.grad_accum * steps, vocabulary)


def evaluation_rows(run: RunConfig, rows: list[list[int]]) -> list[list[int]]:
    """One evaluation batch (twice as many half rows with packing), repeating training rows where they are few."""
    wanted = (run.eval_batch_size or 1) * (2 if run.packing else 1)
    return [rows[index % len(rows)] for index in range(wanted)]


def dataset(rows: list[list[int]], classes: int | None = None) -> Any:
    """A `datasets.Dataset` with `input_ids` and `labels`: of every token, or one of so many `classes` for each row."""
    from datasets import Dataset

    labels: list[Any] = list(rows) if classes is None else [row % classes for row in range(len(rows))]
    return Dataset.from_dict({"input_ids": rows, "labels": labels})


def collate(features: list[dict[str, Any]]) -> dict[str, Any]:
    """One batch of int64 tensors `input_ids`, `attention_mask` and `labels`, [batch, longest], padded on the right.

    Labels that are one for each row, as a classifier has them, are [batch].
    """
    import torch

    longest = max(len(feature["input_ids"]) for feature in features)
    padded = [(list(feature["input_ids"]), longest - len(feature["input_ids"])) for feature in features]
    return {
        "input_ids": torch.tensor([ids + [PAD] * missing for ids, missing in padded]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * missing for ids, missing in padded]),
        "labels": labels_tensor(features, longest),
    }


def labels_tensor(features: list[dict[str, Any]], longest: int) -> Any:
    """Labels of a batch: [batch, longest] for one a token, padded with what no loss counts; [batch] for one a row."""
    import torch

    labels = [feature.get("labels", feature["input_ids"]) for feature in features]
    if isinstance(labels[0], int):
        return torch.tensor(labels)
    return torch.tensor([list(row) + [IGNORED] * (longest - len(row)) for row in labels])


def tokenizer() -> Any:
    """The least tokenizer that trl accepts: rows are tokenised already, so it only names the padding token."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({"<pad>": PAD, "<s>": 1, "</s>": 2}, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def word_tokenizer(words: int) -> Any:
    """A tokenizer of `words` words, t0 and so on, one token each: texts of so many words have so many tokens."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    ids = {"<pad>": PAD, "<s>": 1, "</s>": 2, **{f"t{index}": index + _FIRST_ID for index in range(words)}}
    model = Tokenizer(WordLevel(ids, unk_token="<pad>"))
    model.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=model, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def preference_rows(run: RunConfig, rows: int, words: int, shape: str) -> Any:
    """A `datasets.Dataset` of texts of the run's lengths, the end token counted; of shape `preference` or `unpaired`.

    With padding the last completion of every batch has half as many tokens, so that every batch is padded.
    """
    from datasets import Dataset

    lengths, drawn = lengths_of(run), random.Random(0)

    made: list[dict[str, Any]] = []
    for row in range(rows):
        short = bool(run.padding) and (row + 1) % run.batch_size == 0
        last = max(1, lengths.completion // 2) if short else lengths.completion
        prompt = _words(drawn, words, lengths.prompt)
        # What a completion begins with keeps its first word apart from the prompt's last.
        chosen, rejected = (" " + _words(drawn, words, count - 1) for count in (lengths.completion, last))
        if shape == "preference":
            made.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
        else:
            made.append({"prompt": prompt, "completion": rejected, "label": bool(row % 2)})
    return Dataset.from_list(made)


def prompt_rows(run: RunConfig, rows: int, words: int) -> Any:
    """A `datasets.Dataset` of prompts of the run's length; with padding every other one is a token shorter."""
    from datasets import Dataset

    drawn, length = random.Random(0), lengths_of(run).prompt
    counts = [max(1, length - row % 2) if run.padding else length for row in range(rows)]
    return Dataset.from_list([{"prompt": _words(drawn, words, count)} for count in counts])


def text_rows(run: RunConfig, rows: list[list[int]], words: int) -> Any:
    """A `datasets.Dataset` of texts, one for each of `rows` and without padding of `run.seq_len` tokens, the end token
    that a trainer adds counted; packed rows are as long as they are."""
    from datasets import Dataset

    def text(row: list[int]) -> str:
        length = len(row) if run.packing else run.seq_len
        return " ".join(f"t{row[at % len(row)] % words}" for at in range(max(1, length - 1)))

    return Dataset.from_dict({"text": [text(row) for row in rows]})


def _words(drawn: random.Random, words: int, count: int) -> str:
    return " ".join(f"t{drawn.randrange(words)}" for _ in range(count))


def vocabulary_of(rows: list[list[int]]) -> int:
    """Words that rows of drawn ids show to be there, for a tokenizer of as many."""
    return max(2, min(1000, max(max(row) for row in rows) - _FIRST_ID))
