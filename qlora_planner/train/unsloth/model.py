"""The model of a run as Unsloth loads it and adds adapters to it, from a folder or from random weights.

Unsloth changes transformers, peft and trl for the whole process, and has to be imported before them: see
`import_first`. Without a card its own CPU backend runs, which trains by the libraries' plain code.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

from qlora_planner.catalog.trainers import trainer_named
from qlora_planner.spec.run import RunConfig
from qlora_planner.train.unsloth import options as words

# Its words to a process: no counter of downloads is asked, and what it compiles does not lie in the user's folder.
QUIET, COMPILED = "UNSLOTH_DISABLE_STATISTICS", "UNSLOTH_COMPILE_LOCATION"
# Says that it is imported without a card to be looked at: its CPU backend, which can train there, stays away.
WITHOUT_CARD = "UNSLOTH_ALLOW_CPU"


def import_first(run: RunConfig, device: str) -> None:
    """Import the package that changes the other libraries, where the run's trainer has one: before any of them."""
    row = trainer_named(run.trainer)
    if not row.patches_libraries:
        return
    os.environ[QUIET] = "1"
    user = os.getuid() if hasattr(os, "getuid") else 0
    os.environ.setdefault(COMPILED, str(Path(tempfile.gettempdir()) / f"qlora-planner-unsloth-{user}"))
    if device == "cpu":
        os.environ.pop(WITHOUT_CARD, None)
    importlib.import_module(row.packages[0])


def load_random(raw: Mapping[str, Any], run: RunConfig, device: str, weights: dict[str, Any]) -> Any:
    """The model with `weights`, as `model.random_weights` makes them, through the loader that real ones go through."""
    from qlora_planner.train.data import word_tokenizer
    from qlora_planner.train.model import model_class, model_config

    with tempfile.TemporaryDirectory(prefix="qlora-plan-") as folder:
        config = model_config(raw)
        named = {"architectures": [model_class(raw, config).__name__], "torch_dtype": "bfloat16"}
        (Path(folder) / "config.json").write_text(json.dumps({**raw, **named}), encoding="utf-8")
        word_tokenizer(_words(config)).save_pretrained(folder)
        with _given(folder, weights):
            return load_folder(folder, run, device)


def load_folder(folder: str | Path, run: RunConfig, device: str) -> Any:
    """The model with the weights in `folder`, which holds its tokenizer too."""
    from unsloth import FastLanguageModel

    from qlora_planner.train.options import torch_dtype

    options = words.loading_options(run)
    options["dtype"] = torch_dtype(options["dtype"])
    placed = {"": 0 if device == "cuda" else device}
    model, _tokenizer = FastLanguageModel.from_pretrained(
        str(folder), **options, device_map=placed, trust_remote_code=False
    )
    return model


def add_adapters(model: Any, run: RunConfig) -> Any:
    """The model with LoRA adapters, as its own function adds them. Its refusals pass through."""
    from unsloth import FastLanguageModel

    return FastLanguageModel.get_peft_model(model, **words.adapter_options(run))


def _words(config: Any) -> int:
    """Words of a tokenizer that stands for the model's: no more than its embedding has rows for."""
    rows = int(getattr(config.get_text_config(decoder=True), "vocab_size", 1003))
    return max(1, min(1000, rows - 3))


@contextlib.contextmanager
def _given(folder: str, weights: Mapping[str, Any]) -> Iterator[None]:
    """transformers' loader takes the weights of this folder from `weights`, in place of files."""
    from transformers import PreTrainedModel

    load = PreTrainedModel.from_pretrained.__func__

    def loaded(cls: Any, path: Any = None, *args: Any, **named: Any) -> Any:
        if str(path) != folder:
            return load(cls, path, *args, **named)
        model = load(cls, None, *args, **{**named, "state_dict": dict(weights)})
        model.config._name_or_path = model.name_or_path = folder
        return model

    with mock.patch.object(PreTrainedModel, "from_pretrained", classmethod(loaded)):
        yield
