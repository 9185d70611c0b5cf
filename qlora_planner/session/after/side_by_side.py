"""A few prompts, answered by the base and by the tuned model: kept in the run's folder, and in its report."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlora_planner.errors import InputError
from qlora_planner.record import record
from qlora_planner.session.after.generate import ready_run
from qlora_planner.session.packages import silent
from qlora_planner.text import plain

if TYPE_CHECKING:
    from qlora_planner.runs.after.base import Base
    from qlora_planner.session.session import Session

SCHEMA = "qlora-plan/side-by-side/1"
MOST_PROMPTS, NEW_TOKENS = 16, 128
OF_DATA = 3  # prompts that are taken from the data where none is given


@record
class Pair:
    """What base and tuned model wrote after one prompt, each the likeliest tokens; `expected` is what the data has."""

    prompt: str
    base: str
    tuned: str
    expected: str | None = None


@record
class SideBySide:
    """Answers of a base and of what was tuned from it. `kept` is the file they are in, None for a bare adapter."""

    base: Base
    device: str
    chat: bool
    max_new_tokens: int
    pairs: tuple[Pair, ...]
    kept: Path | None

    def to_dict(self) -> dict[str, Any]:
        """The JSON document `qlora-plan/side-by-side/1`."""
        return {
            "schema": SCHEMA,
            "base": {"name": self.base.name, "folder": str(self.base.folder)},
            "device": self.device,
            "chat": self.chat,
            "max_new_tokens": self.max_new_tokens,
            "answers": [
                {"prompt": pair.prompt, "base": pair.base, "tuned": pair.tuned, "expected": pair.expected}
                for pair in self.pairs
            ],
        }


def side_by_side(
    session: Session,
    run: str | os.PathLike[str],
    prompts: Sequence[str] = (),
    *,
    max_new_tokens: int = NEW_TOKENS,
    raw: bool = False,
    base: str | None = None,
    device: str | None = None,
    hear: Callable[[str], None] = silent,
) -> SideBySide:
    """See `Session.side_by_side`; `hear` is spoken which prompt is answered."""
    if len(prompts) > MOST_PROMPTS:
        raise InputError(f"--prompt: {len(prompts)} prompts, and at most {MOST_PROMPTS} are answered side by side")
    if not all(prompt.strip() for prompt in prompts):
        raise InputError("--prompt: is empty")
    there = ready_run(session, run, base=base, device=device)
    record_of_run = _record_of(there.finished.folder)
    wanted: list[tuple[str, str | None]] = [(prompt, None) for prompt in prompts]
    wanted = wanted or _from_data(there.finished.folder, record_of_run)
    from qlora_planner.runs.after.generate import encode, read_tokenizer

    tokenizer = read_tokenizer(there.finished.adapter, there.base.folder)
    encoded = [encode([{"role": "user", "content": text}], tokenizer, raw=raw) for text, _ in wanted]
    _, model = there.load(max(prompt.tokens for prompt in encoded), max_new_tokens)
    pairs = []
    for number, ((text, expected), prompt) in enumerate(zip(wanted, encoded, strict=True), 1):
        hear(f"prompt {number} of {len(encoded)}")
        base_text, tuned_text = (
            model.answer(prompt, new_tokens=max_new_tokens, tuned=tuned, tell=silent).text for tuned in (False, True)
        )
        pairs.append(Pair(prompt=text, base=base_text, tuned=tuned_text, expected=expected))
    answers = SideBySide(
        base=there.base, device=there.device, chat=encoded[0].chat, max_new_tokens=max_new_tokens, pairs=tuple(pairs),
        kept=None,
    )  # fmt: skip
    return answers if record_of_run is None else _keep(there.finished.folder, answers)


def _record_of(folder: Path) -> dict[str, Any] | None:
    """The run.json of a run of ours that has ended; None for any other folder, in which nothing is written."""
    from qlora_planner.bounded import small_json
    from qlora_planner.runs.directory import SCHEMA as RUN_SCHEMA
    from qlora_planner.runs.directory import RunDirectory

    paths = RunDirectory(folder)
    if not paths.summary.is_file() or not paths.record.is_file() or paths.record.is_symlink():
        return None
    record_of_run = small_json(paths.record)
    ours = isinstance(record_of_run, dict) and record_of_run.get("schema") == RUN_SCHEMA
    return record_of_run if ours else None


def _from_data(folder: Path, record_of_run: dict[str, Any] | None) -> list[tuple[str, str | None]]:
    """The first prompts of the run's own data that differ, with the answers that stand there."""
    from qlora_planner import data

    source = (record_of_run or {}).get("data")
    path = source.get("path") if isinstance(source, dict) else None
    if not isinstance(path, str) or not Path(path).exists():
        raise InputError(f"{plain(folder)}: its data is not there to take prompts from; give --prompt TEXT")
    pairs: dict[str, str | None] = {}
    for row in data.rows(path, bad_rows="skip"):
        pair = _prompt_of(row)
        if pair is not None:
            pairs.setdefault(*pair)
        if len(pairs) == OF_DATA:
            break
    if not pairs:
        raise InputError(f"{plain(path)}: its rows have no prompts apart from answers; give --prompt TEXT")
    return list(pairs.items())


def _prompt_of(row: dict[str, Any]) -> tuple[str, str | None] | None:
    """A row's prompt and its answer; of a chat the first two messages where a user opens it."""
    messages = row.get("messages") or row.get("prompt")
    if isinstance(messages, list):
        spoken = [part for part in messages if isinstance(part, dict) and isinstance(part.get("content"), str)]
        if len(spoken) != len(messages) or not spoken or spoken[0].get("role") != "user":
            return None
        answered = spoken[1] if len(spoken) > 1 else None
        return spoken[0]["content"], None if answered is None else answered["content"]
    completion = row.get("completion", row.get("chosen"))
    return (messages, completion if isinstance(completion, str) else None) if isinstance(messages, str) else None


def _keep(folder: Path, answers: SideBySide) -> SideBySide:
    """Write them into a run's folder and its report."""
    from qlora_planner.bounded import small_json
    from qlora_planner.exchange.files import write_text
    from qlora_planner.record import replaced
    from qlora_planner.report.pages.training_html import render_html
    from qlora_planner.runs.directory import RunDirectory, write_json
    from qlora_planner.runs.record import read_metrics

    paths = RunDirectory(folder)
    document = answers.to_dict()
    write_json(paths.answers, document)
    summary, metrics = small_json(paths.summary), read_metrics(paths.metrics)
    page = render_html(summary, metrics, folder=str(folder), answers=document["answers"])
    write_text(paths.report, page, force=True)
    return replaced(answers, kept=paths.answers)
