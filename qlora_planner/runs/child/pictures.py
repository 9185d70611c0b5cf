"""Rows of chats with images beside them: tokens by the model's own words, pixels when their batch is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from math import prod
from pathlib import Path
from typing import Any

from qlora_planner.bounded import small_json
from qlora_planner.catalog.images import IMAGE_READERS, reader_of
from qlora_planner.catalog.images.patches import GridReader
from qlora_planner.data.images import PICTURES
from qlora_planner.errors import InputError, MissingError
from qlora_planner.runs.spec import LaunchSpec
from qlora_planner.text import plain
from qlora_planner.train.data import IGNORED, labels_tensor
from qlora_planner.train.images import placeholder_of
from qlora_planner.train.model import model_config

# Whose image processor is Qwen2-VL's, of which transformers has a form that needs Pillow alone: it takes the pictures
# of a batch as one list, and tells by grids how they are laid out.
TRAINED = tuple(name for name, reader in IMAGE_READERS.items() if isinstance(reader, GridReader))


def check_trained(model_type: str) -> None:
    """Raises InputError for a model whose images are planned for and not trained on here."""
    if model_type not in TRAINED:
        raise InputError(
            f"train: images are trained on with {', '.join(TRAINED)} here; of {plain(model_type)} `estimate`, `plan`"
            " and `verify` answer"
        )


class Pictures:
    """What makes batches of a run's rows: the model's tokenizer, with its chat template, and its image processor. The
    processor around them is not needed: it wants packages for video too."""

    def __init__(self, spec: LaunchSpec, tokenizer: Any) -> None:
        """Raises as `check_trained`, and MissingError where the model's folder has no image processor that works, or
        no chat template."""
        from transformers import Qwen2VLImageProcessorPil

        config = model_config(small_json(Path(spec.weights) / "config.json"))
        check_trained(config.model_type)
        name = plain(spec.weights)
        try:
            self.processor: Any = Qwen2VLImageProcessorPil.from_pretrained(spec.weights, trust_remote_code=False)
        except (ValueError, OSError, ImportError, KeyError, TypeError, AttributeError) as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise MissingError(f"{name}: has no image processor that works ({plain(first)[:160]})") from None
        if tokenizer.chat_template is None:
            raise MissingError(f"{name}: has no chat template, which says where images stand")
        self.spec, self.run, self.tokenizer = spec, spec.run, tokenizer
        self._placeholder, self._merge = placeholder_of(config), int(config.vision_config.spatial_merge_size) ** 2
        self._marks = reader_of(config.model_type).marks

    def save_pretrained(self, folder: str) -> None:
        """Everything that is needed to ask the model, beside its adapter."""
        self.tokenizer.save_pretrained(folder)
        self.processor.save_pretrained(folder)

    def both(self, train: Any, held_out: Any) -> tuple[Any, Any]:
        """Rows to train on and those held out, if any, as `tokenised` makes them."""
        return self.tokenised(train), None if held_out is None else self.tokenised(held_out)

    def tokenised(self, rows: Any) -> Any:
        """`input_ids`, `labels` and the pictures of rows, as they are.

        Raises InputError for rows with more images, or more tokens with these, than the run is planned for, unless
        `bad_rows` is skip: no model takes a part of an image.
        """
        made = rows.map(self._tokens, remove_columns=[name for name in rows.column_names if name != PICTURES])
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
        """A batch [batch, longest], padded on the right, with the pixels of its pictures."""
        import torch

        pad = self.tokenizer.pad_token_id
        longest = max(len(feature["input_ids"]) for feature in features)
        ids = torch.tensor([[*row["input_ids"], *[pad] * (longest - len(row["input_ids"]))] for row in features])
        mask = torch.tensor([[int(at < len(row["input_ids"])) for at in range(longest)] for row in features])
        batch = {
            "input_ids": ids,
            "attention_mask": mask,
            "labels": labels_tensor([dict(row) for row in features], longest),
        }
        if self._marks is not None:
            batch[self._marks] = (ids == self._placeholder).to(torch.int64)
        shown = [self._opened(picture) for row in features for picture in row[PICTURES]]
        return {**batch, **(self.processor(images=shown, return_tensors="pt") if shown else {})}

    def _tokens(self, row: Mapping[str, Any]) -> dict[str, Any]:
        from trl.data_utils import prepare_multimodal_messages

        if row.get("text") is not None or row.get("input_ids") is not None:
            raise InputError("rows with images need messages, or prompt and completion: text has no place for them")
        prompt, answer = _chat(row)
        shown = [self._opened(picture) for picture in row[PICTURES]]
        grids = self.processor(images=shown, return_tensors="np")["image_grid_thw"].tolist() if shown else []
        tokens = [prod(grid) // self._merge for grid in grids]
        ids = self._ids(prepare_multimodal_messages([*prompt, *answer], images=shown), tokens)
        before = self._ids(prepare_multimodal_messages(prompt, images=shown), tokens, ends=False) if prompt else []
        return {"input_ids": ids, "labels": [IGNORED] * len(before) + ids[len(before) :]}

    def _ids(self, messages: list[dict[str, Any]], tokens: list[int], ends: bool = True) -> list[int]:
        """A chat, in which each image stands for as many `tokens`."""
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=not ends)
        word = self.tokenizer.convert_ids_to_tokens(self._placeholder)
        parts = str(text).split(word)
        if len(parts) != len(tokens) + 1:
            raise InputError(
                f"{plain(self.spec.data)}: a row has {len(tokens)} images and its chat {len(parts) - 1} places for them"
            )
        shown = [part + word * count for part, count in zip(parts, tokens, strict=False)]
        return list(self.tokenizer("".join([*shown, parts[-1]]), add_special_tokens=False)["input_ids"])

    def _opened(self, picture: Mapping[str, Any]) -> Any:
        """The picture in RGB, made to fit into the size that the run is planned for."""
        from PIL import Image

        image = Image.open(BytesIO(picture["bytes"]) if picture["bytes"] else picture["path"]).convert("RGB")
        if self.run.image_pixels is not None:
            image.thumbnail(self.run.image_pixels)
        return image


def _chat(row: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What is not learnt from, and what is."""
    if row.get("messages") is not None:
        return [], list(row["messages"])
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}], [{"role": "assistant", "content": completion}]
    return list(prompt), list(completion)
