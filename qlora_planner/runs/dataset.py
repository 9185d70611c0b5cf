"""The tokenizer and the rows of a run, checked before any weight is loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from qlora_planner import data
from qlora_planner.catalog.trainers import data_task, trainer_named
from qlora_planner.data.files import find_files
from qlora_planner.errors import InputError, MissingError
from qlora_planner.spec.run import RunConfig
from qlora_planner.text import plain, quoted
from qlora_planner.train.data import IGNORED, labels_tensor
from qlora_planner.train.settings import EVAL_SPLIT, Settings

if TYPE_CHECKING:
    from qlora_planner.data.labels import Labels
    from qlora_planner.data.scan import Moved
    from qlora_planner.runs.spec import LaunchSpec

Note = Callable[[str], None]
# Rows of larger files are kept on the disk, beside the run, and not in host memory.
IN_MEMORY_BYTES = 256 << 20


def load_tokenizer(folder: str, settings: Settings, note: Note) -> Any:
    """The tokenizer in `folder`, with a token that pads. Raises MissingError where there is none that works."""
    from transformers import AutoTokenizer

    name = plain(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (ValueError, OSError, ImportError, KeyError, TypeError, AttributeError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if "trust_remote_code" in str(error):
            first = "it has code of its own, which is never run here"
        raise MissingError(f"{name}: has no tokenizer that works ({plain(first)[:160]}); --tokenizer DIR") from None
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise MissingError(f"{name}: its tokenizer knows no words; give another with --tokenizer DIR")
    if tokenizer.eos_token is None:
        raise MissingError(f"{name}: its tokenizer has no end token, so answers would have no end; --tokenizer DIR")
    _settle_padding(tokenizer, settings, note)
    return tokenizer


def _settle_padding(tokenizer: Any, settings: Settings, note: Note) -> None:
    """One token pads. Labels are made before a batch is padded, so the end token can pad without being masked."""
    if settings.pad_token is not None:
        if settings.pad_token not in tokenizer.get_vocab():
            raise InputError(f"--pad-token: {quoted(settings.pad_token)} is no token of this tokenizer")
        tokenizer.pad_token = settings.pad_token
    elif tokenizer.pad_token is None:
        spare = tokenizer.unk_token
        tokenizer.pad_token = spare if spare is not None and spare != tokenizer.eos_token else tokenizer.eos_token
        note(f"the tokenizer names no pad token: {tokenizer.pad_token} pads; --pad-token says otherwise")
        return
    if tokenizer.pad_token == tokenizer.eos_token:
        note(f"the pad token is the end token ({tokenizer.eos_token}): ends of answers are trained on all the same")


def load_rows(
    path: str,
    run: RunConfig,
    settings: Settings,
    *,
    bad_rows: str,
    cache: Path,
    note: Note,
    moved: Moved | None = None,
) -> tuple[Any, Any]:
    """Rows as `datasets.Dataset`s: to train on, and those held out (None where the run does not evaluate).

    Large data is read twice: once to know that every row can be used, and which columns there are, then into files
    under `cache`. `moved` is called as `data.summarise` calls it.
    Raises InputError for data that cannot be used or is too little to be split.
    """
    from datasets import Dataset
    from datasets.exceptions import DatasetGenerationError
    from pyarrow import ArrowException

    trainer = trainer_named(run.trainer)
    if data_task(run) is None:
        data.check_rows(path, trainer.row_shapes, trainer.name)
    large = sum(file.size_bytes for file in find_files(path)) > IN_MEMORY_BYTES
    columns: dict[str, None] = {}
    kept = []
    for row in data.rows(
        path, bad_rows=bad_rows, warn=note, moved=moved, task=data_task(run), pictures=bool(run.images)
    ):
        columns.update(dict.fromkeys(row))
        if not large:
            kept.append(row)

    def rows() -> Iterator[dict[str, Any]]:
        for row in data.rows(path, bad_rows=bad_rows, moved=moved, task=data_task(run), pictures=bool(run.images)):
            yield {name: row.get(name) for name in columns}

    if data_task(run) is None and "unpaired" not in trainer.row_shapes:
        columns.pop("label", None)  # what was thought of a completion, where it is only learnt from
    try:
        if large:
            # With a name of its own nothing has to be pickled to be told apart.
            whole = Dataset.from_generator(rows, cache_dir=str(cache), fingerprint=uuid4().hex)
        else:
            whole = Dataset.from_dict({name: [row.get(name) for row in kept] for name in columns})
    except (DatasetGenerationError, ArrowException, ValueError, TypeError) as error:
        raise _unlike(error, path) from None
    if run.eval_batch_size is None:
        return whole, None
    split = settings.eval_split if settings.eval_split is not None else EVAL_SPLIT
    held_out = max(1, round(split * len(whole)))
    if held_out >= len(whole):
        raise InputError(f"{plain(path)}: {len(whole)} rows are too few to hold {held_out} out; leave --eval-split out")
    parts = whole.train_test_split(test_size=held_out, seed=settings.seed)
    return parts["train"], parts["test"]


def _unlike(error: Exception, path: str) -> Exception:
    """What came of rows that Arrow cannot hold side by side; anything else as it is."""
    from datasets.exceptions import DatasetGenerationError
    from pyarrow import ArrowException

    cause = error.__cause__ if isinstance(error, DatasetGenerationError) else error
    if not isinstance(cause, (ArrowException, ValueError, TypeError)):
        return cause if isinstance(cause, Exception) else error
    reason = plain(" ".join(str(cause).split()))[:160]
    return InputError(f"{plain(path)}: its rows are not alike, as trl needs them ({reason}); mend those that differ")


def check_chats(rows: Any, tokenizer: Any, settings: Settings, note: Note) -> None:
    """What a chat template must do for these rows. Raises InputError for one that is missing or marks no answers."""
    first = rows[0]
    chats = "messages" in first or any(isinstance(first.get(name), list) for name in ("prompt", "chosen"))
    if settings.assistant_only_loss and not chats:
        raise InputError(
            "--assistant-only-loss needs chats (messages); prompt and completion mask the prompt by themselves"
        )
    if not chats:
        return
    if tokenizer.chat_template is None:
        raise MissingError(
            "the tokenizer has no chat template, and the rows are chats; --tokenizer DIR of a chat model"
        )
    probe = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "the answer"}]
    try:
        text = str(tokenizer.apply_chat_template(probe, tokenize=False))
    except Exception as error:  # a template is a program that comes with the model: anything can go wrong in it
        note(f"the chat template does not take a question and an answer ({plain(error)[:120]}): its end is not checked")
        return
    after = text.rpartition("the answer")[2]
    ends = [token for token in tokenizer.all_special_tokens if token in after]
    if not ends:
        note("the chat template puts no end token behind an answer: the model may never learn to stop")
    if settings.assistant_only_loss and "generation" not in str(tokenizer.chat_template):
        note("the chat template does not mark answers: trl's own training template of this family stands in for it")


def fitting_prompts(trainer: Any, run: RunConfig, *, bad_rows: str, path: str, note: Note) -> tuple[Any, list[int]]:
    """The rows of a trainer that generates, with the tokens of each prompt as it makes them: those that the run is
    planned for.

    Raises InputError for longer ones, unless `bad_rows` is skip, and for fewer than one generation takes.
    """
    from qlora_planner.train.trainers.online import prompt_lengths

    rows, name = trainer.train_dataset, plain(path)
    lengths = prompt_lengths(trainer, rows)
    most = run.prompt_len or max(lengths)
    kept = [row for row, length in enumerate(lengths) if length <= most]
    if len(kept) < len(lengths):
        words = f"{len(lengths) - len(kept):,} of {len(lengths):,} prompts are longer than --prompt-len {most:,}"
        if bad_rows == "refuse":
            raise InputError(
                f"{name}: {words}, and trl cuts none: --prompt-len {max(lengths)} holds the longest; --bad-rows skip"
                " leaves them out"
            )
        note(f"{words}; they are left out")
        rows, lengths = rows.select(kept), [lengths[row] for row in kept]
    least = trainer.args.generation_batch_size // trainer.num_generations
    if len(rows) < least:
        raise InputError(
            f"{name}: {len(rows):,} prompts are fewer than the {least:,} that are completed together,"
            f" {trainer.num_generations} times each; a smaller --batch-size or --grad-accum needs fewer"
        )
    return rows, lengths


def tokenised(rows: Any, tokenizer: Any, run: RunConfig) -> Any:
    """Rows for transformers' own Trainer, which tokenises nothing: `input_ids` and `labels`, as trl would make them."""
    return rows.map(lambda row: _tokens(row, tokenizer, run.seq_len), remove_columns=rows.column_names).filter(
        lambda row: any(label != IGNORED for label in row["labels"])
    )


def labels_for(spec: LaunchSpec) -> Labels | None:
    """The labels of a classifier's data; None for a run that learns text. Raises as `data.labels_in` does."""
    if spec.run.task is None:
        return None
    return data.labels_in(spec.data, spec.run.num_labels, bad_rows=spec.bad_rows)


def tokeniser(tokenizer: Any, run: RunConfig, labels: Labels | None) -> Callable[[Any], Any]:
    """What makes tokens of rows for transformers' own Trainer: of a classifier's where there are `labels`."""
    if labels is None:
        return lambda rows: tokenised(rows, tokenizer, run)
    return lambda rows: classified(rows, tokenizer, run, labels)


def classified(rows: Any, tokenizer: Any, run: RunConfig, labels: Labels) -> Any:
    """Rows of `text` and `label` for a classifier: `input_ids`, cut to the run's length, and the label's number."""

    def tokens(row: dict[str, Any]) -> dict[str, Any]:
        ids = tokenizer(row["text"], truncation=True, max_length=run.seq_len)["input_ids"]
        return {"input_ids": ids, "labels": labels.number(row["label"])}

    return rows.map(tokens, remove_columns=rows.column_names)


def _tokens(row: dict[str, Any], tokenizer: Any, most: int) -> dict[str, list[int]]:
    if row.get("input_ids") is not None:
        ids, labels = row["input_ids"], row.get("labels") or row["input_ids"]
    elif row.get("messages") is not None:
        ids = tokenizer.apply_chat_template(row["messages"], tokenize=True, return_dict=True)["input_ids"]
        labels = ids
    elif row.get("text") is not None:
        ids = tokenizer(_ended(row["text"], tokenizer))["input_ids"]
        labels = ids
    else:
        prompt = tokenizer(row["prompt"])["input_ids"]
        ids = tokenizer(row["prompt"] + _ended(row["completion"], tokenizer))["input_ids"]
        pairs = enumerate(zip(prompt, ids, strict=False))
        same = next((at for at, (alone, answered) in pairs if alone != answered), len(prompt))
        labels = [IGNORED] * same + ids[same:]
    return {"input_ids": ids[:most], "labels": labels[:most]}


def _ended(text: str, tokenizer: Any) -> str:
    return text if text.endswith(tokenizer.eos_token) else text + str(tokenizer.eos_token)


def collator(tokenizer: Any) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
    """Batches of tokenised rows for transformers' own Trainer, [batch, longest], padded on the right.

    Labels that are one for each row, as a classifier has them, are [batch].
    """
    pad = tokenizer.pad_token_id

    def collate(features: list[dict[str, Any]]) -> dict[str, Any]:
        import torch

        longest = max(len(feature["input_ids"]) for feature in features)

        ids = [list(f["input_ids"]) + [pad] * (longest - len(f["input_ids"])) for f in features]
        mask = [[1] * len(f["input_ids"]) + [0] * (longest - len(f["input_ids"])) for f in features]
        return {
            "input_ids": torch.tensor(ids),
            "attention_mask": torch.tensor(mask),
            "labels": labels_tensor(features, longest),
        }

    return collate
