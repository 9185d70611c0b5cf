"""What a script says otherwise where its samples hold pictures: the model's own processor, and who makes batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from qlora_planner.exchange.scripts.python_source import Code
from qlora_planner.spec.run import RunConfig

DATA_NOTE = "JSON lines with messages, or prompt and completion, and images: paths beside it"
PACKAGES = ("pillow", "torchvision")  # the latter is what processors of transformers ask for
COLLATOR = "collate"
TOKENIZER = "processor = AutoProcessor.from_pretrained(MODEL)\ntokenizer = processor.tokenizer"
PIL = "from PIL import Image, ImageOps"
# No model takes a part of an image: samples are never cut.
FUNCTIONS = '''
names = ("image_token_id", "image_token_index")
PLACE = next(getattr(model.config, name) for name in names if hasattr(model.config, name))


def opened(picture):
    """A picture in RGB, made to fit into IMAGE_SIZE."""
    if isinstance(picture, dict):
        picture = io.BytesIO(picture["bytes"]) if picture.get("bytes") else picture["path"]
    if isinstance(picture, str):
        picture = os.path.join(os.path.dirname(DATA), picture)
    image = (picture if isinstance(picture, Image.Image) else Image.open(picture)).convert("RGB")
    image.thumbnail(IMAGE_SIZE)
    return image


def pictures_of(sample):
    """The pictures in a sample's column `images` or `image`."""
    pictures = sample.get("images") or sample.get("image") or []
    return [opened(picture) for picture in (pictures if isinstance(pictures, list) else [pictures])]


def parts_of(content):
    """A message as parts: text, with a picture wherever it says <image>."""
    if not isinstance(content, str):
        return [{name: value for name, value in part.items() if value is not None} for part in content]
    first, *others = content.split("<image>")
    parts = [{"type": "text", "text": first}] if first else []
    for text in others:
        parts += [{"type": "image"}, *([{"type": "text", "text": text}] if text else [])]
    return parts


def text_of(sample, pictures):
    """A sample's chat; pictures that it places nowhere stand before the user's first words."""
    if not (chat := sample.get("messages")):
        sides = [("user", sample["prompt"]), ("assistant", sample["completion"])]
        chats = [[{"role": role, "content": side}] if isinstance(side, str) else side for role, side in sides]
        chat = [*chats[0], *chats[1]]
    chat = [{"role": message["role"], "content": parts_of(message["content"])} for message in chat]
    if not any(part["type"] == "image" for message in chat for part in message["content"]):
        asked = next(message for message in chat if message["role"] == "user")
        asked["content"] = [{"type": "image"} for _ in pictures] + asked["content"]
    return processor.apply_chat_template(chat, tokenize=False)


def encoded(samples):
    """Tokens and pixels of samples, padded to the longest, with no more tokens an image than the run is planned for."""
    shown = [pictures_of(sample) for sample in samples]
    texts = [text_of(sample, pictures) for sample, pictures in zip(samples, shown)]
    for _ in range(2):
        images = shown if any(shown) else None
        batch = processor(
            text=texts, images=images, padding=True, padding_side="right", add_special_tokens=False, return_tensors="pt"
        )
        places = (batch["input_ids"] == PLACE).sum(dim=1).tolist()
        if all(count <= IMAGE_TOKENS * len(pictures) for count, pictures in zip(places, shown)):
            break
        # A picture of another shape is cut into more tiles; on a canvas of the planned size it is not.
        shown = [[ImageOps.pad(picture, IMAGE_SIZE) for picture in pictures] for pictures in shown]
    return batch


def is_planned_for(sample):
    """Whether a sample has no more pictures and tokens than the run is planned for."""
    return len(pictures_of(sample)) <= IMAGES and encoded([sample])["input_ids"].shape[1] <= SEQ_LEN


def collate(samples):
    """A batch. Padding is not learnt, nor where a picture stands."""
    batch = encoded(samples)
    labels = batch["input_ids"].clone()
    labels[(batch["attention_mask"] == 0) | (labels == PLACE)] = -100
    return {**batch, "labels": labels}


whole = dataset
dataset = whole.filter(is_planned_for)
print(f"{dataset.num_rows} of {whole.num_rows} samples hold what the run is planned for")'''


def constants(run: RunConfig) -> Iterator[str]:
    """What every sample may hold at the most."""
    width, height = run.image_pixels or (None, None)
    yield f"SEQ_LEN = {run.seq_len}"
    yield f"IMAGES, IMAGE_SIZE, IMAGE_TOKENS = {run.images}, ({width}, {height}), {run.image_tokens}"


def arguments(run: RunConfig) -> dict[str, Any]:
    """What the trainer's arguments need so that samples reach the collator as they are."""
    return {"remove_unused_columns": False} if run.images else {}


def dataset_arguments(run: RunConfig) -> dict[str, Any]:
    """The same of what only SFTConfig has."""
    return {"dataset_kwargs": {"skip_prepare_dataset": True}} if run.images else {}


def parts(run: RunConfig, **otherwise: str) -> dict[str, Any]:
    """The trainer's collator, and what is saved beside the adapter; `otherwise` are those of text."""
    shown = {"data_collator": COLLATOR, "processing_class": "processor"} if run.images else {}
    return {name: Code(code) for name, code in {**otherwise, **shown}.items()}
