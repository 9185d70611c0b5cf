"""A plan as a Python script of its own: transformers, peft, bitsandbytes and trl, nothing of this package.

Every argument comes from `train.options`, so that a script trains the very run that `verify` measures.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import qlora_planner.exchange.scripts.unsloth as unsloth
from qlora_planner.catalog import find_optimizer
from qlora_planner.catalog.parallel import PIPELINE, ZERO3
from qlora_planner.catalog.trainers import trainer_named
from qlora_planner.errors import InputError
from qlora_planner.exchange.scripts import classification, images, preferences
from qlora_planner.exchange.scripts import rewards as reward_lists
from qlora_planner.exchange.scripts.functions import ATTENTION, TOKENIZE
from qlora_planner.exchange.scripts.loop import cut_loss, plain_loop
from qlora_planner.exchange.scripts.python_source import Code, call, literal
from qlora_planner.record import record
from qlora_planner.spec.run import RunConfig
from qlora_planner.train import options
from qlora_planner.train.losses import liger_parts

_SPLIT = "parts = dataset.train_test_split(test_size=0.02, seed=0)"
_LOADERS = {
    ".csv": '"csv", data_files=DATA',
    ".tsv": '"csv", data_files=DATA, delimiter="\\t"',
    ".parquet": '"parquet", data_files=DATA',
}
_HUB_DATASET = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@record
class Section:
    """A part of a script that does one thing, as a notebook's cell does."""

    title: str
    code: str


def script(run: RunConfig, model_id: str, data: str, heading: list[str], rewards: Sequence[str] = ()) -> str:
    """The whole script of a resolved run; `heading` are printable lines about the plan, `rewards` see `sections`."""
    parts = ["\n".join(f"# {line}".rstrip() for line in heading)]
    parts += [section.code for section in sections(run, model_id, data, rewards=rewards)]
    return "\n\n".join(parts) + "\n"


def sections(
    run: RunConfig, model_id: str, data: str, *, notebook: bool = False, rewards: Sequence[str] = ()
) -> list[Section]:
    """The script in the order in which it is run; every section needs those before it.

    `rewards` name what a trainer that generates learns from (see `train.rewards`).
    For a `notebook` it refuses to go on where torch is imported already and the allocator's settings would be ignored.
    """
    if run.expert_quant == "nf4":
        raise InputError(
            "a script would load fused experts in 16 bits, as transformers does: --export axolotl=FILE writes a config"
            " that stores them in NF4"
        )
    row = trainer_named(run.trainer)
    trainer, training = SCRIPTS[row.name](run)
    parts = [("Allocator", _opening(run, notebook=notebook))]
    if row.patches_libraries:
        parts += [
            ("Imports", "\n".join(unsloth.imports())),
            ("Config", "\n".join(unsloth.constants(run, model_id, data))),
            ("Model", "\n".join(unsloth.model(run))),
        ]
    else:
        parts += [
            ("Imports", "\n".join(_imports(run))),
            ("Config", "\n".join(_constants(run, model_id, data))),
            ("Model", "\n".join(_model(run))),
        ]
    parts += [
        ("Data", _dataset(run, data)),
        ("Rewards", "" if trainer_named(run.trainer).generation is None else reward_lists.section(run, rewards)),
        ("Trainer", trainer),
        ("Train", training),
    ]
    return [Section(title=title, code=code.strip("\n")) for title, code in parts if code]


def is_hub_dataset(data: str) -> bool:
    """Whether samples are a dataset on the Hub, `org/name`, and not a file or folder that is here."""
    named = _HUB_DATASET.fullmatch(data) and Path(data).suffix.lower() not in {*_LOADERS, ".json", ".jsonl"}
    return bool(named) and not Path(data).exists()


def packages(run: RunConfig) -> list[str]:
    """What the script imports, by the names that pip installs."""
    if trainer_named(run.trainer).patches_libraries:
        return [*unsloth.PACKAGES]  # which names the versions of all others
    names = ["torch", "transformers", "accelerate", "datasets"]
    names += ["peft"] if run.method != "full" else []
    optimizer = find_optimizer(run.optimizer)
    states = None if optimizer is None else optimizer.package
    names += ["bitsandbytes"] if options.quantization_options(run) or states == "bitsandbytes" else []
    names += [package for package in trainer_named(run.trainer).packages if package not in names]
    names += ["vllm"] if run.vllm not in (None, "none") else []
    names += ["cut-cross-entropy"] if run.loss_kernel == "cut-cross-entropy" else []
    names += images.PACKAGES if run.images else []
    return [*names, "liger-kernel"] if liger_parts(run) is not None else names


def _opening(run: RunConfig, *, notebook: bool) -> str:
    """What must come before torch is imported."""
    if run.alloc_conf is None:
        return ""
    lines = ["import os"]
    if notebook:
        lines += [
            "import sys",
            "",
            'assert "torch" not in sys.modules, "restart the kernel: torch is imported already"',
        ]
    lines += ["", "# torch reads its allocator's settings once, when it is imported."]
    lines += [
        f"os.environ[{literal(name)}] = {literal(value)}"
        for name, value in options.allocator_environment(run).items()
        if value is not None
    ]
    return "\n".join(lines)


def _imports(run: RunConfig) -> Iterator[str]:
    needed = ["functools"] if run.loss_kernel == "cut-cross-entropy" else []
    needed += ["io"] if run.images else []
    needed += ["os"] if (run.parallel is not None or run.images) and run.alloc_conf is None else []
    needed += ["re"] if run.target_modules == "attention" else []
    if needed:
        yield "".join(f"import {name}\n" for name in needed)
    yield "import torch"
    if run.task is None:
        yield "import transformers"
    yield "from datasets import load_dataset"
    yield from [images.PIL] if run.images else []
    if run.method != "full":
        own = trainer_named(run.trainer).adds_adapters
        names = [
            "LoraConfig",
            *([] if own else ["get_peft_model"]),
            *(["prepare_model_for_kbit_training"] if run.upcast else []),
        ]
        yield f"from peft import {', '.join(names)}"
    classifies = run.task is not None
    names = list(classification.IMPORTS) if classifies else ["AutoConfig", "AutoModelForCausalLM", "AutoTokenizer"]
    if preferences.is_reward(run):
        names = [preferences.reward_class(), "AutoTokenizer"]
    if options.quantization_options(run):
        names.append("BitsAndBytesConfig")
    names += ["AutoProcessor"] if run.images else []
    prepares_rows = trainer_named(run.trainer).prepares_rows
    if classifies:
        names += classification.TRAINING_IMPORTS
    elif not prepares_rows:
        names += ["DataCollatorForLanguageModeling", "Trainer", "TrainingArguments"]
    yield "from transformers import (\n" + "".join(f"    {name},\n" for name in names) + ")"
    if run.target_modules == "attention":
        yield "from transformers.pytorch_utils import Conv1D"
    if prepares_rows:
        yield f"from {trainer_named(run.trainer).trl_module} import {', '.join(preferences.classes(run))}"


def _constants(run: RunConfig, model_id: str, data: str) -> Iterator[str]:
    samples = images.DATA_NOTE if run.images else "JSON lines with messages, text, or prompt and completion"
    yield f"MODEL = {literal(model_id)}"
    note = preferences.data_note(run, samples) if run.task is None else classification.DATA_NOTE
    yield f"DATA = {literal(data)}  # {note}"
    yield 'OUTPUT = "outputs"'
    if run.images:
        yield from images.constants(run)
    elif not trainer_named(run.trainer).prepares_rows:
        yield f"SEQ_LEN = {run.seq_len}"
    own = 'int(os.environ.get("LOCAL_RANK", 0))' if run.parallel is not None else "0"
    yield f'DEVICE = {own} if torch.cuda.is_available() else "cpu"'


def _model(run: RunConfig) -> Iterator[str]:
    yield images.TOKENIZER if run.images else "tokenizer = AutoTokenizer.from_pretrained(MODEL)"
    yield "if tokenizer.pad_token is None:"
    yield "    tokenizer.pad_token = tokenizer.eos_token"
    loading: dict[str, Any] = {"device_map": _device_map(run), **_dtypes(options.model_options(run))}
    if preferences.is_reward(run):
        yield "# One label: the score."
        yield f"model_class = {preferences.reward_class()}"
        loading["num_labels"] = 1
    elif run.task is None:
        yield "# The class that the checkpoint names: it is the one that was planned for."
        yield "architectures = AutoConfig.from_pretrained(MODEL).architectures or [None]"
        yield 'model_class = getattr(transformers, architectures[0] or "", AutoModelForCausalLM)'
    else:
        loading |= classification.loading_options(run)
    quantization = options.quantization_options(run)
    if quantization:
        loading["quantization_config"] = Code(call("BitsAndBytesConfig", _dtypes(quantization)))
    model_class = "model_class" if run.task is None else classification.MODEL_CLASS
    yield f"model = {call(f'{model_class}.from_pretrained', loading, 'MODEL')}"
    if run.task is not None:
        yield from classification.after_loading()
    if run.method == "full":
        return
    if run.upcast:
        preparing = {
            "use_gradient_checkpointing": run.gradient_checkpointing,
            "gradient_checkpointing_kwargs": options.checkpointing_options(run),
        }
        yield f"model = {call('prepare_model_for_kbit_training', preparing, 'model')}"
    if run.target_modules == "attention":
        yield f"\n{ATTENTION}\n"
        adapters = {**options.lora_options(run, ["?"]), "target_modules": Code("attention_modules(model)")}
    else:
        adapters = options.lora_options(run)
    yield f"adapters = {call('LoraConfig', adapters)}"
    if not trainer_named(run.trainer).adds_adapters:
        yield "model = get_peft_model(model, adapters)"


def _device_map(run: RunConfig) -> Code:
    """Where each process loads. Raises InputError for a pipeline, whose map is of a model's own layers."""
    if run.parallel == PIPELINE:
        raise InputError("--export trl: the device map of a pipeline is not written; write one with lm_head on card 0")
    if run.parallel == ZERO3:  # DeepSpeed refuses any
        return Code("None")
    return Code('{"": "cpu"}' if run.load_on == "cpu" else '{"": DEVICE}')


def _dtypes(named: Mapping[str, Any]) -> dict[str, Any]:
    """Options with torch's dtypes in place of their names."""
    return {
        name: Code(f"torch.{value}") if name in ("dtype", options.COMPUTE_DTYPE, options.STORAGE_DTYPE) else value
        for name, value in named.items()
    }


def _dataset(run: RunConfig, data: str) -> str:
    loader = _LOADERS.get(Path(data).suffix.lower(), '"json", data_files=DATA')
    if is_hub_dataset(data):
        loader = "DATA"
    lines = [f'dataset = load_dataset({loader}, split="train")']
    if trainer_named(run.trainer).patches_libraries:
        lines.append(f"\n{unsloth.texts()}")
    elif run.images:
        lines.append(images.FUNCTIONS)
    elif not trainer_named(run.trainer).prepares_rows:
        lines.append(f"\n{TOKENIZE if run.task is None else classification.TOKENIZE}")
    if run.eval_batch_size is not None:
        lines.append(_SPLIT)
    return "\n".join(lines)


def _arguments(run: RunConfig) -> dict[str, Any]:
    """The run's own options, and what a script must say beside them, none of which takes memory."""
    own: dict[str, Any] = {
        "output_dir": Code("OUTPUT"),
        "num_train_epochs": 1,
        "logging_steps": 10,
        "save_strategy": "epoch",
        "report_to": "none",
        "use_cpu": Code('DEVICE == "cpu"'),
    }
    if run.eval_batch_size is not None:
        own["eval_strategy"] = "epoch"
    return {**own, **options.parallel_options(run, "cuda"), **options.trainer_options(run), **images.arguments(run)}


def _sets(run: RunConfig) -> dict[str, Any]:
    if run.eval_batch_size is None:
        return {"train_dataset": Code("dataset")}
    return {"train_dataset": Code('parts["train"]'), "eval_dataset": Code('parts["test"]')}


def _sft(run: RunConfig) -> tuple[str, str]:
    arguments = {**_arguments(run), **options.sequence_options(run), **images.dataset_arguments(run)}
    parts = {
        "model": Code("model"),
        "args": Code(call("SFTConfig", arguments)),
        **_sets(run),
        **images.parts(run, processing_class="tokenizer"),
    }
    return f"trainer = {call('SFTTrainer', parts)}", _ENDING


def _trainer(run: RunConfig) -> tuple[str, str]:
    of_text = "DataCollatorForLanguageModeling(tokenizer, mlm=False)"
    collator = of_text if run.task is None else classification.COLLATOR
    parts = {
        "model": Code("model"),
        "args": Code(call("TrainingArguments", _arguments(run))),
        **_sets(run),
        **images.parts(run, data_collator=collator, processing_class="tokenizer"),
    }
    return f"{cut_loss(run)}trainer = {call('Trainer', parts)}", _ENDING


_ENDING = """trainer.train()
trainer.save_model(OUTPUT)
if torch.cuda.is_available():
    print(f"peak allocated {torch.cuda.max_memory_allocated():,} bytes")"""


def _unsloth(run: RunConfig) -> tuple[str, str]:
    """trl's SFTTrainer as Unsloth has patched it; the precision of the whole process is the model's."""
    own = {name: value for name, value in _arguments(run).items() if name not in options.trainer_options(run)}
    del own["use_cpu"]
    parts = {
        "model": Code("model"),
        "args": Code(call("SFTConfig", {**own, **unsloth.trainer_arguments(run)})),
        **_sets(run),
        "processing_class": Code("tokenizer"),
    }
    return f"trainer = {call('SFTTrainer', parts)}", _ENDING


def _preference(run: RunConfig) -> tuple[str, str]:
    """trl adds the adapters: given a model that has them, it would keep a second set as the reference."""
    return _adding_adapters(run, options.preference_options(run), {})


def _online(run: RunConfig) -> tuple[str, str]:
    """The same with rewards, which are a section of their own."""
    return _adding_adapters(run, options.online_options(run), {"reward_funcs": Code("rewards")})


def _adding_adapters(run: RunConfig, own: Mapping[str, Any], parts: Mapping[str, Any]) -> tuple[str, str]:
    config, trainer = preferences.classes(run)
    parts = {
        "model": Code("model"),
        "args": Code(call(config, {**_arguments(run), **own})),
        **parts,
        **_sets(run),
        "processing_class": Code("tokenizer"),
    }
    if run.method != "full":
        parts["peft_config"] = Code("adapters")
    return f"trainer = {call(trainer, parts)}", _ENDING


# How a script trains, by trainer: what makes it, and what runs it.
SCRIPTS: Mapping[str, Callable[[RunConfig], tuple[str, str]]] = {
    "trl-sft": _sft, "hf-trainer": _trainer, "loop": plain_loop, "trl-dpo": _preference, "trl-kto": _preference,
    "trl-orpo": _preference, "trl-reward": _preference,
    "trl-grpo": _online, "trl-rloo": _online, "unsloth": _unsloth,
}  # fmt: skip
