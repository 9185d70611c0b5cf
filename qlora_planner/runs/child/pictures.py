"""Rows of chats with images beside them: tokens by the model's own words, pixels when their batch is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any
from uuid import uuid4

from qlora_planner.bounded import small_json
from qlora_planner.catalog.images import picture_of, reader_of
from qlora_planner.data.images import PICTURES
from qlora_planner.errors import InputError, MissingError
from qlora_planner.runs.child.processors import load_processor
from qlora_planner.runs.spec import LaunchSpec
from qlora_planner.text import plain
from qlora_planner.train.data import IGNORED, labels_tensor
from qlora_planner.train.images import image_dims, placeholder_of
from qlora_planner.train.model import model_config

_PLACE = "<image>"  # where an image stands in the text of LLaVA's and LLaMA-Factory's rows


class Pictures:
    """What makes batches of a run's rows: the model's own processor, with its chat template."""

    def __init__(self, spec: LaunchSpec, tokenizer: Any) -> None:
        """Raises InputError for a model that takes images in a way that is not known, MissingError where its folder
        has no processor that works, or no chat template."""
        self.spec, self.run, self.tokenizer = spec, spec.run, tokenizer
        self._config = model_config(small_json(Path(spec.weights) / "config.json"))
        reader_of(self._config.model_type)
        self.processor: Any = load_processor(spec.weights, tokenizer, self._config.model_type)
        self._template = getattr(self.processor, "chat_template", None) or tokenizer.chat_template
        if self._template is None:
            raise MissingError(f"{plain(spec.weights)}: has no chat template, which says where images stand")
        self._placeholder = placeholder_of(self._config)

    def save_pretrained(self, folder: str) -> None:
        """Everything that is needed to ask the model, beside its adapter."""
        self.tokenizer.save_pretrained(folder)
        self.processor.image_processor.save_pretrained(folder)

    def both(self, train: Any, held_out: Any) -> tuple[Any, Any]:
        """Rows to train on and those held out, if any, as `tokenised` makes them."""
        return self.tokenised(train), None if held_out is None else self.tokenised(held_out)

    def tokenised(self, rows: Any) -> Any:
        """The chats of rows as text, their `input_ids` and `labels`, and their pictures, as they are.

        Raises InputError for rows with more images, or more tokens with these, than the run is planned for, unless
        `bad_rows` is skip: no model takes a part of an image.
        """
        given = [name for name in rows.column_names if name != PICTURES]
        # With a name of its own no processor has to be pickled to be told apart.
        made = rows.map(self._tokens, remove_columns=given, new_fingerprint=uuid4().hex)
        most, longest = self.run.images or 0, self.run.seq_len
        images, lengths = [len(each) for each in made[PICTURES]], [len(ids) for ids in made["input_ids"]]
        kept = [at for at in range(len(lengths)) if images[at] <= most and lengths[at] <= longest]
        if len(kept) < len(lengths) and self.spec.bad_rows == "refuse":
            raise InputError(
                f"{plain(self.spec.data)}: {len(lengths) - len(kept):,} of {len(lengths):,} rows are beyond"
                f" --images {most} or --seq-len {longest:,}; --images {max(images)} --seq-len {max(lengths)} holds"
                " all of them, --bad-rows skip leaves them out"
            )
        return made.select(kept)

    def collate(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """A batch [batch, longest], padded on the right, with what the processor makes of its pictures."""
        shown = [[self._opened(picture) for picture in row[PICTURES]] for row in features]
        batch = self._processed([row["chat"] for row in features], shown, padding=True, return_tensors="pt")
        longest = batch["input_ids"].shape[1]
        return {**batch, "labels": labels_tensor([dict(row) for row in features], longest)}

    def _processed(self, texts: list[str], shown: list[list[Any]], **options: Any) -> dict[str, Any]:
        return dict(
            self.processor(
                text=texts, images=shown if any(shown) else None, padding_side="right", add_special_tokens=False,
                **options,
            )
        )  # fmt: skip

    def _tokens(self, row: dict[str, Any]) -> dict[str, Any]:
        if row.get("text") is not None or row.get("input_ids") is not None:
            raise InputError("rows with images need messages, or prompt and completion: text has no place for them")
        prompt, answer = _chat(row)
        shown = [self._opened(picture) for picture in row[PICTURES]]
        text = self._text([*prompt, *answer], shown)
        ids = self._ids(text, shown)
        before = self._ids(self._text(prompt, shown, ends=False), shown) if prompt else []
        labels = [IGNORED] * len(before) + ids[len(before) :]
        # Nothing is to be learnt of where an image is, and Llama 3.2 Vision has no row of its head for it.
        labels = [IGNORED if token == self._placeholder else token for token in labels]
        return {"chat": text, "input_ids": ids, "labels": labels}

    def _text(self, messages: list[dict[str, Any]], shown: list[Any], ends: bool = True) -> str:
        from trl.data_utils import prepare_multimodal_messages

        try:
            chat = prepare_multimodal_messages(_placed(messages), images=shown)
        except ValueError as error:
            raise InputError(f"{plain(self.spec.data)}: {plain(str(error))}") from None
        return str(
            self.tokenizer.apply_chat_template(
                chat, chat_template=self._template, tokenize=False, add_generation_prompt=not ends
            )
        )

    def _ids(self, text: str, shown: list[Any]) -> list[int]:
        """A chat's tokens, its images' among them. Raises InputError where the run is planned for fewer of these."""
        try:
            ids = list(self._processed([text], [shown])["input_ids"][0])
        except (ValueError, IndexError, StopIteration) as error:
            raise InputError(
                f"{plain(self.spec.data)}: the model's processor does not take a row with {len(shown)} images"
                f" ({plain(str(error))[:160]})"
            ) from None
        most = len(shown) * (self.run.image_tokens or 0)
        if self.run.image_tokens and ids.count(self._placeholder) > most:
            raise InputError(
                f"{plain(self.spec.weights)}: its processor makes {ids.count(self._placeholder):,} tokens of"
                f" {len(shown)} images and {most:,} are planned, as the published one makes: its"
                " preprocessor_config.json says another size"
            )
        return ids

    def _opened(self, picture: Mapping[str, Any]) -> Any:
        """The picture in RGB, made to fit into the size that the run is planned for; on a canvas of that size where it
        would be cut into more tiles by itself."""
        from PIL import Image, ImageOps

        image = Image.open(BytesIO(picture["bytes"]) if picture["bytes"] else picture["path"]).convert("RGB")
        size = self.run.image_pixels
        if size is not None:
            image.thumbnail(size)
            if self._all_tokens(image.size) > self._all_tokens(size):
                image = ImageOps.pad(image, size)
        return image

    def _all_tokens(self, size: tuple[int, int]) -> int:
        run = self.run.with_(image_size=f"{size[0]}x{size[1]}", image_tokens=None)
        return picture_of(self._config.model_type, image_dims(self._config), run).all_tokens


def _chat(row: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What is not learnt from, and what is."""
    if row.get("messages") is not None:
        return [], list(row["messages"])
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}], [{"role": "assistant", "content": completion}]
    return list(prompt), list(completion)


def _placed(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages, with images where their text says `<image>`."""
    if not any(isinstance(message["content"], str) and _PLACE in message["content"] for message in messages):
        return messages
    placed = []
    for message in messages:
        content = message["content"]
        if isinstance(content, str):
            first, *others = content.split(_PLACE)
            content = [{"type": "text", "text": first}] if first else []
            for text in others:
                content += [{"type": "image"}, *([{"type": "text", "text": text}] if text else [])]
        placed.append({**message, "content": content})
    return placed
