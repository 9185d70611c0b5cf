"""What the columns of a dataset mean, and each row as the example that trl trains on."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from qlora_planner.errors import InputError
from qlora_planner.text import listed, plain, quoted

# By precedence: trl takes tokenised rows as they are, then looks for a prompt, then for messages, then for text.
SHAPES: Mapping[str, tuple[str, ...]] = {
    "input_ids": ("input_ids",),
    "preference": ("chosen", "rejected"),
    "unpaired": ("prompt", "completion", "label"),
    "prompt-completion": ("prompt", "completion"),
    "messages": ("messages",),
    "conversations": ("conversations",),
    "alpaca": ("instruction", "output"),
    "text": ("text",),
    "prompts": ("prompt",),
}
PROMPTS = "prompts"  # what a trainer completes itself; other columns go to its rewards
LABELLED = "labelled"  # text and a label: what a classifier is trained on
UNDERSTOOD = (
    "text; messages; conversations; prompt and completion, maybe label; chosen and rejected, maybe prompt;"
    " instruction, output and maybe input; input_ids; prompt alone"
)

# Stanford Alpaca's own words (tatsu-lab/stanford_alpaca, train.py, PROMPT_DICT), with and without an input.
ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
ALPACA = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
# ShareGPT's names for who speaks, which no chat template knows.
_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "bing": "assistant"}
_LABELS = ("label", "labels")
_PASSED_ON = ("tools", "chat_template_kwargs")

Example = dict[str, Any]


class RowFaultError(Exception):
    """One row cannot be used; the text says why, as `has no text`."""


def detect_shape(columns: Iterable[str], path: str, task: str | None = None) -> str:
    """The shape of rows with these columns, for a run of `task`.

    Raises InputError that lists what is there and what is understood.
    """
    there = set(columns)
    if task == PROMPTS:
        if "prompt" in there:
            return PROMPTS
        shown = listed(sorted(map(str, there))) or "none"
        raise InputError(f"{plain(path)}: its columns are {shown}; a trainer that generates completions needs prompt")
    if task is not None:
        if "text" in there and there & set(_LABELS):
            return LABELLED
        shown = listed(sorted(map(str, there))) or "none"
        raise InputError(f"{plain(path)}: its columns are {shown}; --task {task} learns from text and label")
    for shape, needed in SHAPES.items():
        if there.issuperset(needed):
            return shape
    shown = listed(sorted(map(str, there))) or "none"
    raise InputError(f"{plain(path)}: its columns are {shown}; what is understood: {UNDERSTOOD}")


def parts_of(example: Example) -> list[Example]:
    """What of an example goes through a model on its own: itself, or each of two completions with their prompt."""
    if "chosen" not in example:
        return [example]
    others = {name: value for name, value in example.items() if name not in ("prompt", "chosen", "rejected")}
    answers = [example["chosen"], example["rejected"]]
    if "prompt" in example:
        return [{"prompt": example["prompt"], "completion": answer, **others} for answer in answers]
    name = "messages" if isinstance(answers[0], list) else "text"
    return [{name: answer, **others} for answer in answers]


def check_trained_on(shape: str, wanted: Collection[str], trainer: str, path: str) -> None:
    """Raises InputError for rows of a shape that the trainer does not train on; `wanted` is empty for texts."""
    if wanted and shape not in wanted:
        needed = " or ".join(" and ".join(SHAPES[name]) for name in wanted)
        raise InputError(f"{plain(path)}: its rows are {shape}; {trainer} trains on {needed}")
    if not wanted and shape == "preference":
        raise InputError(
            f"{plain(path)}: its rows are pairs, chosen and rejected; {trainer} trains on texts: name a"
            " trainer of preferences, as --trainer trl-dpo"
        )
    if not wanted and shape == PROMPTS:
        raise InputError(
            f"{plain(path)}: its rows are prompts without answers; {trainer} trains on texts: name a trainer that"
            " generates completions, as --trainer trl-grpo"
        )


def example_of(row: Mapping[str, Any], shape: str) -> Example:
    """The row in one of trl's formats: `text`, `messages`, `prompt` and `completion`, or `input_ids`.

    `conversations` become messages with ShareGPT's speakers called user and assistant; an alpaca row becomes
    prompt and completion with Stanford's template. Raises RowFaultError for a row that cannot be trained on.
    """
    needed = SHAPES.get(shape) or ("text",)
    missing = [name for name in needed if row.get(name) is None]
    if missing:
        raise RowFaultError(f"has no {' and no '.join(missing)}")
    return _MAKERS[shape](row)


def _text(row: Mapping[str, Any]) -> Example:
    text = _string(row, "text")
    if not text:
        raise RowFaultError("has no tokens: its text is empty")
    return {"text": text}


def _labelled(row: Mapping[str, Any]) -> Example:
    label = next((row[name] for name in _LABELS if row.get(name) is not None), None)
    if label is None or label == "":
        raise RowFaultError("has no label")
    if isinstance(label, float) and label == int(label):
        label = int(label)  # a column with gaps is read as floats
    if not isinstance(label, (int, str)):
        raise RowFaultError(f"label must be a whole number or a word, not {quoted(label)}")
    return {**_text(row), "label": int(label) if isinstance(label, bool) else label}


def _messages(row: Mapping[str, Any]) -> Example:
    return {"messages": _chat(row["messages"], "messages"), **_extras(row)}


def _conversations(row: Mapping[str, Any]) -> Example:
    chat = row["conversations"]
    if not isinstance(chat, list):
        raise RowFaultError(f"conversations must be a list, not {quoted(chat)}")
    return {"messages": _chat([_renamed(message) for message in chat], "conversations"), **_extras(row)}


def _renamed(message: Any) -> Any:
    if not isinstance(message, dict):
        return message
    renamed = {name: value for name, value in message.items() if name not in ("from", "value")}
    if "from" in message:
        renamed["role"] = _ROLES.get(message["from"], message["from"]) if _is_text(message["from"]) else message["from"]
    if "value" in message:
        renamed["content"] = message["value"]
    return renamed


def _prompt_completion(row: Mapping[str, Any]) -> Example:
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, list) and isinstance(completion, list):
        return {"prompt": _chat(prompt, "prompt"), "completion": _chat(completion, "completion"), **_extras(row)}
    if not (_is_text(prompt) and _is_text(completion)):
        raise RowFaultError("prompt and completion must both be text or both be lists of messages")
    if not prompt and not completion:
        raise RowFaultError("has no tokens: prompt and completion are empty")
    return {"prompt": prompt, "completion": completion}


def _preference(row: Mapping[str, Any]) -> Example:
    """Two completions of one prompt; without it both begin with it, as trl finds out by itself."""
    chosen, rejected, prompt = row["chosen"], row["rejected"], row.get("prompt")
    if isinstance(chosen, list) and isinstance(rejected, list):
        pair = {"chosen": _chat(chosen, "chosen"), "rejected": _chat(rejected, "rejected"), **_extras(row)}
        # A prompt as text beside chats repeats what both of them begin with.
        return {"prompt": _chat(prompt, "prompt"), **pair} if isinstance(prompt, list) else pair
    if not (_is_text(chosen) and _is_text(rejected)) or not (prompt is None or _is_text(prompt)):
        raise RowFaultError("prompt, chosen and rejected must all be text or all be lists of messages")
    if not chosen and not rejected:
        raise RowFaultError("has no tokens: chosen and rejected are empty")
    return (
        {"chosen": chosen, "rejected": rejected}
        if prompt is None
        else {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    )


def _unpaired(row: Mapping[str, Any]) -> Example:
    label = row["label"]
    if label not in (True, False):
        raise RowFaultError(f"label must be true or false, not {quoted(label)}")
    return {**_prompt_completion(row), "label": bool(label)}


def _prompts(row: Mapping[str, Any]) -> Example:
    """The prompt, and every other column for the rewards."""
    prompt = row["prompt"]
    if isinstance(prompt, list):
        return {**row, "prompt": _chat(prompt, "prompt")}
    if not _is_text(prompt):
        raise RowFaultError(f"prompt must be text or a list of messages, not {quoted(prompt)}")
    if not prompt:
        raise RowFaultError("has no tokens: its prompt is empty")
    return dict(row)


def _alpaca(row: Mapping[str, Any]) -> Example:
    instruction, output = _string(row, "instruction"), _string(row, "output")
    given = row.get("input")
    if given is not None and not _is_text(given):
        raise RowFaultError(f"input must be text, not {quoted(given)}")
    if not instruction and not given and not output:
        raise RowFaultError("has no tokens: all its fields are empty")
    template = ALPACA_WITH_INPUT if given else ALPACA
    return {"prompt": template.format(instruction=instruction, input=given), "completion": output}


def _input_ids(row: Mapping[str, Any]) -> Example:
    ids, labels = row["input_ids"], row.get("labels")
    if not isinstance(ids, list) or not all(type(token) is int for token in ids):
        raise RowFaultError("input_ids must be a list of whole numbers")
    if not ids:
        raise RowFaultError("has no tokens: input_ids is empty")
    if labels is None:
        return {"input_ids": ids}
    if not isinstance(labels, list) or len(labels) != len(ids):
        raise RowFaultError("labels must be a list as long as input_ids")
    return {"input_ids": ids, "labels": labels}


_MAKERS = {
    "input_ids": _input_ids,
    "preference": _preference,
    "unpaired": _unpaired,
    "prompt-completion": _prompt_completion,
    "messages": _messages,
    "conversations": _conversations,
    "alpaca": _alpaca,
    "text": _text,
    PROMPTS: _prompts,
    LABELLED: _labelled,
}


def _chat(messages: Any, name: str) -> list[dict[str, Any]]:
    if not isinstance(messages, list):
        raise RowFaultError(f"{name} must be a list, not {quoted(messages)}")
    if not messages:
        raise RowFaultError(f"has no tokens: {name} is empty")
    for message in messages:
        if not isinstance(message, dict) or not _is_text(message.get("role")):
            raise RowFaultError(f"{name} must hold objects with role and content")
        content = message.get("content")
        if not (content is None or isinstance(content, (str, list))):
            raise RowFaultError(f"the content of a message must be text, not {quoted(content)}")
    return messages


def _extras(row: Mapping[str, Any]) -> Example:
    """What trl hands on to the chat template."""
    return {name: row[name] for name in _PASSED_ON if row.get(name) is not None}


def _string(row: Mapping[str, Any], name: str) -> str:
    value = row[name]
    if not _is_text(value):
        raise RowFaultError(f"{name} must be text, not {quoted(value)}")
    return str(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)
