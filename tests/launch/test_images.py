"""A tiny model that reads images trains on pictures beside chats, through its own processor, and resumes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("PIL")

import torch
from PIL import Image

from examples.toy_model import write_rows, write_tokenizer
from qlora_planner.errors import InputError
from qlora_planner.exchange.export import EXPORTS, export
from qlora_planner.runs.child.pictures import Pictures, check_trained
from qlora_planner.runs.spec import LaunchSpec
from qlora_planner.train.settings import Settings
from tests.launch.conftest import RUN, same, tensors, trained
from tests.tracing.test_images import QWEN25

SHOWN = RUN.with_(
    trainer="hf-trainer", images=2, image_size="56x56", image_tokens=4, batch_size=2, lora_dropout=0.0, seq_len=48
)
SETTINGS = Settings(max_steps=4, save_steps=2, learning_rate=5e-3)
_MARKS = ("<|image_pad|>", "<|vision_start|>", "<|vision_end|>", "<|video_pad|>")
_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
Make = Callable[..., LaunchSpec]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2.5-VL as one would download it, tiny, and pictures with chats about them."""
    import transformers
    from transformers import AutoTokenizer

    place = tmp_path_factory.mktemp("images")
    model = place / "model"
    write_tokenizer(model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_special_tokens({"additional_special_tokens": list(_MARKS)})
    ids = dict(
        zip(("image", "vision_start", "vision_end", "video"), tokenizer.convert_tokens_to_ids(_MARKS), strict=True)
    )
    raw = {**QWEN25, **{f"{name}_token_id": number for name, number in ids.items()}}
    raw["text_config"] = {**raw["text_config"], "num_hidden_layers": 2}
    torch.manual_seed(0)
    config = transformers.Qwen2_5_VLConfig(**{name: value for name, value in raw.items() if name != "model_type"})
    transformers.Qwen2_5_VLForConditionalGeneration(config).to(torch.bfloat16).save_pretrained(model)
    tokenizer.chat_template = _TEMPLATE
    tokenizer.save_pretrained(model)
    transformers.Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=112 * 112).save_pretrained(model)
    for index in range(4):
        Image.new("RGB", (112, 112), (60 * index, 255 - 60 * index, 128)).save(place / f"{index}.png")
    return place


CHATS: list[dict[str, Any]] = [
    {
        "messages": [
            {"role": "user", "content": "count from one"},
            {"role": "assistant", "content": " ".join(["one", "two", "three"][: 1 + index % 3])},
        ],
        "images": [f"{index}.png", "0.png"][: 1 + index % 2],
    }
    for index in range(4)
]


@pytest.fixture
def make(folder: Path, tmp_path: Path) -> Make:
    def made(rows: list[dict[str, Any]] | None = None, **changes: Any) -> LaunchSpec:
        data = write_rows(folder / f"{tmp_path.name}.jsonl", rows or CHATS)
        output = tmp_path / "run"
        output.mkdir(exist_ok=True)
        known: dict[str, Any] = {
            "run": SHOWN,
            "settings": SETTINGS,
            "model_id": "toy",
            "weights": str(folder / "model"),
        }
        return LaunchSpec(**{**known, "data": str(data), "output": str(output), "device": "cpu", **changes})

    return made


def test_pictures_are_trained_on_and_a_run_goes_on_where_it_was(make: Make) -> None:
    facts, told = trained(make())
    assert (facts["outcome"], facts["steps"]) == ("ok", 4), facts
    rehearsed = next(facts for event, facts in told if event == "rehearsed")
    assert rehearsed["rows"] == 2 and rehearsed["longest"] <= SHOWN.seq_len
    output = Path(make().output)
    saved = tensors(output / "adapter")
    assert any("visual" in name and "lora_B" in name and tensor.abs().max() > 0 for name, tensor in saved.items())
    assert (output / "adapter" / "tokenizer.json").is_file()
    whole = (output / "adapter").rename(output.parent / "whole")
    first = sorted((output / "checkpoints").glob("checkpoint-*"))[0]
    assert trained(make(resume=str(first)))[0]["outcome"] == "ok"
    assert same(whole, output / "adapter")


def test_a_prompt_is_not_learnt_from_and_each_image_is_as_many_tokens_as_its_grid(make: Make) -> None:
    pictures, rows = prepared(make([{"prompt": "count", "completion": "one", "image": "0.png"}]))
    (row,) = pictures.tokenised(rows)
    learnt = [token for token in row["labels"] if token != -100]
    assert pictures.tokenizer.decode(learnt) == "one</s>"
    assert row["input_ids"].count(pictures.tokenizer.convert_tokens_to_ids("<|image_pad|>")) == 4
    batch = pictures.collate([row])
    # Made to fit 56x56, of which 4 x 4 patches of 14 pixels are 2 x 2 tokens.
    assert batch["image_grid_thw"].tolist() == [[1, 4, 4]] and batch["pixel_values"].shape == (16, 3 * 2 * 14 * 14)


def prepared(spec: LaunchSpec) -> tuple[Pictures, Any]:
    from qlora_planner.runs.dataset import load_rows, load_tokenizer

    tokenizer = load_tokenizer(spec.weights, spec.settings, lambda _: None)
    rows, _ = load_rows(
        spec.data, spec.run, spec.settings, bad_rows=spec.bad_rows, cache=Path(spec.output), note=lambda _: None
    )
    return Pictures(spec, tokenizer), rows


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({**CHATS[0], "images": ["0.png"] * 3}, "1 of 1 rows are beyond --images 2 or --seq-len 48; --images 3"),
        ({**CHATS[0], "images": ["9.png"]}, "its image '9.png' is not there"),
        ({"text": "one", "images": ["0.png"]}, "rows with images need messages, or prompt and completion"),
    ],
)
def test_a_row_that_no_run_with_images_takes_is_one_line(make: Make, row: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        pictures, rows = prepared(make([row]))
        pictures.tokenised(rows)


def test_trl_s_trainer_takes_the_same_batches(make: Make) -> None:
    run = SHOWN.with_(trainer="trl-sft")
    facts, _ = trained(make(run=run, settings=Settings(max_steps=1, save_steps=1)))
    assert (facts["outcome"], facts["steps"], facts["rows"]) == ("ok", 1, 4), facts


def test_other_models_and_exports_name_what_works() -> None:
    with pytest.raises(InputError, match=r"trained on with qwen2_vl, qwen2_5_vl, .* of gemma3 `estimate`"):
        check_trained("gemma3")
    plan = {"schema": "qlora-plan/plan/1", "model": {"id": "toy"}, "gpu": None, "run": SHOWN.to_dict()}
    for kind in set(EXPORTS) - {"accelerate"}:
        with pytest.raises(InputError, match=f"--export {kind}: runs with images are not written yet; --save keeps"):
            export(kind, plan)
