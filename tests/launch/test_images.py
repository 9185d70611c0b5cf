"""A tiny model that reads images trains on pictures beside chats, through its own processor, and resumes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("PIL")

from examples.toy_model import write_rows
from qlora_planner.errors import InputError
from qlora_planner.exchange.export import export
from qlora_planner.runs.child.pictures import Pictures, _placed
from qlora_planner.runs.spec import LaunchSpec
from qlora_planner.train.settings import Settings
from tests.launch.conftest import RUN, Start, finished, same, tensors, trained
from tests.launch.vision import FAMILIES, write_pictures, write_vision_model
from tests.wide import some

# numpy says it of a tensor that InternVL's processor adds up.
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")

SHOWN = RUN.with_(
    trainer="hf-trainer", images=2, image_size="56x56", image_tokens=4, batch_size=2, lora_dropout=0.0, seq_len=48
)
SETTINGS = Settings(max_steps=4, save_steps=2, learning_rate=5e-3)
Make = Callable[..., LaunchSpec]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models as one would download them, tiny, made when they are asked for, beside pictures."""
    place = tmp_path_factory.mktemp("images")
    write_pictures(place)
    return place


def model_in(folder: Path, family: str) -> str:
    place = folder / family
    return str(place if place.exists() else write_vision_model(place, family))


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
    def made(rows: list[dict[str, Any]] | None = None, family: str = "qwen2_5_vl", **changes: Any) -> LaunchSpec:
        data = write_rows(folder / f"{tmp_path.name}.jsonl", rows or CHATS)
        output = tmp_path / "run"
        output.mkdir(exist_ok=True)
        known: dict[str, Any] = {
            "run": SHOWN,
            "settings": SETTINGS,
            "model_id": "toy",
            "weights": model_in(folder, family),
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


@pytest.mark.parametrize("family", some(list(FAMILIES), 4))
def test_a_processor_s_batch_is_the_one_that_is_planned(make: Make, family: str) -> None:
    """Every tensor beside the tokens, by its shape, of the pictures' own size and of one that is made to fit."""
    from qlora_planner.catalog.images import picture_of, reader_of, shown_by
    from qlora_planner.train.images import image_dims, placeholder_of
    from qlora_planner.train.model import model_config

    shown = ["0.png", "1.png"]
    config = model_config(json.loads((Path(make(family=family).weights) / "config.json").read_text()))
    dims, sized = image_dims(config), SHOWN.with_(image_size="112x112", image_tokens=None, seq_len=512)
    run = sized.with_(image_tokens=picture_of(family, dims, sized).tokens)
    pictures, rows = prepared(make([{**CHATS[0], "images": shown}] * 2, family=family, run=run))
    made = pictures.tokenised(rows)
    batch = pictures.collate([dict(row) for row in made])
    planned = shown_by(family, dims, run.with_(seq_len=batch["input_ids"].shape[1]), 2)
    assert planned is not None
    parts = {part.name: part.shape for part in reader_of(family).inputs(dims, planned)}
    assert parts.items() <= {name: tuple(tensor.shape) for name, tensor in batch.items()}.items()
    assert batch["input_ids"].tolist() == made["input_ids"]
    places = batch["input_ids"] == placeholder_of(config)
    assert places.sum() == 2 * 2 * (run.image_tokens or 0)
    assert (batch["labels"][places] == -100).all() and (batch["labels"] != -100).any()
    if (marks := reader_of(family).marks) is not None:
        assert batch[marks].shape == places.shape


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


@pytest.mark.parametrize("family", some(["mllama", "idefics3", "llava_next", "internvl"], 1))
def test_another_class_s_pictures_are_trained_on(make: Make, family: str) -> None:
    run = SHOWN.with_(image_size="112x90", image_tokens=None, seq_len=256)
    facts, _ = trained(make(family=family, run=run, settings=Settings(max_steps=1, save_steps=1)))
    assert (facts["outcome"], facts["steps"], facts["rows"]) == ("ok", 1, 4), facts


def test_the_command_line_trains_on_pictures_of_gemma_3(folder: Path, start: Start, tmp_path: Path) -> None:
    run = SHOWN.with_(image_size="112x112", seq_len=64)
    plan = {
        "schema": "qlora-plan/plan/1",
        "model": {"id": model_in(folder, "gemma3")},
        "gpu": None,
        "run": run.to_dict(),
    }
    (tmp_path / "plan.yaml").write_text(json.dumps(plan))
    process = start(
        str(tmp_path / "plan.yaml"), "--data", str(write_rows(folder / "cli.jsonl", CHATS)), "--device", "cpu",
        "--max-steps", "2", "--output", str(tmp_path / "run"),
    )  # fmt: skip
    code, _, err = finished(process)
    assert code == 0, err
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 2
    assert (tmp_path / "run" / "adapter" / "preprocessor_config.json").is_file()


def test_images_stand_where_the_text_says_so() -> None:
    (message,) = _placed([{"role": "user", "content": "left <image> right <image>"}])
    assert [part["type"] for part in message["content"]] == ["text", "image", "text", "image"]
    assert _placed(CHATS[0]["messages"]) == CHATS[0]["messages"]


def test_trl_s_trainer_takes_the_same_batches(make: Make) -> None:
    run = SHOWN.with_(trainer="trl-sft")
    facts, _ = trained(make(run=run, settings=Settings(max_steps=1, save_steps=1)))
    assert (facts["outcome"], facts["steps"], facts["rows"]) == ("ok", 1, 4), facts


def document(**changes: Any) -> dict[str, Any]:
    run = SHOWN.with_(**changes).to_dict()
    return {"schema": "qlora-plan/plan/1", "model": {"id": "toy"}, "gpu": None, "run": run}


@pytest.mark.parametrize("family", some(["qwen2_5_vl", "idefics3", "mllama"], 1))
def test_a_script_makes_the_batches_that_train_makes(make: Make, family: str) -> None:
    """Its functions are run on the model's own processor, beside what a training run makes of the same rows."""
    from datasets import Dataset

    run = SHOWN.with_(image_size="112x90", image_tokens=68 if family == "idefics3" else 20, seq_len=512)
    run = run.with_(image_tokens=1) if family == "mllama" else run
    pictures, rows = prepared(make([{**CHATS[0], "images": ["0.png", "1.png"]}] * 2, family=family, run=run))
    wanted = pictures.collate([dict(row) for row in pictures.tokenised(rows)])
    spec = make(family=family, run=run)
    data = str(Path(spec.weights).parent / "rows.jsonl")
    script = export("trl", document(**run.to_dict()), data)
    pictures.processor.chat_template = pictures._template
    model = SimpleNamespace(config=pictures._config)
    sizes = next(line for line in script.splitlines() if line.startswith("IMAGES, IMAGE_SIZE"))
    own: dict[str, Any] = {"processor": pictures.processor, "model": model, "DATA": data, "SEQ_LEN": run.seq_len}
    own["dataset"] = Dataset.from_list([{"messages": CHATS[0]["messages"], "images": ["0.png", "1.png"]}] * 2)
    functions = script[script.index("names = (") : script.index("trainer = Trainer(")]
    exec(f"import io, os\nfrom PIL import Image, ImageOps\n{sizes}\n{functions}", own)
    made = own["collate"](own["dataset"])
    assert made.keys() == wanted.keys()
    assert all((made[name] == wanted[name]).all() for name in made), made


@pytest.mark.parametrize(
    ("kind", "changes", "says"),
    [
        ("axolotl", {}, "axolotl has no key for how many images a row holds"),
        ("llama-factory", {}, "LLaMA-Factory has no key for how many images a row holds"),
        ("trl-config", {"trainer": "trl-sft"}, "nothing there makes batches of images; --export trl"),
        ("trl", {"image_size": None}, "say --image-size WIDTHxHEIGHT"),
    ],
)
def test_what_a_file_cannot_say_of_images_is_one_line(kind: str, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=f"--export {kind}: .*{says}"):
        export(kind, document(**changes))


@pytest.mark.parametrize("trainer", ["hf-trainer", "trl-sft", "loop"])
def test_a_script_gives_its_trainer_the_collator_of_images(trainer: str) -> None:
    for kind in ("trl", "notebook"):
        text = export(kind, document(trainer=trainer))
        assert "AutoProcessor.from_pretrained(MODEL)" in text and "DataCollatorForLanguageModeling(" not in text
        assert ("remove_unused_columns=False" in text) == (trainer != "loop")
    script = export("trl", document(trainer=trainer))
    compile(script, "train.py", "exec")
    assert ("data_collator=collate" in script) == (trainer != "loop")
    assert 'dataset_kwargs={"skip_prepare_dataset": True}' in script or trainer != "trl-sft"
