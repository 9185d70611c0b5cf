"""Known error lines of Unsloth, axolotl, LLaMA-Factory, and what any package may lack."""

from __future__ import annotations

from qlora_planner.diagnose.symptoms.row import Symptom

ROWS = (
    Symptom(
        "unsloth-first",
        r"Unsloth (?:should|must) be imported before|import unsloth (?:first|before)",
        "Unsloth patches transformers, trl and peft, and must come first",
        "import unsloth in the first line, restart the kernel",
        "https://github.com/unslothai/unsloth/blob/main/unsloth/__init__.py",
        ("unsloth",),
    ),
    Symptom(
        "unsloth-card",
        r"Unsloth cannot find any torch accelerator|Unsloth currently only works on|Unsloth: No GPU",
        "torch sees no card here: a CPU runtime, or a CPU build of torch",
        "Colab: Runtime > Change runtime type > GPU; qlora-plan doctor",
        "https://github.com/unslothai/unsloth/blob/main/unsloth/device_type.py",
        ("unsloth", "torch"),
    ),
    Symptom(
        "labels-masked",
        r"All labels in your dataset are -100|Most labels in your dataset are -100|response "
        r"(?:key|template)[^\n]{0,160}in the following instance",
        "no answer is left to train on: the markers of train_on_responses_only (or the response template) "
        "are not those of this model's template, or rows are cut before the answer",
        "print(tokenizer.decode(row['input_ids'])) and take the markers from it, line ends included; a "
        "larger max_length",
        "https://github.com/unslothai/unsloth/issues/2900",
        ("unsloth", "trl"),
    ),
    Symptom(
        "unsloth-adapters",
        r"Unsloth: Your model needs to call `?\.get_peft_model`?|Unsloth: [^\n]{0,100}add(?:ed)? LoRA "
        r"adapters",
        "the 4-bit model has no adapters yet",
        "model = FastLanguageModel.get_peft_model(model, r=16, ...) before the trainer",
        "https://github.com/unslothai/unsloth/blob/main/unsloth/models/llama.py",
        ("unsloth",),
    ),
    Symptom(
        "llama-factory-data",
        r"Cannot find valid samples, check `?data/README\.md|Undefined dataset \w{1,80} in "
        r"dataset_info\.json",
        "LLaMA-Factory found no usable rows: columns are not mapped in dataset_info.json (alpaca or "
        "sharegpt), roles do not alternate, rows are too few for streaming, or the name is not listed there",
        "give formatting, columns and tags of your file in data/dataset_info.json; llamafactory-cli with "
        "preprocessing_num_workers: 1 shows the row",
        "https://github.com/hiyouga/LlamaFactory/issues/5737",
        ("llamafactory",),
    ),
    Symptom(
        "llama-factory-template",
        r"Template \w{1,60} does not exist",
        "LLaMA-Factory has no template of that name: a misspelling, or a version older than the model",
        "template: llama3, qwen3, gemma3, ... as in its README's table; pip install -U llamafactory",
        "https://github.com/hiyouga/LlamaFactory/blob/main/src/llamafactory/data/template.py",
        ("llamafactory",),
    ),
    Symptom(
        "axolotl-config",
        r"validation errors? for (?:Axolotl\w{0,40}|\w{0,40}AxolotlConfigWCapabilities)",
        "axolotl refuses keys of the config: a misspelt or retired one, or two that exclude each other; "
        "the lines below name them",
        "qlora-plan check FILE reads the config too; axolotl config-schema lists the keys",
        "https://docs.axolotl.ai/docs/config-reference.html",
        ("axolotl",),
    ),
    Symptom(
        "axolotl-prompt",
        r"unhandled prompt tokenization strategy|Could not find (?:prompt )?strategy",
        "axolotl knows no dataset type of that name (sharegpt is gone)",
        "type: chat_template with field_messages, or alpaca",
        "https://docs.axolotl.ai/docs/dataset-formats/",
        ("axolotl",),
    ),
    Symptom(
        "unsloth-tokens",
        r"Unsloth: Untrained tokens of|embeddings? (?:are|is) untrained",
        "the template uses tokens whose embeddings a base model never trained (Llama 3's headers)",
        "the -Instruct model; or train embed_tokens and lm_head too (modules_to_save)",
        "https://github.com/unslothai/unsloth/issues/1023",
        ("unsloth",),
    ),
    Symptom(
        "missing-module",
        r"No module named '(?P<name>[A-Za-z_][\w]{0,60})",
        "the package that provides {name} is not installed in the Python that runs (a notebook's kernel "
        "can be another one)",
        "python -m pip install {name}; qlora-plan doctor lists what training needs",
        "https://packaging.python.org/en/latest/tutorials/installing-packages/",
        fallback=True,
    ),
)
