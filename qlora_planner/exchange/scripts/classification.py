"""What a script says otherwise where it trains a classifier: the class, its samples, its batches."""

from __future__ import annotations

from typing import Any

from qlora_planner.catalog.classifiers import labels_of
from qlora_planner.spec.run import RunConfig

DATA_NOTE = "JSON lines with text and label"
IMPORTS = ("AutoModelForSequenceClassification", "AutoTokenizer")
TRAINING_IMPORTS = ("DataCollatorWithPadding", "Trainer", "TrainingArguments")
MODEL_CLASS = "AutoModelForSequenceClassification"
COLLATOR = "DataCollatorWithPadding(tokenizer)"
# Labels are numbered as `train` numbers them: numbers stay, words count in their order.
TOKENIZE = '''
label_column = "label" if "label" in dataset.column_names else "labels"
names = sorted(set(dataset[label_column]))
are_numbers = all(str(name).isdigit() for name in names)
number_of = {name: int(name) if are_numbers else at for at, name in enumerate(names)}


def tokens_of(sample):
    """Tokens of one sample's `text`, and the number of its label."""
    tokens = tokenizer(sample["text"], truncation=True, max_length=SEQ_LEN)
    return {**tokens, "labels": number_of[sample[label_column]]}


dataset = dataset.map(tokens_of, remove_columns=dataset.column_names)'''


def loading_options(run: RunConfig) -> dict[str, Any]:
    """What loading is told beside the options of every run."""
    return {"num_labels": labels_of(run)}


def after_loading() -> list[str]:
    """What the model is told, before adapters are added."""
    return [
        "model.config.pad_token_id = tokenizer.pad_token_id",
        "# Its loss is a mean over rows: told so, the trainer divides it by the number of micro-batches.",
        "model.accepts_loss_kwargs = False",
    ]
