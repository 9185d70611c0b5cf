"""A script for Unsloth: its own loader and adapters, and the SFTTrainer that it has patched."""

from __future__ import annotations

from collections.abc import Iterator

from qlora_planner.exchange.scripts.python_source import Code, call, literal
from qlora_planner.spec.run import RunConfig
from qlora_planner.train import options
from qlora_planner.train.unsloth import options as own

PACKAGES = ["unsloth", "trl", "datasets"]
# Unsloth prepares texts; samples of the shapes that trl takes become texts here.
_TEXTS = '''
def text_of(sample):
    """One text of a sample: `messages`, `prompt` with `completion`, or `text`."""
    if "messages" in sample:
        return {"text": tokenizer.apply_chat_template(sample["messages"], tokenize=False)}
    text = sample["text"] if "text" in sample else sample["prompt"] + sample["completion"]
    return {"text": text + tokenizer.eos_token}


dataset = dataset.map(text_of, remove_columns=dataset.column_names)'''


def imports() -> Iterator[str]:
    """Unsloth first: it patches what is imported after it."""
    yield "from unsloth import FastLanguageModel\n"
    yield "import torch"
    yield "from datasets import load_dataset"
    yield "from trl import SFTConfig, SFTTrainer"


def constants(run: RunConfig, model_id: str, data: str) -> Iterator[str]:
    """What a reader may want to change."""
    yield f"MODEL = {literal(model_id)}"
    yield f"DATA = {literal(data)}  # JSON lines with messages, text, or prompt and completion"
    yield 'OUTPUT = "outputs"'
    yield f"SEQ_LEN = {run.seq_len}"


def model(run: RunConfig) -> Iterator[str]:
    """Its loader and its adapters. Raises InputError where the adapters' modules are known by their class alone."""
    adapters = own.adapter_options(run)
    loading = own.loading_options(run)
    loading |= {"max_seq_length": Code("SEQ_LEN"), "dtype": Code(f"torch.{loading['dtype']}")}
    yield "# The model that was planned for, not a checkpoint of Unsloth's own in which some layers stay in 16 bits."
    yield f"model, tokenizer = {call('FastLanguageModel.from_pretrained', loading, 'MODEL')}"
    yield f"model = {call('FastLanguageModel.get_peft_model', adapters, 'model')}"


def texts() -> str:
    """Samples as texts."""
    return _TEXTS


def trainer_arguments(run: RunConfig) -> dict[str, object]:
    """What the run decides of SFTConfig; checkpointing was decided when the model was loaded."""
    return own.trainer_options(run, options.trainer_options(run))
