"""Tiny folders of models that read images, each with a processor of its own class, and pictures to show them."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

from examples.toy_model import write_tokenizer
from qlora_planner.record import record
from qlora_planner.runs.child.processors import _image_processor
from tests.tracing.test_images import CUT, OTHERS

_SPLIT_WORDS = (
    "<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>",
    *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
)  # fmt: skip
_LLAVA = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
_SQUARE = {"height": 56, "width": 56}
_CROPPED = {"size": {"shortest_edge": 56}, "crop_size": _SQUARE}
_SPLIT = {"size": {"longest_edge": 256}, "max_image_size": {"longest_edge": 64}}


@record
class Family:
    """Words of the tokenizer, by name where the processor asks for them so, and the settings of its two parts."""

    placeholder: str = "<image>"
    in_chat: str | None = None  # what its template puts where an image stands
    words: tuple[str, ...] = ()
    named: dict[str, str]
    images: dict[str, Any]
    processor: dict[str, Any]


FAMILIES: dict[str, Family] = {
    "qwen2_5_vl": Family(
        placeholder="<|image_pad|>", in_chat="<|vision_start|><|image_pad|><|vision_end|>", named={}, processor={},
        words=("<|image_pad|>", "<|vision_start|>", "<|vision_end|>", "<|video_pad|>"),
        images={"min_pixels": 28 * 28, "max_pixels": 112 * 112},
    ),
    "gemma3": Family(
        placeholder="<img>", in_chat="<boi>", images={"size": _SQUARE}, processor={"image_seq_length": 4},
        named={"boi_token": "<boi>", "eoi_token": "<eoi>", "image_token": "<img>"},
    ),
    "llava": Family(named={"image_token": "<image>"}, images=_CROPPED, processor=_LLAVA),
    "llava_next": Family(
        named={"image_token": "<image>"}, processor=_LLAVA,
        images={**_CROPPED, "image_grid_pinpoints": OTHERS["llava_next"][1]["image_grid_pinpoints"]},
    ),
    "idefics3": Family(words=_SPLIT_WORDS, named={}, images=_SPLIT, processor={"image_seq_len": 4}),
    "internvl": Family(
        placeholder="<IMG_CONTEXT>", processor={"image_seq_length": 4},
        named={
            "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
        images={"size": _SQUARE, "crop_to_patches": True, "min_patches": 1, "max_patches": 12},
    ),
    "mllama": Family(
        placeholder="<|image|>", words=("<|python_tag|>",), named={"image_token": "<|image|>"}, processor={},
        images={"size": _SQUARE},
    ),
}  # fmt: skip


def write_vision_model(folder: Path, name: str) -> Path:
    """A model as one would download it, with random weights."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer

    family, raw = FAMILIES[name], deepcopy(CUT[name] if name in CUT else OTHERS[name][1])
    write_tokenizer(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, extra_special_tokens=family.named)
    tokenizer.add_special_tokens({"additional_special_tokens": [*family.words, *family.named.values()]})
    tokenizer.chat_template = _template(family)
    tokenizer.save_pretrained(folder)
    key = next(key for key in ("image_token_index", "image_token_id") if key in raw)
    raw |= {"model_type": name, key: tokenizer.convert_tokens_to_ids(family.placeholder)}
    if name == "qwen2_5_vl":
        for kind in ("vision_start", "vision_end"):
            raw[f"{kind}_token_id"] = tokenizer.convert_tokens_to_ids(f"<|{kind}|>")
    raw["text_config"]["num_hidden_layers"] = 2
    if name == "mllama":  # whose head has no row for the image's token
        raw["text_config"] |= {"vocab_size": raw[key], "cross_attention_layers": [1]}
    torch.manual_seed(0)
    config = AutoConfig.for_model(**raw)
    AutoModelForImageTextToText.from_config(config).to(torch.bfloat16).save_pretrained(folder)
    _image_processor(name)(**family.images).save_pretrained(folder)
    (folder / "processor_config.json").write_text(json.dumps(family.processor), encoding="utf-8")
    return folder


def _template(family: Family) -> str:
    return (
        "{% for message in messages %}<|{{ message['role'] }}|>{% if message['content'] is string %}"
        "{{ message['content'] }}{% else %}{% for part in message['content'] %}{% if part['type'] == 'image' %}"
        + (family.in_chat or family.placeholder)
        + "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
        "{% if message['role'] == 'assistant' %}</s>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )


def write_pictures(folder: Path) -> None:
    """Four of them, 112 pixels wide and high, 0.png to 3.png."""
    from PIL import Image

    for index in range(4):
        Image.new("RGB", (112, 112), (60 * index, 255 - 60 * index, 128)).save(folder / f"{index}.png")
