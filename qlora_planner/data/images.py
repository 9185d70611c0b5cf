"""Rows that hold more than text: images, video and sound, whose tokens no tokenizer counts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from qlora_planner.data.shapes import RowFaultError
from qlora_planner.text import quoted

# The column of a row's images, each with its path or its bytes.
PICTURES = "pictures"
# Columns of TRL's, LLaMA-Factory's and LLaVA's rows; parts of a message by OpenAI's, Qwen's and transformers' names.
_COLUMNS = ("image", "images", "video", "videos", "audio", "audios", "pixel_values")
_PARTS = ("image", "image_url", "input_image", "video", "video_url", "audio", "audio_url", "input_audio")
_PLACEHOLDERS = (
    "<image>",
    "<video>",
    "<audio>",
    "<|image_pad|>",
    "<|image|>",
    "<image_soft_token>",
    "<start_of_image>",
)
_TEXTS = ("text", "prompt", "completion", "instruction", "input", "output", "query", "response")
_CHATS = ("messages", "conversations", "prompt", "completion")


def holds_images(row: Mapping[str, Any]) -> bool:
    """Whether a row of any shape holds an image, a video or sound: in a column, as a part of a message, or by its
    placeholder in the text."""
    if any(_there(row.get(name)) for name in _COLUMNS):
        return True
    if any(_marked(row.get(name)) for name in _TEXTS):
        return True
    return any(_in_chat(row[name]) for name in _CHATS if isinstance(row.get(name), list))


def pictures_of(row: Mapping[str, Any], folder: Path) -> list[dict[str, Any]]:
    """The images in the column `images` or `image` of a row: paths, beside `folder` where they are relative, or what
    `datasets` keeps of an image. Raises RowFaultError for one that is not there."""
    column = row.get("images") if _there(row.get("images")) else row.get("image")
    pictures = []
    for image in column if isinstance(column, list) else [column] if _there(column) else []:
        path = image.get("path") if isinstance(image, Mapping) else image
        data = image.get("bytes") if isinstance(image, Mapping) else None
        if data is None and not isinstance(path, str):
            raise RowFaultError(f"an image must be a path or the bytes of a file, not {quoted(image)}")
        if data is None and not (folder / str(path)).is_file():
            raise RowFaultError(f"its image {quoted(path)} is not there")
        pictures.append({"path": None if path is None else str(folder / path), "bytes": data})
    return pictures


def _there(value: Any) -> bool:
    """Not merely an empty column: datasets give every row all of them."""
    return value is not None and not (isinstance(value, str | list | dict) and not value)


def _marked(text: Any) -> bool:
    return isinstance(text, str) and "<" in text and any(mark in text for mark in _PLACEHOLDERS)


def _in_chat(messages: Iterable[Any]) -> bool:
    for message in messages:
        if not isinstance(message, dict):
            continue
        content = message.get("content", message.get("value"))
        if _marked(content) or any(_there(message.get(name)) for name in _COLUMNS):
            return True
        if isinstance(content, list) and any(_is_image(part) for part in content):
            return True
    return False


def _is_image(part: Any) -> bool:
    if isinstance(part, str):
        return _marked(part)
    if not isinstance(part, dict):
        return False
    return part.get("type") in _PARTS or _marked(part.get("text")) or any(_there(part.get(name)) for name in _PARTS)
